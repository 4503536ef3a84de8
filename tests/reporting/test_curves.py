"""What the figures draw over all seeds of a method."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_files import write_cost, write_distortions, write_run, write_validation

from edue_lightning.reporting import Run, read_run, write_report
from edue_lightning.reporting.curves import (
    auroc_by_kind,
    auroc_by_severity,
    distorted_groups,
    pooled_reliability,
    quality_control,
)
from edue_lightning.reporting.tables import TIME_RATIO, cost_table, detection_table
from edue_lightning.runs.files import (
    DETECTION_COLUMNS,
    DETECTION_FILE,
    DISTORTED_CASES_COLUMNS,
    DISTORTED_CASES_FILE,
    DISTORTION_SCORES,
    QUALITY_CONTROL_COLUMNS,
    write_table,
)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / str(seed), "edue", seed) for seed in (0, 1)]


def read(folders: list[Path]) -> list[Run]:
    return [read_run(folder) for folder in folders]


def test_calibration_is_that_of_all_pairs(folders: list[Path]) -> None:
    path = folders[1] / "reliability.csv"
    table = pd.read_csv(path)
    table.loc[0, ["count", "mean_probability", "frequency"]] = [30, 0.04, 0.4]
    # a bin that the other seed leaves empty
    table.loc[3, ["count", "mean_probability", "frequency"]] = [7, 0.21, 0.5]
    table.loc[5, ["count", "mean_probability", "frequency"]] = [0, np.nan, np.nan]
    table.to_csv(path, index=False)
    pooled = pooled_reliability(read(folders), "nodule")
    assert len(pooled) == 15
    assert pooled["bin_low"].is_monotonic_increasing
    assert pooled.loc[0, ["count", "mean_probability", "frequency"]].tolist() == pytest.approx([40, 0.03, 0.3])
    assert pooled.loc[3, ["count", "mean_probability", "frequency"]].tolist() == pytest.approx([7, 0.21, 0.5])
    assert pooled.loc[5, "count"] == 10
    assert not pooled.isna().any().any()
    alone = pooled_reliability(read(folders[:1]), "nodule")
    assert alone.loc[3, "count"] == 0
    assert np.isnan(alone.loc[3, "frequency"])


def test_the_quality_control_score_is_chosen_on_validation_data(folders: list[Path]) -> None:
    assert quality_control(read(folders), "nodule").score == "sv"
    for folder in folders:
        write_validation(folder, "edue", {"d_auc": 0.2, "d_auc_entropy": 0.1, "d_auc_total": 0.01})
    # that of sv_total, though the smallest, has no curve
    found = quality_control(read(folders), "nodule")
    assert found.score == "entropy"
    assert found.curve.to_numpy().tolist() == [[0, 0.3], [0.5, 0.05], [1, 0]]


def test_quality_control_is_the_mean_over_seeds(folders: list[Path]) -> None:
    path = folders[1] / "quality_control.csv"
    identity = {"method": "edue", "data": "lidc", "split": "test", "structure": "nodule", "score": "sv"}
    table = pd.DataFrame({"flagged": [0, 0.25, 1], "missed": [0.5, 0.2, 0]}).assign(**identity)
    write_table(table, QUALITY_CONTROL_COLUMNS, path)
    curve = quality_control(read(folders), "nodule").curve
    assert curve["flagged"].tolist() == [0, 0.25, 0.5, 1]
    assert curve["missed"].tolist() == pytest.approx([0.4, 0.2, (0.1 + 0.2 * 2 / 3) / 2, 0])


def test_a_method_without_curves_has_none(folders: list[Path]) -> None:
    for folder in folders:
        pd.read_csv(folder / "quality_control.csv").iloc[:0].to_csv(folder / "quality_control.csv", index=False)
    assert quality_control(read(folders), "nodule") is None


def test_of_a_half_every_second_case_is_distorted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    rows = [
        ("edue", "lidc", "test", f"case{case}", "nodule", "blur" if severity else "none", severity)
        + (10.0 * severity + case,) * len(DISTORTION_SCORES)
        + (0.5,)
        for severity in (0, 1, 3)
        for case in range(5)
    ]
    places = DISTORTED_CASES_COLUMNS[: DISTORTED_CASES_COLUMNS.index("severity") + 1]
    frame = pd.DataFrame(rows, columns=[*places, *DISTORTION_SCORES, "dice"])
    # undefined values make no box
    frame.loc[(frame["case_id"] == "case4") & (frame["severity"] == 0), "sv"] = np.nan
    write_table(frame, DISTORTED_CASES_COLUMNS, folder / DISTORTED_CASES_FILE)
    groups = distorted_groups([read_run(folder)] * 2, "nodule", "entropy")
    assert groups["0 %"].tolist() == [0, 1, 2, 3, 4] * 2
    assert groups["50 %"].tolist() == [0, 31, 2, 33, 4] * 2
    assert groups["100 %"].tolist() == [30, 31, 32, 33, 34] * 2
    assert len(distorted_groups([read_run(folder)], "nodule", "sv")["0 %"]) == 4


def test_areas_by_severity_and_by_kind(folders: list[Path]) -> None:
    for seed, folder in enumerate(folders):
        write_distortions(folder, "edue", seed)
    runs = read(folders)
    detection = pd.concat([run.detection for run in runs])
    of_score = detection[detection["score"] == "entropy"]
    by_severity = auroc_by_severity(runs, "nodule", "entropy")
    assert by_severity.index.tolist() == [1, 2, 3, 4, 5]
    wanted = of_score[(of_score["severity"] == 4) & (of_score["distortion"] == "all")]["auroc"].mean()
    assert by_severity[4] == pytest.approx(wanted)
    by_kind = auroc_by_kind(runs, "nodule", "entropy")
    assert by_kind.index.tolist() == ["all", "noise", "blur"]
    assert by_kind["blur"] == of_score[(of_score["severity"] == 0) & (of_score["distortion"] == "blur")]["auroc"].mean()


@pytest.mark.parametrize("lacking", ["value", "row"])
def test_an_area_that_one_seed_lacks_is_not_the_mean_of_the_others(folders: list[Path], lacking: str) -> None:
    for seed, folder in enumerate(folders):
        write_distortions(folder, "edue", seed)
    path = folders[1] / DETECTION_FILE
    table = pd.read_csv(path)
    chosen = (table["score"] == "entropy") & (table["distortion"].isin(["all", "blur"]))
    if lacking == "value":
        table.loc[chosen, "auroc"] = np.nan
    write_table(table if lacking == "value" else table[~chosen], DETECTION_COLUMNS, path)
    runs = read(folders)
    by_kind = auroc_by_kind(runs, "nodule", "entropy")
    assert by_kind.isna().to_dict() == {"all": True, "noise": False, "blur": True}
    assert auroc_by_severity(runs, "nodule", "entropy").isna().all()
    assert not auroc_by_severity(runs, "nodule", "sv").isna().any()


def test_the_detection_table_leaves_undefined_scores_out(tmp_path: Path) -> None:
    for method in ("edue", "single"):
        write_distortions(write_run(tmp_path / method, method, 0), method, 0, has_sv=method == "edue")
    # nothing was distorted for this one
    write_run(tmp_path / "older", "older", 0)
    table = detection_table(read([tmp_path / name for name in ("edue", "single", "older")]), "lidc", "test", "nodule")
    assert table["score"].tolist() == ["sv", "model_agreement", "entropy", "model_agreement", "entropy"]
    assert list(table.columns) == ["method", "score", "all", "noise", "blur"]


@pytest.mark.parametrize(
    ("quartiles", "expected"),
    [
        ([(1.0, 1.02, 1.04), (1.01, 1.03, 1.06), (0.9, 3.0, 4.0)], "1.03 (1.00 to 1.06)"),
        ([(0.85, 1.1, 1.74)], "unclear (0.85 to 1.74): the machine was busy"),
        ([(None, 1.1, None)], "1.10, without quartiles"),
    ],
    ids=["seeds", "busy", "older"],
)
def test_the_time_ratio_of_the_costs_has_its_quartiles(
    tmp_path: Path, quartiles: list[tuple[float, float, float]], expected: str
) -> None:
    folders = [write_run(tmp_path / str(seed), "edue", seed) for seed in range(len(quartiles))]
    for folder, (low, middle, high) in zip(folders, quartiles, strict=True):
        spread = {} if low is None else {"latency_ratio_low": low, "latency_ratio_high": high}
        write_cost(folder, parameters=5, latency_ratio=middle, **spread)
    assert cost_table(read(folders))[TIME_RATIO].tolist() == [expected]


def test_the_cost_is_the_median_over_seeds(tmp_path: Path, folders: list[Path]) -> None:
    folders.append(write_run(tmp_path / "third", "edue", 2))
    for folder, seconds in zip(folders, (10, 30, 2000), strict=True):
        write_cost(folder, parameters=1_234_567, parameter_ratio=1.014, flops=2.5e9, train_seconds=seconds)
    older = write_run(tmp_path / "older", "single", 0)
    (tmp_path / "older" / "model.json").unlink()
    write_run(tmp_path / "old", "layer_ensemble", 0)
    table = cost_table(read([*folders, older, tmp_path / "old"]))
    assert table.iloc[0].to_dict() == {
        "method": "edue",
        "data": "lidc",
        "parameters": "1,234,567",
        "parameter ratio": "1.01",
        "GFLOPs": "2.50",
        "networks": "",
        "train seconds": "30",
    }
    assert table["method"].tolist() == ["edue", "layer_ensemble"]
    (tmp_path / "old" / "model.json").unlink()
    assert cost_table([read_run(tmp_path / "old")]).empty


def test_figures_of_names_that_are_joined_alike_have_names_of_their_own(tmp_path: Path) -> None:
    # one text in file names, as characters are replaced
    for data in ("a b", "a,b", "A_b"):
        write_run(tmp_path / data, "edue", 0, data=data)
    written = write_report(tmp_path, tmp_path / "report", "edue")
    names = [path.stem for path in written.figures.glob("*.png")]
    # calibration, quality control, the scatter by value and by rank, and two cases
    assert len(names) == len({name.casefold() for name in names}) == 3 * 6
    assert len(list(written.latex.glob("comparison_*.tex"))) == 3
    charts = re.findall(r'<figure class="chart" id="([^"]*)"', written.html.read_text())
    assert sorted(charts) == sorted(name for name in names if not name.startswith("heatmaps"))
