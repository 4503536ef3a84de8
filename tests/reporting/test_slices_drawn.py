"""Slices of NIfTI files as they are drawn: turned as viewers do, pictures as they are stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.data import RaterSample
from edue_lightning.data.geometry import slice_storage
from edue_lightning.data.new_images import ImageCase, read_case
from edue_lightning.data.preparation import Stacked
from edue_lightning.evaluation.measure import _panel
from edue_lightning.prediction.case_maps import case_maps
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.reporting.contact_sheet import sheet_panel
from edue_lightning.uncertainty import MEMBERS

# directions of the two axes of a slice, with those of the rows and columns of the picture that a viewer shows
SLICES = [(codes, "PL") for codes in ("LP", "RA", "LA", "RP", "PL", "AR")]
SLICES += [(codes, "IL") for codes in ("RS", "LI", "SR", "IL")]
SLICES += [(codes, "IP") for codes in ("AS", "PI", "SA", "IP")]
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
SHAPE = (9, 12)


def affine_of(codes: str) -> NDArray[np.float64]:
    """Return the affine of a slice whose axes run in two directions, 2 and 3 mm apart."""
    normal = next(letter for letter in "RAS" if letter not in codes and OPPOSITE[letter] not in codes)
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (letter, size) in enumerate(zip((*codes, normal), (2, 3, 5), strict=True)):
        positive = letter in "RAS"
        affine["RAS".index(letter if positive else OPPOSITE[letter]), axis] = size if positive else -size
    assert "".join(aff2axcodes(affine))[:2] == codes
    return affine


def ramp(codes: str, direction: str) -> NDArray[np.float32]:
    """Return values of a slice that grow in a direction, whichever way its axes run."""
    axis = next(number for number, letter in enumerate(codes) if letter in (direction, OPPOSITE[direction]))
    values = np.indices(SHAPE)[axis].astype(np.float32)
    return values if codes[axis] == direction else values.max() - values


@pytest.mark.parametrize(("codes", "seen"), SLICES)
def test_slices_are_drawn_as_viewers_show_them(tmp_path: Path, codes: str, seen: str) -> None:
    downwards, to_the_right = (ramp(codes, direction) for direction in seen)
    affine = affine_of(codes)
    storage = slice_storage(affine)
    # the overlay of a prediction, from the file on
    nibabel.save(nibabel.Nifti1Image(downwards, affine), tmp_path / "a.nii.gz")
    prepared = read_case(ImageCase("a", (tmp_path / "a.nii.gz",)), Stacked(), 2, 1)
    one, other = torch.from_numpy(downwards)[None], torch.from_numpy(to_the_right)[None]
    areas = torch.zeros(2, 1, dtype=torch.float64)
    (maps,) = case_maps(prepared, Estimate(other, other, other, torch.full((1,), 0.5), True, {}, areas))
    # the extremes of the image are clipped
    assert (np.diff(maps.image[1:-1], axis=0) > 0).all()
    assert (np.diff(maps.probability, axis=1) > 0).all()
    assert (np.diff(maps.disagreement, axis=0) == 0).all()
    # the panel of a measured case
    masks = (torch.from_numpy(downwards) > downwards.max() / 2).to(torch.uint8)[None, None].repeat(2, 1, 1, 1)
    sample = RaterSample(one, masks, torch.ones(2, dtype=torch.bool), "a", prepared.spacing)
    source = SimpleNamespace(spatial_dims=2, structures=("cup",), storage=storage)
    probabilities = (other / other.max()).double()[None].repeat(2, 1, 1, 1)
    panel = _panel(source, sample, 0, probabilities, MEMBERS, "foreground")
    assert (np.diff(panel.mean_probability, axis=1) > 0).all()
    assert (np.diff(panel.masks.astype(int), axis=1) >= 0).all()
    assert panel.masks[:, -1].all()
    assert not panel.masks[:, 0].any()
    # the contact sheet
    sheet = sheet_panel("a", "b", one.numpy(), masks.numpy(), np.ones(2, dtype=bool), prepared.spacing, None, storage)
    assert sheet.masks[:, :, -1].all()
    assert not sheet.masks[:, :, 0].any()
    swapped = sheet.masks.shape[2:] == SHAPE[::-1]
    assert sheet.aspect == pytest.approx(3 / 2 if swapped else 2 / 3)
    assert maps.aspect == sheet.aspect


def test_pictures_are_drawn_as_they_are_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    prepared = read_case(ImageCase("a", (tmp_path / "a.png",)), Stacked(), 2, 1)
    probability = prepared.image
    estimate = Estimate(probability, probability, probability, torch.full((1,), 0.5), True, {}, torch.zeros(1, 1))
    (maps,) = case_maps(prepared, estimate)
    np.testing.assert_allclose(maps.probability, values / 255, rtol=1e-6)
    masks = (values > 100).astype(np.uint8)[None, None]
    sheet = sheet_panel("a", "b", prepared.image.numpy(), masks, np.ones(1, dtype=bool), None, None, prepared.storage)
    np.testing.assert_array_equal(sheet.masks, masks)
