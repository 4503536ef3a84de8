"""CT slices from a folder of LIDC-IDRI as The Cancer Imaging Archive (TCIA) distributes it.

Three layouts are common, all with XML files of the readers' marks and with DX or CR series beside the CT:
`LIDC-IDRI-0001/STUDY_UID/SERIES_UID/000001.dcm`, `LIDC-IDRI-0001/01-01-2000-30178/3000566-03192/000001.dcm` and
`LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192/1-001.dcm`. Only the ending `.dcm` of a name is
relied on: the series of a file and the position of its slice are taken from its header, as in `pylidc`. Numbers in
file names do not follow z, and some series lack a number or hold a slice twice.

Files come from strangers: a header's claims are checked before memory is allocated, and only uncompressed pixels are
read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from edue_lightning.data.dicom_series import plain_errors, require_plain_pixels
from edue_lightning.data.images import ImageError
from edue_lightning.data.listing import DEEPEST_OF_DICOM, ListingProblems, find_files
from edue_lightning.errors import UserError

AIR_TO_WATER = 1000.0
"""Difference between air and water in Hounsfield units."""

Z_TOLERANCE_MM = 0.1
"""Largest distance between the wanted z and the header's; slices of LIDC-IDRI lie at least 0.45 mm apart."""

SPACING_TOLERANCE = 0.01
"""Largest relative difference between the expected pixel spacing and the header's."""

LOWEST_HU = -1024.0
"""Lowest value of tissue and air: scanners fill the corners outside their field of view with -2000 or less."""

MOST_PIXELS = 2**24
"""Largest number of pixels that a header may claim; those of LIDC-IDRI claim 512 x 512."""

MOST_BYTES = 2**26
"""Largest size of a file with a slice; those of LIDC-IDRI have half a MiB."""

MOST_RESCALE = 1e4
"""Largest slope and intercept that a header may claim; scanners write a slope of 1 and an intercept of -1024 or 0."""

_FIX = "download it again"
_UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_HEADER_TAGS = ["Modality", "SeriesInstanceUID", "ImagePositionPatient", "PixelSpacing"]
_SLICE_TAGS = [
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "ModalityLUTSequence",
    "PixelData",
]


@dataclass(frozen=True)
class _Header:
    """Place of a file in its series; `z` and `spacing` in mm, None and empty if the header has none."""

    series: str
    modality: str
    z: float | None
    spacing: tuple[float, ...]


_Entry = tuple[Path, _Header | ImageError]


