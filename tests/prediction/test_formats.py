"""One volume in several formats gets one prediction, in the format of its file and on the file's voxels."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import ct_slice, write
from numpy.typing import NDArray
from patients import affine_of, tilted
from PIL import Image
from untrained import VOLUMES, checkpoint

from edue_lightning.config.build import ImageFormat
from edue_lightning.errors import UserError
from edue_lightning.prediction.run import Predicted, predict

SHAPE = (12, 10, 8)
AFFINE = affine_of((0.9, 1.1, 2.5), (3, -8, 99), SHAPE, tilted(17.0))
VOXELS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def predicted(tmp_path: Path, folder: Path, images: ImageFormat = VOLUMES, **others: str) -> Predicted:
    settings = {"device": "cpu", "inference": None, "sensitivity": 0.95, "overwrite": False, **others}
    path = checkpoint(tmp_path / "best.ckpt", image_format=images)
    configuration = {"ckpt": str(path), "input": str(folder), "output": str(tmp_path / "out"), **settings}
    (tmp_path / "out").mkdir(exist_ok=True)
    return predict(configuration, tmp_path / "out")


def in_ras(image: sitk.Image) -> tuple[NDArray, NDArray[np.float64]]:
    """Return voxels (i, j, k) and the affine, computed from ITK's own place of four voxels."""
    origin = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    steps = [np.array(image.TransformIndexToPhysicalPoint(step)) - origin for step in np.eye(3, dtype=int).tolist()]
    affine = np.eye(4)
    affine[:3] = np.stack([*steps, origin], axis=1)
    affine[:2] *= -1
    return sitk.GetArrayFromImage(image).T, affine


@pytest.mark.parametrize("codes", ["as stored", "turned"])
def test_one_volume_gets_one_mask_to_the_voxel_in_every_format(tmp_path: Path, codes: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), folder / "nifti.nii.gz")
    # by ITK, whose reader of NIfTI turns RAS to LPS itself
    image = sitk.ReadImage(str(folder / "nifti.nii.gz"))
    if codes == "turned":
        image = sitk.PermuteAxes(image, [2, 0, 1])[::-1, :, ::-1]
    for name in ("metaimage.mha", "nrrd.nrrd", "apart.mhd", "detached.nhdr"):
        sitk.WriteImage(image, str(folder / name), name.endswith("a"))
    result = predicted(tmp_path, folder)
    assert not result.failed
    assert sorted(result.triage["case"].astype(str)) == ["apart", "detached", "metaimage", "nifti", "nrrd"]
    out = tmp_path / "out"
    expected = {name: nibabel.load(out / f"nifti__{name}.nii.gz") for name in ("mask", "probability", "disagreement")}
    share = np.asarray(expected["mask"].dataobj).mean()
    assert 0.01 < share < 0.99
    for case, ending in (("metaimage", "mha"), ("nrrd", "nrrd"), ("apart", "mha"), ("detached", "nrrd")):
        for name, wanted in expected.items():
            middle = "seg." if (ending, name) == ("nrrd", "mask") else ""
            found = sitk.ReadImage(str(out / f"{case}__{name}.{middle}{ending}"))
            # on the very voxels of the file
            assert found.GetSize() == image.GetSize()
            for part in ("GetOrigin", "GetSpacing", "GetDirection"):
                np.testing.assert_allclose(getattr(found, part)(), getattr(image, part)(), atol=1e-5)
            voxels, affine = in_ras(found)
            turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine))
            canonical = nibabel.as_closest_canonical(wanted)
            np.testing.assert_allclose(turned.affine, canonical.affine, atol=1e-4)
            np.testing.assert_array_equal(np.asarray(turned.dataobj), np.asarray(canonical.dataobj))


