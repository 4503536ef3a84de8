"""The verdict, on runs whose figures are made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_files import RESAMPLES, write_cost, write_values

from edue_lightning.reporting import judge, read_run
from edue_lightning.reporting.comparison import paired_difference, replicates_over_seeds
from edue_lightning.reporting.findings import Finding, Verdict
from edue_lightning.reporting.verdict_text import sentence, sentences, summary, table
from edue_lightning.runs.files import METRICS_COLUMNS, Replicates, Run, write_replicates, write_table

NOTHING = dict.fromkeys(("image_pearson", "pixel_pearson"), 0.5)


def run(folder: Path, method: str, test: Mapping[str, float], validation: Mapping[str, float] | None = None, **more):
    """Write and read a run of one structure; without other figures the validation's are those of the test."""
    seed = more.pop("seed", 0)
    name = f"{more.get('data', 'lidc')}_{method}_{seed}"
    validation = test if validation is None else validation
    return read_run(
        write_values(folder / name, method, seed, {"nodule": {**NOTHING, **test}}, {"nodule": validation}, **more)
    )


def of(verdict: Verdict, quantity: str, part: str = "best baseline", data: str = "lidc") -> Finding:
    (found,) = [f for f in verdict.findings if (f.part, f.quantity, f.data) == (part, quantity, data)]
    return found


def usual(folder: Path, edue: float, layers: float, deep: float, data: str = "lidc", noise: float = 0.0) -> list[Run]:
    values = {"edue": edue, "layer_ensemble": layers, "deep_ensemble": deep}
    return [
        run(folder, method, {"image_pearson": value}, data=data, noise=noise)
        for method, value in values.items()  # the pixel level stays at that of the others
    ]


@pytest.mark.parametrize(
    ("edue", "layers", "deep", "measure", "change", "target", "holds"),
    [
        (0.62, 0.3, 0.5, "relative gain", 0.55, 0.55, "yes"),  # just reached
        (0.61, 0.3, 0.5, "relative gain", 0.525, 0.55, "no"),
        # +55 % of 0.8 would pass 1, so 0.9 is wanted
        (0.9, 0.75, 0.85, "relative gain", 0.125, 0.125, "yes"),
        (0.89, 0.75, 0.85, "relative gain", 0.1125, 0.125, "no"),
        # of a baseline that is not positive there is no gain; half of 1.2 is 0.6
        (0.4, -0.3, -0.1, "distance closed", 0.5, 0.5, "yes"),
        (0.3, -0.3, -0.1, "distance closed", 0.5 / 1.2, 0.5, "no"),
        (0.6, np.nan, 0.4, "distance closed", np.nan, 0.5, "undefined"),
        (np.nan, 0.3, 0.4, "relative gain", np.nan, 0.55, "undefined"),
    ],
)
def test_the_target_over_the_usual_ensembles(
    tmp_path: Path, edue: float, layers: float, deep: float, measure: str, change: float, target: float, holds: str
) -> None:
    found = of(judge(usual(tmp_path, edue, layers, deep), "edue"), "image_pearson", "usual")
    assert (found.measure, found.holds) == (measure, holds)
    assert found.change == pytest.approx(change, nan_ok=True)
    assert found.target == pytest.approx(target)
    # no replicate differs from the value
    assert (found.ci_low, found.ci_high) == pytest.approx((change, change), nan_ok=True)


def test_gains_are_averaged_over_data_sets_and_so_are_their_targets(tmp_path: Path) -> None:
    runs = usual(tmp_path, 0.72, 0.4, 0.4, "lidc") + usual(tmp_path, 0.9, 0.8, 0.8, "fundus")
    found = of(judge(runs, "edue"), "image_pearson", "usual", "all")
    assert found.change == pytest.approx((0.8 + 0.125) / 2)
    assert found.target == pytest.approx((0.55 + 0.125) / 2)
    assert found.holds == "yes"
    # a data set without a relative gain must reach its own target
    missed = of(judge(runs + usual(tmp_path, 0.1, -0.2, -0.2, "petct"), "edue"), "image_pearson", "usual", "all")
    assert (missed.change, missed.target) == (found.change, found.target)
    assert (missed.holds, missed.outcome) == ("no", "reached, but not on petct")


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
    ]
    found = of(judge(runs, "edue"), "nll")
    assert (found.baseline, found.value, found.baseline_value) == ("layer_ensemble", 0.049, 0.055)
    assert found.change == pytest.approx(-0.006)
    assert found.holds == "yes"
    assert sentence(found) == (
        "lidc, nodule: NLL 0.049 against 0.055 of layer_ensemble, the best baseline on validation data: "
        "lower by 0.006 [0.006, 0.006], which excludes 0; holds."
    )


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
    found = of(judge(runs, "edue"), "pixel_pearson")
    assert (found.metric, found.value) == ("pixel_pearson", 0.6)
    assert (found.baseline, found.baseline_metric, found.baseline_value) == ("single", "pixel_pearson_total", 0.5)
    assert found.holds == "yes"
    assert "0.600 (variance between members) against 0.500 (p(1 - p)) of single" in sentence(found)


