"""The format of the images that a network was trained on, and the refusal of other ones."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from edue_lightning.config.build import ImageFormat
from edue_lightning.data.geometry import DICOM_SLICE, DIFFERING_SLICES, PICTURE
from edue_lightning.data.images import ImageError
from edue_lightning.data.new_images import ImageCase, read_case
from edue_lightning.data.preparation import PreparedImage, Stacked

PIXELS = np.arange(30, dtype=np.uint8).reshape(5, 6)


def save(path: Path, affine: np.ndarray | None = None) -> Path:
    if affine is None:
        Image.fromarray(PIXELS).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(PIXELS.T.astype(np.float32), affine), path)
    return path


def read(path: Path, storage: str | None) -> PreparedImage:
    trained = ImageFormat(2, 1, ("disc",), storage)
    return read_case(ImageCase("a", (path,)), Stacked(), 2, 1, trained.require_storage)


def test_a_picture_and_a_slice_are_not_taken_for_each_other(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    upright, turned = (save(tmp_path / f"{x}.nii", np.diag([x, x, 1.0, 1.0])) for x in (1.0, -1.0))
    for storage, path in (("picture", picture), ("NIfTI slice RA", upright), ("NIfTI slice LP", turned)):
        assert read(path, storage).image.shape[0] == 1
        # of an earlier version, or of images that were not read from such files
        assert read(path, None).image.shape[0] == 1
    for storage, path in (("picture", upright), ("NIfTI slice RA", picture), ("NIfTI slice RA", turned)):
        with pytest.raises(ImageError, match=rf"{path.name}: is stored as .* of the training as {storage}"):
            read(path, storage)


def test_slices_with_several_axes_and_slices_of_dicom_series_are_taken_for_no_others() -> None:
    for found, trained, fits in (
        ("NIfTI slice RA", DIFFERING_SLICES, True),
        (PICTURE, DIFFERING_SLICES, False),
        (DICOM_SLICE, DIFFERING_SLICES, False),
        (DIFFERING_SLICES, "NIfTI slice LP", False),
        (DIFFERING_SLICES, DIFFERING_SLICES, True),
        # rows first
        (PICTURE, DICOM_SLICE, True),
        (DICOM_SLICE, PICTURE, True),
        ("NIfTI slice LP", DICOM_SLICE, False),
        (None, DIFFERING_SLICES, True),
    ):
        trained_for = ImageFormat(2, 1, ("disc",), trained)
        if fits:
            trained_for.require_storage(found)
        else:
            with pytest.raises(ImageError, match=f"is stored as {found}, but the images of the training as {trained}"):
                trained_for.require_storage(found)


def test_the_storage_is_kept_with_a_checkpoint_and_not_compared() -> None:
    stored = ImageFormat(2, 1, ("disc",), "picture")
    assert ImageFormat.from_dict(stored.as_dict()).storage == "picture"
    assert ImageFormat(2, 1, ("disc",)).as_dict() == {"spatial_dims": 2, "channels": 1, "structures": ["disc"]}
    assert stored == ImageFormat(2, 1, ("disc",))
