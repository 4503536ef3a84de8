"""Segments of DICOM SEG objects as masks on the voxels of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from pydicom import Dataset

from edue_lightning.data.dicom_objects import DicomMasks, ImagePlace, MasksHeader, names_of
from edue_lightning.data.dicom_series import plain_errors
from edue_lightning.data.geometry import LPS_OF_RAS
from edue_lightning.data.image_limits import ImageError

_SAME_PLACE = 0.1
"""Share of a voxel by which a voxel of a segmentation may lie beside one of the image."""

_FRACTIONAL, _LABEL_MAP = "FRACTIONAL", "LABELMAP"
CHOOSE = "choose the segmentation of this series"


class Segments(DicomMasks):
    """Segments of a SEG object, binary, fractional or a label map; they may overlap.

    Each frame must lie on a slice of the image, its pixels on the image's voxels; slices without a frame are empty. If
    the object names the series or the slices that it was drawn on, these must be the image's.

    Args:
        path: SEG file.

    Raises:
        ImageError: if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        # takes long to import
        from highdicom.seg import segread

        self._path = path
        with plain_errors(path):
            self._object = segread(path)
            self.header = segments_header(self._object)

    def mask(self, number: int, place: ImagePlace, threshold: float | None = None) -> NDArray[np.bool_]:
        """Return a segment as a mask `[I, J, K]`, see `DicomMasks.mask`.

        Raises:
            ImageError: if the object does not belong to the image, a frame does not lie on its voxels, or a slice has
                two frames of the segment; or for fractions without a threshold.
        """
        with plain_errors(self._path):
            self._require_series(place)
            mask = np.zeros(place.grid.shape, dtype=bool)
            filled: set[int] = set()
            for position in range(int(self._object.NumberOfFrames)):
                is_label_map = self._object.SegmentationType == _LABEL_MAP
                if not is_label_map and self._segment_of(position) != number:
                    continue
                k, to_voxels = self._slice(position, place)
                if k in filled:
                    label = self.header.labels[number].strip()
                    raise ImageError(f"has two frames of {label!r} on one slice; save one frame per slice")
                filled.add(k)
                stored = self._object.get_stored_frame(position, as_index=True)
                marked = stored == number if is_label_map else self._marked(stored, threshold)
                _mark(mask, marked, k, to_voxels)
            return mask

    def _require_series(self, place: ImagePlace) -> None:
        if place.series is not None and self.header.series and place.series not in self.header.series:
            raise ImageError(
                f"refers to the series {', '.join(sorted(self.header.series))}, not to the image's; {CHOOSE}"
            )
        if place.frame is not None and self.header.frames != {place.frame}:
            raise ImageError(f"was drawn in another frame of reference than the image's; {CHOOSE}")

    def _segment_of(self, position: int) -> int:
        return int(self._group(position, "SegmentIdentificationSequence").ReferencedSegmentNumber)

    def _group(self, position: int, name: str) -> Any:
        """Return what a frame states itself, or all frames share.

        Raises:
            ImageError: if neither does.
        """
        found = self._optional_group(position, name)
        if not found:
            raise ImageError(f"its frame {position + 1} has no {name}; save it again with the place of each frame")
        return found[0]

    def _optional_group(self, position: int, name: str) -> Any:
        own: Dataset = self._object.PerFrameFunctionalGroupsSequence[position]
        shared = self._object.get("SharedFunctionalGroupsSequence") or [Dataset()]
        return own.get(name) or shared[0].get(name)

    def _slice(self, position: int, place: ImagePlace) -> tuple[int, NDArray[np.float64]]:
        """Return the slice of a frame, and the affine `[4, 4]` from its columns and rows to the image's voxels.

        Raises:
            ImageError: if the frame does not lie on a slice of the image, voxel on voxel.
        """
        named = f"its frame {position + 1}"
        directions = np.array(self._group(position, "PlaneOrientationSequence").ImageOrientationPatient, dtype=float)
        row, column = (float(size) for size in self._group(position, "PixelMeasuresSequence").PixelSpacing)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = directions[:3] * column, directions[3:] * row
        affine[:3, 3] = self._group(position, "PlanePositionSequence").ImagePositionPatient
        to_voxels = np.linalg.inv(place.grid.affine.numpy()) @ LPS_OF_RAS @ affine
        last = int(self._object.Columns) - 1, int(self._object.Rows) - 1
        corners = apply_affine(to_voxels, [[i, j, 0] for i in (0, last[0]) for j in (0, last[1])])
        whole = np.round(to_voxels)
        off = np.abs(corners - apply_affine(whole, [[i, j, 0] for i in (0, last[0]) for j in (0, last[1])])).max()
        steps = np.abs(whole[:3, :2])
        if not (off <= _SAME_PLACE and (steps.sum(axis=0) == 1).all() and steps[2].sum() == 0):
            raise ImageError(f"{named} does not lie on the voxels of the image; resample it, or {CHOOSE}")
        k = int(whole[2, 3])
        if not 0 <= k < place.grid.shape[2]:
            raise ImageError(f"{named} lies beyond the image; {CHOOSE}")
        self._require_slice(position, k, place)
        return k, whole

    def _require_slice(self, position: int, k: int, place: ImagePlace) -> None:
        sources = {
            str(source.ReferencedSOPInstanceUID)
            for derivation in self._optional_group(position, "DerivationImageSequence") or []
            for source in derivation.get("SourceImageSequence") or []
        }
        if place.slices and sources and place.slices[k] not in sources:
            where = "slices of another series" if sources.isdisjoint(place.slices) else "another slice"
            raise ImageError(f"its frame {position + 1} lies on slice {k} but refers to {where}; {CHOOSE}")

    def _marked(self, stored: NDArray, threshold: float | None) -> NDArray[np.bool_]:
        if self._object.SegmentationType != _FRACTIONAL:
            marked: NDArray[np.bool_] = stored != 0
            return marked
        most = int(self._object.MaximumFractionalValue)
        if threshold is None:
            if not np.isin(stored, (0, most)).all():
                raise ImageError(
                    f"holds fractions, stored as 0 to {most}; set data.source.threshold, such as {most // 2}, above "
                    "which a voxel is marked"
                )
            threshold = 0
        return np.asarray(stored > threshold)


