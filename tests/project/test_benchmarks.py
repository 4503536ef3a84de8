"""The benchmarks run from start to end; what they measure is for `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import needs_browser
from processes import PATIENCE

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("allocator.py", "| 2 x 1 x 32x32 |", marks=pytest.mark.exhaustive),
        pytest.param("step_cost.py", "| deep_ensemble |", marks=pytest.mark.exhaustive),
        ("one_pass_cost.py --networks unet nnunet --cpu-time", "| unet | edue_levels |"),
        ("framework_cost.py", "| ours |"),
        pytest.param("ensemble_cost.py", "| vectorised |", marks=pytest.mark.exhaustive),
        pytest.param("sweep_cost.py", "| one run alone, 1 thread |", marks=pytest.mark.exhaustive),
        pytest.param("evaluation_cost.py", "| predict overlay=flagged |", marks=pytest.mark.exhaustive),
        pytest.param("growth.py --folder {folder}", "| raters | training step |", marks=pytest.mark.exhaustive),
        pytest.param("triage_page.py", "| next case drawn |", marks=[pytest.mark.exhaustive, needs_browser]),
        pytest.param(
            "gpu.py --device cpu --no-compile --folder {folder}",
            "The host waits, in one step:",
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=lambda value: value.split(".")[0] if ".py" in value else "",
)
def test_a_benchmark_prints_its_table(tmp_path: Path, script: str, expected: str) -> None:
    name, *options = script.format(folder=tmp_path).split()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), "--quick", *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
