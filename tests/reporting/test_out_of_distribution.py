"""AUROC for distorted images as a metric of runs: its replicates, its choices on validation data, and its verdict."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_files import write_distorted_cases, write_run, write_validation, write_values

from edue_lightning.metrics import resample_counts
from edue_lightning.reporting import compare, judge, read_run, with_detection
from edue_lightning.reporting.caveats import caveats
from edue_lightning.reporting.comparison import shown_metrics
from edue_lightning.reporting.folds import pooled_detection
from edue_lightning.reporting.matrix import matrix_findings, matrix_lines
from edue_lightning.reporting.out_of_distribution import OOD_AUROC, auroc_replicates
from edue_lightning.runs.files import (
    BOOTSTRAP_FILE,
    CASES_COLUMNS,
    CASES_FILE,
    DENSITY,
    DETECTION_COLUMNS,
    DISTORTION_SCORES,
    VALIDATION_DETECTION_FILE,
    Replicates,
    Run,
    write_replicates,
    write_table,
)
from edue_lightning.runs.tables import detection_table

CASES, SEVERITIES, RESAMPLES = 40, (1, 3, 5), 50
IDS = tuple(f"case{number}" for number in range(CASES))
# three cases per patient, in another order than that of their names
GROUPS = tuple(f"patient{number * 7 % CASES // 3}" for number in range(CASES))


def naive_auroc(clean: list[tuple[str, float]], distorted: list[tuple[str, float]], drawn: list[str]) -> float:
    """Return the AUROC over all pairs of drawn images, one by one."""
    surpassed = pairs = 0.0
    for _, high in [image for group in drawn for image in distorted if image[0] == group]:
        for _, low in [image for group in drawn for image in clean if image[0] == group]:
            if not (np.isnan(high) or np.isnan(low)):
                pairs += 1
                surpassed += 1.0 if high > low else 0.5 if high == low else 0.0
    return surpassed / pairs if pairs else float("nan")


def distorted_table(shift: dict[str, float], seed: int, structures: tuple[str, ...] = ("nodule",)) -> pd.DataFrame:
    """Return scores of few distinct values, so that many are equal; a score rises by its shift with the severity."""
    rng = np.random.default_rng(seed)
    rows = []
    for structure in structures:
        for severity in (0, *SEVERITIES):
            for number, case in enumerate(IDS):
                kind = ("noise", "blur")[(number + severity) % 2] if severity else "none"
                scores = {name: float(rng.integers(8)) for name in (*DISTORTION_SCORES, DENSITY)}
                for name, by in shift.items():
                    scores[name] += by * severity
                place = {"case_id": case, "structure": structure, "distortion": kind, "severity": severity}
                rows.append({**place, **scores, "dice": 0.8})
    return pd.DataFrame(rows)


def write_measured(
    folder: Path,
    method: str,
    shift: dict[str, float],
    on_validation: dict[str, float] | None = None,
    structures: tuple[str, ...] = ("nodule",),
    seed: int = 0,
    **distortions: object,
) -> Run:
    """Write a run with distorted images and, if told, their AUROC on validation data by score."""
    values = {structure: {"dice": 0.8, "nll": 0.1} for structure in structures}
    write_values(folder, method, seed, values, values, cases=CASES)
    arrays = {(name, metric): np.full(RESAMPLES, 0.8) for name in structures for metric in ("dice", "nll")}
    write_replicates(Replicates(IDS, arrays, GROUPS), folder / BOOTSTRAP_FILE)
    cases = pd.concat([pd.read_csv(folder / CASES_FILE).assign(structure=name) for name in structures])
    write_table(cases, CASES_COLUMNS, folder / CASES_FILE)
    table = distorted_table(shift, len(method), structures)
    settings = {"kinds": ["noise", "blur"], "severities": list(SEVERITIES), **distortions}
    write_distorted_cases(folder, table, method, "lidc", **settings)
    if on_validation is not None:
        found = detection_table(table).assign(method=method, data="lidc", split="val")
        found["auroc"] = found["score"].map({**dict.fromkeys(found["score"], 0.5), **on_validation})
        write_table(found, DETECTION_COLUMNS, folder / VALIDATION_DETECTION_FILE)
    return read_run(folder)


def test_replicates_are_those_of_a_loop_over_all_pairs_of_drawn_images() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{number % 6}" for number in range(15)]
    clean = rng.integers(5, size=15).astype(float)
    case_of = np.repeat(np.arange(15), 3)
    distorted = rng.integers(2, 7, size=45).astype(float)
    clean[4], distorted[[7, 8, 30]] = np.nan, np.nan
    counts = resample_counts(15, 30, groups=groups)
    found = auroc_replicates(clean, distorted, case_of, counts)
    of_clean = list(zip(groups, clean, strict=True))
    of_distorted = [(groups[case], score) for case, score in zip(case_of, distorted, strict=True)]
    for row, value in zip(counts, found, strict=True):
        times = {group: int(row[number]) for number, group in enumerate(groups)}
        drawn = [group for group, count in times.items() for _ in range(count)]
        assert value == pytest.approx(naive_auroc(of_clean, of_distorted, drawn), abs=1e-12)
    assert len(set(found)) > 20
    # the networks of two folds score on scales of their own
    fold_of = np.arange(15) // 3 % 2
    scaled = auroc_replicates(
        np.where(fold_of, 100 * clean, clean), distorted * np.where(fold_of, 100, 1)[case_of], case_of, counts, fold_of
    )
    for row, value in zip(counts, scaled, strict=True):
        pairs = [
            (row[j] * row[case_of[i]], float(distorted[i] > clean[j]) + 0.5 * float(distorted[i] == clean[j]))
            for i, j in product(range(45), range(15))
            if fold_of[case_of[i]] == fold_of[j] and not np.isnan([distorted[i], clean[j]]).any()
        ]
        expected = sum(weight * share for weight, share in pairs) / sum(weight for weight, _ in pairs)
        assert value == pytest.approx(expected, abs=1e-12)
    # nobody drawn
    assert np.isnan(auroc_replicates(clean, distorted, case_of, np.zeros((1, 15)))).all()


def test_the_value_is_that_of_the_table_of_detection_with_an_interval_over_patients(tmp_path: Path) -> None:
    run = write_measured(tmp_path / "run", "single", {"density": 2.0, "sv": 0.3}, {}, structures=("disc", "cup"))
    (found,) = with_detection([run])
    assert run.detection is not None
    pooled = run.detection[(run.detection["distortion"] == "all") & (run.detection["severity"] == 0)]
    counts = resample_counts(CASES, RESAMPLES, groups=GROUPS)
    for row in pooled.itertuples():
        metric = f"ood_auroc_{row.score}"
        assert found.value(row.structure, metric) == pytest.approx(row.auroc, abs=1e-12)
        assert found.n_cases(row.structure, metric) == CASES
        assert found.has_interval(row.structure, metric)
        assert len(found.replicates.arrays[row.structure, metric]) == RESAMPLES
    for metric in OOD_AUROC:
        both = [found.value(structure, metric) for structure in ("disc", "cup")]
        assert found.value("mean", metric) == pytest.approx(np.mean(both), abs=1e-12)
    table = run.distorted_cases
    assert table is not None
    own = table[table["structure"] == "cup"]
    scores = [own[own["severity"] == 0], own[own["severity"] > 0]]
    images = [[(GROUPS[IDS.index(row.case_id)], row.sv) for row in rows.itertuples()] for rows in scores]
    for number in range(5):
        times = {group: int(counts[number, position]) for position, group in enumerate(GROUPS)}
        drawn = [group for group, count in times.items() for _ in range(count)]
        replicate = found.replicates.arrays["cup", "ood_auroc_sv"][number]
        assert replicate == pytest.approx(naive_auroc(*images, drawn), abs=1e-12)


def test_a_score_that_an_image_leaves_undefined_counts_fewer_cases(tmp_path: Path) -> None:
    run = write_measured(tmp_path / "run", "single", {}, {})
    table = run.distorted_cases
    assert table is not None
    missing = (table["case_id"] == "case3") & (table["severity"] == 3)
    (found,) = with_detection([replace(run, distorted_cases=table.assign(sv=table["sv"].mask(missing)))])
    assert found.n_cases("nodule", "ood_auroc_sv") == CASES - 1
    assert found.n_cases("nodule", "ood_auroc_entropy") == CASES


def test_scores_and_the_baseline_are_chosen_on_distorted_validation_images(tmp_path: Path) -> None:
    # on test images other choices would look better
    runs = [
        write_measured(tmp_path / "a", "edue", {"sv": 1.0, "density": 1.0}, {"sv": 0.6, "density": 0.9}),
        write_measured(tmp_path / "b", "single", {"entropy": 3.0}, {"entropy": 0.7, "sv": 0.75, "density": 0.6}),
        write_measured(tmp_path / "c", "deep_ensemble", {"density": 9.0}, {"entropy": 0.7, "density": 0.7}),
    ]
    verdict = judge(with_detection(runs), "edue")
    found = {finding.quantity: finding for finding in verdict.findings if finding.quantity.startswith("ood")}
    best, uncertain = found["ood_auroc"], found["ood_auroc_uncertainty"]
    assert (best.metric, best.baseline, best.baseline_metric) == ("ood_auroc_density", "single", "ood_auroc_sv")
    assert best.outcome == "better"
    assert (uncertain.metric, uncertain.baseline, uncertain.baseline_metric) == (
        "ood_auroc_sv",
        "single",
        "ood_auroc_sv",
    )
    matrix = matrix_findings(with_detection(runs), "edue")
    assert {finding.baseline_metric for finding in matrix if finding.quantity == "ood_auroc"} == {
        "ood_auroc_sv",
        "ood_auroc_density",
    }
    lines = matrix_lines(matrix)
    assert lines[1].split()[0].endswith("OU")
    (ensemble,) = [line for line in lines if line.startswith("deep_ensemble ")]
    assert ensemble[-2] == "-"


def test_without_distorted_validation_images_half_of_the_patients_choose_and_the_others_are_compared(
    tmp_path: Path,
) -> None:
    runs = [
        write_measured(tmp_path / "a", "edue", {"sv": 1.0}),
        write_measured(tmp_path / "b", "single", {"entropy": 3.0}, {}),
    ]
    before = with_detection(runs)
    judged = before[0].n_cases("nodule", "ood_auroc_sv")
    chosen = before[0].validation_n_cases("nodule", "ood_auroc_sv")
    assert judged + chosen == CASES
    assert min(judged, chosen) > CASES / 5
    assert f"chosen on {chosen} test cases, and compared on the {judged}" in " ".join(caveats(before))
    # each case changes either what is chosen by or what is compared, with all cases of its patient
    table = runs[1].distorted_cases
    assert table is not None
    sides: dict[str, set[str]] = {}
    for case, group in zip(IDS, GROUPS, strict=True):
        raised = table.assign(entropy=table["entropy"].mask(table["case_id"] == case, 1e6))
        after = with_detection([runs[0], replace(runs[1], distorted_cases=raised)])[1]
        changed = [
            after.value("nodule", "ood_auroc_entropy") != before[1].value("nodule", "ood_auroc_entropy"),
            after.validation_value("nodule", "ood_auroc_entropy")
            != before[1].validation_value("nodule", "ood_auroc_entropy"),
        ]
        assert sum(changed) == 1, case
        sides.setdefault(group, set()).add("judged" if changed[0] else "chosen")
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"judged", "chosen"}


def test_runs_under_other_distortions_are_not_compared_by_them(tmp_path: Path) -> None:
    runs = [
        write_measured(tmp_path / "a", "edue", {}, {}),
        write_measured(tmp_path / "b", "single", {}, {}, severities=[1]),
    ]
    found = with_detection(runs)
    assert not any(finding.quantity.startswith("ood") for finding in judge(found, "edue").findings)
    assert "distorted in different ways" in " ".join(caveats(found))


def test_a_baseline_without_distorted_images_is_named_and_left_out(tmp_path: Path) -> None:
    runs = [write_measured(tmp_path / "a", "edue", {}, {}), write_measured(tmp_path / "b", "single", {}, {})]
    write_values(tmp_path / "c", "mc_dropout", 0, {"nodule": {"dice": 0.8, "nll": 0.1}}, None, cases=CASES)
    write_validation(tmp_path / "c", "mc_dropout", {"dice": 0.8, "nll": 0.1})
    write_replicates(
        Replicates(IDS, {("nodule", "dice"): np.full(RESAMPLES, 0.8)}, GROUPS), tmp_path / "c" / BOOTSTRAP_FILE
    )
    verdict = judge(with_detection([*runs, read_run(tmp_path / "c")]), "edue")
    (finding,) = [finding for finding in verdict.findings if finding.quantity == "ood_auroc"]
    assert finding.baseline == "single"
    assert any("not compared with mc_dropout" in remark for remark in verdict.remarks)


def test_runs_without_distorted_images_have_no_such_rows(tmp_path: Path) -> None:
    runs = []
    for method in ("edue", "single"):
        write_run(tmp_path / method, method, 0)
        write_validation(tmp_path / method, method, {"dice": 0.8})
        runs.append(read_run(tmp_path / method))
    assert with_detection(runs) == runs
    assert not any(finding.quantity.startswith("ood") for finding in judge(with_detection(runs), "edue").findings)


def test_tables_of_earlier_versions_keep_their_intervals_and_directions(tmp_path: Path) -> None:
    runs = []
    for number, method in enumerate(("edue", "single")):
        folder = tmp_path / method
        shift = {"density": 1.0 + number, "sv_total": 0.2}
        runs.append(write_measured(folder, method, shift, {"density": 0.8, "sv_total": 0.6}))
        # as earlier versions wrote it
        assert not {"no_interval", "better"} & set(pd.read_csv(folder / "metrics.csv").columns)
    runs = with_detection(runs)
    found = {finding.quantity: finding for finding in judge(runs, "edue").findings}
    assert (found["ood_auroc"].outcome, found["ood_auroc"].margin) == ("worse", 0.01)
    assert found["ood_auroc_uncertainty"].metric == "ood_auroc_sv_total"
    assert not np.isnan(found["nll"].ci_low)
    comparison = compare(runs)
    better = comparison.set_index(["method", "metric"])["better"]
    assert (better["edue", "ood_auroc_density"], better["edue", "nll"]) == ("high", "low")
    assert set(OOD_AUROC) <= set(comparison["metric"])
    # tables to read keep their columns
    assert not set(OOD_AUROC) & set(shown_metrics(comparison))


def test_folds_choose_by_the_mean_of_their_validation_values(tmp_path: Path) -> None:
    runs = [write_measured(tmp_path / f"{n}", "edue", {}, {"sv": 0.6 + 0.2 * n, "entropy": 0.7}) for n in range(2)]
    tables = [run.validation_detection for run in runs]
    assert all(table is not None for table in tables)
    tables[1] = tables[1].assign(auroc=tables[1]["auroc"].mask(tables[1]["score"] == "entropy"))
    pooled = replace(runs[0], validation_detection=pooled_detection(tables))
    (found,) = with_detection([pooled])
    assert found.validation_value("nodule", "ood_auroc_sv") == pytest.approx(0.7)
    # undefined in one fold
    assert np.isnan(found.validation_value("nodule", "ood_auroc_entropy"))
    # or missing there
    without = tables[1][tables[1]["score"] != "sv"]
    table = pooled_detection([tables[0], without])
    assert table is not None
    assert table.loc[table["score"] == "sv", ["auroc", "aupr"]].isna().to_numpy().all()
    assert pooled_detection([tables[0], None]) is None
