"""Segments of DICOM SEG files as masks of a series, through a manifest."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from dicom_files import ct_slice, segmentation, write
from numpy.typing import NDArray
from patients import tilted
from pydicom import Dataset
from pydicom.uid import RLELossless, generate_uid

from edue_lightning.data.dicom_masks import describe_masks, open_masks
from edue_lightning.data.images import ImageError
from edue_lightning.data.sources.manifest.source import ManifestSource

# columns, rows, slices
SHAPE = (10, 8, 6)
PIXELS = np.random.default_rng(0).integers(0, 2000, SHAPE).astype(np.int16)
ORIENTATIONS = {
    "oblique": tilted(25) @ np.diag([-1, -1, 1]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "sagittal": np.eye(3)[:, [1, 2, 0]],
}


def series(axes: NDArray = ORIENTATIONS["oblique"], uid: str = "1.2.3.4") -> list[Dataset]:
    made = []
    for k in range(SHAPE[2]):
        dataset = ct_slice(np.ascontiguousarray(PIXELS[:, :, k].T), 0.0, series=uid)
        position = np.array([-30.0, -20.0, 55.0]) + axes[:, 2] * 2.5 * k
        dataset.ImagePositionPatient = [f"{value:.9f}"[:16] for value in position]
        dataset.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in axes[:, :2].T.ravel()]
        dataset.FrameOfReferenceUID = "1.2.3"
        made.append(dataset)
    return made


def save(folder: Path, made: list[Dataset]) -> list[Dataset]:
    for k, dataset in enumerate(made):
        write(dataset, folder / f"{(k * 5) % len(made)}.dcm")
    return made


def masks(*shares: float) -> NDArray[np.bool_]:
    """Return random masks `[K, I, J, k]`, empty on the second slice."""
    random = np.random.default_rng(1)
    found = np.stack([random.random(SHAPE) < share for share in shares])
    found[:, :, :, 1] = False
    return found


def loaded(root: Path, *rows: str) -> NDArray[np.bool_]:
    """Return the masks `[R, K, I, J, k]` along the axes of the series."""
    (root / "manifest.csv").write_text("\n".join(["case_id,image,mask,rater,structure,segment", *rows]))
    source = ManifestSource(str(root), standardise=False)
    assert not source.problems
    sample = source.load("one")
    assert sample.affine is not None
    found = sample.masks.numpy().astype(bool)
    if sample.origin is None:
        return found
    back = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(sample.affine.numpy()),
        nibabel.orientations.io_orientation(sample.origin.affine.numpy()),
    )
    turned = nibabel.orientations.apply_orientation(np.moveaxis(found, (0, 1), (3, 4)), back)
    return np.moveaxis(turned, (3, 4), (0, 1))


def problem_of(root: Path, *rows: str, threshold: float | None = None) -> str:
    (root / "manifest.csv").write_text("\n".join(["case_id,image,mask,rater,structure,segment", *rows]))
    (problem,) = ManifestSource(str(root), threshold=threshold).problems
    assert "\n" not in problem
    return problem


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_overlapping_segments_of_two_files_lie_on_the_voxels_of_the_series(tmp_path: Path, orientation: str) -> None:
    made = save(tmp_path / "ct", series(ORIENTATIONS[orientation]))
    anna, ben = masks(0.5, 0.3), masks(0.4, 0.6)[::-1]
    write(segmentation(made, anna, ["GTV", "Node"]), tmp_path / "anna.dcm")
    # its slices in another order, compressed
    back = segmentation(made[::-1], ben[:, :, :, ::-1], ["GTV", "Node"], transfer_syntax_uid="1.2.840.10008.1.2.1")
    write(back, tmp_path / "ben.dcm")
    rows = [f"one,ct,{rater}.dcm,{rater},{name}," for rater in ("anna", "ben") for name in ("gtv", "node")]
    np.testing.assert_array_equal(loaded(tmp_path, *rows), np.stack([anna, ben]))
    assert (anna[0] & anna[1]).any()
    # slices without marked voxels have no frame
    held = highdicom.seg.segread(tmp_path / "anna.dcm")
    assert held.NumberOfFrames == 2 * (SHAPE[2] - 1)


def test_segments_are_raters_by_label_or_number(tmp_path: Path) -> None:
    made = save(tmp_path / "ct", series())
    drawn = masks(0.5, 0.3, 0.4)
    write(segmentation(made, drawn, ["GTV anna", "GTV ben", "7"]), tmp_path / "all.dcm")
    # a name before a number: the third segment is called 7
    rows = ["one,ct,all.dcm,A,GTV,gtv ANNA", "one,ct,all.dcm,B,GTV,2", "one,ct,all.dcm,C,GTV,7"]
    np.testing.assert_array_equal(loaded(tmp_path, *rows), drawn[:, None])
    rows = ["one,ct,all.dcm,A,GTV,9"]
    assert "has 0 segments '9', its segments: 'GTV anna', 'GTV ben', '7'" in problem_of(tmp_path, *rows)
    rows = ["one,ct,all.dcm,A,GTV,"]
    assert "has 0 segments 'GTV'" in problem_of(tmp_path, *rows)


def test_fractions_need_a_threshold(tmp_path: Path) -> None:
    made = save(tmp_path / "ct", series())
    shares = np.round(np.random.default_rng(2).random((1, *SHAPE)) * 200) / 200
    write(segmentation(made, shares, ["GTV"], "FRACTIONAL", max_fractional_value=200), tmp_path / "a.dcm")
    row = "one,ct,a.dcm,A,GTV,"
    assert "holds fractions, stored as 0 to 200; set data.source.threshold, such as 100" in problem_of(tmp_path, row)
    sample = ManifestSource(str(tmp_path), standardise=False, threshold=100).load("one")
    assert int(sample.masks.sum()) == int((shares > 0.5).sum())
    # of nothing but 0 and the largest value, compressed
    whole = masks(0.3)
    made_of_whole = segmentation(made, whole.astype(float), ["GTV"], "FRACTIONAL", transfer_syntax_uid=RLELossless)
    write(made_of_whole, tmp_path / "a.dcm")
    np.testing.assert_array_equal(loaded(tmp_path, row)[0], whole)


def test_a_label_map_is_read_segment_by_segment(tmp_path: Path) -> None:
    made = save(tmp_path / "ct", series())
    first, second = masks(0.5, 0.3)
    drawn = np.stack([first, second & ~first])
    write(segmentation(made, drawn, ["GTV", "node"], "LABELMAP"), tmp_path / "a.dcm")
    np.testing.assert_array_equal(loaded(tmp_path, "one,ct,a.dcm,A,node,", "one,ct,a.dcm,A,GTV,")[0], drawn[::-1])


def test_a_segmentation_fits_the_same_volume_in_a_file(tmp_path: Path) -> None:
    from edue_lightning.data.images import read_image

    made = save(tmp_path / "ct", series())
    drawn = masks(0.5)
    write(segmentation(made, drawn, ["GTV"]), tmp_path / "a.dcm")
    image = read_image(tmp_path / "ct")
    # its axes turned, as converters store them
    volume = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.array[0], image.affine))
    nibabel.save(volume, tmp_path / "ct.nii.gz")
    rows = ["case_id,image,mask,rater,structure", "one,ct,a.dcm,A,GTV", "two,ct.nii.gz,b.dcm,A,GTV"]
    write(segmentation(made, drawn, ["GTV"]), tmp_path / "b.dcm")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    source = ManifestSource(str(tmp_path), standardise=False)
    one, two = source.load("one"), source.load("two")
    assert one.masks.sum() == drawn.sum()
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.masks, two.masks)


def of_frame(change: Callable[[Dataset], object]) -> Callable[[Dataset], object]:
    return lambda made: change(made.PerFrameFunctionalGroupsSequence[2])


def shift(by: float) -> Callable[[Dataset], object]:
    def move(made: Dataset) -> None:
        for frame in made.PerFrameFunctionalGroupsSequence:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            frame.PlanePositionSequence[0].ImagePositionPatient = [float(position[0]) + by, *position[1:]]

    return move


def source_of(frame: Dataset) -> Dataset:
    found: Dataset = frame.DerivationImageSequence[0].SourceImageSequence[0]
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: setattr(made, "FrameOfReferenceUID", "1.2.4"), "in another frame of reference than the image's"),
        (
            lambda made: setattr(made.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.9.9"),
            "refers to the series 1.9.9, not to the image's",
        ),
        (
            of_frame(lambda frame: setattr(source_of(frame), "ReferencedSOPInstanceUID", "1.9")),
            "its frame 3 lies on slice 3 but refers to slices of another series",
        ),
        (shift(0.3), "its frame 1 does not lie on the voxels of the image"),
        (shift(703.125), "marks voxels beyond the image"),
        (
            lambda made: setattr(
                made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [0.8, 0.703125]
            ),
            "does not lie on the voxels",
        ),
        (
            lambda made: delattr(made.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"),
            "its frame 1 has no PlaneOrientationSequence",
        ),
        (lambda made: setattr(made, "PixelData", made.PixelData[:4]), "cannot be read"),
    ],
)
def test_a_segmentation_of_another_image_is_refused(
    tmp_path: Path, change: Callable[[Dataset], object], message: str
) -> None:
    made = save(tmp_path / "ct", series(np.eye(3)))
    drawn = segmentation(made, masks(0.5), ["GTV"])
    change(drawn)
    write(drawn, tmp_path / "a.dcm")
    problem = problem_of(tmp_path, "one,ct,a.dcm,A,GTV,")
    assert problem.startswith("a.dcm: case 'one': ")
    assert message in problem


def test_a_frame_on_another_slice_than_it_refers_to_is_refused(tmp_path: Path) -> None:
    made = save(tmp_path / "ct", series())
    drawn = segmentation(made, masks(0.5), ["GTV"])
    frames = drawn.PerFrameFunctionalGroupsSequence
    frames[0].DerivationImageSequence, own = frames[3].DerivationImageSequence, frames[0].DerivationImageSequence
    assert source_of(frames[0]).ReferencedSOPInstanceUID != own[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    write(drawn, tmp_path / "a.dcm")
    row = "one,ct,a.dcm,A,GTV,"
    assert re.search(r"its frame 1 lies on slice \d but refers to another slice", problem_of(tmp_path, row))
    drawn = segmentation(made, masks(0.5), ["GTV"])
    frames = drawn.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence = frames[0].PlanePositionSequence
    frames[1].DerivationImageSequence = frames[0].DerivationImageSequence
    write(drawn, tmp_path / "a.dcm")
    assert "has two frames of 'GTV' on one slice" in problem_of(tmp_path, row)


def test_a_segment_of_a_file_without_segments_is_a_problem(tmp_path: Path) -> None:
    save(tmp_path / "ct", series(np.eye(3)))
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    rows = ["case_id,image,mask,rater,structure,segment", "one,ct,a.nii.gz,A,GTV,3"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    problems = ManifestSource(str(tmp_path)).problems
    assert any("names no segments, so there is no '3'; leave the column segment empty" in line for line in problems)
    rows = ["case_id,image,mask,rater,structure,segment,label", "one,ct,a.nii.gz,A,GTV,3,1"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    assert "has a label and a segment; remove one" in ManifestSource(str(tmp_path)).problems[0]


def test_two_raters_with_one_segment_are_suspicious(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = save(tmp_path / "ct", series())
    write(segmentation(made, masks(0.5, 0.3), ["GTV", "node"]), tmp_path / "a.dcm")
    loaded(tmp_path, "one,ct,a.dcm,A,GTV,", "one,ct,a.dcm,B,GTV,node")
    assert "stand in several rows" not in caplog.text
    loaded(tmp_path, "one,ct,a.dcm,A,GTV,", "one,ct,a.dcm,B,GTV,gtv")
    assert "1 mask files stand in several rows, such as a.dcm: case 'one': is the mask of rater 'A'" in caplog.text


def test_a_file_of_another_format_is_told_as_for_slices(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"not DICOM" * 40)
    for read in (describe_masks, open_masks):
        with pytest.raises(ImageError, match=r"^is no DICOM file; remove it$"):
            read(tmp_path / "a.dcm")


def test_another_object_is_no_mask(tmp_path: Path) -> None:
    made = save(tmp_path / "ct", series())
    made[0].SOPInstanceUID = made[0].file_meta.MediaStorageSOPInstanceUID = generate_uid()
    write(made[0], tmp_path / "a.dcm")
    assert "is a DICOM file of modality CT; masks are RTSTRUCT, SEG," in problem_of(tmp_path, "one,ct,a.dcm,A,GTV,")
