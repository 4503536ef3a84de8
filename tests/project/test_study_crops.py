"""Crops of LIDC's slices, packed for another machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lidc_slice_files import REAL, write_data_set, write_slice, zipped
from processes import PATIENCE

from edue_lightning.data import LidcSlices

SCRIPT = Path(__file__).parents[2] / "experiments" / "comparison" / "crops.py"


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, timeout=PATIENCE)


def assert_same_cases(first: LidcSlices, second: LidcSlices, step: int = 1) -> None:
    assert first.cases() == second.cases()
    for record in first.cases()[::step]:
        one, other = first.load(record.case_id), second.load(record.case_id)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.masks, other.masks)
        assert torch.equal(one.valid, other.valid)


@pytest.mark.parametrize("slices", ["all", "largest"])
def test_unpacked_crops_hold_the_same_cases_with_the_same_values(tmp_path: Path, slices: str) -> None:
    folder = write_data_set(tmp_path / "slices")
    # marks beyond the crop: the case is left out of both
    write_slice(folder, 9, 0, 0, [14, 14, 14, 14])
    write_slice(folder, 9, 1, 0, [5, 6, 7, 5])
    archive = zipped(folder, tmp_path / "original.zip")
    run("pack", str(archive), str(tmp_path / "packed"), "--size", "20")
    run("unpack", str(tmp_path / "packed"), str(tmp_path / "again.zip"))
    first, second = (
        LidcSlices(str(tmp_path / name), slices=slices, size=20, cache=None) for name in ("original.zip", "again.zip")
    )
    assert len(first.cases()) == {"all": 8 * 4 + 1, "largest": 8 * 2 + 1}[slices]
    assert_same_cases(first, second)


@pytest.mark.skipif(not REAL.is_file(), reason="the slices of LIDC-IDRI are not on this machine")
@pytest.mark.slow
@pytest.mark.exhaustive
def test_unpacked_crops_of_the_real_slices_are_the_same(tmp_path: Path) -> None:
    run("pack", str(REAL), str(tmp_path / "packed"))
    assert sum(path.stat().st_size for path in (tmp_path / "packed").iterdir()) < 40e6
    run("unpack", str(tmp_path / "packed"), str(tmp_path / "again.zip"))
    sources = [LidcSlices(str(path), size=64, cache=str(tmp_path)) for path in (REAL, tmp_path / "again.zip")]
    assert_same_cases(*sources, step=50)