def find_slices(
    root: Path,
    wanted: Mapping[str, Collection[float]],
    spacings: Mapping[str, float] | None = None,
    leave_out_missing: bool = False,
) -> tuple[dict[tuple[str, float], Path], list[str]]:
    """Find the files of CT slices by their headers.

    One header is read per folder, and all of them if that one belongs to a wanted series. If slices are still missing
    then, the other headers are read too, as a folder may hold several series. Files that do not end in `.dcm` or are
    hidden, other series and other modalities are skipped. Links to files are followed, links to folders only if they
    lead out of `root`.

    Several files at one z are one slice if they hold the same HU, as a series downloaded in two layouts does. If they
    differ, they are a problem: the database does not say which of them the readers saw.

    Args:
        root: folder of the download; the files may lie at any depth.
        wanted: z of the slices in mm per series instance UID: the third number of `ImagePositionPatient`, which
            `pylidc` calls `image_z_position`. A slice is found within `Z_TOLERANCE_MM`.
        spacings: pixel spacing in mm per series instance UID, or None for no check. A slice whose header differs by
            more than one per cent along either axis is a problem, as outlines drawn on the pixels would not fit.
        leave_out_missing: whether to accept that a series is missing completely, as in a part of the collection.

    Returns:
        the file of each slice by series and z, and one line per problem, with paths from `root`:
        `FILE-or-FOLDER: series 'UID': PROBLEM; FIX`. For each slice that is not among the files a line says why: it is
        missing (one line for a series that is missing completely), ambiguous, or does not fit. Files that cannot be
        read in a folder with a wanted series are problems in any case. If slices are missing, folders that cannot be
        listed and broken links are problems too; these lines name no series.

    Raises:
        UserError: if `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; choose the folder of the LIDC-IDRI download")
    root = root.resolve()
    folders, overlooked = _list_folders(root)
    search = _Search(root, wanted, spacings or {}, leave_out_missing)
    postponed: list[tuple[list[_Entry], Iterator[_Entry]]] = []
    for files in folders:
        entries = _read_headers(files)
        begun = _up_to_first_readable(entries)
        if any(isinstance(header, _Header) and header.series in wanted for _, header in begun):
            search.add([*begun, *entries])
        else:
            postponed.append((begun, entries))
    if search.lacks_slices():
        for begun, entries in postponed:
            search.add([*begun, *entries])
    if search.lacks_slices():
        search.problems += overlooked
    return search.finish(), search.problems


def read_slice(path: Path) -> NDArray[np.float32]:
    """Read a CT slice.

    Nothing is turned or flipped: LIDC-IDRI's outlines count the stored rows and columns of pixels from 0, also if the
    patient lay prone.

    Returns:
        `[H, W]` (rows, columns) in HU by the header's `RescaleSlope` and `RescaleIntercept`, at least `LOWEST_HU`.

    Raises:
        ImageError: if the file cannot be read, is cut off or compressed, or is not one 2D CT slice.
    """
    with plain_errors(path, damaged=_FIX, foreign=_FIX):
        if path.stat().st_size > MOST_BYTES:
            raise ImageError("is larger than 64 MiB, unlike any CT slice; download it again")
        syntax = _transfer_syntax(path)
        if syntax not in _UNCOMPRESSED:
            raise ImageError(f"is compressed ({syntax.name}); decompress it, for example with gdcmconv --raw")
        dataset = dcmread(path, specific_tags=list(_SLICE_TAGS))
        _check_slice(dataset)
        slope, intercept = float(_value(dataset, "RescaleSlope")), float(_value(dataset, "RescaleIntercept"))
        # written so that NaN fails too
        if not (0 < slope <= MOST_RESCALE and abs(intercept) <= MOST_RESCALE):
            raise ImageError(f"its header claims HU = {slope:g} x value {intercept:+g}; download it again")
        hu = dataset.pixel_array * slope + intercept
    return np.maximum(hu, LOWEST_HU).astype(np.float32)


def lies_at(path: Path, series: str, z: float) -> bool:
    """Return whether a file is the slice of a series at z (mm), by its header.

    Raises:
        ImageError: if the header cannot be read.
    """
    header = _read_header(path)
    return header.series == series and header.z is not None and abs(header.z - z) <= Z_TOLERANCE_MM


def to_image_scale(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return HU on the scale of rendered images, (HU + 1000) / 1000: 0 is air, 1 water."""
    return (hu + np.float32(AIR_TO_WATER)) / np.float32(AIR_TO_WATER)


class _Search:
    """Collects the files of wanted slices."""

    def __init__(
        self,
        root: Path,
        wanted: Mapping[str, Collection[float]],
        spacings: Mapping[str, float],
        leave_out_missing: bool,
    ) -> None:
        self.problems: list[str] = []
        self._leave_out_missing = leave_out_missing
        self._root = root
        self._wanted = wanted
        self._spacings = spacings
        self._folders: dict[str, Path] = {}
        self._candidates: dict[tuple[str, float], list[tuple[Path, _Header]]] = defaultdict(list)

    def add(self, entries: Sequence[_Entry]) -> None:
        """Add all files of a folder."""
        headers = [header for _, header in entries if isinstance(header, _Header)]
        here = sorted({header.series for header in headers} & self._wanted.keys())
        for path, header in entries:
            if isinstance(header, _Header):
                self._add_file(path, header)
            elif here:
                # the file may belong to any of them
                self._report(path, here, str(header))

    def lacks_slices(self) -> bool:
        """Return whether a wanted slice has no file."""
        return any((series, z) not in self._candidates for series, zs in self._wanted.items() for z in zs)

    def finish(self) -> dict[tuple[str, float], Path]:
        """Return one file per slice and report slices that are missing, ambiguous or do not fit."""
        found = {}
        for series, zs in self._wanted.items():
            if zs and series not in self._folders:
                if self._leave_out_missing:
                    continue
                self._report(self._root, [series], "not found; download it (collection LIDC-IDRI of TCIA)")
                continue
            for z in zs:
                path = self._choose(series, z)
                if path is not None:
                    found[series, z] = path
        return found

    def _add_file(self, path: Path, header: _Header) -> None:
        if header.series not in self._wanted or header.modality != "CT":
            return
        self._folders.setdefault(header.series, path.parent)
        if header.z is None:
            self._report(path, [header.series], "its header gives no ImagePositionPatient; download it again")
            return
        for z in self._wanted[header.series]:
            if abs(header.z - z) <= Z_TOLERANCE_MM:
                self._candidates[header.series, z].append((path, header))

    def _choose(self, series: str, z: float) -> Path | None:
        candidates = self._candidates.get((series, z))
        if not candidates:
            self._report(self._folders[series], [series], f"no slice at z = {z} mm; download the series again")
            return None
        if len(candidates) > 1 and not self._are_one_slice(series, z, [path for path, _ in candidates]):
            return None
        path, header = candidates[0]
        expected = self._spacings.get(series)
        if expected is not None and not _agree(header.spacing, expected):
            given = " x ".join(f"{size:g}" for size in header.spacing) or "none"
            unlike = f"its pixel spacing in mm is {given}, not {expected:g}"
            self._report(path, [series], f"{unlike}; download the series again")
            return None
        return path

    def _are_one_slice(self, series: str, z: float, paths: Sequence[Path]) -> bool:
        pixels = []
        for path in paths:
            try:
                pixels.append(read_slice(path))
            except ImageError as error:
                self._report(path, [series], str(error))
                return False
        for path, other in zip(paths, pixels, strict=True):
            if not np.array_equal(pixels[0], other):
                double = path.relative_to(self._root).as_posix()
                fix = "keep the one whose SOP instance UID the series' XML file names"
                self._report(paths[0], [series], f"lies at z = {z} mm as {double} does, but they differ; {fix}")
                return False
        return True

    def _report(self, path: Path, series: Sequence[str], problem: str) -> None:
        name = path.relative_to(self._root).as_posix()
        self.problems.append(f"{name}: series {' or '.join(map(repr, series))}: {problem}")


