"""RTSTRUCT and SEG files, opened as masks."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from edue_lightning.data.dicom_contours import OUTLINES_TAGS, Outlines, outlines_header
from edue_lightning.data.dicom_objects import DicomMasks, MasksHeader
from edue_lightning.data.dicom_segmentation import SEGMENTS_TAGS, Segments, segments_header
from edue_lightning.data.dicom_series import LABEL_MAP_SEGMENTATION, decoder_problem, plain_errors
from edue_lightning.data.image_limits import ImageError

_MOST_BYTES = 2**30
_CLASSES = (RTStructureSetStorage, SegmentationStorage, LABEL_MAP_SEGMENTATION)


def is_masks(sop_class: str | None) -> bool:
    """Return whether a class of DICOM objects holds masks that can be read."""
    return sop_class in _CLASSES


def open_masks(path: Path) -> DicomMasks:
    """Open an RTSTRUCT or SEG file.

    Raises:
        ImageError: if it is neither, or cannot be read.
    """
    return (Outlines if _is_outlines(path) else Segments)(path)


def describe_masks(path: Path) -> MasksHeader:
    """Return what an RTSTRUCT or SEG file contains, without its masks.

    Raises:
        ImageError: if it is neither, or cannot be read.
    """
    if _is_outlines(path):
        with plain_errors(path):
            return outlines_header(dcmread(path, specific_tags=list(OUTLINES_TAGS)))
    with plain_errors(path):
        return segments_header(dcmread(path, stop_before_pixels=True, specific_tags=list(SEGMENTS_TAGS)))


def _is_outlines(path: Path) -> bool:
    with plain_errors(path):
        if path.stat().st_size > _MOST_BYTES:
            raise ImageError("is larger than 1 GiB, unlike any set of masks; save it again")
        problem = decoder_problem(path)
        if problem is not None:
            raise ImageError(f"{problem}, or a deflated file with dcmconv +ti")
        header = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "Modality"])
    found = header.get("SOPClassUID")
    if not is_masks(found):
        raise ImageError(
            f"is a DICOM file of modality {header.get('Modality')}; masks are RTSTRUCT, SEG, NRRD, MetaImage or "
            "NIfTI files"
        )
    return found == RTStructureSetStorage
