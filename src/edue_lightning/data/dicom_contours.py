"""Outlines of DICOM RTSTRUCT objects as masks on the voxels of an image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from skimage.draw import polygon

from edue_lightning.data.dicom_objects import DicomMasks, ImagePlace, MasksHeader, names_of
from edue_lightning.data.dicom_series import plain_errors
from edue_lightning.data.image_limits import ImageError

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# hundredths of a voxel, of an outline's points
_DECIMALS = 2
_OFF_SLICE = 0.1
"""Share of the distance of two slices by which a point may lie beside the slice of its outline."""

_TO_FACE = 0.5
"""Voxels from the centre of the first and last ones to the outer faces of the image."""


class Outlines(DicomMasks):
    """Structures of an RTSTRUCT object: voxels with their centre inside the outlines.

    Outlines on one slice are combined by exclusive or, so that one within another is a hole.

    Args:
        path: RTSTRUCT file.

    Raises:
        ImageError: if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with plain_errors(path):
            self._dataset = dcmread(path)
            self._frames = {int(region.ROINumber): _frame(region) for region in self._dataset.StructureSetROISequence}
            self.header = outlines_header(self._dataset)

    def mask(self, number: int, place: ImagePlace, threshold: float | None = None) -> NDArray[np.bool_]:  # noqa: ARG002
        """Return a structure as a mask `[I, J, K]`, see `DicomMasks.mask`.

        Raises:
            ImageError: if an outline is not closed, is there twice or does not lie on a slice of the image, the frame
                of reference is another one, or no voxel's centre lies within the outlines.
        """
        with plain_errors(self._path):
            if place.frame is not None and self._frames[number] != place.frame:
                raise ImageError(
                    "was drawn in another frame of reference than the image's; choose the RTSTRUCT of this series"
                )
            mask = np.zeros(place.grid.shape, dtype=bool)
            drawn: set[tuple[float, ...]] = set()
            to_voxels = np.linalg.inv(place.grid.affine.numpy())
            for contour in self._contours(number):
                points = tuple(map(float, contour.ContourData))
                if points in drawn:
                    label = self.header.labels[number].strip()
                    raise ImageError(f"has the same outline of {label!r} twice on a slice; remove one of them")
                drawn.add(points)
                _add(mask, contour, to_voxels)
            if drawn and not mask.any():
                label = self.header.labels[number].strip()
                raise ImageError(
                    f"has outlines of {label!r}, but no voxel's centre lies inside of them; "
                    "choose the series on which they were drawn, or leave the field mask empty if nothing is meant"
                )
            return mask

    def _contours(self, number: int) -> Iterator[Dataset]:
        for item in self._dataset.get("ROIContourSequence") or []:
            if int(item.ReferencedROINumber) == number:
                yield from item.get("ContourSequence") or []


OUTLINES_TAGS = ("StructureSetROISequence", "ReferencedFrameOfReferenceSequence", "StructureSetLabel", "OperatorsName")
"""Elements that `outlines_header` reads."""


def outlines_header(dataset: Dataset) -> MasksHeader:
    """Return the structures of an RTSTRUCT object and what they refer to."""
    regions = dataset.StructureSetROISequence
    return MasksHeader(
        "structures",
        {int(region.ROINumber): str(region.get("ROIName") or "") for region in regions},
        frozenset(_series_of(dataset)),
        frozenset(_frame(region) for region in regions),
        str(dataset.get("StructureSetLabel") or "").strip(),
        names_of(dataset.get("OperatorsName")),
    )


def _frame(region: Dataset) -> str:
    return str(region.get("ReferencedFrameOfReferenceUID", ""))


def _series_of(dataset: Dataset) -> Iterator[str]:
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield str(series.SeriesInstanceUID)


def _add(mask: NDArray[np.bool_], contour: Any, to_voxels: NDArray[np.float64]) -> None:
    kind = contour.ContourGeometricType
    if kind not in _CLOSED:
        raise ImageError(f"has an outline of the kind {kind}; save closed outlines in a plane (CLOSED_PLANAR)")
    # mm to the left, posterior and superior
    places = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3) * (-1, -1, 1)
    points = apply_affine(to_voxels, places)
    k = int(np.round(points[0, 2]))
    off = float(np.abs(points[:, 2] - k).max())
    if not off <= _OFF_SLICE:
        raise ImageError(
            f"has an outline {off:.2g} slices beside the nearest slice of the image; redraw it on the image"
        )
    # a point at the centre or on the face of a voxel stays there, whatever the decimals of the file
    points = np.round(points, _DECIMALS)
    if not ((points >= -_TO_FACE) & (points <= np.array(mask.shape) - 1 + _TO_FACE)).all():
        raise ImageError("has an outline beyond the image; choose the RTSTRUCT of this series")
    corners = points[:, :2]
    inside = polygon(corners[:, 0], corners[:, 1], mask.shape[:2])
    mask[:, :, k][inside] ^= True
