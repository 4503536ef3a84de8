"""Nodules of the real database on CT slices in DICOM files that the tests write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import ct_slice, write
from numpy.typing import NDArray

from edue_lightning.data import LidcContours, LidcScans
from edue_lightning.data.geometry import DICOM_SLICE
from edue_lightning.data.patches import cut_square
from edue_lightning.data.sources.lidc import dicom
from edue_lightning.data.sources.lidc.contours import Nodule, find_database, rasterise, read_nodules
from edue_lightning.errors import UserError

pytestmark = pytest.mark.xdist_group("lidc scans")

SIZE = 48


@pytest.fixture(scope="module")
def nodules() -> list[Nodule]:
    """Return the nodules of the first few patients with exactly four readers."""
    fitting = LidcContours(readers=[4], size=SIZE).cases()
    by_name = {nodule.case_id: nodule for nodule in read_nodules(find_database(None))}
    found = [by_name[record.case_id] for record in fitting]
    patients = list(dict.fromkeys(nodule.patient for nodule in found))[:3]
    return [nodule for nodule in found if nodule.patient in patients]


def pixels_of(nodule: Nodule) -> NDArray[np.int16]:
    """Return a slice whose HU are the number of readers who marked each pixel, plus a slope to tell axes apart."""
    rows, columns = np.indices((512, 512))
    marked = sum(rasterise(reading, (0, 0), 512).astype(int) for reading in nodule.readings)
    return (-800 + rows // 8 - columns // 16 + 200 * marked + 1024).astype(np.int16)


def write_scans(root: Path, nodules: list[Nodule]) -> None:
    for number, nodule in enumerate(nodules):
        folder = root / nodule.patient / "01-01-2000-30178" / f"scan-{nodule.series_uid[-5:]}"
        spacing = nodule.pixel_spacing
        write(ct_slice(pixels_of(nodule), nodule.z, nodule.series_uid, spacing=spacing), folder / f"1-{number:03d}.dcm")


def one_slice_each(nodules: list[Nodule]) -> list[Nodule]:
    """Return nodules of which no two lie on one slice."""
    return list({(nodule.series_uid, nodule.z): nodule for nodule in nodules}.values())


def test_patches_show_the_ct_under_the_outlines(tmp_path: Path, nodules: list[Nodule]) -> None:
    chosen = one_slice_each(nodules)
    write_scans(tmp_path, chosen)
    source = LidcScans(str(tmp_path), readers=[4], size=SIZE, leave_out_missing=True)
    rendered = LidcContours(readers=[4], size=SIZE)
    assert not source.problems
    assert source.storage == source.storage_of(chosen[0].case_id) == DICOM_SLICE
    assert {nodule.case_id for nodule in chosen} <= {record.case_id for record in source.cases()}
    for nodule in chosen:
        sample, other = source.load(nodule.case_id), rendered.load(nodule.case_id)
        for name in ("masks", "valid"):
            assert torch.equal(getattr(sample, name), getattr(other, name))
        hu = sample.image[0] * 1000 - 1000
        marked = sample.masks.sum(dim=(0, 1))
        background = hu - 200 * marked
        # what is left is the slope alone: the bright area lies pixel by pixel under the outlines
        assert background.min() >= -800 - 512 / 16 - 1
        assert background.max() <= -800 + 512 / 8 + 1
        assert (background.diff(dim=0) >= -0.01).all()
        assert (background.diff(dim=1) <= 0.01).all()


def test_where_the_slices_lie_is_kept_and_checked(
    tmp_path: Path, nodules: list[Nodule], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = one_slice_each(nodules)
    root, cache = tmp_path / "scans", tmp_path / "cache"
    write_scans(root, chosen)
    first = LidcScans(str(root), readers=[4], size=SIZE, leave_out_missing=True, cache=str(cache))
    searched: list[int] = []
    original = dicom.find_slices
    monkeypatch.setattr(
        "edue_lightning.data.sources.lidc.source.find_slices",
        lambda root, wanted, *rest: searched.append(len(wanted)) or original(root, wanted, *rest),
    )
    again = LidcScans(str(root), readers=[4], size=SIZE, leave_out_missing=True, cache=str(cache))
    assert not searched
    assert LidcScans(str(root), readers=[4], size=SIZE, cache=str(cache)).problems
    assert len(searched) == 1  # what was not there is looked for again where it would be a problem
    name = chosen[0].case_id
    assert torch.equal(first.load(name).image, again.load(name).image)
    assert all(count < len(first.cases()) + 2000 for count in searched)
    # another slice under the name of a known one is not taken for it
    path = next((root / chosen[0].patient).rglob("*.dcm"))
    write(ct_slice(pixels_of(chosen[0]), chosen[0].z + 1, chosen[0].series_uid, spacing=chosen[0].pixel_spacing), path)
    changed = LidcScans(str(root), readers=[4], size=SIZE, leave_out_missing=True, cache=str(cache))
    assert any("is not the slice at z = " in line and chosen[0].patient in line for line in changed.problems)


def test_missing_scans_are_problems_unless_left_out(tmp_path: Path, nodules: list[Nodule]) -> None:
    write_scans(tmp_path, nodules[:1])
    source = LidcScans(str(tmp_path), readers=[4], size=SIZE)
    missing = [line for line in source.problems if "not found; download it" in line]
    assert len(missing) > 100
    assert any(nodules[-1].patient in line for line in missing)
    with pytest.raises(UserError, match="problems"):
        source.cases()


def test_a_damaged_slice_is_told_with_file_and_case(tmp_path: Path, nodules: list[Nodule]) -> None:
    chosen = one_slice_each(nodules)
    write_scans(tmp_path, chosen)
    path = next((tmp_path / chosen[0].patient).rglob("*.dcm"))
    path.write_bytes(path.read_bytes()[:-1000])
    source = LidcScans(str(tmp_path), readers=[4], size=SIZE, leave_out_missing=True)
    assert source.problems
    assert all(line.startswith(path.relative_to(tmp_path).as_posix()) for line in source.problems)
    assert "case 'LIDC-IDRI-" in source.problems[0]


def test_a_patch_that_reaches_beyond_the_slice_holds_air() -> None:
    pixels = np.arange(1.0, 26.0, dtype=np.float32).reshape(5, 5)
    patch = cut_square(pixels, (-1, 3), 4)
    assert patch.tolist() == [[0, 0, 0, 0], [4, 5, 0, 0], [9, 10, 0, 0], [14, 15, 0, 0]]
