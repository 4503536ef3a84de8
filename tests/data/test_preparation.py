"""New images are seen exactly as training saw them, and what is found on them goes back to their own voxels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel.affines import apply_affine
from patients import Patient, affine_of, tilted
from PIL import Image
from riga_files import Eye, mask_of
from riga_files import save as save_picture

from edue_lightning.data import CaseSource, HecktorSource, ManifestSource, QubiqSource, RigaSource
from edue_lightning.data.images import ImageError, ImageFile
from edue_lightning.data.new_images import ImageCase, read_case
from edue_lightning.data.preparation import Preparation, PreparedImage, SquarePicture, Stacked


def seen_anew(source: CaseSource, settings: Mapping[str, Any], *files: Path) -> PreparedImage:
    preparation = type(source).preparation(settings)
    return read_case(ImageCase("new", files), preparation, source.spatial_dims, source.channels)


def assert_seen_alike(source: CaseSource, settings: Mapping[str, Any], *files: Path) -> PreparedImage:
    (record,) = source.cases()
    sample = source.load(record.case_id)
    prepared = seen_anew(source, settings, *files)
    torch.testing.assert_close(prepared.image, sample.image, rtol=0, atol=1e-6)
    assert prepared.spacing == sample.spacing
    if sample.affine is not None:
        assert prepared.grid is not None
        torch.testing.assert_close(prepared.grid.affine, sample.affine)
    return prepared


def oblique() -> Patient:
    shape = (20, 26, 9)
    return Patient("MDA-002", shape, affine_of((0.9, 1.1, 2.5), (3, -8, 99), shape, tilted(17.0)[:, [1, 0, 2]]))


@pytest.mark.parametrize(
    "settings", [{}, {"spacing": [1.5, 2.0, 2.5]}, {"ct_window": [-100, 90], "suv_window": [5, 7]}]
)
@pytest.mark.parametrize("patient", [Patient(), oblique()], ids=lambda patient: patient.name)
def test_ct_and_pet(tmp_path: Path, patient: Patient, settings: dict[str, Any]) -> None:
    patient.write(tmp_path)
    files = [next(tmp_path.rglob(f"{patient.name}__{name}.nii.gz")) for name in ("CT", "PT")]
    prepared = assert_seen_alike(HecktorSource(str(tmp_path), **settings), settings, *files)
    # a map that is linear in space is found in its place on the CT's voxels
    assert prepared.grid is not None
    places = apply_affine(prepared.grid.affine.numpy(), np.argwhere(np.ones(prepared.grid.shape)))
    slope = torch.from_numpy((places @ [0.5, -0.3, 0.2] + 100).reshape(prepared.grid.shape))
    found = prepared.on_file(slope)
    assert found.shape == patient.ct_shape
    own = apply_affine(patient.ct_affine, np.argwhere(np.ones(patient.ct_shape)))
    expected = (own @ [0.5, -0.3, 0.2] + 100).reshape(patient.ct_shape)
    inside = found > 0
    assert inside.mean() > (0.6 if "spacing" in settings else 0.999)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("shape", [(12, 10), (9, 8, 7)])
def test_images_of_a_manifest(tmp_path: Path, shape: tuple[int, ...], standardise: bool) -> None:
    rng = np.random.default_rng(0)
    affine = affine_of((0.9, 1.1, 2.5), (3, -8, 99), (9, 8, 7), tilted(17.0))
    for name in ("first", "second"):
        nibabel.save(nibabel.Nifti1Image(rng.normal(9, 3, shape).astype(np.float32), affine), tmp_path / f"{name}.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, dtype=np.uint8), affine), tmp_path / "mask.nii")
    row = {"case_id": "a", "image": "first.nii", "image2": "second.nii", "mask": "mask.nii"}
    pd.DataFrame([{**row, "rater": "r", "structure": "s"}]).to_csv(tmp_path / "manifest.csv", index=False)
    source = ManifestSource(str(tmp_path), standardise=standardise)
    prepared = assert_seen_alike(source, {"standardise": standardise}, tmp_path / "first.nii", tmp_path / "second.nii")
    values = torch.from_numpy(rng.random(shape))
    np.testing.assert_allclose(prepared.on_file(values), values, rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 12), (16, 12, 4)])
def test_slices_of_qubiq(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = tmp_path / "Training" / "case01"
    folder.mkdir(parents=True)
    image = np.random.default_rng(0).normal(50, 9, shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([0.5, 0.75, 2.0, 1.0])), folder / "image.nii.gz")
    for rater in (1, 2):
        mask = np.ones(shape[:2], dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([0.5, 0.75, 2.0, 1.0])), folder / f"task01_seg0{rater}.nii.gz")
    assert_seen_alike(QubiqSource(str(tmp_path)), {}, folder / "image.nii.gz")


def test_photographs_that_are_cut_around_the_disc(tmp_path: Path) -> None:
    eye = Eye(3, shape=(120, 150), middle=(60.0, 75.0))
    source = SquarePicture(64)
    save_picture(eye.photograph(), tmp_path / "photograph.png")
    prepared = read_case(ImageCase("a", (tmp_path / "photograph.png",)), source, 2, 3)
    assert prepared.image.shape == (3, 64, 64)
    back = prepared.on_file(prepared.image[0])
    assert back.shape == (120, 150)
    assert np.abs(back - eye.photograph()[..., 0] / 255).mean() < 0.02
    grey = np.full((30, 40), 51, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert torch.allclose(read_case(ImageCase("b", (tmp_path / "grey.png",)), source, 2, 3).image, torch.tensor(0.2))


def test_riga_crops_are_seen_as_in_training(tmp_path: Path) -> None:
    # DiscRegion: crops with masks, see `riga.releases`
    eye = Eye(3, shape=(120, 150), middle=(60.0, 75.0))
    place = tmp_path / "DiscRegion" / "BinRushed"
    save_picture(eye.photograph(), place / "BinRushed1-1.jpg")
    for rater in eye.raters:
        save_picture(mask_of(eye, rater, 128, 255), tmp_path / "DiscRegion" / f"x{rater}.png")
    preparation = RigaSource.preparation({"size": 32, "structures": ["disc"]})
    assert preparation == SquarePicture(32)


def test_hounsfield_units_come_to_the_scale_of_rendered_images() -> None:
    file = ImageFile(np.array([[[-1000.0, 0.0, 1000.0]]], dtype=np.float32))
    assert Stacked(offset=1000.0, scale=1000.0).prepare([file], 2).image.flatten().tolist() == [0.0, 1.0, 2.0]


def volume(shape: tuple[int, ...] = (4, 5, 6), shift: float = 0.0, channels: int = 1) -> ImageFile:
    affine = np.eye(4)
    affine[0, 3] = shift
    return ImageFile(np.ones((channels, *shape), dtype=np.float32), (1.0,) * len(shape), affine)


@pytest.mark.parametrize(
    ("preparation", "files", "message"),
    [
        (Stacked(), [volume(), volume((4, 5, 7))], "differ in size"),
        (Stacked(), [volume(), volume(shift=1.0)], "different affines"),
        (Stacked(), [volume((4, 5))], "is 2D, but the model sees 3D"),
        (HecktorSource.preparation({}), [volume()], "needs a CT and a PET"),
        (HecktorSource.preparation({}), [volume(), volume(channels=2)], "needs a CT and a PET"),
        (HecktorSource.preparation({}), [volume(), volume(shift=99.0)], "lie nowhere on each other"),
        (
            HecktorSource.preparation({}),
            [volume(), ImageFile(np.full((1, 4, 5, 6), 2e4, np.float32), None, np.eye(4))],
            "SUV",
        ),
        (HecktorSource.preparation({}), [volume(), ImageFile(np.ones((1, 4, 5, 6), np.float32))], "has no affine"),
    ],
)
def test_what_does_not_fit_is_told(preparation: Preparation, files: list[ImageFile], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        preparation.prepare(files, 3)


def test_another_number_of_channels_is_told(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ImageError, match=r"grey\.png: has 1 channels, but the model sees 3"):
        read_case(ImageCase("a", (tmp_path / "grey.png",)), Stacked(), 2, 3)