def test_whatever_is_no_image_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(folder / "a.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(folder / "b.mhd"))
    (folder / "patient").mkdir()
    (folder / "patient" / "IM000001").write_bytes(bytes(128) + b"DICM")
    (folder / "c.mgz").write_bytes(b"")
    (folder / "notes").write_text("no image")
    (folder / "a.seg.nrrd").write_text("no image")
    with caplog.at_level(logging.WARNING):
        result = predicted(tmp_path, folder)
    assert sorted(result.triage["case"].astype(str)) == ["a", "b"]
    assert sorted(result.failed) == ["c.mgz", "patient"]
    assert "is of a format that is not read" in result.failed["c.mgz"]
    assert result.failed["patient"].startswith("patient: IM000001: ")
    # the voxels of b.mhd belong to it
    assert "files that are no images are skipped: a.seg.nrrd, notes\n" in caplog.text


def test_changed_voxels_beside_a_header_are_another_image(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(folder / "b.mhd"))
    assert not predicted(tmp_path, folder).failed
    (folder / "b.raw").write_bytes((VOXELS + 1).T.tobytes())
    configuration = {
        **{"ckpt": str(tmp_path / "best.ckpt"), "input": str(folder), "output": str(tmp_path / "out")},
        **{"device": "cpu", "inference": None, "sensitivity": 0.95, "overwrite": False},
    }
    failed = predict(configuration, tmp_path / "out").failed
    assert "from other image files" in failed["b"]


@pytest.mark.parametrize("name", ["a.bmp", "a.webp"])
def test_bmp_and_webp_are_pictures(tmp_path: Path, name: str) -> None:
    from edue_lightning.data.images import ImageError, read_image, read_mask

    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    found = read_image(tmp_path / name).array
    np.testing.assert_array_equal(found, np.moveaxis(pixels, -1, 0) / np.float32(255))
    mask = np.zeros((32, 32), np.uint8)
    mask[5:20, 7:25] = 255
    Image.fromarray(mask).save(tmp_path / f"mask_{name}", lossless=True)
    np.testing.assert_array_equal(read_mask(tmp_path / f"mask_{name}").array, mask > 0)
    if name.endswith("webp"):
        Image.fromarray(mask).save(tmp_path / name, quality=20)
        with pytest.raises(ImageError, match="is a lossy WebP, which blurs labels"):
            read_mask(tmp_path / name)


def test_a_series_without_a_frame_of_reference_gets_the_mask_of_the_same_volume_as_nifti(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.round(VOXELS * 500).astype(np.int16)
    for k in range(SHAPE[2]):
        dataset = ct_slice(np.ascontiguousarray(pixels[:, :, k].T), 2.0 * k, intercept=-24)
        write(dataset, tmp_path / "in" / "scan" / f"{(5 * k) % 8}.dcm")
    affine = np.diag([-0.703125, -0.703125, 2.0, 1.0])
    affine[:2, 3] = 166, 171.699997
    nibabel.save(nibabel.Nifti1Image(pixels.astype(np.float32) - 24, affine), tmp_path / "in" / "volume.nii.gz")
    result = predicted(tmp_path, tmp_path / "in")
    assert not result.failed
    for name in ("mask", "probability", "disagreement"):
        found, expected = (nibabel.load(tmp_path / "out" / f"{case}__{name}.nii.gz") for case in ("scan", "volume"))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
        assert np.ptp(np.asarray(found.dataobj)) > 0
    assert "scan: results are NIfTI files, not DICOM objects: 0.dcm: has no FrameOfReferenceUID" in caplog.text


def test_a_format_is_chosen_for_all_volumes(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINE), folder / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(folder / "a.nii.gz")), str(folder / "b.mha"))
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(folder / "c.png")
    plain = predicted(tmp_path, folder)
    assert list(plain.failed) == ["c"]
    wanted = np.asarray(nibabel.load(tmp_path / "out" / "a__mask.nii.gz").dataobj)
    (tmp_path / "out").rename(tmp_path / "plain")
    result = predicted(tmp_path, folder, format="nrrd")
    assert list(result.failed) == ["c"]
    for case in "ab":
        for name in ("mask.seg", "probability", "disagreement"):
            voxels, affine = in_ras(sitk.ReadImage(str(tmp_path / "out" / f"{case}__{name}.nrrd")))
            assert voxels.shape == SHAPE
            np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
            if name == "mask.seg":
                np.testing.assert_array_equal(voxels, wanted)
    (tmp_path / "out").rename(tmp_path / "nrrd")
    refused = predicted(tmp_path, folder, format="dicom").failed
    assert refused["a"] == "a.nii.gz: is no DICOM series, so no DICOM object can refer to it; set format=null"
    with pytest.raises(UserError, match="contains a prediction by another checkpoint or other settings"):
        predicted(tmp_path, folder, format="nifti")
    with pytest.raises(UserError, match="format=jpeg: choose among nifti, nrrd, dicom"):
        predicted(tmp_path, folder, format="jpeg")


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_slice_whose_third_axis_counts_channels_gets_a_mask_of_one_slice(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = sitk.GetImageFromArray(VOXELS[:, :, :4].T)
    image.SetSpacing((0.5, 0.5, 1.0))
    image.SetOrigin((3, 4, 5))
    sitk.WriteImage(image, str(folder / name))
    assert not predicted(tmp_path, folder, ImageFormat(2, 4, ("ball",))).failed
    for part in ("mask", "probability", "disagreement"):
        found = sitk.ReadImage(str(tmp_path / "out" / f"a__{part}{Path(name).suffix}"))
        assert found.GetSize() == (*SHAPE[:2], 1)
        assert found.GetOrigin() == (3, 4, 5)
        assert found.GetSpacing() == (0.5, 0.5, 1.0)


def test_a_file_that_itk_cannot_write_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(folder / "a.mha"))

    def full(*_: object) -> None:
        raise RuntimeError("Exception thrown in SimpleITK WriteImage:\n no space left")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(.* no space left\); free some space") as caught:
        predicted(tmp_path, folder)
    assert "\n" not in str(caught.value)
