"""Volumes as ITK stores them: MetaImage (`.mha`, `.mhd`) and NRRD (`.nrrd`, `.nhdr`, 3D Slicer's `.seg.nrrd`).

SimpleITK decodes them. It returns wrong voxels for a damaged MetaImage file, and 1 mm where a header gives no voxel
size, so headers and checksums are checked here before it reads a file.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.geometry import LPS_OF_RAS
from edue_lightning.data.image_limits import (
    MOST_INFLATION,
    ImageError,
    checked_spacing,
    require_memory,
    require_shape,
)
from edue_lightning.text import reason_of

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

META_IMAGE = (".mha", ".mhd")
NRRD = (".nrrd", ".nhdr")
ITK_VOLUMES = META_IMAGE + NRRD
SEGMENTATION = ".seg.nrrd"
"""Ending of the segmentations of 3D Slicer, whose segments have names."""

_MOST_HEADER_BYTES = 2**20
_CHUNK = 2**20
# of left-anterior-superior, ITK 5.4.0 turns the wrong axis
_KNOWN_SPACES = ("right-anterior-superior", "ras", "left-posterior-superior", "lps")
_RAW, _DEFLATED = ("raw",), ("gzip", "gz")
_SKIPS = ("headersize", "line skip", "lineskip", "byte skip", "byteskip")
_SEGMENT = re.compile(r"Segment(\d+)_Name")
# fields that SimpleITK reads by exactly these names, and those that mean the same
_SYNONYMS = (
    ("Offset", "Position", "Origin"),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
)
_EXACT = {
    name.lower(): name
    for name in (
        *(name for names in _SYNONYMS for name in names),
        *("ElementSpacing", "ElementSize", "DimSize", "NDims", "ElementType", "ElementNumberOfChannels"),
        *("CompressedData", "BinaryData", "HeaderSize"),
    )
}
_IDENTITIES = ("rai", "lps", "???", "")
"""Names of axes to the left, posterior and superior, by where they begin or end, and of unknown ones."""

_UNIT = 1e-3
"""Largest error of the length of a direction."""


@dataclass(frozen=True, eq=False)
class ItkHeader:
    """Checked header of a file.

    Attributes:
        shape: lengths of the spatial axes i, j and k, without a third one of length one.
        channels: number of channels, C.
        spacing: voxel size in mm along each spatial axis.
        affine: `[4, 4]`, from voxel indices to mm, RAS.
        segments: position in the channels and value of each segment of 3D Slicer, by its name.
    """

    shape: tuple[int, ...]
    channels: int
    spacing: tuple[float, ...]
    affine: NDArray[np.float64]
    segments: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class _Voxels:
    """Place of the voxels: `path`, the byte at which they begin, and whether they are compressed."""

    path: Path
    start: int
    is_packed: bool


def data_file_of(path: Path) -> Path:
    """Return the file that holds the voxels of a header, which is the file itself unless they are stored apart.

    Raises:
        ImageError: if the header names a file that is not allowed.
        OSError: if the header cannot be read.
    """
    return _voxels(path, *_fields(path)).path


def has_matrix(path: Path) -> bool:
    """Return whether a MetaImage header gives the directions of its axes as a matrix.

    Raises:
        ImageError: if the header is invalid.
        OSError: if it cannot be read.
    """
    fields = _fields(path)[0]
    return any(name.lower() in fields for name in _SYNONYMS[1])


def read_itk_header(path: Path) -> ItkHeader:
    """Check what a file claims, without reading any voxels.

    Raises:
        ImageError: if the header is invalid or ambiguous.
        ValueError: if SimpleITK cannot read it.
    """
    return _open(path)[1]


def read_itk(path: Path) -> tuple[NDArray[Any], ItkHeader]:
    """Read a file's values as they are stored, `[C, *S]`.

    Raises:
        ImageError: if the header is invalid or ambiguous.
        ValueError: if the file is damaged.
    """
    import SimpleITK as sitk  # noqa: N813

    reader, header = _open(path)
    with _plain_errors():
        array = sitk.GetArrayFromImage(reader.Execute())
    # k, j, i and components of the voxels
    if reader.GetNumberOfComponents() == 1:
        array = array[..., None]
    if reader.GetDimension() == 4:
        array = np.moveaxis(array[..., 0], 0, -1)
    values = np.moveaxis(array, -1, 0)
    values = values.transpose(0, *range(values.ndim - 1, 0, -1))
    return values.reshape(header.channels, *header.shape), header


def itk_file(values: NDArray[Any], like: Path) -> tuple[bytes, str]:
    """Return values on the voxels of another file, as the content of one compressed file and its ending.

    Args:
        values: `[*S]` of the other file; of one that holds a picture of several channels along its third axis, a volume
            of one slice is written.
        like: MetaImage or NRRD file.

    Raises:
        OSError: if the file cannot be written.
    """
    import SimpleITK as sitk  # noqa: N813

    reader, _ = _open(like)
    axes = min(reader.GetDimension(), 3)
    shape = reader.GetSize()[:axes] if values.ndim == axes else (*values.shape, 1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.reshape(shape).T))
    stored = reader.GetDimension()
    image.SetSpacing(reader.GetSpacing()[:axes])
    image.SetOrigin(reader.GetOrigin()[:axes])
    image.SetDirection(np.array(reader.GetDirection()).reshape(stored, stored)[:axes, :axes].ravel().tolist())
    ending = META_IMAGE[0] if like.name.lower().endswith(META_IMAGE) else NRRD[0]
    return _written(image, ending), ending


def nrrd_file(values: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """Return values at a place as the content of a compressed NRRD file, a slice as a volume of one slice.

    Args:
        values: `[*S]`, two or three axes.
        affine: `[4, 4]`, from voxel indices to mm, RAS.
    """
    import SimpleITK as sitk  # noqa: N813

    if values.ndim == 2:
        # a slice may lie in any plane
        values = values[..., None]
    return _nrrd(sitk.GetImageFromArray(np.ascontiguousarray(values.T)), affine)


def segmentation_file(
    masks: Mapping[str, NDArray[np.bool_]], colours: Sequence[str], affine: NDArray[np.float64]
) -> bytes:
    """Return masks as the content of a segmentation of 3D Slicer (`.seg.nrrd`) with named segments.

    Segments that do not overlap share one layer, with values 1, 2, ...; otherwise each has a layer of its own.

    Args:
        masks: mask `[I, J, K]` of each segment, by its name.
        colours: colour of each segment, as `#RRGGBB`.
        affine: `[4, 4]`, from voxel indices to mm, RAS.
    """
    import SimpleITK as sitk  # noqa: N813

    stacked = np.stack(list(masks.values()))
    overlap = bool((stacked.sum(axis=0, dtype=np.uint8) > 1).any())
    if overlap:
        # components of the voxels are the last axis of ITK's arrays
        image = sitk.GetImageFromArray(np.ascontiguousarray(stacked.T.astype(np.uint8)), isVector=True)
    else:
        values = np.zeros(stacked.shape[1:], dtype=np.uint8)
        for number, mask in enumerate(stacked, 1):
            values[mask] = number
        image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    last = " ".join(f"0 {length - 1}" for length in stacked.shape[1:])
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, (name, colour) in enumerate(zip(masks, colours, strict=True)):
        red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
        fields |= {
            f"Segment{number}_ID": f"Segment_{number + 1}",
            f"Segment{number}_Name": name,
            f"Segment{number}_NameAutoGenerated": "0",
            f"Segment{number}_Color": f"{red:.4g} {green:.4g} {blue:.4g}",
            f"Segment{number}_ColorAutoGenerated": "0",
            f"Segment{number}_LabelValue": str(1 if overlap else number + 1),
            f"Segment{number}_Layer": str(number if overlap else 0),
            f"Segment{number}_Extent": last,
            f"Segment{number}_Tags": "|",
        }
    for key, text in fields.items():
        image.SetMetaData(key, text)
    content = _nrrd(image, affine)
    # 3D Slicer expects layers as a list, which ITK calls a vector
    return content.replace(b"\nkinds: vector domain", b"\nkinds: list domain", 1) if overlap else content


def _nrrd(image: sitk.Image, affine: NDArray[np.float64]) -> bytes:
    axes, origin = np.split((LPS_OF_RAS @ affine)[:3], [3], axis=1)
    if not axes[:, 2].any():
        # a slice without thickness
        normal = np.cross(axes[:, 0], axes[:, 1])
        axes[:, 2] = normal / np.linalg.norm(normal)
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.ravel().tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    return _written(image, NRRD[0])


def _written(image: sitk.Image, ending: str) -> bytes:
    """Return an image as the content of a compressed file.

    Raises:
        OSError: if it cannot be written, such as without space for temporary files.
    """
    import SimpleITK as sitk  # noqa: N813

    # ITK takes the kind of a file from its ending
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"volume{ending}"
        try:
            sitk.WriteImage(image, str(path), True)
        except RuntimeError as error:
            raise OSError(reason_of(error, path)) from error
        return path.read_bytes()


def _open(path: Path) -> tuple[sitk.ImageFileReader, ItkHeader]:
    import SimpleITK as sitk  # noqa: N813

    fields, begin = _fields(path)
    is_nrrd = path.name.lower().endswith(NRRD)
    voxels = _voxels(path, fields, begin)
    reader = sitk.ImageFileReader()
    # no other decoder, whatever the content
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    with _plain_errors():
        reader.ReadImageInformation()
    stored = reader.GetSize()
    while len(stored) > 3 and stored[-1] == 1:
        stored = stored[:-1]
    components = reader.GetNumberOfComponents()
    if len(stored) == 4 and components > 1:
        raise ImageError("has four axes and channels; save one volume per file, with channels")
    require_shape((*stored, components) if components > 1 and len(stored) == 3 else stored)
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise ImageError("holds complex numbers; save plain numbers")
    _require_place(fields, is_nrrd, len(stored))
    if is_nrrd:
        _require_plain_nrrd(fields)
    else:
        _require_plain_metaimage(fields, reader)
    size = math.prod(stored) * components * _bytes_per_number(reader)
    require_memory(2 * size + 8 * math.prod(stored) * components)
    _verify(voxels, size)
    shape = tuple(stored[:2] if stored[2:3] == (1,) else stored[:3])
    affine = _affine(reader)
    channels = stored[3] if len(stored) == 4 else components
    return reader, ItkHeader(shape, channels, checked_spacing(affine, len(shape)), affine, _segments(reader, channels))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Reduce an error of SimpleITK to its last line, the reason without the places in the code of ITK."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(str(error).strip().splitlines()[-1]) from error


def _affine(reader: sitk.ImageFileReader) -> NDArray[np.float64]:
    """Return the affine `[4, 4]` in RAS, of ITK's origin, spacing and direction in LPS."""
    dimension = reader.GetDimension()
    axes = min(dimension, 3)
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:axes, :axes]
    affine = np.eye(4)
    affine[:axes, :axes] = direction * np.array(reader.GetSpacing()[:axes])
    affine[:axes, 3] = reader.GetOrigin()[:axes]
    return LPS_OF_RAS @ affine


