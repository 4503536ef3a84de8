"""Methods whose metrics are defined on different cases are compared on the cases that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_files import write_run
from scipy.stats import spearmanr

from edue_lightning.reporting.comparison import best_methods, paired_difference
from edue_lightning.reporting.shared_cases import differing_cases, independent_groups, on_shared_cases
from edue_lightning.runs.files import Replicates, Run, read_run

CASES, RESAMPLES = 30, 200
METRIC = "image_spearman_normalised"
IDS = tuple(f"case{number}" for number in range(CASES))
# three cases per patient
GROUPS = tuple(f"patient{number // 3}" for number in range(CASES))


def measured(folder: Path, method: str, seed: int, undefined: Mapping[str, Sequence[int]]) -> Run:
    """Return a run whose correlation by size lacks some cases of each structure, as where a method marks nothing."""
    run = read_run(write_run(folder / f"{method}{seed}", method, seed, cases=CASES))
    rng, raters = np.random.default_rng([seed, len(method)]), np.random.default_rng(0)
    tables = []
    for structure, cases in undefined.items():
        truth = raters.random(CASES)
        table = run.cases.assign(structure=structure, sv_star_normalised=truth, dice=0.5 + truth / 4)
        table["sv_normalised"] = truth + rng.normal(0, 0.3, CASES)
        table.loc[list(cases), "sv_normalised"] = np.nan
        tables.append(table)
    structures = [*undefined, *(["mean"] if len(undefined) > 1 else [])]
    row = {"method": method, "data": "lidc", "split": "test", "metric": METRIC, "value": 0.1, "n_undefined": 0}
    row |= {"ci_low": 0.0, "ci_high": 0.2}
    rows = [row | {"structure": name, "n_cases": CASES - len(undefined.get(name, ()))} for name in structures]
    return replace(
        run,
        cases=pd.concat(tables, ignore_index=True),
        metrics=pd.DataFrame(rows),
        replicates=Replicates(IDS, {(name, METRIC): np.full(RESAMPLES, 0.1) for name in structures}, GROUPS),
    )


def by_loop(run: Run, structure: str, shared: set[int], drawn: Sequence[int]) -> float:
    table = run.cases[run.cases["structure"] == structure].reset_index(drop=True)
    rows = table.loc[[case for case in drawn if case in shared]]
    return float(spearmanr(rows["sv_normalised"], rows["sv_star_normalised"]).statistic)


def draws() -> list[list[int]]:
    """Return the cases of each resample: whole patients, in the order of their names."""
    patients = sorted(set(GROUPS))
    numbers = np.random.default_rng([0, len(patients)]).integers(0, len(patients), size=(RESAMPLES, len(patients)))
    members = {patient: [case for case in range(CASES) if GROUPS[case] == patient] for patient in patients}
    return [[case for number in row for case in members[patients[number]]] for row in numbers]


@pytest.mark.parametrize(
    "undefined", [({"disc": [0, 1, 5]}, {"disc": [5, 20]}), ({"disc": [0], "cup": [3]}, {"disc": [], "cup": [9, 10]})]
)
def test_two_methods_are_compared_on_the_cases_that_define_both(
    tmp_path: Path, undefined: tuple[dict[str, list[int]], dict[str, list[int]]]
) -> None:
    own, other = (measured(tmp_path, name, 3, cases) for name, cases in zip(("edue", "other"), undefined, strict=True))
    structure = "mean" if len(undefined[0]) > 1 else "disc"
    found = paired_difference([own], [other], structure, METRIC)
    shared = {name: set(range(CASES)) - {*undefined[0][name], *undefined[1][name]} for name in undefined[0]}

    def loop(run: Run, drawn: Sequence[int]) -> float:
        return float(np.mean([by_loop(run, name, cases, drawn) for name, cases in shared.items()]))

    values = [loop(run, range(CASES)) for run in (own, other)]
    assert (found.value, found.other, found.difference) == pytest.approx((*values, values[0] - values[1]))
    differences = [loop(own, drawn) - loop(other, drawn) for drawn in draws()]
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(differences, [0.025, 0.975]))


def counted_run(folder: Path, method: str, empty: Sequence[int]) -> tuple[Run, np.ndarray]:
    """Return a run with the counts `[N, K, 15, 3]` behind the ECE of two structures, some cases' of the first empty."""
    run = measured(folder, method, 3, {"disc": [], "cup": []})
    rng = np.random.default_rng(len(method))
    bins = np.zeros((CASES, 2, 15, 3))
    bins[..., 0] = rng.integers(1, 50, bins.shape[:-1])
    bins[..., 1] = bins[..., 0] * (np.arange(15) + 0.5) / 15
    bins[..., 2] = rng.binomial(bins[..., 0].astype(int), 0.4)
    bins[list(empty), 0] = 0
    row = dict(run.metrics.iloc[0]) | {"metric": "ece", "n_cases": CASES - len(empty)}
    replicates = Replicates(IDS, {("disc", "ece"): np.full(RESAMPLES, 0.1)}, GROUPS)
    changed = replace(run, metrics=pd.DataFrame([row]), replicates=replicates, case_arrays={"bins": bins})
    return changed, bins[:, 0]


