"""The verdict, on runs with values made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_files import RESAMPLES, write_cost, write_values
from scipy import stats

from edue_lightning.reporting import judge, read_run
from edue_lightning.reporting.comparison import (
    best_methods,
    paired_difference,
    paired_differences,
    replicates_over_seeds,
)
from edue_lightning.reporting.findings import Finding, Verdict
from edue_lightning.reporting.outcomes import MARGINS, interval_p, inverted_p, outcome, two_sided_p
from edue_lightning.reporting.tables import differences_table
from edue_lightning.reporting.verdict_text import TITLES, summary, table
from edue_lightning.runs.files import METRICS_COLUMNS, Replicates, Run, write_replicates, write_table

NOTHING = dict.fromkeys(("image_pearson", "pixel_pearson"), 0.5)


def run(folder: Path, method: str, test: Mapping[str, float], validation: Mapping[str, float] | None = None, **more):
    """Write and read a run of one structure; without values of its own the validation has those of the test."""
    seed = more.pop("seed", 0)
    name = f"{more.get('data', 'lidc')}_{method}_{seed}"
    validation = test if validation is None else validation
    return read_run(
        write_values(folder / name, method, seed, {"nodule": {**NOTHING, **test}}, {"nodule": validation}, **more)
    )


def row(verdict: Verdict, quantity: str) -> pd.Series:
    """Return the row of a quantity in the table of the best baselines."""
    shown = table(verdict, "best baseline")
    return shown[shown["quantity"] == TITLES[quantity]].iloc[0]


def of(verdict: Verdict, quantity: str, part: str = "best baseline", data: str = "lidc") -> Finding:
    (found,) = [f for f in verdict.findings if (f.part, f.quantity, f.data) == (part, quantity, data)]
    return found


def usual(folder: Path, edue: float, layers: float, deep: float, data: str = "lidc", noise: float = 0.0) -> list[Run]:
    values = {"edue": edue, "layer_ensemble": layers, "deep_ensemble": deep}
    return [
        run(folder, method, {"image_pearson": value}, data=data, noise=noise)
        for method, value in values.items()  # the pixel level stays at that of the others
    ]


def test_each_method_has_the_mask_rule_that_is_best_on_validation_data(tmp_path: Path) -> None:
    own, rule = {"dice": 0.80, "dice_by_expected_dice": 0.78}, {"dice": 0.70, "dice_by_expected_dice": 0.82}
    runs = [
        run(tmp_path, "edue_levels", own, {"dice": 0.8, "dice_by_expected_dice": 0.7}),
        run(tmp_path, "single", rule, {"dice": 0.7, "dice_by_expected_dice": 0.8}),
    ]
    found = of(judge(runs, "edue_levels"), "dice")
    assert (found.metric, found.baseline_metric) == ("dice", "dice_by_expected_dice")
    assert found.change == pytest.approx(-0.02)
    shown = row(judge(runs, "edue_levels"), "dice")
    assert (shown["baseline"], shown["its value"]) == ("single", "0.820 (mask of the largest expected Dice)")
    # a rule counts only where all methods have it
    found = of(judge([*runs, run(tmp_path, "deep_ensemble", {"dice": 0.75})], "edue_levels"), "dice")
    assert (found.metric, found.baseline, found.baseline_metric) == ("dice", "deep_ensemble", "dice")


@pytest.mark.parametrize(
    ("edue", "layers", "deep", "measure", "change", "target", "outcome"),
    [
        (0.64, 0.3, 0.5, "relative gain", 0.6, 0.55, "better"),
        (0.62, 0.3, 0.5, "relative gain", 0.55, 0.55, "not distinguishable"),  # just reached
        (0.61, 0.3, 0.5, "relative gain", 0.525, 0.55, "worse"),
        # +55 % of 0.8 would pass 1, so half the distance is wanted
        (0.9, 0.75, 0.85, "distance closed", 0.5, 0.5, "not distinguishable"),
        (0.89, 0.75, 0.85, "distance closed", 0.45, 0.5, "worse"),
        # of a baseline that is not positive there is no gain; half of 1.2 is 0.6
        (0.41, -0.3, -0.1, "distance closed", 0.61 / 1.2, 0.5, "better"),
        (0.4, -0.3, -0.1, "distance closed", 0.5, 0.5, "not distinguishable"),
        (0.3, -0.3, -0.1, "distance closed", 0.5 / 1.2, 0.5, "worse"),
        (0.6, np.nan, 0.4, "distance closed", np.nan, 0.5, "undefined"),
        (np.nan, 0.3, 0.4, "relative gain", np.nan, 0.55, "undefined"),
    ],
)
def test_the_target_over_the_usual_ensembles(
    tmp_path: Path, edue: float, layers: float, deep: float, measure: str, change: float, target: float, outcome: str
) -> None:
    found = of(judge(usual(tmp_path, edue, layers, deep), "edue"), "image_pearson", "usual")
    assert (found.measure, found.outcome) == (measure, outcome)
    assert found.change == pytest.approx(change, nan_ok=True)
    assert found.target == pytest.approx(target)
    # no replicate differs from the value
    assert (found.ci_low, found.ci_high) == pytest.approx((change, change), nan_ok=True)


def test_gains_are_averaged_over_data_sets(tmp_path: Path) -> None:
    lidc = usual(tmp_path, 0.72, 0.4, 0.4, "lidc")
    # over one data set the average would be the same comparison again
    assert {f.data for f in judge(lidc, "edue").findings if f.part == "usual"} == {"lidc"}
    runs = lidc + usual(tmp_path, 0.6, 0.4, 0.4, "fundus")
    found = of(judge(runs, "edue"), "image_pearson", "usual", "all")
    assert found.change == pytest.approx((0.8 + 0.5) / 2)
    assert (found.target, found.outcome) == (0.55, "better")
    # a data set whose target is no relative gain has a finding of its own, and the average names it
    more = usual(tmp_path, 0.1, -0.2, -0.2, "petct") + usual(tmp_path, 0.89, 0.8, 0.8, "cells")
    verdict = judge(runs + more, "edue")
    missed = of(verdict, "image_pearson", "usual", "all")
    assert (missed.change, missed.target) == (found.change, found.target)
    assert missed.reason == "without petct and cells, whose target is no relative gain"
    assert of(verdict, "image_pearson", "usual", "petct").outcome == "worse"
    assert of(verdict, "image_pearson", "usual", "cells").outcome == "worse"


def test_half_the_distance_is_tested_as_such(tmp_path: Path) -> None:
    runs = usual(tmp_path, 0.9, 0.78, 0.82, noise=0.01)
    found = of(judge(runs, "edue"), "image_pearson", "usual")
    own, *others = (one.replicates.arrays["nodule", "image_pearson"] for one in runs)
    baselines = np.mean(others, axis=0)
    closed = (own - baselines) / (1 - baselines)
    # the baseline varies too, also where it sets the target
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(closed, [0.025, 0.975]))
    assert found.p_value == two_sided_p(closed - 0.5, 9)


@pytest.mark.parametrize("order", [("A", "B"), ("B", "A")])
@pytest.mark.parametrize("baseline", [0.3, -0.2])  # with a relative gain on B, and without one
def test_a_degenerate_model_on_one_data_set_leaves_the_average_undefined(
    tmp_path: Path, order: tuple[str, str], baseline: float
) -> None:
    runs = []
    for data in order:
        for method, value in {"edue": 0.9, "layer_ensemble": 0.3, "deep_ensemble": 0.3}.items():
            value = baseline if data == "B" and method != "edue" else value
            dice = 0.001 if (data, method) == ("B", "edue") else 0.8
            runs.append(run(tmp_path, method, {"image_pearson": value, "dice": dice}, data=data, noise=0.01))
    found = of(judge(runs, "edue"), "image_pearson", "usual", "all")
    assert (found.outcome, found.reason) == ("undefined", "degenerate model, Dice 0.001 on B")


def test_the_interval_of_a_gain_is_that_of_its_paired_replicates(tmp_path: Path) -> None:
    runs = usual(tmp_path, 0.6, 0.4, 0.5, noise=0.05)
    found = of(judge(runs, "edue"), "image_pearson", "usual")
    own, layers, deep = (run.replicates.arrays["nodule", "image_pearson"] for run in runs)
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(own / ((layers + deep) / 2) - 1, [0.025, 0.975]))


def test_the_usual_ensembles_are_needed(tmp_path: Path) -> None:
    verdict = judge(usual(tmp_path, 0.6, 0.4, 0.5)[:2], "edue")
    assert not [finding for finding in verdict.findings if finding.part == "usual"]
    assert any("no run of deep_ensemble" in remark for remark in verdict.remarks)


def test_several_structures_are_judged_by_their_mean_and_one_by_one(tmp_path: Path) -> None:
    runs = []
    for method, value in {"edue": 0.7, "layer_ensemble": 0.4, "deep_ensemble": 0.4}.items():
        values = {name: {**NOTHING, "image_pearson": value, "nll": 0.1} for name in ("disc", "cup", "mean")}
        runs.append(read_run(write_values(tmp_path / method, method, 0, values, values)))
    verdict = judge(runs, "edue")
    assert of(verdict, "image_pearson", "usual").structure == "mean"
    assert [f.structure for f in verdict.findings if (f.part, f.quantity) == ("best baseline", "nll")] == [
        "disc",
        "cup",
    ]


def test_the_best_baseline_is_chosen_on_validation_data(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "edue", {"nll": 0.049}),
        run(tmp_path, "layer_ensemble", {"nll": 0.055}, {"nll": 0.04}),
        # better on the test data, where nobody may look
        run(tmp_path, "single", {"nll": 0.030}, {"nll": 0.06}),
        # a variant of the candidate is no baseline
        run(tmp_path, "edue_unguided", {"nll": 0.010}, {"nll": 0.01}),
        # nor is an ensemble of its own networks
        run(tmp_path, "deep_ensemble_levels_mask", {"nll": 0.010}, {"nll": 0.01}),
    ]
    verdict = judge(runs, "edue")
    found = of(verdict, "nll")
    assert (found.baseline, found.value, found.baseline_value) == ("layer_ensemble", 0.049, 0.055)
    assert found.change == pytest.approx(-0.006)
    assert found.outcome == "better"
    shown = row(verdict, "nll")
    assert shown.tolist()[:3] == ["lidc", "nodule", "NLL"]
    assert (shown["edue"], shown["baseline"], shown["its value"]) == ("0.049", "layer_ensemble", "0.055")
    assert (shown["change"], shown["outcome"]) == ("-0.006 [-0.006, -0.006]", "better")


def test_each_method_has_the_read_out_that_is_best_on_validation_data(tmp_path: Path) -> None:
    runs = [
        run(
            tmp_path,
            "edue",
            {"pixel_pearson": 0.6, "pixel_pearson_total": 0.9},
            {"pixel_pearson": 0.7, "pixel_pearson_total": 0.5},
        ),
        # its members do not vary
        run(tmp_path, "single", {"pixel_pearson": np.nan, "pixel_pearson_total": 0.5}),
        run(tmp_path, "layer_ensemble", {"pixel_pearson": 0.45, "pixel_pearson_total": 0.4}),
    ]
    verdict = judge(runs, "edue")
    found = of(verdict, "pixel_pearson")
    assert (found.metric, found.value) == ("pixel_pearson", 0.6)
    assert (found.baseline, found.baseline_metric, found.baseline_value) == ("single", "pixel_pearson_total", 0.5)
    assert found.outcome == "better"
    shown = row(verdict, "pixel_pearson")
    assert (shown["edue"], shown["its value"]) == ("0.600 (variance between members)", "0.500 (p(1 - p))")


def test_each_method_flags_cases_by_the_score_that_is_best_on_validation_data(tmp_path: Path) -> None:
    runs = [
        run(
            tmp_path,
            "edue",
            {"normalised_aurc": 0.6, "normalised_aurc_aula": 0.4},
            {"normalised_aurc": 0.6, "normalised_aurc_aula": 0.5},
        ),
        run(
            tmp_path,
            "single",
            {"normalised_aurc_entropy": 0.5, "normalised_aurc_total": 0.1},
            {"normalised_aurc_entropy": 0.5, "normalised_aurc_total": 0.9},
        ),
    ]
    verdict = judge(runs, "edue")
    found = of(verdict, "normalised_aurc")
    assert (found.metric, found.baseline_metric) == ("normalised_aurc_aula", "normalised_aurc_entropy")
    assert found.outcome == "better"
    shown = row(verdict, "normalised_aurc")
    assert (shown["edue"], shown["its value"]) == ("0.400 (aula)", "0.500 (entropy)")


@pytest.mark.parametrize(
    ("quantity", "own", "other", "noise", "outcome", "small"),
    [
        ("image_pearson", 0.8, 0.7, 0.01, "better", False),
        ("image_pearson", 0.8, 0.7, 0.3, "not distinguishable", False),
        ("image_pearson", 0.6, 0.7, 0.01, "worse", False),
        # equality is no defeat
        ("image_pearson", 0.6, 0.6, 0.0, "not distinguishable", True),
        ("image_pearson", 0.605, 0.6, 0.001, "not distinguishable", True),
        ("image_pearson", np.nan, 0.6, 0.01, "undefined", False),
        ("image_spearman_normalised", -0.36, 0.6, 0.01, "worse", False),
        # a better value alone shows nothing, for no quantity
        ("nll", 0.04, 0.05, 0.1, "not distinguishable", False),
        ("nll", 0.04, 0.05, 0.001, "better", False),
        ("nll", 0.0495, 0.05, 0.0001, "not distinguishable", True),
        ("ece", 0.01, 0.02, 0.001, "better", False),
        ("ece", 0.01, 0.02, 0.1, "not distinguishable", False),
        ("ece", 0.03, 0.02, 0.1, "not distinguishable", False),
        ("ece", 0.03, 0.02, 0.001, "worse", False),
        ("aurc", 0.06, 0.09, 0.001, "better", False),
        ("aurc", 0.09, 0.085, 0.001, "not distinguishable", True),
        ("normalised_aurc", 0.9, 1.0, 0.3, "not distinguishable", False),
        ("normalised_aurc", 0.97, 1.0, 0.01, "not distinguishable", True),
        ("dice", 0.805, 0.81, 0.0, "not distinguishable", True),
        ("dice", 0.805, 0.81, 0.1, "not distinguishable", False),
        ("dice", 0.80, 0.82, 0.0, "worse", False),
        ("dice", 0.90, 0.82, 0.0, "better", False),
    ],
)
def test_one_rule_of_three_outcomes_by_interval_for_every_quantity(
    tmp_path: Path, quantity: str, own: float, other: float, noise: float, outcome: str, small: bool
) -> None:
    runs = [
        run(tmp_path, "edue", {quantity: own}, noise=noise),
        run(tmp_path, "layer_ensemble", {quantity: other}, noise=noise),
    ]
    found = of(judge(runs, "edue"), quantity)
    assert (found.outcome, found.within_margin) == (outcome, small)
    if not np.isnan(own):
        # the same by hand
        sign = -1 if quantity in {"nll", "ece", "aurc", "normalised_aurc"} else 1
        margin = MARGINS[quantity].size * (other if quantity in {"nll", "ece"} else 1)
        first, second = (each.replicates.arrays["nodule", quantity] for each in runs)
        low, high = np.quantile(sign * (first - second), [0.025, 0.975])
        inside = low >= -margin - 1e-9 and high <= margin + 1e-9
        expected = "not distinguishable" if inside or low <= 0 <= high else "better" if low > 0 else "worse"
        assert (outcome, small) == (expected, inside)


def test_what_fails_is_said_plainly(tmp_path: Path) -> None:
    verdict = judge(
        [run(tmp_path, "edue", {"dice": 0.8, "nll": 0.3}), run(tmp_path, "single", {"dice": 0.85, "nll": 0.3004})],
        "edue",
    )
    dice, nll, rank = (row(verdict, quantity) for quantity in ("dice", "nll", "image_spearman"))
    assert (dice["edue"], dice["its value"], dice["outcome"]) == ("0.800", "0.850", "worse")
    assert dice["change"] == "-0.050 [-0.050, -0.050]"
    assert (nll["edue"], nll["its value"], nll["change"]) == ("0.3000", "0.3004", "-0.0004 [-0.0004, -0.0004]")
    assert nll["outcome"] == "not distinguishable, within 0.006"
    assert rank["outcome"] == "undefined (of edue undefined on validation data)"
    assert summary(verdict) == (
        "11 comparisons of edue with the best baseline: 1 not distinguishable (1 of them within the margin), 1 worse, "
        "9 undefined."
    )


@pytest.mark.parametrize("candidate", ["edue", "mine", "layer_ensemble"])
def test_the_same_baselines_stand_for_every_reference(tmp_path: Path, candidate: str) -> None:
    runs = [
        run(tmp_path, "edue", {"nll": 0.03}),
        run(tmp_path, "edue_moments", {"nll": 0.02}),
        run(tmp_path, "mine", {"nll": 0.05}),
        run(tmp_path, "layer_ensemble", {"nll": 0.04}),
        run(tmp_path, "deep_ensemble", {"nll": 0.06}),
    ]
    verdict = judge(runs, candidate)
    best = of(verdict, "nll").baseline
    # variants of EDUE are no baselines of each other, and are baselines of every other method
    assert best == ("layer_ensemble" if candidate == "edue" else "edue_moments")
    # the gains over the usual ensembles are EDUE's promise alone
    assert {finding.part for finding in verdict.findings} >= {"best baseline"}
    assert ("usual" in {finding.part for finding in verdict.findings}) == (candidate == "edue")


def test_a_baseline_undefined_on_validation_data_is_compared_too(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "edue", {"image_pearson": 0.7}),
        run(tmp_path, "layer_ensemble", {"image_pearson": 0.5}),
        # the strongest, which validation data do not define
        run(tmp_path, "deep_ensemble", {"image_pearson": 0.9}, {"image_pearson": np.nan}),
        # undefined everywhere, so no rival
        run(tmp_path, "single", {"image_pearson": np.nan}),
    ]
    found = [f for f in judge(runs, "edue").findings if (f.part, f.quantity) == ("best baseline", "image_pearson")]
    assert [(f.baseline, f.outcome) for f in found] == [("layer_ensemble", "better"), ("deep_ensemble", "worse")]
    assert "undefined on validation data" in found[1].reason


def test_many_comparisons_are_corrected_for(tmp_path: Path) -> None:
    gains = {
        "image_pearson": 0.055,
        "image_spearman": 0.09,
        "pixel_pearson": 0.06,
        "nll": -0.055,
        "ece": -0.07,
        "dice": 0.055,
    }
    runs = [
        run(tmp_path, "edue", {name: 0.5 + gain for name, gain in gains.items()}, noise=0.05, cases=40),
        run(tmp_path, "layer_ensemble", dict.fromkeys(gains, 0.5), noise=0.0, cases=40),
    ]
    verdict = judge(runs, "edue")
    found = [f for f in verdict.findings if f.part == "best baseline" and f.outcome != "undefined"]
    assert len(found) == 6
    naive = []
    for finding in found:
        first, second = (each.replicates.arrays["nodule", finding.metric] for each in runs)
        below = sum(value <= 0 for value in math.copysign(1, finding.change) * (first - second))
        middle, half = (finding.ci_low + finding.ci_high) / 2, (finding.ci_high - finding.ci_low) / 2
        tail = math.erfc(1.959964 * abs(middle) / half / math.sqrt(2))
        normal = 2 * (1 + below) / (1 + RESAMPLES) if below else min(2 / (1 + RESAMPLES), tail)
        errors = stats.norm.isf(normal / 2) * math.sqrt(39 / 40)
        naive.append(2 * stats.t(39).sf(errors))
    # each alone would be shown
    assert all(p < 0.05 for p in naive)
    assert all(f.ci_low > 0 or f.ci_high < 0 for f in found)
    ordered = sorted(range(6), key=lambda n: naive[n])
    largest, adjusted = 0.0, {}
    for rank, n in enumerate(ordered):
        largest = max(largest, min(1.0, (6 - rank) * naive[n]))
        adjusted[n] = largest
    assert [f.adjusted_p for f in found] == pytest.approx([adjusted[n] for n in range(6)], rel=1e-4)
    for n, finding in enumerate(found):
        assert (finding.outcome == "better") == (adjusted[n] <= 0.05)
    assert [f.outcome for f in found].count("better") == 2


def test_a_degenerate_model_wins_nothing(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "edue", {"dice": 0.001, "nll": 0.01, "ece": 0.001}),
        run(tmp_path, "single", {"dice": 0.8, "nll": 0.05, "ece": 0.01}),
    ]
    verdict = judge(runs, "edue")
    assert of(verdict, "dice").outcome == "worse"
    for quantity in ("nll", "ece"):
        found = of(verdict, quantity)
        assert (found.outcome, found.reason) == ("undefined", "degenerate model, Dice 0.001")
    # and is no baseline either
    verdict = judge(runs, "single")
    assert not [f for f in verdict.findings if f.part == "best baseline" and f.baseline]
    assert "lidc, nodule: edue is no baseline: degenerate model, Dice 0.001." in verdict.remarks
    best = {name: best_methods({each.method: [each] for each in runs}, "nodule", name) for name in ("nll", "ece")}
    assert best == {"nll": frozenset(), "ece": frozenset()}


def test_all_methods_that_are_not_distinguishable_from_the_best_are_named(tmp_path: Path) -> None:
    values = {"edue": 0.050, "layer_ensemble": 0.051, "deep_ensemble_of_5": 0.06, "single": 0.09}
    methods = {name: [run(tmp_path, name, {"nll": nll, "dice": 0.8}, noise=0.004)] for name, nll in values.items()}
    assert best_methods(methods, "nodule", "nll") == {"edue", "layer_ensemble"}
    wide = {name: [run(tmp_path / "wide", name, {"nll": nll, "dice": 0.8}, noise=1.0)] for name, nll in values.items()}
    assert best_methods(wide, "nodule", "nll") == set(values)


def test_the_next_best_leads_if_the_best_method_has_no_interval(tmp_path: Path) -> None:
    values = {"edue": 0.050, "layer_ensemble": 0.06, "deep_ensemble": 0.0601, "single": 0.09}
    runs = {name: run(tmp_path, name, {"nll": nll, "dice": 0.8}, noise=0.002) for name, nll in values.items()}
    table = runs["edue"].metrics.assign(no_interval="3 independent cases")
    write_table(table, METRICS_COLUMNS, runs["edue"].folder / "metrics.csv")
    runs["edue"] = read_run(runs["edue"].folder)
    methods = {name: [each] for name, each in runs.items()}
    assert best_methods(methods, "nodule", "nll") == {"layer_ensemble", "deep_ensemble"}


def test_defined_cases_that_differ_are_said(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, name, {"image_spearman_normalised": value}) for name, value in (("edue", 0.6), ("other", 0.4))
    ]
    table = pd.read_csv(runs[0].folder / "metrics.csv")
    table.loc[table["metric"] == "image_spearman_normalised", ["n_cases", "n_undefined"]] = [6, 3]
    write_table(table, METRICS_COLUMNS, runs[0].folder / "metrics.csv")
    found = of(judge([read_run(each.folder) for each in runs], "edue"), "image_spearman_normalised")
    assert found.reason == "defined for 6 and 9 cases"


def with_scores(each: Run, undefined: range, metric: str) -> Run:
    """Return a run whose scores by size are undefined in some cases."""
    ascending = np.arange(len(each.cases)) + 1.0
    # of the method's own, or two methods would have equal values
    own = np.random.default_rng(len(each.method)).permutation(ascending)
    table = each.cases.assign(sv_normalised=own, sv_star_normalised=ascending)
    table.loc[list(undefined), "sv_normalised"] = np.nan
    table.to_csv(each.folder / "cases.csv", index=False)
    for name in ("metrics.csv", "validation.csv"):
        metrics = pd.read_csv(each.folder / name)
        counts = [len(table) - len(undefined), len(undefined)]
        metrics.loc[metrics["metric"] == metric, ["n_cases", "n_undefined"]] = counts
        write_table(metrics, METRICS_COLUMNS, each.folder / name)
    return read_run(each.folder)


@pytest.mark.parametrize(
    ("own", "other", "reason"),
    [
        (range(2), range(4, 6), "on the 5 cases that define it for all, of 7 each"),
        (range(2), range(3), "on the 6 cases that define it for all, of 7 and 6"),
        (range(2), range(2), ""),
    ],
)
def test_defined_cases_are_compared_one_by_one(tmp_path: Path, own: range, other: range, reason: str) -> None:
    metric = "image_spearman_normalised"
    runs = [run(tmp_path, name, {metric: value}) for name, value in (("edue", 0.6), ("other", 0.4))]
    runs = [with_scores(each, undefined, metric) for each, undefined in zip(runs, (own, other), strict=True)]
    assert of(judge(runs, "edue"), metric).reason == reason
    # and so do the differences from a reference
    differences = paired_differences(runs[::-1], "other")
    row = differences.set_index("metric").loc[metric]
    assert row["differing_cases"] == reason
    assert (reason in differences_table(differences, "lidc", "test", "nodule")[metric].item()) or not reason


def test_the_mean_over_structures_is_defined_by_cases_that_define_all(tmp_path: Path) -> None:
    found = run(tmp_path, "edue", {})
    disc, cup = (found.cases.assign(structure=name, sv=1.0) for name in ("disc", "cup"))
    disc.loc[0, "sv"] = cup.loc[3, "sv"] = np.nan
    pd.concat([disc, cup]).to_csv(found.folder / "cases.csv", index=False)
    found = read_run(found.folder)
    names = {f"case{n}" for n in range(9)}
    assert found.defining_cases("disc", ("sv", "dice")) == names - {"case0"}
    assert found.defining_cases("mean", ("sv", "dice")) == names - {"case0", "case3"}
    assert found.defining_cases("disc", ("absent",)) is None


@pytest.mark.parametrize("failing", ["edue", "single"])
def test_a_read_out_that_drops_cases_is_not_chosen(tmp_path: Path, failing: str) -> None:
    values = {"normalised_aurc": 1.9, "normalised_aurc_total": 1.8, "normalised_aurc_normalised": 0.2}
    runs = [run(tmp_path, name, values) for name in ("edue", "single")]
    runs = [
        with_scores(each, range(3), "normalised_aurc_normalised") if each.method == failing else each for each in runs
    ]
    found = of(judge(runs, "edue"), "normalised_aurc")
    chosen = {"edue": found.metric, "single": found.baseline_metric}
    expected = dict.fromkeys(chosen, "normalised_aurc_normalised") | {failing: "normalised_aurc_total"}
    assert chosen == expected
    assert found.outcome == ("worse" if failing == "edue" else "better")


def test_holms_correction_is_over_all_comparisons_of_the_report(tmp_path: Path) -> None:
    names = {"edue": 0.6, "layer_ensemble": 0.3, "deep_ensemble": 0.35}
    runs = [
        run(tmp_path, name, {"image_pearson": value, "nll": 1 - value, "dice": 0.8}, data=data, noise=0.2)
        for name, value in names.items()
        for data in ("lidc", "fundus")
    ]
    findings = [f for f in judge(runs, "edue").findings if not np.isnan(f.p_value)]
    assert {f.part for f in findings} == {"usual", "best baseline"}
    assert {f.data for f in findings} == {"lidc", "fundus", "all"}
    smallest = min(findings, key=lambda f: f.p_value)
    assert smallest.adjusted_p == pytest.approx(min(1, len(findings) * smallest.p_value))


def test_a_p_value_agrees_with_the_percentile_interval() -> None:
    rng = np.random.default_rng(0)
    for resamples in (60, 200, 1000):
        for centre in np.linspace(-3, 3, 41):
            found = centre + rng.gamma(2, 0.7, size=resamples)
            low, high = np.quantile(found, [0.025, 0.975])
            p_value = inverted_p(found)
            beyond = min((found <= 0).sum(), (found >= 0).sum())
            if beyond:
                assert p_value == min(1, 2 * (1 + beyond) / (1 + resamples))
            assert p_value > 0.05 or low > 0 or high < 0
            # but for the two replicates between which the interval ends, and the one of the correction
            assert p_value <= 0.05 + 4 / (1 + resamples) or low <= 0 <= high
            assert (interval_p(low, high) <= 0.05) == (low > 0 or high < 0)
            # of many groups, the t distribution is the normal one
            assert two_sided_p(found, 10**9) == pytest.approx(p_value, rel=1e-4)
    for of_groups in (lambda found: two_sided_p(found, 9), inverted_p):
        assert of_groups(np.zeros(100)) == 1
        assert of_groups(np.full(100, 0.3)) == 0
        assert np.isnan(of_groups(np.empty(0)))
        assert np.isnan(of_groups(np.array([np.nan, np.nan, 1.0])))


def rate(groups: int, seeds: int, of_seed: float, level: float) -> tuple[float, float]:
    """Return how often differences of true value 0 have a p-value up to a level: of the bootstrap alone, and of ours.

    The difference of a case is noise, and a seed moves all cases by noise of its own.
    """
    rng = np.random.default_rng([groups, seeds])
    found = []
    for _ in range(600):
        cases, shifts = rng.normal(size=groups), of_seed * rng.normal(size=seeds)
        drawn = cases[rng.integers(0, groups, size=(500, groups))].mean(axis=1)
        drawn_seeds = shifts[rng.integers(0, seeds, size=(500, max(seeds - 1, 1)))].mean(axis=1)
        replicates = drawn + drawn_seeds
        found.append((inverted_p(replicates), two_sided_p(replicates, groups, [cases.mean() + shifts])))
    alone, ours = (np.array(found) <= level).mean(axis=0)
    return float(alone), float(ours)


@pytest.mark.parametrize(("groups", "seeds", "of_seed"), [(5, 1, 0.0), (10, 1, 0.0), (50, 3, 0.3), (10, 2, 0.3)])
def test_few_patients_or_seeds_show_a_difference_of_0_no_more_often_than_the_level(
    groups: int, seeds: int, of_seed: float
) -> None:
    for level in (0.05, 0.01):
        alone, ours = rate(groups, seeds, of_seed, level)
        assert ours <= level + 0.02
        assert alone > ours
    # five patients: the bootstrap alone is wrong about three times as often as it says
    if groups == 5:
        assert rate(groups, seeds, of_seed, 0.05)[0] > 0.12


def test_the_variance_between_groups_and_seeds_has_the_degrees_of_freedom_of_both() -> None:
    replicates = np.random.default_rng(0).normal(0.5, 0.2, size=2000)
    seeds = [np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2])]
    of_seeds = [0.01 / 3, 0.005 / 2]
    of_groups = (np.var(replicates) - sum(of_seeds)) * 8 / 7
    total = of_groups + sum(of_seeds)
    freedom = total**2 / (of_groups**2 / 7 + of_seeds[0] ** 2 / 2 + of_seeds[1] ** 2 / 1)
    errors = stats.norm.isf(inverted_p(replicates) / 2) * math.sqrt(np.var(replicates) / total)
    assert two_sided_p(replicates, 8, seeds) == pytest.approx(2 * stats.t(freedom).sf(errors))


def test_p_values_fall_as_the_replicates_move_away_from_0() -> None:
    found = np.random.default_rng(0).normal(size=1000)
    moved = [two_sided_p(found + shift, 100) for shift in np.linspace(0.1, 6, 60)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 0.5
    assert moved[-1] < 1e-6
    by_interval = [interval_p(low, low + 1.97) for low in np.linspace(-0.9, 6, 71)]
    assert by_interval == sorted(by_interval, reverse=True)


def test_an_estimate_beyond_its_interval_does_not_change_the_p_value() -> None:
    assert outcome(-2.39, 1.18, 1.51, 0, 0.0) == "not distinguishable"
    assert outcome(0.1699, 0.17, 2.14, 0, interval_p(0.17, 2.14)) == "better"
    assert outcome(0.1701, 0.17, 2.14, 0, interval_p(0.17, 2.14)) == "better"
    assert interval_p(0.17, 2.14) == pytest.approx(0.0216, abs=5e-4)


def test_runs_without_resamples_show_nothing(tmp_path: Path) -> None:
    runs = [run(tmp_path, method, {"image_pearson": value}) for method, value in {"edue": 0.7, "single": 0.5}.items()]
    for each in runs:
        empty = {key: values[:0] for key, values in each.replicates.arrays.items()}
        write_replicates(Replicates(each.replicates.case_ids, empty), each.folder / "bootstrap.npz")
    verdict = judge([read_run(each.folder) for each in runs], "edue")
    found, shown = of(verdict, "image_pearson"), row(verdict, "image_pearson")
    assert (found.outcome, found.reason) == ("undefined", "no interval")
    assert (shown["change"], shown["outcome"]) == ("+0.200 (no interval)", "undefined (no interval)")


def test_without_validation_data_nothing_is_chosen(tmp_path: Path) -> None:
    runs = [run(tmp_path, "edue", {"nll": 0.1}), run(tmp_path, "single", {"nll": 0.2})]
    older = read_run(write_values(tmp_path / "older", "layer_ensemble", 0, {"nodule": {**NOTHING, "nll": 0.3}}))
    verdict = judge([*runs, older], "edue")
    assert {finding.part for finding in verdict.findings} == {"cost"}
    assert any("runs of layer_ensemble have no validation.csv" in remark for remark in verdict.remarks)


def test_methods_on_other_cases_are_left_out_and_named(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "edue", {"nll": 0.1}),
        run(tmp_path, "layer_ensemble", {"nll": 0.2}),
        run(tmp_path, "single", {"nll": 0.05}, cases=8),
    ]
    verdict = judge(runs, "edue")
    (found,) = [f for f in verdict.findings if f.quantity == "nll"]
    assert found.baseline == "layer_ensemble"
    (remark,) = [remark for remark in verdict.remarks if "8 cases" in remark]
    assert remark.endswith("no verdict, since edue was not measured on this data with these settings of the metrics.")


def test_only_the_test_split_is_judged(tmp_path: Path) -> None:
    folder = write_values(tmp_path / "run", "edue", 0, {"nodule": NOTHING})
    metrics = pd.read_csv(folder / "metrics.csv").assign(split="all")
    write_table(metrics, METRICS_COLUMNS, folder / "metrics.csv")
    verdict = judge([read_run(folder)], "edue")
    assert not verdict.findings
    assert verdict.frame().empty
    assert verdict.remarks == ["No verdict: there is no run of edue on a test split."]


def test_the_cost_of_every_seed_counts(tmp_path: Path) -> None:
    runs = [run(tmp_path, "edue", {}, seed=seed) for seed in (0, 1)]
    for each, ratio in zip(runs, (1.02, 1.06), strict=True):
        write_cost(each.folder, forward_passes=1, parameter_ratio=ratio)
    runs = [read_run(each.folder) for each in runs]
    verdict = judge(runs, "edue")
    assert of(verdict, "forward_passes", "cost").within_margin
    ratio = of(verdict, "parameter_ratio", "cost")
    assert (ratio.value, ratio.outcome, ratio.within_margin) == (1.06, "worse", False)
    write_cost(runs[0].folder, parameters=3)
    verdict = judge([read_run(each.folder) for each in runs], "edue")
    assert of(verdict, "parameter_ratio", "cost").outcome == "undefined"


def test_different_metrics_of_two_methods_are_paired(tmp_path: Path) -> None:
    first = [run(tmp_path, "edue", {"pixel_pearson": 0.5 + 0.1 * seed}, seed=seed, noise=0.1) for seed in (0, 1)]
    second = [run(tmp_path, "single", {"pixel_pearson_total": 0.3}, seed=seed, noise=0.2) for seed in (0, 1, 2)]
    found = paired_difference(first, second, "nodule", "pixel_pearson", "pixel_pearson_total")
    assert (found.value, found.other, found.difference, found.seeds) == pytest.approx((0.55, 0.3, 0.25, 2))
    differences = [
        replicates_over_seeds(first, "nodule", "pixel_pearson")[b]
        - replicates_over_seeds(second, "nodule", "pixel_pearson_total", draw=1)[b]
        for b in range(RESAMPLES)
    ]
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(differences, [0.025, 0.975]))


def test_the_tables_hold_every_finding(tmp_path: Path) -> None:
    verdict = judge(usual(tmp_path, 0.6, 0.4, 0.5), "edue")
    parts = [table(verdict, part) for part in ("usual", "best baseline", "cost")]
    assert sum(map(len, parts)) == len(verdict.findings) == len(verdict.frame())
    assert parts[0]["change"].tolist() == ["+33.3 % [+33.3 %, +33.3 %]", "+0 % [+0 %, +0 %]"]
    assert parts[0]["target"].tolist() == ["+55 %", "+23 %"]
    assert parts[0]["edue"].tolist()[0] == "0.600 (variance between members)"