def _bytes_per_number(reader: sitk.ImageFileReader) -> int:
    import SimpleITK as sitk  # noqa: N813

    named = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    if named is None:
        raise ImageError("holds numbers of an unusual kind; save whole or floating-point numbers")
    return int(named[1]) // 8


def _segments(reader: sitk.ImageFileReader, layers: int) -> dict[str, tuple[int, int]]:
    """Return the position in the channels and the value of each segment of 3D Slicer, by its name.

    Args:
        reader: reader of the header.
        layers: number of channels.
    """
    found: dict[str, tuple[int, int]] = {}
    numbers = [match[1] for key in reader.GetMetaDataKeys() if (match := _SEGMENT.fullmatch(key))]
    for number in sorted(numbers, key=int):
        name, value, layer = (
            reader.GetMetaData(key) if reader.HasMetaDataKey(key) else None
            for key in (f"Segment{number}_{part}" for part in ("Name", "LabelValue", "Layer"))
        )
        if name in found:
            raise ImageError(f"holds two segments {name!r}; give each its own name")
        if layer is None:
            # before layers were shared, each segment was a channel of 0 and 1
            layer = "0" if layers == 1 and value is not None else number
        found[name or ""] = int(layer), int(value or 1)
    return found


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a header, keys in lower case, and the byte behind it."""
    is_nrrd = path.name.lower().endswith(NRRD)
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if is_nrrd and not file.readline(16).startswith(b"NRRD000"):
            raise ValueError("no NRRD header")
        while file.tell() < _MOST_HEADER_BYTES:
            line = file.readline(_MOST_HEADER_BYTES).decode("utf-8", "replace").rstrip("\r\n")
            if is_nrrd and not line:
                return fields, file.tell()
            if line.startswith("#"):
                continue
            key, mark, value = line.partition(": " if is_nrrd else "=")
            if not mark:
                # keys of programs, as of 3D Slicer, have another mark
                if is_nrrd and ":" in line:
                    continue
                raise ValueError("its header ends early")
            if not is_nrrd:
                _require_known_key(key.strip(), fields)
            fields[key.strip().lower()] = value.strip()
            if not is_nrrd and key.strip().lower() == "elementdatafile":
                return fields, file.tell()
    raise ValueError("its header has no end")


def _voxels(path: Path, fields: Mapping[str, str], begin: int) -> _Voxels:
    """Find the voxels, in the file or in another one beside it, and check how they are stored."""
    if any(fields.get(key, "0") != "0" for key in _SKIPS):
        raise ImageError("skips bytes before its voxels; save it again without")
    if path.name.lower().endswith(NRRD):
        encoding = fields.get("encoding", "").lower()
        if encoding not in _RAW + _DEFLATED:
            raise ImageError(f"stores its voxels in the encoding {encoding!r}; save it as raw or gzip")
        named = fields.get("data file", fields.get("datafile"))
        is_packed = encoding in _DEFLATED
    else:
        if fields.get("binarydata", "true").lower() not in ("true", "1"):
            raise ImageError("stores its voxels as text; save it in binary form")
        named = None if fields["elementdatafile"].upper() == "LOCAL" else fields["elementdatafile"]
        is_packed = fields.get("compresseddata", "false").lower() in ("true", "1")
    if named is None:
        return _Voxels(path, begin, is_packed)
    # a header from anybody must not lead to other files of this machine
    if Path(named).name != named or "\\" in named or "%" in named or named.upper().startswith("LIST"):
        raise ImageError(f"keeps its voxels in {named!r}, not in one file beside it; save both as one file")
    data = path.with_name(named)
    if not data.is_file():
        raise ImageError(f"keeps its voxels in {named}, which is not beside it; add that file")
    return _Voxels(data, 0, is_packed)


_QUOTED = re.compile(r'"([^"]*)"')
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}


def _require_place(fields: Mapping[str, str], is_nrrd: bool, axes: int) -> None:
    """Check that a header gives voxel sizes in mm and, of a NRRD volume, the directions of the space's axes."""
    given = ("space directions", "spacings") if is_nrrd else ("elementspacing", "elementsize")
    if not any(key in fields for key in given):
        raise ImageError(f"its header gives no voxel size ({' or '.join(given)}); save it with its voxel size")
    listed = fields.get("space units", "") + fields.get("units", "")
    units = {unit.strip().lower() for unit in _QUOTED.findall(listed)}
    units |= {fields[key].strip().lower() for key in ("distanceunits",) if key in fields}
    if not units <= _MILLIMETRES:
        raise ImageError(f"gives its place in {', '.join(sorted(units - _MILLIMETRES))}; save it in mm")
    space = fields.get("space")
    if is_nrrd and (space is None if axes == 3 else False):
        raise ImageError(
            "its header does not say which way its axes run; add a line such as 'space: left-posterior-superior'"
        )
    if is_nrrd and space is not None and space.lower() not in _KNOWN_SPACES:
        raise ImageError(f"its axes run in the space {space!r}; save it in left-posterior-superior")