def ece_by_loop(bins: np.ndarray, drawn: Sequence[int]) -> float:
    total = sum(bins[case] for case in drawn)
    return sum(abs(row[1] - row[2]) for row in total) / sum(row[0] for row in total)


def test_calibration_over_all_cases_is_computed_again_over_the_shared_ones(tmp_path: Path) -> None:
    (own, first), (other, second) = (counted_run(tmp_path, *args) for args in (("edue", [0, 4]), ("other", [7])))
    found = paired_difference([own], [other], "disc", "ece")
    shared = [case for case in range(CASES) if case not in (0, 4, 7)]
    values = [ece_by_loop(bins, shared) for bins in (first, second)]
    assert (found.value, found.other) == pytest.approx(values)
    differences = [
        ece_by_loop(first, kept) - ece_by_loop(second, kept)
        for drawn in draws()
        for kept in [[case for case in drawn if case in shared]]
    ]
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    methods = [([own], "ece"), ([other], "ece")]
    assert differing_cases(methods, "disc") == "on the 27 cases that define it for all, of 28 and 29"
    # runs of earlier versions do not hold the counts
    unknown = [([replace(run, case_arrays={})], "ece") for run in (own, other)]
    assert differing_cases(unknown, "disc") == "defined for 28 and 29 cases"
    assert on_shared_cases(unknown, "disc") == [runs for runs, _ in unknown]


def test_settings_that_name_structures_fit_one_of_them(tmp_path: Path) -> None:
    named = {"metrics": {"_target_": "edue_lightning.metrics.MetricSettings", "poor_dice": {"disc": 0.8, "cup": 0.6}}}
    runs = [measured(tmp_path, name, 3, {"disc": [at], "cup": []}) for at, name in enumerate(("edue", "other"))]
    runs = [replace(run, configuration={**run.configuration, **named}) for run in runs]
    assert paired_difference([runs[0]], [runs[1]], "disc", METRIC) is not None


def test_methods_with_the_same_cases_stay_as_they_are_measured(tmp_path: Path) -> None:
    methods = [([measured(tmp_path, name, 3, {"disc": [4]})], METRIC) for name in ("edue", "other")]
    assert on_shared_cases(methods, "disc") == [runs for runs, _ in methods]
    assert differing_cases(methods, "disc") == ""


def test_methods_without_a_shared_case_are_not_compared_case_by_case(tmp_path: Path) -> None:
    halves = (range(15), range(15, CASES))
    methods = [
        ([measured(tmp_path, name, 3, {"disc": list(half)})], METRIC)
        for name, half in zip(("edue", "other"), halves, strict=True)
    ]
    assert differing_cases(methods, "disc") == "defined for 15 and 15 cases, none of them the same"
    found = paired_difference(methods[0][0], methods[1][0], "disc", METRIC)
    assert np.isnan([found.value, found.other, found.difference, found.p_value]).all()


def test_one_structure_without_a_shared_case_leaves_their_mean_undefined(tmp_path: Path) -> None:
    halves = (range(15), range(15, CASES))
    own, other = (
        measured(tmp_path, name, 3, {"disc": [at], "cup": list(half)})
        for at, (name, half) in enumerate(zip(("edue", "other"), halves, strict=True))
    )
    assert np.isnan(paired_difference([own], [other], "mean", METRIC).difference)
    assert not np.isnan(paired_difference([own], [other], "disc", METRIC).difference)


def test_patients_are_counted_where_they_define_the_metrics_of_all(tmp_path: Path) -> None:
    # patients 0 to 5 define the one, patients 3 to 9 the other
    own = measured(tmp_path, "edue", 3, {"disc": list(range(18, CASES))})
    other = measured(tmp_path, "other", 3, {"disc": list(range(9))})
    assert independent_groups([([own], METRIC)], "disc") == 6
    assert independent_groups([([own], METRIC), ([other], METRIC)], "disc") == 3
    assert independent_groups([([own], "of_no_case")], "disc") == 0


def test_too_few_shared_patients_give_no_interval(tmp_path: Path) -> None:
    # patients 0 to 5 define the one, patients 3 to 9 the other
    own = measured(tmp_path, "edue", 3, {"disc": list(range(18, CASES))})
    other = measured(tmp_path, "other", 3, {"disc": list(range(9))})
    found = paired_difference([own], [other], "disc", METRIC)
    assert not np.isnan(found.difference)
    assert np.isnan([found.ci_low, found.ci_high, found.p_value]).all()


def test_a_method_that_is_better_on_the_shared_cases_is_in_bold_too(tmp_path: Path) -> None:
    own, other = (measured(tmp_path, name, 3, {"disc": []}) for name in ("edue", "other"))
    # the first has the higher value over its own cases, for it leaves out its worst one
    truth = own.cases["sv_star_normalised"]
    other = replace(other, cases=other.cases.assign(sv_normalised=truth))
    other.cases.loc[0, "sv_normalised"] = np.nan
    own.metrics["value"] = 0.99
    found = paired_difference([other], [own], "disc", METRIC)
    assert found.ci_low > 0
    assert best_methods({"edue": [own], "other": [other]}, "disc", METRIC) == {"edue", "other"}
