"""The part of the study on a machine that is at hand for minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lidc_slice_files import write_data_set, zipped
from processes import PATIENCE

from edue_lightning.runs.files import find_runs

SCRIPT = Path(__file__).parents[2] / "experiments" / "comparison" / "gpu_study.sh"
sys.path.insert(0, str(SCRIPT.parent))

import crops  # noqa: E402


def environment(**places: Path) -> dict[str, str]:
    """Return the environment of a part: the `python3` of this one, and its places."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DEVICE": "cpu", "JOBS": "1", **{name: str(at) for name, at in places.items()}}


def test_crops_that_come_in_parts_are_kept_until_all_are_there(tmp_path: Path) -> None:
    archive = zipped(write_data_set(tmp_path / "slices"), tmp_path / "original.zip")
    crops.pack(archive, tmp_path / "packed", size=20, parts=2)
    study = tmp_path / "study"
    for part in ("0", "1"):
        carried = tmp_path / f"carried_{part}"
        shutil.copytree(tmp_path / "packed" / part, carried / part)
        done = subprocess.run(
            # without a command: the last part is unpacked, and then there is nothing to do
            ["bash", str(SCRIPT)],
            env=environment(OUT=tmp_path / "out", STUDY=study, CROPS=carried),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (study / "data" / "lidc_slices.zip").is_file() is (part == "1")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_part_returns_its_tables_and_the_next_part_leaves_its_jobs_out(tmp_path: Path) -> None:
    def part(name: str, *methods: str, **more: Path) -> Path:
        out = tmp_path / name
        command = ["bash", str(SCRIPT), "compare", "--only", "fundus", "--quick", "--seeds", "1", "--methods", *methods]
        places = environment(OUT=out, STUDY=tmp_path / f"study_{name}", **more)
        done = subprocess.run(command, env=places, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    first = part("first", "single")
    assert (first / "finished.txt").read_text() == "quick/fundus_single_0\n"
    shutil.unpack_archive(first / "study_0.tar.gz", tmp_path / "home", filter="data")
    (run,) = find_runs(tmp_path / "home")
    assert run.label == "single"
    second = part("second", "single", "edue_levels", EARLIER=first)
    assert (second / "finished.txt").read_text() == "quick/fundus_edue_levels_0\nquick/fundus_single_0\n"
    shutil.unpack_archive(second / "study_0.tar.gz", tmp_path / "away", filter="data")
    assert [run.label for run in find_runs(tmp_path / "away")] == ["edue_levels"]
