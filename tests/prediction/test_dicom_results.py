"""Masks and maps on a DICOM series, read back by other programs: they lie on the voxels of the series."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_patients import Box, Scan
from numpy.typing import NDArray
from patients import tilted
from pydicom import Dataset, dcmread

from edue_lightning.data.dicom_masks import open_masks
from edue_lightning.data.dicom_objects import ImagePlace
from edue_lightning.data.dicom_series import has_image, read_series_header
from edue_lightning.data.images import ImageError
from edue_lightning.data.itk_volumes import segmentation_file
from edue_lightning.prediction.dicom_results import DicomResults, Maker

SHAPE = (12, 10, 6)
FIRST: Box = ((3, 2, 1), (8, 7, 4))
SECOND: Box = ((6, 4, 3), (12, 10, 6))
MAKER = Maker("1.2.3", "Edue", "0123456789abcdef0123")
ORIENTATIONS = {
    "supine": np.eye(3),
    "oblique": tilted(25) @ np.diag([-1, -1, 1]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}


def scan(orientation: str) -> Scan:
    pixels = np.random.default_rng(0).integers(0, 2000, SHAPE).astype(np.int16)
    return Scan(pixels, axes=ORIENTATIONS[orientation], spacing=(0.6, 0.8, 2.5))


def series(made: Scan, folder: Path) -> Path:
    for k, dataset in enumerate(made.slices()):
        dataset.PixelSpacing = [made.spacing[1], made.spacing[0]]
        dataset.PatientName, dataset.PatientSex, dataset.PatientBirthDate = "Doe^Jo", "F", "19500101"
        dataset.StudyDescription, dataset.PatientComments = "staging", "left-handed"
        dataset.Manufacturer, dataset.InstitutionName = "Scanners", "Hospital"
        folder.mkdir(exist_ok=True)
        dataset.save_as(folder / f"{(k * 5) % 6}", enforce_file_format=True)
    return folder


def at(volume: NDArray, affine: NDArray, place: list[float]) -> float:
    """Return the value of a volume at a place, by its affine in LPS."""
    index = np.linalg.inv(affine) @ [*place, 1]
    np.testing.assert_allclose(index[:3], np.round(index[:3]), atol=1e-3)
    return float(volume[tuple(np.round(index[:3]).astype(int))])


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_a_segmentation_lies_on_the_voxels_of_its_series(tmp_path: Path, orientation: str) -> None:
    made = scan(orientation)
    folder = series(made, tmp_path / "ct")
    masks = np.stack([made.mask(FIRST), made.mask(SECOND)])
    assert (masks[0] & masks[1]).any()
    content = DicomResults(folder, MAKER).segmentation(masks, ["GTV", "node"], ["#0072B2", "#D55E00"])
    path = tmp_path / "mask.dcm"
    path.write_bytes(content)
    # by highdicom
    held = highdicom.seg.segread(path)
    for number, mask in enumerate(masks, 1):
        volume = held.get_volume(segment_numbers=[number], combine_segments=False, allow_missing_positions=True)
        for k in range(volume.spatial_shape[0]):
            for i, j in ((3, 2), (7, 6), (6, 4), (11, 9), (0, 0)):
                place = volume.affine @ [k, j, i, 1]
                index = np.linalg.inv(made.axes * made.spacing) @ (place[:3] - made.place(0, 0, 0))
                np.testing.assert_allclose(index, np.round(index), atol=1e-3)
                assert volume.array[k, j, i, 0] == mask[tuple(np.round(index).astype(int))]
    assert [one.SegmentLabel for one in held.SegmentSequence] == ["GTV", "node"]
    assert held.segmentation_type.value == "BINARY"
    # by ITK, which takes the place of the first frame alone
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 3, 2)), made.place(5, 3, 2), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T > 0, np.concatenate(masks, axis=2))
    # as masks of a manifest
    place_of = ImagePlace.of_series(read_series_header(folder))
    again = open_masks(path)
    for number, name in enumerate(("gtv", "Node")):
        np.testing.assert_array_equal(again.mask(again.header.number_of(name), place_of), masks[number])


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_results_read_by_itk_have_the_places_of_the_series(tmp_path: Path, orientation: str) -> None:
    made = scan(orientation)
    folder = series(made, tmp_path / "ct")
    mask = made.mask(FIRST)
    (tmp_path / "mask.dcm").write_bytes(DicomResults(folder, MAKER).segmentation(mask[None], ["GTV"], ["#0072B2"]))
    image = sitk.ReadImage(str(tmp_path / "mask.dcm"))
    volume = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    assert image.GetSize() == volume.GetSize()
    for part in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(image, part)(), getattr(volume, part)(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T > 0, mask)


@pytest.mark.parametrize("orientation", ["oblique", "feet first"])
@pytest.mark.parametrize("quantity", ["probability", "disagreement", "total_variance"])
def test_a_map_holds_its_values_on_the_voxels_of_its_series(tmp_path: Path, orientation: str, quantity: str) -> None:
    made = scan(orientation)
    folder = series(made, tmp_path / "ct")
    values = np.random.default_rng(3).random(SHAPE).astype(np.float32) / 4
    held = highdicom.imread(BytesIO(DicomResults(folder, MAKER).map(values, quantity, "GTV")))
    volume = held.get_volume(dtype=np.float32)
    to_own = np.linalg.inv(made.axes * made.spacing)
    count = 0
    for index in np.ndindex(volume.spatial_shape):
        own = to_own @ ((volume.affine @ [*index, 1])[:3] - made.place(0, 0, 0))
        assert volume.array[index] == values[tuple(np.round(own).astype(int))]
        count += 1
    assert count == values.size
    mapping = held.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    (named,) = mapping.QuantityDefinitionSequence
    assert named.ConceptCodeSequence[0].CodingSchemeDesignator == "99EDUE"
    assert held.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99EDUE"
    assert mapping.LUTExplanation.endswith(": GTV")
    assert held.ContentQualification == "RESEARCH"


def elements(dataset: Dataset) -> set[str]:
    return {element.keyword for element in dataset if element.value not in ("", None)}


def test_results_refer_to_the_series_and_say_what_made_them(tmp_path: Path) -> None:
    made = scan("oblique")
    folder = series(made, tmp_path / "ct")
    results = DicomResults(folder, MAKER)
    mask = dcmread(BytesIO(results.segmentation(made.mask(FIRST)[None], ["GTV"], ["#0072B2"])))
    heat = dcmread(BytesIO(results.map(np.zeros(SHAPE, np.float32), "probability", "GTV")))
    source = dcmread(next(folder.iterdir()))
    for held in (mask, heat):
        for name in ("PatientID", "PatientName", "PatientSex", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert held[name].value == source[name].value
        assert held.StudyDescription == "staging"
        assert held.PatientComments == "left-handed"
        assert held.SeriesInstanceUID != source.SeriesInstanceUID
        assert [one.get("InstitutionName") for one in held.ContributingEquipmentSequence] == ["Hospital", None]
        # nothing is said of the patient and study that the series does not say
        for name in ("AccessionNumber", "StudyID", "StudyDate", "ReferringPhysicianName"):
            assert not held.get(name)
        assert "OtherPatientIDs" not in elements(held)
    referenced = mask.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == made.series
    uids = {dcmread(path).SOPInstanceUID for path in folder.iterdir()}
    assert {one.ReferencedSOPInstanceUID for one in referenced.ReferencedInstanceSequence} == uids
    algorithm = mask.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("edue-lightning Edue", "1.2.3")
    assert algorithm.AlgorithmParameters == f"checkpoint={MAKER.checkpoint}"
    assert mask.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    # beside the series, results are no images of it
    for name, held in (("mask", mask), ("heat", heat)):
        held.save_as(folder / f"{name}.dcm", enforce_file_format=True)
        assert not has_image([folder / f"{name}.dcm"])
    assert read_series_header(folder).shape == SHAPE


def test_frames_that_do_not_end_with_a_byte_keep_their_order(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2000, (7, 5, 5)).astype(np.int16)
    made = Scan(pixels, spacing=(0.6, 0.8, 2.5))
    folder = series(made, tmp_path / "ct")
    masks = np.random.default_rng(1).random((3, *pixels.shape)) < 0.5
    colours = ["#0072B2"] * 3
    (tmp_path / "mask.dcm").write_bytes(DicomResults(folder, MAKER).segmentation(masks, ["a", "b", "c"], colours))
    again, place = open_masks(tmp_path / "mask.dcm"), ImagePlace.of_series(read_series_header(folder))
    for number, mask in enumerate(masks, 1):
        np.testing.assert_array_equal(again.mask(number, place), mask)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.dcm"))).ravel() > 0
    # ITK loses the last byte, which these frames do not fill
    whole = masks.size // 8 * 8
    np.testing.assert_array_equal(found[:whole], np.concatenate(masks, axis=2).T.ravel()[:whole])


def test_an_empty_mask_is_written(tmp_path: Path) -> None:
    made = scan("supine")
    folder = series(made, tmp_path / "ct")
    empty = np.zeros((1, *SHAPE), dtype=bool)
    (tmp_path / "mask.dcm").write_bytes(DicomResults(folder, MAKER).segmentation(empty, ["GTV"], ["#0072B2"]))
    place = ImagePlace.of_series(read_series_header(folder))
    assert not open_masks(tmp_path / "mask.dcm").mask(1, place).any()


def test_headers_that_the_standard_does_not_allow_give_one_line(tmp_path: Path) -> None:
    made = scan("supine")
    folder = series(made, tmp_path / "ct")
    for path in folder.iterdir():
        header = dcmread(path)
        header.PatientSex = "UNKNOWN"
        header.save_as(path)
    with pytest.raises(ImageError, match=r"cannot be written as DICOM \(.*\); correct its headers, or set") as caught:
        DicomResults(folder, MAKER).segmentation(made.mask(FIRST)[None], ["GTV"], ["#0072B2"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("boxes", [(FIRST, SECOND), (FIRST, ((8, 7, 4), (12, 10, 6)))])
def test_segments_of_3d_slicer_have_names_colours_and_places(tmp_path: Path, boxes: tuple[Box, Box]) -> None:
    from edue_lightning.data.images import read_segment

    made = scan("oblique")
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ (made.axes * made.spacing)
    affine[:3, 3] = np.diag([-1, -1, 1]) @ made.place(0, 0, 0)
    masks = {"GTV": made.mask(boxes[0]), "lymph node": made.mask(boxes[1])}
    path = tmp_path / "mask.seg.nrrd"
    path.write_bytes(segmentation_file(masks, ["#0072B2", "#D55E00"], affine))
    overlap = bool((masks["GTV"] & masks["lymph node"]).any())
    image = sitk.ReadImage(str(path))
    assert image.GetNumberOfComponentsPerPixel() == (2 if overlap else 1)
    assert image.GetSize() == SHAPE
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 3, 2)), made.place(5, 3, 2), atol=1e-6)
    wanted = {"Name": "lymph node", "Color": "0.8353 0.3686 0", "LabelValue": "1" if overlap else "2"}
    wanted |= {"Layer": "1" if overlap else "0", "Extent": "0 11 0 9 0 5", "ID": "Segment_2"}
    for key, text in wanted.items():
        assert image.GetMetaData(f"Segment1_{key}") == text
    assert image.GetMetaData("Segmentation_MasterRepresentation") == "Binary labelmap"
    header = path.read_bytes().partition(b"\n\n")[0]
    assert (b"\nkinds: list domain domain domain" in header) == overlap
    for name, mask in masks.items():
        found = read_segment(path, name.upper())
        np.testing.assert_array_equal(found.array, mask)
        np.testing.assert_allclose(found.affine, affine, atol=1e-6)
