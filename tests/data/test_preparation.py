"""New images are seen exactly as training saw them, and what is found on them goes back to their own voxels."""

from __future__ import annotations

import math
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
from edue_lightning.data.preparation import Preparation, PreparedImage, SquarePicture, Stacked, resized


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
    # beyond the outermost centres of the prepared voxels the value is that of the nearest place between centres
    indices = apply_affine(np.linalg.inv(prepared.grid.affine.numpy()), own)
    nearest = apply_affine(prepared.grid.affine.numpy(), np.clip(indices, 0, np.array(prepared.grid.shape) - 1))
    expected = (nearest @ [0.5, -0.3, 0.2] + 100).reshape(patient.ct_shape)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (prepared.on_file(torch.ones(prepared.grid.shape)) == 1).all()


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
    values = rng.random(prepared.image.shape[1:])
    expected = values
    if len(shape) == 3:
        assert prepared.grid is not None
        stored = nibabel.Nifti1Image(np.zeros(shape), affine)
        turned = nibabel.Nifti1Image(values, nibabel.as_closest_canonical(stored).affine)
        codes = nibabel.orientations.io_orientation(turned.affine), nibabel.orientations.io_orientation(affine)
        expected = turned.as_reoriented(nibabel.orientations.ornt_transform(*codes)).get_fdata()
    np.testing.assert_allclose(prepared.on_file(torch.from_numpy(values)), expected, rtol=1e-6)


CODES = ("RAS", "LPS", "PSR", "SAR", "ILP", "ARI")


def stored_as(image: nibabel.Nifti1Image, codes: str) -> nibabel.Nifti1Image:
    """Return the same voxels at the same places, with array axes in another order and direction."""
    wanted = nibabel.orientations.axcodes2ornt(codes)
    return image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(image.affine), wanted)
    )


@pytest.mark.parametrize("codes", CODES)
def test_a_volume_is_prepared_alike_however_its_axes_are_stored(tmp_path: Path, codes: str) -> None:
    rng = np.random.default_rng(4)
    affine = affine_of((0.9, 1.1, 2.5), (3, -8, 99), (9, 8, 7), tilted(17.0))
    plain = nibabel.Nifti1Image(rng.normal(9, 3, (9, 8, 7)).astype(np.float32), affine)
    labels = nibabel.Nifti1Image((rng.random((9, 8, 7)) > 0.6).astype(np.uint8), affine)
    rows = []
    for case, of_image, of_mask in (("plain", "RAS", "RAS"), ("turned", codes, codes), ("mixed", "RAS", codes)):
        nibabel.save(stored_as(plain, of_image), tmp_path / f"{case}.nii.gz")
        nibabel.save(stored_as(labels, of_mask), tmp_path / f"{case}_mask.nii.gz")
        files = {"image": f"{case}.nii.gz", "mask": f"{case}_mask.nii.gz"}
        rows.append({"case_id": case, "patient": "one", **files, "rater": "r", "structure": "s"})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    source = ManifestSource(str(tmp_path))
    first, *others = (source.load(record.case_id) for record in source.cases())
    for sample in others:
        assert torch.equal(sample.image, first.image)
        assert torch.equal(sample.masks, first.masks)
        assert sample.spacing == pytest.approx(first.spacing)
        torch.testing.assert_close(sample.affine, first.affine, rtol=0, atol=1e-4)
    expected = nibabel.as_closest_canonical(labels).get_fdata()
    np.testing.assert_array_equal(first.masks[0, 0], expected)

    prepared = seen_anew(source, {}, tmp_path / "turned.nii.gz")
    torch.testing.assert_close(prepared.image, first.image, rtol=0, atol=1e-6)
    back = prepared.on_file(first.masks[0, 0].float())
    np.testing.assert_array_equal(back, stored_as(labels, codes).get_fdata())


def test_resized_pictures_lose_no_border() -> None:
    for shape in ((7, 5), (64, 48), (100, 130)):
        ones = np.ones(shape, dtype=np.float32)
        assert (resized(resized(ones, (32, 32)), shape) == 1).all()


def test_a_table_and_a_header_must_not_contradict_each_other(tmp_path: Path) -> None:
    affine = affine_of((0.9, 1.1, 2.5), (3, -8, 99), (9, 8, 7), np.eye(3)[:, [1, 2, 0]])
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 8, 7), dtype=np.float32), affine), tmp_path / "a.nii.gz")
    files = (tmp_path / "a.nii.gz",)
    plain = read_case(ImageCase("a", files), Stacked(), 3, 1)
    same = read_case(ImageCase("a", files, (0.9, 1.1, 2.51)), Stacked(), 3, 1)
    # along the turned axes, as the header has it
    assert plain.spacing == same.spacing == pytest.approx((2.5, 0.9, 1.1))
    message = r"a\.nii\.gz: the table gives the spacing 2\.5x0\.9x1\.1 mm, but the header 0\.9x1\.1x2\.5 mm"
    with pytest.raises(ImageError, match=message):
        read_case(ImageCase("a", files, (2.5, 0.9, 1.1)), Stacked(), 3, 1)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "grey.png")
    picture = read_case(ImageCase("b", (tmp_path / "grey.png",), (0.5, 0.25)), Stacked(), 2, 1)
    assert picture.spacing == (0.5, 0.25)


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
    values = np.linspace(0, 1, channels * math.prod(shape), dtype=np.float32).reshape(channels, *shape)
    return ImageFile(values, (1.0,) * len(shape), affine)


@pytest.mark.parametrize(
    ("preparation", "files", "message"),
    [
        (Stacked(), [volume(), volume((4, 5, 7))], "differ in size"),
        (Stacked(), [volume(), volume(shift=1.0)], "different affines"),
        (Stacked(), [volume((4, 5))], "is 2D, but the model expects 3D"),
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
    with pytest.raises(ImageError, match=r"grey\.png: has 1 channels, but the model expects 3"):
        read_case(ImageCase("a", (tmp_path / "grey.png",)), Stacked(), 2, 3)


def test_the_voxel_size_of_a_resized_picture_is_that_of_its_new_pixels() -> None:
    picture = np.zeros((1, 40, 20), dtype=np.float32)
    prepared = SquarePicture(10).prepare([ImageFile(picture, (0.5, 0.25))], 2)
    assert prepared.spacing == (2.0, 0.5)
    # the picture covers the same area
    assert prepared.voxel_size * 10 * 10 == pytest.approx(0.5 * 0.25 * 40 * 20)


def test_the_spacing_of_a_table_is_that_of_the_files_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    prepared = read_case(ImageCase("a", (tmp_path / "a.png",), (0.5, 0.25)), SquarePicture(10), 2, 3)
    assert prepared.spacing == (2.0, 0.5)
    stacked = read_case(ImageCase("a", (tmp_path / "a.png",), (0.5, 0.25)), Stacked(), 2, 3)
    assert stacked.spacing == (0.5, 0.25)
    assert (prepared.resampled, stacked.resampled) == (True, False)