def _require_known_key(key: str, fields: Mapping[str, str]) -> None:
    """Check that the key of a MetaImage header is new, and in the letters by which ITK knows it."""
    if key.lower() in fields:
        raise ImageError(f"its header gives {key} twice; remove one of the lines")
    exact = _EXACT.get(key.lower(), key)
    if key != exact:
        raise ImageError(f"its header gives {key}, which other programs know as {exact} alone; write {exact}")


def _require_plain_metaimage(fields: Mapping[str, str], reader: sitk.ImageFileReader) -> None:
    """Check that no field of a MetaImage header changes values or places, which ITK ignores."""
    for name, plain in (("Slope", 1.0), ("Offset", 0.0)):
        text = fields.get(f"elementtointensityfunction{name.lower()}")
        if text is not None and not all(number == plain for number in _numbers(text)):
            raise ImageError(
                f"scales its values (ElementToIntensityFunction{name} = {text}), which most programs ignore; apply it "
                "to the voxels, and remove this line"
            )
    for names in _SYNONYMS:
        given = {name: fields[name.lower()] for name in names if name.lower() in fields}
        if len({tuple(_numbers(text)) or text.lower() for text in given.values()}) > 1:
            shown = " and ".join(f"{name} = {text}" for name, text in given.items())
            raise ImageError(f"its header contradicts itself ({shown}); remove one of the lines")
    orientation = fields.get("anatomicalorientation", "")
    if orientation.lower() not in _IDENTITIES and not any(name.lower() in fields for name in _SYNONYMS[1]):
        raise ImageError(
            f"names the directions of its axes (AnatomicalOrientation = {orientation}) without a TransformMatrix, "
            "which most programs ignore; save it with a TransformMatrix"
        )
    if not all(size > 0 for size in reader.GetSpacing()):
        raise ImageError("its header gives a voxel size below 0; turn the axis by its TransformMatrix")
    direction = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)
    if np.abs(np.linalg.norm(direction, axis=0) - 1).max() > _UNIT:
        raise ImageError("its TransformMatrix changes sizes, not directions alone; write voxel sizes as ElementSpacing")


