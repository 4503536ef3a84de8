"""The matrix of outcomes, on runs with values made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
from run_files import write_run, write_values

from edue_lightning.reporting import read_run
from edue_lightning.reporting.matrix import LETTERS, matrix_findings, matrix_lines
from edue_lightning.reporting.report import write_report
from edue_lightning.runs.files import Run

# of the candidate and of the others; NLL and GED² are better low, the others high
VALUES = {
    "edue_levels": {"nll": 0.04, "ged2": 0.20, "dice": 0.80, "pixel_pearson": 0.60},
    "single": {"nll": 0.06, "ged2": 0.205, "dice": 0.90, "pixel_pearson": 0.60},
    "deep_ensemble": {"nll": 0.03, "ged2": 0.40, "dice": 0.795, "pixel_pearson": 0.30},
}


def runs(folder: Path, noise: float = 1e-4) -> list[Run]:
    found = []
    for data in ("lidc_four", "fundus"):
        for method, values in VALUES.items():
            of_structures = {"nodule": values}
            written = write_values(
                folder / f"{data}_{method}", method, 0, of_structures, of_structures, data=data, noise=noise
            )
            found.append(read_run(written))
    return found


def columns(lines: list[str], method: str, data: str) -> dict[str, str]:
    """Return the signs of a method on a data set, by letter."""
    start = lines[0].index(data)
    (line,) = [line for line in lines[2:] if line.startswith(f"{method} ")]
    signs = line[start : start + len(LETTERS)].ljust(len(LETTERS))
    return dict(zip(lines[1][start : start + len(LETTERS)], signs, strict=True))


def test_signs_say_who_is_better_whatever_the_direction_of_the_metric(tmp_path: Path) -> None:
    lines = matrix_lines(matrix_findings(runs(tmp_path), "edue_levels"))
    assert lines[0].split() == ["edue_levels", "against", "lidc_four", "fundus"]
    for data in ("lidc_four", "fundus"):
        single, ensemble = (columns(lines, method, data) for method in ("single", "deep_ensemble"))
        assert [single[letter] for letter in "NGDP"] == ["+", "=", "-", "="]
        assert [ensemble[letter] for letter in "NGDP"] == ["-", "+", "=", "+"]
        # not measured
        assert single["F"] == " "


def test_holms_correction_is_over_all_cells(tmp_path: Path) -> None:
    found = [
        finding for finding in matrix_findings(runs(tmp_path, 0.01), "edue_levels") if finding.outcome != "undefined"
    ]
    assert len(found) == 2 * 2 * 4
    smallest = min(found, key=lambda finding: finding.p_value)
    assert smallest.adjusted_p == min(1, len(found) * smallest.p_value)


def test_differences_that_the_data_cannot_show_are_dots(tmp_path: Path) -> None:
    lines = matrix_lines(matrix_findings(runs(tmp_path, 0.5), "edue_levels"))
    assert columns(lines, "single", "fundus")["D"] == "."


def test_every_line_fits_one_screen(tmp_path: Path) -> None:
    assert max(map(len, matrix_lines(matrix_findings(runs(tmp_path), "edue_levels")))) <= 120


def test_a_report_holds_the_matrix(tmp_path: Path) -> None:
    for method in ("edue", "single"):
        folder = write_run(tmp_path / "runs" / method, method, 0)
        shutil.copy(folder / "metrics.csv", folder / "validation.csv")
    report = write_report(tmp_path / "runs", tmp_path / "report", "edue")
    assert set(pd.read_csv(report.folder / "matrix.csv")["baseline"]) == {"single"}
    markdown, page = report.markdown.read_text(), report.html.read_text()
    assert "edue against" in markdown
    assert "N NLL, E ECE" in markdown
    assert "Every method against edue on lidc: nodule" in page
    assert ">NLL ↓</button>" in page


def test_nothing_is_compared_with_a_method_that_does_not_exist(tmp_path: Path) -> None:
    assert matrix_lines(matrix_findings(runs(tmp_path), "unknown")) == []
