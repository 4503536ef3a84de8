"""The part of the study on a machine that is at hand for minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE

from edue_lightning.runs.files import find_runs

SCRIPT = Path(__file__).parents[2] / "experiments" / "comparison" / "gpu_study.sh"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_part_returns_its_tables_and_the_next_part_leaves_its_jobs_out(tmp_path: Path) -> None:
    # the `python3` of this environment
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DEVICE": "cpu", "JOBS": "1"}

    def part(name: str, *methods: str, **more: str) -> Path:
        out = tmp_path / name
        command = ["bash", str(SCRIPT), "compare", "--only", "fundus", "--quick", "--seeds", "1", "--methods", *methods]
        places = {"OUT": str(out), "STUDY": str(tmp_path / f"study_{name}"), **more}
        done = subprocess.run(
            command, env={**environment, **places}, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    first = part("first", "single")
    assert (first / "finished.txt").read_text() == "quick/fundus_single_0\n"
    shutil.unpack_archive(first / "study_0.tar.gz", tmp_path / "home", filter="data")
    (run,) = find_runs(tmp_path / "home")
    assert run.label == "single"
    second = part("second", "single", "edue_levels", EARLIER=str(first))
    assert (second / "finished.txt").read_text() == "quick/fundus_edue_levels_0\nquick/fundus_single_0\n"
    shutil.unpack_archive(second / "study_0.tar.gz", tmp_path / "away", filter="data")
    assert [run.label for run in find_runs(tmp_path / "away")] == ["edue_levels"]