def _list_folders(root: Path) -> tuple[list[list[Path]], list[str]]:
    """Return the DICOM files of each folder, and a line per folder that cannot be listed and per broken link."""
    problems = ListingProblems(root)
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in find_files(problems, lambda _: False, (".dcm",), DEEPEST_OF_DICOM):
        folders[path.parent].append(path)
    return list(folders.values()), problems.lines


def _read_headers(files: Iterable[Path]) -> Iterator[_Entry]:
    for path in files:
        try:
            yield path, _read_header(path)
        except ImageError as error:
            yield path, error


def _up_to_first_readable(entries: Iterator[_Entry]) -> list[_Entry]:
    taken = []
    for entry in entries:
        taken.append(entry)
        if isinstance(entry[1], _Header):
            break
    return taken


def _read_header(path: Path) -> _Header:
    with plain_errors(path, damaged=_FIX, foreign=_FIX):
        # the whole file would be inflated, to a size that no header claims
        if _transfer_syntax(path) == DeflatedExplicitVRLittleEndian:
            raise ImageError("is deflated; inflate it, for example with dcmconv +ti")
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
        position = dataset.get("ImagePositionPatient")
        return _Header(
            series=str(_value(dataset, "SeriesInstanceUID")).strip(),
            modality=str(_value(dataset, "Modality")).strip(),
            z=float(position[2]) if position else None,
            spacing=tuple(float(size) for size in dataset.get("PixelSpacing") or ()),
        )


def _transfer_syntax(path: Path) -> UID:
    # opening a pipe would block
    if not path.is_file():
        raise ImageError("is no regular file; put the slice itself there")
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if not syntax:
        raise ImageError("its header gives no TransferSyntaxUID; download it again")
    return UID(syntax)


def _check_slice(dataset: Dataset) -> None:
    """Check what a header claims about its pixels.

    Raises:
        ImageError: if the file is not a single 2D slice of a CT, or larger than any.
    """
    modality = str(_value(dataset, "Modality"))
    if modality != "CT":
        raise ImageError(f"is of modality {modality!r}, not 'CT'; choose the folder of the CT series")
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(_value(dataset, "SamplesPerPixel"))
    if (frames, samples) != (1, 1):
        raise ImageError(f"holds {frames} frames of {samples} channels; save one 2D slice per file")
    meaning = str(_value(dataset, "PhotometricInterpretation"))
    if not meaning.startswith("MONOCHROME"):
        raise ImageError(f"its pixels are {meaning!r}, not grey values; download it again")
    bits = int(_value(dataset, "BitsAllocated"))
    if bits != 16:
        raise ImageError(f"holds pixels of {bits} bits, not 16; download it again")
    require_plain_pixels(dataset)
    rows, columns = int(_value(dataset, "Rows")), int(_value(dataset, "Columns"))
    if not 0 < rows * columns <= MOST_PIXELS:
        raise ImageError(f"its header claims {rows} x {columns} pixels; download it again")
    expected, actual = 2 * rows * columns, len(_value(dataset, "PixelData"))
    if actual < expected:
        raise ImageError(f"is cut off: it holds {actual} of {expected} bytes of pixels; download it again")


def _value(dataset: Dataset, keyword: str) -> Any:
    value = dataset.get(keyword)
    if value is None or value == "":
        raise ImageError(f"its header gives no {keyword}; download it again")
    return value


def _agree(spacing: tuple[float, ...], expected: float) -> bool:
    return len(spacing) == 2 and all(abs(size - expected) <= SPACING_TOLERANCE * expected for size in spacing)
