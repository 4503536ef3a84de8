"""The short tables that `report` prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from processes import run_command
from run_files import write_run, write_values

from edue_lightning.reporting import compare, read_run
from edue_lightning.reporting.terminal_table import TERMINAL_METRICS, TERMINAL_WIDTH, terminal_tables

VALUES = {"dice": 0.8841, "nll": 0.05, "ece": 0.009, "image_spearman_normalised": -0.3574, "pixel_pearson": 0.5523}


def test_the_command_prints_a_table_that_fits_a_terminal_and_one_line_on_the_rest(tmp_path: Path) -> None:
    for method in ("edue", "deep_ensemble_rater_per_member"):
        for seed in (0, 1):
            write_run(tmp_path / "runs" / f"{method}_{seed}", method, seed)
    done = run_command("report", ["runs=runs"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    table, rest = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert max(map(len, table)) <= TERMINAL_WIDTH
    assert [line.split()[0] for line in table[1:]] == ["method", "deep_ensemble_rater_per_member", "edue"]
    assert len(table) + len(rest) < 10
    assert "report.html" in rest[-1]


def test_a_cell_is_the_mean_over_seeds_and_the_correlation_by_size_is_among_them(tmp_path: Path) -> None:
    runs = [
        read_run(write_values(tmp_path / f"{seed}", "edue", seed, {"nodule": {**VALUES, "nll": nll}}, cases=208))
        for seed, nll in enumerate((0.04, 0.061))
    ]
    title, header, row, *_ = terminal_tables(compare(runs)).splitlines()
    assert title == "lidc, test, nodule: 208 cases, 2 seeds"
    assert header.split()[:3] == ["method", "Dice", "↑"]
    assert row.split() == ["edue", "0.884", f"{np.mean([0.04, 0.061]):.3f}", "0.009", "-", "-0.357", "0.552", "-"]
    assert "image_spearman_normalised" in TERMINAL_METRICS


def test_several_structures_are_shown_by_their_mean(tmp_path: Path) -> None:
    values = {"disc": VALUES, "cup": VALUES, "mean": {**VALUES, "dice": 0.5}}
    text = terminal_tables(compare([read_run(write_values(tmp_path / "run", "edue", 0, values))]))
    assert text.splitlines()[0] == "lidc, test, mean: 9 cases, 1 seed"
    assert "0.500" in text
    assert "0.884" not in text


@pytest.mark.parametrize("length", [1, 38, 39, 40, 200])
def test_a_label_of_any_length_fits(tmp_path: Path, length: int) -> None:
    label = "m" * (length - 1) + "s"
    run = read_run(write_values(tmp_path / "run", label, 0, {"nodule": VALUES}))
    lines = terminal_tables(compare([run])).splitlines()
    assert max(map(len, lines)) <= TERMINAL_WIDTH
    assert lines[2].split()[0].endswith("s")
