"""DICOM series as volumes: the place of every voxel, and series that would make a wrong volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import ct_slice, write
from patients import tilted
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1, JPEGLSLossless, RLELossless, generate_uid

from edue_lightning.data.images import ImageError, affine_of, read_image
from edue_lightning.data.new_images import find_images
from edue_lightning.data.sources.manifest.source import ManifestSource
from edue_lightning.errors import UserError

COUNT = 7
PIXELS = np.random.default_rng(0).integers(0, 2000, (COUNT, 5, 6)).astype(np.int16)
SPACING = (0.8, 0.6)
STEP = 2.5
Slices = list[Dataset]


def slices(turn: np.ndarray | None = None) -> Slices:
    """Return a series with axes as the columns of an orthogonal matrix, LPS; rows and columns have other sizes."""
    axes = np.eye(3) if turn is None else turn
    made = []
    for k, pixels in enumerate(PIXELS):
        dataset = ct_slice(pixels, 0.0, slope=2)
        position = np.array([-100.0, -90.0, 40.0]) + axes[:, 2] * STEP * k
        dataset.ImagePositionPatient = [f"{value:.9f}"[:16] for value in position]
        dataset.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in axes[:, :2].T.ravel()]
        dataset.PixelSpacing = list(SPACING)
        dataset.FrameOfReferenceUID = "1.2.3"
        made.append(dataset)
    return made


def save(folder: Path, made: Slices) -> Path:
    """Write a series with names that do not follow the positions."""
    for dataset, name in zip(made, np.random.default_rng(1).permutation(len(made)), strict=True):
        write(dataset, folder / f"IM{name:05d}")
    return folder


@pytest.mark.parametrize("turn", [np.eye(3), tilted(20) @ np.diag([-1, -1, 1]), np.eye(3)[:, [1, 2, 0]]])
def test_each_voxel_lies_where_itk_places_it(tmp_path: Path, turn: np.ndarray) -> None:
    found = read_image(save(tmp_path, slices(turn)))
    expected = np.moveaxis(PIXELS.astype(np.float32) * 2 - 1024, 0, -1).swapaxes(0, 1)
    np.testing.assert_array_equal(found.array[0], expected)
    assert found.spacing == pytest.approx((SPACING[1], SPACING[0], STEP))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(found.array[0], sitk.GetArrayFromImage(image).T)
    assert found.affine is not None
    for index in ([0, 0, 0], [5, 0, 0], [0, 4, 0], [0, 0, COUNT - 1], [5, 4, 6]):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(found.affine[:3] @ [*index, 1], [-left, -posterior, superior], atol=1e-4)
    np.testing.assert_array_equal(affine_of(tmp_path), found.affine)


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    made = slices()
    for k, dataset in enumerate(made):
        dataset.RescaleSlope, dataset.RescaleIntercept = k + 1, -k
    # absent, and without a value
    del made[0].RescaleSlope
    made[0].RescaleIntercept = None
    found = read_image(save(tmp_path, made)).array[0]
    for k, pixels in enumerate(PIXELS):
        np.testing.assert_array_equal(found[:, :, k], pixels.T.astype(np.float32) * (k + 1) - k)


def with_values(number: int, **values: object) -> Callable[[Slices], Slices]:
    def change(made: Slices) -> Slices:
        for name, value in values.items():
            setattr(made[number], name, value)
        return made

    return change


def table() -> Dataset:
    """Return a table of values by pixels."""
    found = Dataset()
    found.LUTDescriptor, found.ModalityLUTType = [4096, 0, 16], "HU"
    found.LUTData = (np.arange(4096, dtype=np.uint16) // 2).tobytes()
    found["LUTData"].VR = "OW"
    return found


def of_pet(made: Slices) -> Slices:
    for dataset in made:
        dataset.Modality, dataset.Units = "PT", "BQML"
    return made


@pytest.mark.parametrize(
    "values",
    [
        {"BitsStored": 12, "HighBit": 11},
        {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0},
        {"PixelRepresentation": 0},
        {"PixelPaddingValue": -2000},
        {"RescaleType": "US"},
    ],
)
def test_pixels_become_the_values_that_itk_reads(tmp_path: Path, values: dict[str, object]) -> None:
    made = slices()
    for dataset, pixels in zip(made, PIXELS, strict=True):
        pixels = np.where(pixels < 200, -2000, pixels).astype(np.int16)
        dataset.PixelData = pixels.tobytes()
        for name, value in values.items():
            setattr(dataset, name, value)
    folder = save(tmp_path, made)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    np.testing.assert_array_equal(read_image(folder).array[0], sitk.GetArrayFromImage(reader.Execute()).T)


def as_tilted_gantry(made: Slices) -> Slices:
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-100, -90 + 0.3 * k, 40 + STEP * k]
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: [*made[:3], *made[4:]], r"lacks slices.*lie 5 mm apart, others 2\.5 mm"),
        (lambda made: [*made, slices()[3]], r"two slices at one position, 47\.5 mm: IM0000\d and IM0000\d; remove one"),
        (as_tilted_gantry, r"shifted against each other by up to 1\.8 mm, as by a tilted gantry"),
        (with_values(2, ImagePositionPatient=[-100, -90, 45.4]), "lacks slices, or their distances differ"),
        (with_values(2, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "differ in ImageOrientationPatient"),
        (with_values(2, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "are no right angle"),
        (with_values(2, PixelSpacing=[0.8, 0.61]), "differ in PixelSpacing"),
        (with_values(2, PixelSpacing=None), "gives no PixelSpacing"),
        (with_values(2, FrameOfReferenceUID="1.2.4"), "differ in FrameOfReferenceUID"),
        (with_values(2, SeriesInstanceUID="1.2.5", SeriesDescription="scout"), r"1\.2\.5 \(CT, scout, 1 slice\)"),
        (with_values(2, PhotometricInterpretation="MONOCHROME1"), r"are MONOCHROME1, not grey values"),
        (with_values(2, RescaleSlope=0), "claims value x 0"),
        (with_values(2, Rows=4), "differ in Rows"),
        (with_values(2, ModalityLUTSequence=[table()]), r"IM0000\d: translates its pixels by a table \(ModalityLUT"),
        (with_values(2, BitsStored=12), r"IM0000\d: its highest bit is 15 \(HighBit\) of 12 bits \(BitsStored\)"),
        (with_values(2, RescaleType="Z_EFF"), r"its values are Z_EFF \(RescaleType\), not Hounsfield units"),
        (lambda made: with_values(2, Units="CNTS")(of_pet(made)), "differ in Units"),
        (with_values(2, PixelData=bytes(10)), r"IM0000\d: cannot be read"),
        (lambda made: made[:1], "holds a single slice"),
    ],
)
def test_what_would_make_a_wrong_volume_is_refused(
    tmp_path: Path, change: Callable[[Slices], Slices], message: str
) -> None:
    folder = save(tmp_path, change(slices()))
    with pytest.raises(ImageError, match=message) as caught:
        read_image(folder)
    assert "\n" not in str(caught.value)


def test_a_slice_without_a_preamble_is_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "ct", slices())
    last = sorted((tmp_path / "ct").iterdir())[-1]
    bare = last.read_bytes()[132:]
    last.unlink()
    (tmp_path / "ct" / "last.DCM").write_bytes(bare)
    with pytest.raises(ImageError, match=r"last\.DCM has no DICOM preamble; write it anew, such as by dcmconv"):
        read_image(tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        path.write_bytes(bare)
    (tmp_path / "manifest.csv").write_text("case_id,image,mask,rater,structure\none,ct,,A,ball\n")
    with pytest.raises(UserError, match="ct: case 'one': is a folder without DICOM files; name a file, or"):
        ManifestSource(str(tmp_path)).cases()


def test_a_localizer_beside_the_series_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = slices()
    for dataset in made:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    # of a series of its own, and of that of the slices
    scouts = [ct_slice(PIXELS[0][:3], 0.0, series=uid) for uid in ("1.9", made[0].SeriesInstanceUID)]
    for number, scout in enumerate(scouts):
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        write(scout, tmp_path / f"scout{number}.dcm")
    found = read_image(save(tmp_path, made))
    assert found.array.shape == (1, 6, 5, COUNT)
    assert caplog.messages == [f"{tmp_path}: localizers are left out: scout0.dcm, scout1.dcm"]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices_hold_the_values_of_plain_ones(tmp_path: Path, syntax: str) -> None:
    made = slices()
    for dataset, pixels in zip(made, PIXELS, strict=True):
        # below zero too
        dataset.PixelData = (pixels - 700).tobytes()
    expected = read_image(save(tmp_path / "plain", made)).array
    for dataset in made:
        dataset.compress(syntax)
    np.testing.assert_array_equal(read_image(save(tmp_path / "packed", made)).array, expected)
    assert expected.min() < -1024


def test_slices_without_a_decoder_are_refused_in_one_line(tmp_path: Path) -> None:
    made = slices()
    for dataset in made:
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset["PixelData"].is_undefined_length = True
    message = r"is compressed \(JPEG Lossless.*\), and no decoder for it is installed; decompress it, for example"
    with pytest.raises(ImageError, match=message) as caught:
        read_image(save(tmp_path, made))
    assert "\n" not in str(caught.value)


def contours() -> Dataset:
    """Return the start of an RTSTRUCT object, which has no pixels."""
    dataset = slices()[0]
    dataset.Modality = "RTSTRUCT"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    for name in ("Rows", "Columns", "PixelData", "ImagePositionPatient", "BitsAllocated"):
        delattr(dataset, name)
    return dataset


def test_each_folder_with_slices_is_a_case_and_contours_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for patient in ("p1", "p2"):
        save(tmp_path / patient / "ct", slices())
    write(contours(), tmp_path / "p1" / "rtstruct" / "1.dcm")
    write(contours(), tmp_path / "p2" / "ct" / "contours.dcm")
    Image.fromarray(PIXELS[0].astype(np.uint8)).save(tmp_path / "a.png")
    found = find_images(tmp_path, 1)
    assert {case.case_id: case.files for case in found.cases} == {
        "a": (tmp_path / "a.png",),
        "p1_ct": (tmp_path / "p1" / "ct",),
        "p2_ct": (tmp_path / "p2" / "ct",),
    }
    assert not found.problems
    assert f"{tmp_path}: files that are no images are skipped: p1/rtstruct/1.dcm" in caplog.messages
    np.testing.assert_array_equal(read_image(tmp_path / "p2" / "ct").array, read_image(tmp_path / "p1" / "ct").array)
    # the folder itself, and one of its files
    assert [case.case_id for case in find_images(tmp_path / "p1" / "ct", 1).cases] == ["ct"]
    with pytest.raises(UserError, match="is one file of a DICOM series; choose the folder of the series"):
        find_images(tmp_path / "p1" / "ct" / "IM00000", 1)


def test_a_manifest_names_the_folder_of_a_series(tmp_path: Path) -> None:
    save(tmp_path / "ct", slices())
    volume = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    sitk.WriteImage(sitk.Cast(volume > 500, sitk.sitkUInt8), str(tmp_path / "A.nrrd"))
    sitk.WriteImage(sitk.Cast(volume > 700, sitk.sitkUInt8), str(tmp_path / "B.nii.gz"))
    rows = ["case_id,image,mask,rater,structure", "one,ct,A.nrrd,A,ball", "one,ct,B.nii.gz,B,ball"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    source = ManifestSource(str(tmp_path), standardise=False, cache=str(tmp_path / "cache"))
    assert not source.problems
    sample = source.load("one")
    for rater, threshold in enumerate((500, 700)):
        np.testing.assert_array_equal(sample.masks[rater, 0], sample.image[0] > threshold)
    # another slice is another case
    made = slices()
    made[0].PixelData = (PIXELS[0] + 1).tobytes()
    save(tmp_path / "ct", made)
    again = ManifestSource(str(tmp_path), standardise=False, cache=str(tmp_path / "cache")).load("one")
    assert (again.image != sample.image).sum() == PIXELS[0].size
