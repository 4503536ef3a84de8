"""A series of DICOM slices as one volume.

A folder holds one series, one slice per file; names of files mean nothing, headers decide. What would make a wrong
volume is refused: slices that are missing, repeated, tilted against their stack, or of several series. Localizers
beside a series are left out.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ParametricMapStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from edue_lightning.data.geometry import LPS_OF_RAS
from edue_lightning.data.image_limits import MOST_VOXELS, ImageError, checked_spacing, require_memory
from edue_lightning.text import counted, named, reason_of

log = logging.getLogger(__name__)

_UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
"""Class of segmentations stored as label maps, which pydicom does not name yet."""

_MADE_FROM_IMAGES = (SegmentationStorage, LABEL_MAP_SEGMENTATION, ParametricMapStorage, RTDoseStorage)
_LOCALIZER = "LOCALIZER"
_DIRECTORY = "DICOMDIR"
_PREAMBLE = 128
_ENDINGS = (".dcm", ".dicom", ".ima")
_MOST_BYTES = 2**28
_MOST_RESCALE = 1e9
_UNIT = 1e-3
"""Largest error of a unit vector; headers give the directions with few digits."""

_EQUAL_STEPS = 0.01
"""Largest difference between the distances of slices, relative to their median."""

_LEAST_STEP = 1e-3  # mm
_MOST_SHIFT = 0.1
"""Share of a pixel by which the first pixels of two slices may lie beside each other."""

_MOST_LISTED = 4
_HEADER = (
    *("Modality", "SeriesInstanceUID", "SeriesDescription", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID"),
    *("ImageType", "PatientID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "RescaleSlope", "RescaleIntercept"),
    *("BitsStored", "HighBit", "ModalityLUTSequence", "RescaleType", "Units"),
)
_HOUNSFIELD = ("HU", "HU_MOD", "US", "")
"""Values of RescaleType of a CT in Hounsfield units, or of unspecified unit."""


@dataclass(frozen=True, eq=False)
class SeriesHeader:
    """Place of a series.

    Attributes:
        files: files of the slices, k = 0, 1, ...
        shape: number of columns, rows and slices (i, j, k).
        spacing: voxel size in mm along i, j and k.
        affine: `[4, 4]`, from voxel indices to mm, RAS.
        headers: header of each file, without pixels.
        left_out: files of localizers beside the series.
    """

    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64]
    headers: tuple[Dataset, ...]
    left_out: tuple[Path, ...] = ()

    @property
    def uid(self) -> str:
        """UID of the series."""
        return str(self.headers[0].get("SeriesInstanceUID"))

    @property
    def frame(self) -> str | None:
        """UID of the frame of reference, or None if the series has none."""
        found = self.headers[0].get("FrameOfReferenceUID")
        return None if found is None else str(found)


def is_dicom(path: Path) -> bool:
    """Return whether a file starts like a DICOM file, whatever its name; the list of a medium (`DICOMDIR`) does not."""
    try:
        # opening a pipe would block
        if not path.is_file() or path.name.upper() == _DIRECTORY:
            return False
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Return whether a path is a folder with at least one DICOM file."""
    return folder.is_dir() and any(is_dicom(path) for path in folder.iterdir())


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return the DICOM files of a folder itself, sorted by name."""
    return tuple(path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_dicom(path))


def has_image(files: Sequence[Path]) -> bool:
    """Return whether one of several DICOM files is a picture with rows and columns, and nothing made from one.

    A file that cannot be read counts as one, so that reading the series reports it.
    """
    for path in files:
        try:
            if is_image(read_header(path)):
                return True
        except ImageError:
            return True
    return False


def is_image(header: Dataset) -> bool:
    """Return whether a header is that of a picture, and not of a segmentation, a map or a dose on one."""
    return (
        "Rows" in header
        and header.get("Modality") not in ("SEG", "RTDOSE")
        and header.get("SOPClassUID") not in _MADE_FROM_IMAGES
    )


def is_localizer(header: Dataset) -> bool:
    """Return whether a header is that of a localizer, on which a scan is planned."""
    kinds = header.get("ImageType") or []
    return _LOCALIZER in ([kinds] if isinstance(kinds, str) else kinds)


def read_series_header(folder: Path) -> SeriesHeader:
    """Sort the slices of the series in a folder by their position, and check that they make one volume.

    Files that are no images, such as contours, are left out, as are localizers beside a series.

    Raises:
        ImageError: if there is not one series, its slices do not make one volume, or a file with the ending of DICOM is
            none.
    """
    files = files_in(folder)
    if not files:
        raise ImageError("is a folder without DICOM files; choose the folder of a series, or an image file")
    named = {path for path in folder.iterdir() if path.name.lower().endswith(_ENDINGS)} - set(files)
    broken = sorted(path for path in named if path.is_file() and not path.name.startswith("."))
    if broken:
        # a series without its last slice would be one, too
        raise ImageError(f"{broken[0].name} has no DICOM preamble; write it anew, such as by dcmconv, or remove it")
    return series_header([(path, read_header(path)) for path in files])


def series_header(files: Sequence[tuple[Path, Dataset]]) -> SeriesHeader:
    """Return the place of the series in several files, see `read_series_header`.

    Args:
        files: DICOM files with their headers, see `read_header`.

    Raises:
        ImageError: if there is not one series, or its slices do not make one volume.
    """
    images = [(path, header) for path, header in files if is_image(header)]
    slices = [(path, header) for path, header in images if not is_localizer(header)] or images
    series: defaultdict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    for path, header in slices:
        series[str(header.get("SeriesInstanceUID"))].append((path, header))
    if not series:
        raise ImageError("holds DICOM files, but no slice of an image; choose the folder of the image series")
    if len(series) > 1:
        listed = [described(members) for members in list(series.values())[:_MOST_LISTED]]
        more = "; ..." * (len(series) > _MOST_LISTED)
        raise ImageError(f"holds {len(series)} series: {'; '.join(listed)}{more}; give each its own folder")
    kept = {path for path, _ in slices}
    return _volume(next(iter(series.values())), tuple(path for path, _ in images if path not in kept))


def read_series(folder: Path) -> tuple[NDArray[np.float32], SeriesHeader]:
    """Read the series in a folder, see `read_voxels`; localizers that are left out are named in the log.

    Raises:
        ImageError: if there is not one series, its slices do not make one volume, or a file cannot be read.
    """
    found = read_series_header(folder)
    if found.left_out:
        _name_once(folder, found.left_out)
    return read_voxels(found), found


@cache
def _name_once(folder: Path, left_out: tuple[Path, ...]) -> None:
    log.warning("%s: localizers are left out: %s", folder, named([path.name for path in left_out]))


def read_voxels(series: SeriesHeader) -> NDArray[np.float32]:
    """Read a series as `[1, I, J, K]`, its values through the slope and intercept of each slice.

    Raises:
        ImageError: if a file cannot be read.
    """
    volume = np.empty(series.shape, dtype=np.float32)
    for k, (path, header) in enumerate(zip(series.files, series.headers, strict=True)):
        # an element without a value counts as absent
        slope, intercept = (
            float(other if header.get(f"Rescale{name}") is None else header[f"Rescale{name}"].value)
            for name, other in _RESCALE.items()
        )
        if not (0 < abs(slope) <= _MOST_RESCALE and abs(intercept) <= _MOST_RESCALE):
            raise ImageError(f"{path.name}: its header claims value x {slope:g} {intercept:+g}; correct it")
        with plain_errors(path, named=True):
            pixels = dcmread(path).pixel_array
        if pixels.shape != series.shape[1::-1]:
            raise ImageError(f"{path.name}: holds other pixels than its header claims; save it again")
        volume[:, :, k] = pixels.T * slope + intercept
    return volume[None]


_RESCALE = {"Slope": 1.0, "Intercept": 0.0}


def require_plain_pixels(header: Dataset) -> None:
    """Check that a slope and an intercept alone make values of stored pixels, of a CT in Hounsfield units.

    Pixels with the value of `PixelPaddingValue` keep it, as in SimpleITK and pydicom.

    Raises:
        ImageError: if there is another transformation, which pydicom and SimpleITK would ignore, or another unit.
    """
    if header.get("ModalityLUTSequence"):
        raise ImageError(
            "translates its pixels by a table (ModalityLUTSequence), which most programs ignore; save it with "
            "RescaleSlope and RescaleIntercept, or as NIfTI with the translated values"
        )
    stored, highest = header.get("BitsStored"), header.get("HighBit")
    if stored is not None and highest is not None and int(highest) != int(stored) - 1:
        raise ImageError(
            f"its highest bit is {highest} (HighBit) of {stored} bits (BitsStored), which most programs ignore; save "
            "it with HighBit = BitsStored - 1"
        )
    unit = _text(header, "RescaleType")
    if header.get("Modality") == "CT" and unit not in _HOUNSFIELD:
        raise ImageError(
            f"its values are {unit} (RescaleType), not Hounsfield units; choose the folder of the CT, or convert it to "
            "NIfTI"
        )


def described(members: Sequence[tuple[Path, Dataset]]) -> str:
    """Return the UID, the modality, the description and the number of slices of a series."""
    header = members[0][1]
    count = counted(len(members), "slice")
    name = str(header.get("SeriesDescription") or "").strip()
    parts = ", ".join([str(header.get("Modality")), *([name] if name else []), count])
    return f"{header.get('SeriesInstanceUID')} ({parts})"


def read_header(path: Path) -> Dataset:
    """Read what places a file, without pixels.

    Raises:
        ImageError: naming the file, if it cannot be read, or is compressed and there is no decoder for it.
    """
    with plain_errors(path, named=True):
        if path.stat().st_size > _MOST_BYTES:
            raise ImageError(f"{path.name}: is larger than 256 MiB, unlike any slice; save one slice per file")
        problem = decoder_problem(path)
        if problem is not None:
            raise ImageError(f"{path.name}: {problem}")
        return dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER))


@contextmanager
def plain_errors(
    path: Path, *, named: bool = False, damaged: str = "save it again", foreign: str = "remove it"
) -> Iterator[None]:
    """Turn any error of a decoder of DICOM into an `ImageError`.

    Args:
        path: path of the file.
        named: whether the message begins with the name of the file.
        damaged: fix for a file that cannot be read.
        foreign: fix for a file of another format.
    """
    place = f"{path.name}: " if named else ""
    try:
        yield
    except ImageError:
        raise
    except InvalidDicomError as error:
        raise ImageError(f"{place}is no DICOM file; {foreign}") from error
    # decoders raise all kinds of errors on damaged files: OSError, AttributeError, struct.error, ...
    except Exception as error:
        raise ImageError(f"{place}cannot be read ({reason_of(error, path)}); {damaged}") from error


def decoder_problem(path: Path) -> str | None:
    """Return why the content of a DICOM file cannot be decoded, and the fix, or None if it can be."""
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if _is_decoded(syntax):
        return None
    return (
        f"is compressed ({getattr(syntax, 'name', 'no TransferSyntaxUID')}), and no decoder for it is installed; "
        "decompress it, for example with gdcmconv --raw"
    )


def _is_decoded(syntax: str | None) -> bool:
    """Return whether pixels stored in a transfer syntax can be decoded by what is installed."""
    if syntax in _UNCOMPRESSED:
        return True
    # a whole file that could be inflated to any size
    if syntax is None or syntax == DeflatedExplicitVRLittleEndian:
        return False
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _volume(members: Sequence[tuple[Path, Dataset]], left_out: tuple[Path, ...]) -> SeriesHeader:
    """Return the place of a series, its slices sorted along their normal."""
    for path, header in members:
        _check_slice(path, header)
    if len(members) < 2:
        raise ImageError("holds a single slice; a volume has at least two: convert single slices to PNG or NIfTI")
    first = members[0][1]
    for path, header in members[1:]:
        _require_same(path, header, members[0][0], first)
    # along the rows, along the columns, and across the slices
    directions = np.array(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    normal = np.cross(*directions)
    ordered = sorted(members, key=lambda member: float(normal @ _position(member[1])))
    positions = np.stack([_position(header) for _, header in ordered])
    step = _step([path for path, _ in ordered], positions, normal)
    row, column = (float(size) for size in first.PixelSpacing)
    beside = np.abs((positions - positions[0]) @ directions.T).max()
    if not beside <= _MOST_SHIFT * min(row, column):
        raise ImageError(
            f"its slices are shifted against each other by up to {beside:.3g} mm, as by a tilted gantry; resample "
            "them to a straight volume, for example with dcm2niix"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = directions[0] * column, directions[1] * row, normal * step
    affine[:3, 3] = positions[0]
    affine = LPS_OF_RAS @ affine
    shape = (int(first.Columns), int(first.Rows), len(ordered))
    if np.prod(shape) > MOST_VOXELS:
        raise ImageError(f"claims {'x'.join(map(str, shape))} voxels, more than 2^31; cut it into parts")
    require_memory(12 * int(np.prod(shape)))
    files, headers = zip(*ordered, strict=True)
    return SeriesHeader(files, shape, checked_spacing(affine, 3), affine, headers, left_out)


def _check_slice(path: Path, header: Dataset) -> None:
    """Check that a file is one grey slice with its place."""
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    if (frames, samples) != (1, 1):
        raise ImageError(f"{path.name}: holds {frames} frames of {samples} channels; convert it to NIfTI")
    meaning = header.get("PhotometricInterpretation")
    if meaning != "MONOCHROME2":
        raise ImageError(f"{path.name}: its pixels are {meaning}, not grey values (MONOCHROME2); convert it to NIfTI")
    for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        numbers = np.array(header.get(name) if header.get(name) is not None else [], dtype=np.float64)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise ImageError(f"{path.name}: its header gives no {name}; convert single pictures to PNG")
    try:
        require_plain_pixels(header)
    except ImageError as error:
        raise ImageError(f"{path.name}: {error}") from error
    directions = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > _UNIT:
        raise ImageError(f"{path.name}: its directions (ImageOrientationPatient) are no right angle; correct them")


def _require_same(path: Path, header: Dataset, first_path: Path, first: Dataset) -> None:
    for name, tolerance in (
        ("Rows", 0.0),
        ("Columns", 0.0),
        ("PixelSpacing", 1e-4),
        ("ImageOrientationPatient", _UNIT),
    ):
        own, other = (np.array(part.get(name), dtype=np.float64) for part in (header, first))
        if not np.allclose(own, other, rtol=0, atol=tolerance):
            raise ImageError(f"{path.name} and {first_path.name} differ in {name}; keep one kind of slices in a folder")
    for text in ("FrameOfReferenceUID", "Units", "RescaleType"):
        own_text, first_text = _text(header, text), _text(first, text)
        # some writers leave out the unit
        if own_text != first_text and (text == "FrameOfReferenceUID" or (own_text and first_text)):
            raise ImageError(f"{path.name} and {first_path.name} differ in {text}; give each its own folder")


def _step(paths: Sequence[Path], positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Return the distance between slices in mm, which must be equal."""
    places = positions @ normal
    steps = np.diff(places)
    twice = int(steps.argmin())
    if steps[twice] < _LEAST_STEP:
        pair = f"{paths[twice].name} and {paths[twice + 1].name}"
        raise ImageError(f"has two slices at one position, {places[twice]:g} mm: {pair}; remove one of them")
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > max(_EQUAL_STEPS * usual, _LEAST_STEP)
    if odd.any():
        at = int(odd.argmax())
        between = f"{paths[at].name} and {paths[at + 1].name} lie {steps[at]:g} mm apart, others {usual:g} mm"
        raise ImageError(f"lacks slices, or their distances differ: {between}; add the missing files, or resample it")
    return float((places[-1] - places[0]) / len(steps))


def _text(header: Dataset, name: str) -> str:
    return str(header.get(name) or "").strip().upper()


def _position(header: Dataset) -> NDArray[np.float64]:
    return np.array(header.ImagePositionPatient, dtype=np.float64)
