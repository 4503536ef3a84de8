"""Outlines of DICOM RTSTRUCT objects as masks on the voxels of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian
from skimage.draw import polygon

from edue_lightning.data.image_limits import ImageError
from edue_lightning.data.sample import Grid
from edue_lightning.text import reason_of

_MOST_BYTES = 2**29
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# hundredths of a voxel, of an outline's points
_DECIMALS = 2
_OFF_SLICE = 0.1
"""Share of the distance of two slices by which a point may lie beside the slice of its outline."""

_TO_FACE = 0.5
"""Voxels from the centre of the first and last ones to the outer faces of the image."""


def read_contours(path: Path, name: str, grid: Grid, frame: str | None) -> NDArray[np.bool_]:
    """Return one structure of an RTSTRUCT object as a mask `[I, J, K]`: voxels with their centre inside the outlines.

    Outlines on one slice are combined by exclusive or, so that one within another is a hole.

    Args:
        path: RTSTRUCT file.
        name: name of the structure; upper and lower case and blanks at its ends do not count.
        grid: grid of the image, its slices along the third axis.
        frame: frame of reference of the image, or None if it is unknown.

    Raises:
        ImageError: if the file cannot be read, has no such structure, or its outlines do not lie on the image's slices.
    """
    try:
        return _mask(_opened(path), name, grid, frame)
    except ImageError:
        raise
    # the decoder raises all kinds of errors on damaged files: OSError, AttributeError, struct.error, ...
    except Exception as error:
        raise ImageError(f"cannot be read ({reason_of(error, path)}); save it again") from error


def _opened(path: Path) -> Dataset:
    if path.stat().st_size > _MOST_BYTES:
        raise ImageError("is larger than 512 MiB, unlike any set of outlines; save it again")
    # it could be inflated to any size
    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise ImageError("is deflated; inflate it, for example with dcmconv +ti")
    dataset = dcmread(path)
    modality = dataset.get("Modality")
    if modality != "RTSTRUCT":
        raise ImageError(f"is a DICOM file of modality {modality}; masks are RTSTRUCT, NRRD, MetaImage or NIfTI files")
    return dataset


def _mask(dataset: Dataset, name: str, grid: Grid, frame: str | None) -> NDArray[np.bool_]:
    regions = {int(region.ROINumber): region for region in dataset.StructureSetROISequence}
    wanted = name.strip().casefold()
    named = [number for number, region in regions.items() if str(region.ROIName).strip().casefold() == wanted]
    if len(named) != 1:
        listed = ", ".join(repr(str(region.ROIName)) for region in regions.values())
        raise ImageError(f"has {len(named)} structures {name!r}, its structures: {listed}; give one of them this name")
    own_frame = str(regions[named[0]].get("ReferencedFrameOfReferenceUID", ""))
    if frame is not None and own_frame != frame:
        raise ImageError("was drawn in another frame of reference than the image's; choose the RTSTRUCT of this series")
    mask = np.zeros(grid.shape, dtype=bool)
    drawn: set[tuple[float, ...]] = set()
    to_voxels = np.linalg.inv(grid.affine.numpy())
    for item in dataset.get("ROIContourSequence") or []:
        if int(item.ReferencedROINumber) == named[0]:
            for contour in item.get("ContourSequence") or []:
                points = tuple(map(float, contour.ContourData))
                if points in drawn:
                    raise ImageError(f"has the same outline of {name!r} twice on a slice; remove one of them")
                drawn.add(points)
                _add(mask, contour, to_voxels)
    return mask


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
    if not ((points >= -_TO_FACE) & (points <= np.array(mask.shape) - 1 + _TO_FACE)).all():
        raise ImageError("has an outline beyond the image; choose the RTSTRUCT of this series")
    # a point at the centre of a voxel stays there, whatever the decimals of the file
    corners = np.round(points[:, :2], _DECIMALS)
    inside = polygon(corners[:, 0], corners[:, 1], mask.shape[:2])
    mask[:, :, k][inside] ^= True