def _require_plain_nrrd(fields: Mapping[str, str]) -> None:
    """Check that no field of a NRRD header changes values or places, which ITK ignores or programs read differently."""
    for name in ("old min", "oldmin", "old max", "oldmax"):
        if name in fields:
            raise ImageError(
                f"holds values that were quantised ({name}: {fields[name]}), which most programs ignore; save the "
                "values themselves"
            )
    for name in ("axis mins", "axismins", "axis maxs", "axismaxs"):
        if name in fields:
            raise ImageError(f"gives its place by {name}, which programs read differently; save it without")
    if "time" in fields.get("kinds", "").lower().split():
        raise ImageError("has an axis of time (kinds), which would be taken for one in space; save one image per file")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split()]
    except ValueError:
        return []


def _verify(voxels: _Voxels, size: int) -> None:
    """Check that there are as many bytes as a header claims; of compressed ones with their checksum.

    Raises:
        ValueError: if the file is damaged or cut off.
        ImageError: if it holds more.
    """
    with voxels.path.open("rb") as file:
        held = file.seek(0, 2) - voxels.start
        file.seek(voxels.start)
        if not voxels.is_packed:
            if held < size:
                raise ValueError("the file is shorter than its header claims")
            behind = held - size
        else:
            if held * MOST_INFLATION < size:
                raise ValueError("the file is shorter than its header claims")
            # both headers, zlib's of MetaImage and gzip's of NRRD
            unpacking, unpacked = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32), 0
            waiting = b""
            while not unpacking.eof and unpacked <= size:
                waiting = waiting or file.read(_CHUNK)
                if not waiting:
                    raise ValueError("the file ends early")
                unpacked += len(unpacking.decompress(waiting, _CHUNK))
                waiting = unpacking.unconsumed_tail
            if unpacked < size:
                raise ValueError("the file is shorter than its header claims")
            behind = unpacked - size
    if behind and (voxels.is_packed or behind >= size):
        raise ImageError("holds more bytes than its header claims; save it again")
