"""Two observers' RTSTRUCT files as masks of a DICOM series, through a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import ct_slice, write
from numpy.typing import NDArray
from patients import tilted
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from edue_lightning.data.sources.manifest.source import ManifestSource

# columns, rows, slices
SHAPE = (20, 16, 6)
SPACING, STEP, FRAME = 0.703125, 2.5, "1.2.3"
PIXELS = np.random.default_rng(0).integers(0, 2000, SHAPE).astype(np.int16)
AXES = tilted(25) @ np.diag([-1, -1, 1])
ORIGIN = np.array([-30.0, -20.0, 55.0])
Outline = list[tuple[float, float]]


def place(i: float, j: float, k: float) -> list[float]:
    """Return the place of a voxel, mm to the left, posterior and superior."""
    return list(ORIGIN + AXES @ np.array([i * SPACING, j * SPACING, k * STEP]))


def save_series(folder: Path, pixels: NDArray[np.int16] = PIXELS) -> None:
    for k in range(SHAPE[2]):
        dataset = ct_slice(np.ascontiguousarray(pixels[:, :, k].T), 0.0)
        dataset.ImagePositionPatient = [f"{value:.9f}"[:16] for value in place(0, 0, k)]
        dataset.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in AXES[:, :2].T.ravel()]
        dataset.FrameOfReferenceUID = FRAME
        write(dataset, folder / f"{(k * 5) % 6}.dcm")


def contour(outline: Outline, k: float, kind: str = "CLOSED_PLANAR") -> Dataset:
    item = Dataset()
    item.ContourGeometricType = kind
    item.NumberOfContourPoints = len(outline)
    item.ContourData = [f"{value:.6f}" for i, j in outline for value in place(i, j, k)]
    return item


def structure_set(structures: dict[str, list[Dataset]], frame: str = FRAME) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = generate_uid()
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), 1):
        region, outlines = Dataset(), Dataset()
        region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = number, name, frame
        outlines.ReferencedROINumber, outlines.ContourSequence = number, contours
        dataset.StructureSetROISequence.append(region)
        dataset.ROIContourSequence.append(outlines)
    return dataset


def box(low: tuple[float, float], high: tuple[float, float]) -> Outline:
    return [low, (high[0], low[1]), high, (low[0], high[1])]


def save_manifest(folder: Path, *raters: str, structures: tuple[str, ...] = ("GTV", "node")) -> None:
    rows = [f"one,ct,{rater}.dcm,{rater},{name}" for rater in raters for name in structures]
    (folder / "manifest.csv").write_text("\n".join(["case_id,image,mask,rater,structure", *rows]))


@pytest.mark.parametrize("decimals", [2, 3, 6])
def test_an_outline_through_centres_of_voxels_keeps_them(tmp_path: Path, decimals: int) -> None:
    save_series(tmp_path / "ct")
    item = contour(box((4, 5), (9, 10)), 2)
    item.ContourData = [f"{float(value):.{decimals}f}" for value in item.ContourData]
    write(structure_set({"GTV": [item]}), tmp_path / "ann.dcm")
    save_manifest(tmp_path, "ann", structures=("GTV",))
    masks = ManifestSource(str(tmp_path)).load("one").masks
    assert int(masks.sum()) == 36


def test_the_same_outline_twice_is_refused(tmp_path: Path) -> None:
    save_series(tmp_path / "ct")
    item = contour(box((4, 5), (9, 10)), 2)
    write(structure_set({"GTV": [item, item]}), tmp_path / "ann.dcm")
    save_manifest(tmp_path, "ann", structures=("GTV",))
    assert "has the same outline of 'GTV' twice on a slice" in " ".join(
        map(str, ManifestSource(str(tmp_path)).problems)
    )


def test_outlines_of_two_observers_lie_on_the_voxels_of_the_series(tmp_path: Path) -> None:
    save_series(tmp_path / "ct")
    outer, hole = box((2.5, 3.5), (12.5, 10.5)), box((5.5, 5.5), (8.5, 7.5))
    triangle = [(1.2, 1.1), (17.7, 2.3), (9.4, 13.8)]
    anna = {"GTV": [contour(outer, 2), contour(hole, 2), contour(outer, 3)], "Node": [contour(triangle, 4)]}
    ben = {"gtv ": [contour(box((3.5, 3.5), (12.5, 10.5)), 2)], "node": []}
    for rater, structures in {"anna": anna, "ben": ben}.items():
        write(structure_set(structures), tmp_path / f"{rater}.dcm")
    save_manifest(tmp_path, "anna", "ben")
    source = ManifestSource(str(tmp_path), standardise=False)
    assert not source.problems
    sample = source.load("one")

    expected = np.zeros((2, 2, *SHAPE), dtype=bool)
    expected[0, 0, 3:13, 4:11, 2:4] = True
    expected[0, 0, 6:9, 6:8, 2] = False
    expected[1, 0, 4:13, 4:11, 2] = True
    # centres on the inner side of all three edges
    i, j = np.meshgrid(*map(np.arange, SHAPE[:2]), indexing="ij")
    sides = [
        (end[0] - start[0]) * (j - start[1]) - (end[1] - start[1]) * (i - start[0]) > 0
        for start, end in zip(triangle, [*triangle[1:], triangle[0]], strict=True)
    ]
    expected[0, 1, :, :, 4] = np.logical_and.reduce(sides)
    assert 60 < expected[0, 1].sum() < 160
    # from axes to the left and posterior
    np.testing.assert_array_equal(sample.masks.bool(), expected[:, :, ::-1, ::-1])
    np.testing.assert_array_equal(sample.image[0], PIXELS[::-1, ::-1].astype(np.float32) - 1024)


SQUARE = box((2, 2), (5, 5))
EMPTY = "has outlines of 'GTV', but no voxel's centre lies inside of them"


@pytest.mark.parametrize(
    ("outlines", "frame", "message"),
    [
        ({"GTV": [contour(box((2, 2), (5, 5)), 2.3)]}, FRAME, "0.3 slices beside the nearest slice"),
        ({"GTV": [contour(box((2, 2), (5, 25)), 2)]}, FRAME, "an outline beyond the image"),
        ({"GTV": [contour(box((2, 2), (5, 5)), 9)]}, FRAME, "an outline beyond the image"),
        # between the centres of voxels, a line, and two outlines that cancel each other
        ({"GTV": [contour(box((2.2, 2.2), (2.8, 9)), k) for k in (2, 3)]}, FRAME, EMPTY),
        ({"GTV": [contour([(2.2, 2.5), (9.7, 2.5)], 2)]}, FRAME, EMPTY),
        ({"GTV": [contour(turned, 2) for turned in (SQUARE, SQUARE[1:] + SQUARE[:1])]}, FRAME, EMPTY),
        ({"GTV": [contour(box((2, 2), (5, 5)), 2, "POINT")]}, FRAME, "an outline of the kind POINT"),
        ({"GTV": [contour(box((2, 2), (5, 5)), 2)]}, "1.2.4", "another frame of reference than the image's"),
        ({"CTV": [], "lung": []}, FRAME, "has 0 structures 'GTV', its structures: 'CTV', 'lung'"),
        ({"GTV": [], "gtv": []}, FRAME, "has 2 structures 'GTV'"),
    ],
)
def test_outlines_that_do_not_fit_are_refused(
    tmp_path: Path, outlines: dict[str, list[Dataset]], frame: str, message: str
) -> None:
    save_series(tmp_path / "ct")
    write(structure_set(outlines, frame), tmp_path / "anna.dcm")
    save_manifest(tmp_path, "anna", structures=("GTV",))
    (problem,) = ManifestSource(str(tmp_path)).problems
    assert problem.startswith("anna.dcm: case 'one': ")
    assert message in problem