def test_each_method_flags_cases_by_the_score_that_is_best_on_validation_data(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "edue", {"d_auc": 0.2, "d_auc_aula": 0.05}, {"d_auc": 0.2, "d_auc_aula": 0.1}),
        run(
            tmp_path, "single", {"d_auc_entropy": 0.1, "d_auc_total": 0.01}, {"d_auc_entropy": 0.1, "d_auc_total": 0.2}
        ),
    ]
    found = of(judge(runs, "edue"), "d_auc")
    assert (found.metric, found.baseline_metric, found.holds) == ("d_auc_aula", "d_auc_entropy", "yes")
    assert "d-AUC 0.050 (aula) against 0.100 (entropy) of single" in sentence(found)


@pytest.mark.parametrize(
    ("quantity", "own", "other", "noise", "outcome", "holds"),
    [
        ("image_pearson", 0.8, 0.7, 0.01, "higher with an interval that excludes 0", "yes"),
        ("image_pearson", 0.8, 0.7, 0.3, "higher, but the interval contains 0", "not shown"),
        ("image_pearson", 0.6, 0.7, 0.01, "lower", "no"),
        ("image_pearson", 0.6, 0.6, 0.01, "equal", "no"),
        ("image_pearson", np.nan, 0.6, 0.01, "undefined", "undefined"),
        ("ece", 0.01, 0.02, 0.001, "lower with an interval that excludes 0", "yes"),
        ("ece", 0.01, 0.02, 0.1, "lower, but the interval contains 0", "yes"),
        ("ece", 0.03, 0.02, 0.1, "higher", "no"),
        ("dice", 0.80, 0.81, 0.0, "at most 0.01 lower", "yes"),
        ("dice", 0.80, 0.82, 0.0, "more than 0.01 lower", "no"),
        ("dice", 0.90, 0.82, 0.0, "at most 0.01 lower", "yes"),
    ],
)
def test_outcomes(
    tmp_path: Path, quantity: str, own: float, other: float, noise: float, outcome: str, holds: str
) -> None:
    runs = [
        run(tmp_path, "edue", {quantity: own}, noise=noise),
        run(tmp_path, "layer_ensemble", {quantity: other}, noise=noise),
    ]
    found = of(judge(runs, "edue"), quantity)
    assert (found.outcome, found.holds) == (outcome, holds)


def test_what_fails_is_said_plainly(tmp_path: Path) -> None:
    verdict = judge(
        [run(tmp_path, "edue", {"dice": 0.8, "nll": 0.3}), run(tmp_path, "single", {"dice": 0.85, "nll": 0.3004})],
        "edue",
    )
    (lines,) = sentences(verdict).values()
    dice = next(line for line in lines if "Dice" in line)
    assert "lower by 0.050 [0.050, 0.050], which excludes 0; more than 0.01 lower; does not hold." in dice
    nll = next(line for line in lines if "NLL" in line)
    assert "0.3000 against 0.3004 of single, the best baseline on validation data: lower by 0.0004" in nll
    assert "image-level rank correlation is undefined for edue or for every baseline" in " ".join(lines)
    assert summary(verdict) == (
        "Of 7 comparisons of edue with the best baseline hold: 1, do not hold: 1, undefined: 5."
    )


def test_runs_without_resamples_show_nothing(tmp_path: Path) -> None:
    runs = [run(tmp_path, method, {"image_pearson": value}) for method, value in {"edue": 0.7, "single": 0.5}.items()]
    for each in runs:
        empty = {key: values[:0] for key, values in each.replicates.arrays.items()}
        write_replicates(Replicates(each.replicates.case_ids, empty), each.folder / "bootstrap.npz")
    found = of(judge([read_run(each.folder) for each in runs], "edue"), "image_pearson")
    assert (found.outcome, found.holds) == ("higher, without an interval", "not shown")
    assert "higher by 0.200 without an interval; not shown to hold." in sentence(found)


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
    assert of(verdict, "nll").baseline == "layer_ensemble"
    assert "lidc: single left out, measured on other cases than edue." in verdict.remarks


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
    assert of(verdict, "forward_passes", "cost").holds == "yes"
    assert (of(verdict, "parameter_ratio", "cost").value, of(verdict, "parameter_ratio", "cost").holds) == (1.06, "no")
    write_cost(runs[0].folder, parameters=3)
    verdict = judge([read_run(each.folder) for each in runs], "edue")
    assert of(verdict, "parameter_ratio", "cost").holds == "undefined"


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
    assert parts[0]["change"].tolist()[:2] == ["+33.3 % [+33.3 %, +33.3 %]"] * 2
    assert parts[0]["target"].tolist()[:2] == ["+55 %"] * 2
    assert parts[0]["edue"].tolist()[:2] == ["0.600 (variance between members)", ""]