SEGMENTS_TAGS = (
    *("SegmentSequence", "SegmentationType", "ReferencedSeriesSequence", "FrameOfReferenceUID"),
    *("ContentLabel", "ContentCreatorName"),
)
"""Elements that `segments_header` reads."""


def segments_header(dataset: Dataset) -> MasksHeader:
    """Return the segments of a SEG object and what they refer to."""
    labels = {int(one.SegmentNumber): str(one.get("SegmentLabel") or "") for one in dataset.SegmentSequence}
    # a label map describes its background
    if dataset.SegmentationType == _LABEL_MAP:
        labels.pop(0, None)
    frame = dataset.get("FrameOfReferenceUID")
    return MasksHeader(
        "segments",
        labels,
        frozenset(str(one.SeriesInstanceUID) for one in dataset.get("ReferencedSeriesSequence") or []),
        frozenset() if frame is None else frozenset([str(frame)]),
        str(dataset.get("ContentLabel") or "").strip(),
        names_of(dataset.get("ContentCreatorName")),
    )


def _mark(mask: NDArray[np.bool_], marked: NDArray[np.bool_], k: int, to_voxels: NDArray[np.float64]) -> None:
    """Mark the pixels of a frame, `[rows, columns]`, in a mask `[I, J, K]`."""
    rows, columns = np.nonzero(marked)
    steps = to_voxels.astype(int)
    i, j = (steps[axis, 0] * columns + steps[axis, 1] * rows + steps[axis, 3] for axis in (0, 1))
    if ((i < 0) | (j < 0) | (i >= mask.shape[0]) | (j >= mask.shape[1])).any():
        raise ImageError(f"marks voxels beyond the image; {CHOOSE}")
    mask[i, j, k] = True
