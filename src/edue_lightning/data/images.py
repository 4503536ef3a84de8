"""One image or mask file: PNG, JPEG, TIFF, PPM, GIF, BMP, WebP, NIfTI, MetaImage or NRRD; or a DICOM series.

Files come from strangers: only a few decoders are allowed, a header's claims are checked before memory is allocated,
checksums are verified to the end, and a file that programs show in different ways is refused, not guessed at.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TypeGuard

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from edue_lightning.data.dicom_series import files_in, read_series, read_series_header
from edue_lightning.data.geometry import closest_canonical, grid_of, largest_distance
from edue_lightning.data.image_limits import (
    MOST_INFLATION,
    TOO_LARGE,
    ImageError,
    checked_spacing,
    require_memory,
    require_shape,
)
from edue_lightning.data.itk_volumes import ITK_VOLUMES, META_IMAGE, data_file_of, has_matrix, read_itk, read_itk_header
from edue_lightning.data.sample import Grid
from edue_lightning.data.tiff import (
    BITS_TAG,
    DEEP_COLOURS,
    PHOTOMETRIC_TAG,
    SAMPLE_FORMAT_TAG,
    WHITE_IS_ZERO,
    tag_problem,
)
from edue_lightning.text import reason_of, times

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ppm", ".ppm.gz", ".gif", ".bmp", ".webp")
NIFTI = (".nii", ".nii.gz")
VOLUMES = NIFTI + ITK_VOLUMES

ROUNDING = 1e-3
"""Largest distance of a floating-point label from its whole number, and of a mask's values relative to the largest."""

_FORMATS = ("PNG", "JPEG", "TIFF", "PPM", "GIF", "BMP", "WEBP")
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "F")
# numbers whose bytes Pillow leaves in the wrong order when libtiff unpacks them
_SWAPPED = (";16BS", ";32B", ";32BS", ";32BF", ";64BF")
_MODES = (*_PLAIN_MODES, "1", "P", "PA", "La")
_ORIENTATION_TAG = 0x0112
_MM = {"meter": 1000.0, "micron": 0.001}
_ROUNDING_OF_SIZES = 0.01
_MOST_BYTES_BEFORE_VOXELS = 2**26
_MOST_BYTES_BEHIND_VOXELS = 2**26
_CHUNK = 2**20
_PNG_SIGNATURE_BYTES = 8
_WEBP_SIGNATURE_BYTES = 12
_MOST_UNPACKED_BYTES = 2**28
_MOST_VALUES_LISTED = 6
# key in a picture's `info`: bits of each stored value, where Pillow scales values of less than 8 bits to 0 to 255
_BITS = "bits per value"
_FEW_BITS = re.compile(r"L;([24])I?|P;(1)")


@dataclass(frozen=True, eq=False)
class ImageFile:
    """Content of a file; `*S` is two axes (rows and columns; i and j of NIfTI) or three (i, j, k).

    Attributes:
        array: `[C, *S]` float32 of an image, `[*S]` bool of a mask, `[*S]` uint8 of a label map.
        spacing: voxel size in mm along each spatial axis, or None if the format has none.
        affine: `[4, 4]`, from the file's three voxel indices to mm, or None if the format has none.
        origin: grid of the file, if the axes of a volume were turned from it, see `canonical`; otherwise None.
    """

    array: NDArray[np.float32] | NDArray[np.bool_] | NDArray[np.uint8]
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    origin: Grid | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the spatial axes, `S`."""
        return self.array.shape[1:] if self.array.dtype == np.float32 else self.array.shape

    @property
    def grid(self) -> Grid | None:
        """Grid of the array, or None without an affine."""
        return None if self.affine is None else grid_of(self.shape, self.affine)


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """Grid of a file by its header.

    Attributes:
        shape: lengths of the spatial axes, `S`.
        channels: number of channels, C.
        spacing: see `ImageFile`.
        affine: see `ImageFile`.
    """

    shape: tuple[int, ...]
    channels: int
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None


def header_of(path: Path) -> nibabel.Nifti1Header:
    """Return the checked header of a NIfTI file; the class of NIfTI 2 is derived from NIfTI 1's.

    Raises:
        ImageError: if the file is no NIfTI file, or its header is invalid.
    """
    with _decoding(path):
        return _open_volume(path)[0]


def affine_of(path: Path) -> NDArray[np.float64] | None:
    """Return the affine `[4, 4]` of a volume, a file or the folder of a DICOM series, or None for a picture.

    Raises:
        ImageError: if the header is invalid.
    """
    if _is_series(path):
        return read_series_header(path).affine
    with _decoding(path):
        if not _is_volume(path):
            return None
        return read_itk_header(path).affine if _is_itk(path) else _open_volume(path)[1].affine


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the files that make up an image: its file, that of its voxels if they lie apart, or those of a series."""
    if _is_series(path):
        return files_in(path) or (path,)
    if not _is_itk(path):
        return (path,)
    try:
        with _decoding(path):
            return tuple(dict.fromkeys((path, data_file_of(path))))
    # reading the image reports it
    except ImageError:
        return (path,)


def canonical(image: ImageFile) -> ImageFile:
    """Return a volume with its axes as `closest_canonical` orders them; anything but a volume in space is unchanged.

    The result's `origin` is the grid on which the file stores the voxels, if that is another one.
    """
    if image.affine is None or len(image.shape) != 3:
        return image
    orientation = io_orientation(image.affine)
    if np.array_equal(orientation, [[0, 1], [1, 1], [2, 1]]):
        return image
    stored = grid_of(image.shape, image.affine)
    # channels, if any, come first and stay there
    spatial_first = np.moveaxis(image.array, 0, -1) if image.array.ndim == 4 else image.array
    turned = apply_orientation(spatial_first, orientation)
    grid = closest_canonical(stored)
    return replace(
        image,
        array=np.moveaxis(turned, -1, 0) if image.array.ndim == 4 else turned,
        spacing=None if image.spacing is None else tuple(image.spacing[axis] for axis in np.argsort(orientation[:, 0])),
        affine=grid.affine.numpy(),
        origin=stored if image.origin is None else image.origin,
    )


def read_image(path: Path | BytesIO) -> ImageFile:
    """Read an image: a file, the folder of a DICOM series, or the content of a picture from an archive.

    Values of 1 to 8 bits are divided by their largest, those of 16 bits by 65535; all others, and those of volumes,
    stay as they are. Where a TIFF file says that 0 is white, values are inverted. Transparency is dropped, palettes
    become RGB. The fourth axis of a volume, or the components of its voxels, hold the channels; a third axis of length
    one is dropped.

    Raises:
        ImageError: if the file cannot be read, holds NaN or infinity, or is shown differently by different programs.
    """
    if isinstance(path, Path) and _is_series(path):
        volume, series = read_series(path)
        image = ImageFile(volume, series.spacing, series.affine)
    else:
        with _decoding(path):
            image = _read_volume(path, np.float32) if _is_volume(path) else ImageFile(_read_picture(path))
    if not np.isfinite(image.array).all():
        raise ImageError("holds NaN or infinity; replace these values")
    return image


def read_mask(path: Path | BytesIO, threshold: float | None = None) -> ImageFile:
    """Read a mask file, or the content of a picture: true where the file holds its one value other than 0.

    Floating-point values may be off by `ROUNDING`. A palette that begins with black is a list of labels, whatever its
    other colours.

    Args:
        path: file, or content of a picture.
        threshold: value as the file stores it (0 or 255 of 1 bit), above which a voxel is marked, for masks with grey
            levels; None to refuse such masks.

    Raises:
        ImageError: if the file cannot be read or holds more than a mask; with a threshold, if it holds no grey or only
            values that are not above the threshold although some are not 0.
    """
    with _decoding(path):
        labels = (
            _read_volume(path, None)
            if _is_volume(path)
            else ImageFile(_read_labels(path, blurred=threshold is not None))
        )
    if threshold is None:
        return replace(labels, array=_foreground(labels.array))
    return replace(labels, array=_above(labels.array, threshold))


def read_levels(path: Path) -> ImageFile:
    """Read a file of one value per voxel, `[*S]`, as it stores them; a picture of 1 bit as bool.

    Raises:
        ImageError: if the file cannot be read, is coloured or has channels.
    """
    with _decoding(path):
        stored = _read_volume(path, None) if _is_volume(path) else ImageFile(_read_labels(path))
    values = stored.array[0]
    if (stored.array[1:] != values).any():
        raise ImageError("is coloured, or has channels; save one number per voxel")
    return replace(stored, array=values)


def palette_positions(path: Path) -> NDArray[np.uint8] | None:
    """Return the positions `[H, W]` in the palette of a picture whose palette shows other greys, or None.

    Raises:
        ImageError: if the file cannot be read.
    """
    with _decoding(path):
        if _is_volume(path):
            return None
        with _open_picture(path) as picture:
            return np.array(picture) if picture.mode == "P" and _is_grey(picture) else None


def is_oriented(path: Path) -> bool:
    """Return whether the header of a volume says which way its axes run; True if it cannot be read.

    A NIfTI header does not if the codes of both its transformations are 0, and a MetaImage header without a matrix.
    """
    name = path.name.lower()
    try:
        if name.endswith(NIFTI):
            header = header_of(path)
            return bool(header["qform_code"] > 0 or header["sform_code"] > 0)
        with _decoding(path):
            return not name.endswith(META_IMAGE) or has_matrix(path)
    # reading the image reports it
    except ImageError:
        return True


def read_segment(path: Path, name: str) -> ImageFile:
    """Read one segment of a segmentation of 3D Slicer (`.seg.nrrd`) as a mask, on the segmentation's own grid.

    Args:
        path: file of the segmentation; segments may overlap.
        name: name of the segment; upper and lower case and blanks at its ends do not count.

    Raises:
        ImageError: if the file cannot be read, or holds no such segment.
    """
    with _decoding(path):
        values, header = read_itk(path)
    named = [place for found, place in header.segments.items() if found.strip().casefold() == name.strip().casefold()]
    if len(named) != 1:
        listed = ", ".join(map(repr, header.segments)) or "none with a name"
        raise ImageError(f"has {len(named)} segments {name!r}, its segments: {listed}; give one of them this name")
    layer, value = named[0]
    if not 0 <= layer < header.channels:
        raise ImageError(f"has no layer {layer}, in which its header places {name!r}; save it again")
    return ImageFile(values[layer] == value, header.spacing, header.affine)


def read_colours(path: Path | BytesIO) -> NDArray[np.uint8]:
    """Read a picture (a file or its content) of 8 bits per colour as `[H, W, 3]` uint8.

    Grey pictures get three equal channels, transparency is dropped.

    Raises:
        ImageError: if the file is no such picture.
    """
    with _decoding(path):
        if _is_volume(path):
            raise ImageError("is a volume; save a picture of 8 bits per colour")
        with _open_picture(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ImageError("holds more than 8 bits per colour; save it with 8")
            return np.asarray(picture.convert("RGB"))


def read_label_map(path: Path, labels: Mapping[int, str]) -> ImageFile:
    """Read a file with one number per structure and 0 for the background.

    Floating-point values may be off by `ROUNDING`. In a picture with a palette that begins with black, the positions in
    the palette are the numbers.

    Args:
        path: NIfTI file or picture.
        labels: names of the structures by their numbers, from 1 to 255.

    Raises:
        ImageError: if the file cannot be read, has channels, or holds another number.
    """
    with _decoding(path):
        stored = _read_volume(path, None) if _is_volume(path) else ImageFile(_read_labels(path))
    values = stored.array[0]
    if (stored.array[1:] != values).any():
        raise ImageError("is coloured, or has channels; save one number per voxel")
    if values.dtype.kind == "f":
        whole = np.rint(values)
        values = np.where(np.abs(values - whole) <= ROUNDING, whole, values)
    found = np.zeros(values.shape, dtype=np.uint8)
    for number in labels:
        found[values == number] = number
    if np.count_nonzero(found) != np.count_nonzero(values):
        known = ", ".join(f"{number} ({name})" for number, name in labels.items())
        others = _listed(np.unique(values[(found == 0) & (values != 0)]))
        raise ImageError(f"holds the value {others}; labels are 0, {known}: correct it")
    return replace(stored, array=found)


def _is_volume(path: Path | BytesIO) -> TypeGuard[Path]:
    if isinstance(path, BytesIO):
        return False
    name = path.name.lower()
    if not name.endswith(PICTURES + VOLUMES):
        raise ImageError(f"has none of the endings {', '.join(PICTURES + VOLUMES)}; save it as one of these")
    return name.endswith(VOLUMES)


def _is_series(path: Path) -> bool:
    # a folder with the name of an image file is a mistake
    return path.is_dir() and not path.name.lower().endswith(PICTURES + VOLUMES)


def _is_itk(path: Path) -> bool:
    return path.name.lower().endswith(ITK_VOLUMES)


@contextmanager
def _decoding(path: Path | BytesIO) -> Iterator[None]:
    """Turn any error of a decoder into an `ImageError`."""
    named = path if isinstance(path, Path) else None
    try:
        # reading a pipe would block, and a device may have no end
        if isinstance(path, Path) and path.exists() and not path.is_file():
            raise ImageError("is no regular file; put the image itself there")
        # values out of range become infinite, which is reported later
        with np.errstate(all="ignore"):
            yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(TOO_LARGE) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            "its header claims more pixels than Pillow's limit; save it again, or cut it into parts"
        ) from error
    # decoders raise all kinds of errors on damaged files: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(f"cannot be read ({reason_of(error, named)}); save it again") from error


def _open_picture(path: Path | BytesIO) -> Image.Image:
    if isinstance(path, Path) and path.name.lower().endswith(".gz"):
        path = _unpacked(path)
    # the list keeps Pillow from formats that it hands to other programs
    picture = Image.open(path, formats=_FORMATS)
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise ImageError(f"holds {pages} pages; save one 2D picture per file, volumes as NIfTI")
    # before loading, which turns a TIFF picture and forgets that it was stored turned
    problem = tag_problem(picture.tag_v2) if isinstance(picture, TiffImageFile) else None
    if problem is not None:
        raise ImageError(problem)
    if ";16" in str(picture.tile) and not picture.mode.startswith("I"):
        raise ImageError(DEEP_COLOURS)
    if picture.format == "PPM" and (picture.mode == "I" or str(picture.tile[0].codec_name).startswith("ppm")):
        raise ImageError("holds other numbers than 0 to 255, or numbers as text; save it as PNG")
    raw_modes = [tile.args[0] for tile in picture.tile if tile.codec_name == "libtiff" and tile.args]
    if any(str(mode).endswith(_SWAPPED) for mode in raw_modes):
        raise ImageError("is compressed, its highest byte first, which Pillow misreads; save it uncompressed")
    if picture.mode not in _MODES:
        raise ImageError(f"holds colours of an unusual kind ({picture.mode}); save it as grey or RGB")
    bits = 1 if picture.mode == "1" else _bits_of(picture)
    picture.load()
    picture.info[_BITS] = bits
    # some programs turn such pictures, others do not: a mask may have been drawn on either
    orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    if orientation not in (0, 1):
        raise ImageError(f"is stored turned (EXIF orientation {orientation}); save it upright")
    if picture.format == "PNG":
        _verify_png(path)
    return picture


def _bits_of(picture: Image.Image) -> int:
    """Return the bits of each stored value of a picture that is not loaded yet, if they are less than 8, or 8."""
    for tile in getattr(picture, "tile", ()):
        raw_mode = tile.args if isinstance(tile.args, str) else next(iter(tile.args or ()), "")
        if found := _FEW_BITS.fullmatch(str(raw_mode)):
            return int(found[1] or found[2])
    return 8


def _unpacked(path: Path) -> BytesIO:
    """Return the content of a gzip file, whose checksum is verified at its end."""
    with gzip.open(path) as file:
        content = file.read(_MOST_UNPACKED_BYTES + 1)
    if len(content) > _MOST_UNPACKED_BYTES:
        raise ImageError("unpacks to more than 256 MB; save it as PNG")
    return BytesIO(content)


def _verify_png(path: Path | BytesIO) -> None:
    """Check the checksums of a PNG file, which Pillow skips for the pixels.

    Raises:
        ValueError: if one does not match, or the file is cut off.
    """
    with path.open("rb") if isinstance(path, Path) else BytesIO(path.getvalue()) as file:
        file.seek(_PNG_SIGNATURE_BYTES)
        kind = b""
        while kind != b"IEND":
            start = file.read(8)
            length, kind = struct.unpack(">I4s", start) if len(start) == 8 else (0, b"")
            content = file.read(length)
            if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(file.read(4), "big") or not kind:
                raise ValueError("a checksum does not match")


def _is_lossy_webp(picture: Image.Image, path: Path | BytesIO) -> bool:
    """Return whether a WebP picture was compressed with loss, which its chunks say."""
    if picture.format != "WEBP":
        return False
    with path.open("rb") if isinstance(path, Path) else BytesIO(path.getvalue()) as file:
        file.seek(_WEBP_SIGNATURE_BYTES)
        while len(start := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", start)
            if kind in (b"VP8 ", b"VP8L"):
                return bool(kind == b"VP8 ")
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def _read_picture(path: Path | BytesIO) -> NDArray[np.float32]:
    with _open_picture(path) as picture:
        stored = _colours(picture)
    largest = np.iinfo(stored.dtype).max if stored.dtype in (np.uint8, np.uint16) else 1
    return stored.astype(np.float32) / np.float32(largest)


def _read_labels(path: Path | BytesIO, blurred: bool = False) -> NDArray:
    """Return `[C, *S]` values of a mask as they are stored, of 1 bit as bool.

    Args:
        path: file, or content of a picture.
        blurred: whether to accept the grey levels of a JPEG file; values of 1 bit are then 0 and 255.
    """
    with _open_picture(path) as picture:
        palette = picture.getpalette() or []
        if picture.mode == "P" and not any(palette[:3]) and not _is_grey(picture):
            values = np.array(picture)[None]
            black = [value for value in np.unique(values) if value > 0 and not any(palette[3 * value : 3 * value + 3])]
            if black:
                raise ImageError(f"its palette shows the value {black[0]} as black, like 0; save the mask as grey")
        else:
            values = _colours(picture)
            if picture.mode == "L":
                # of 2 and 4 bits
                values //= 255 // (2 ** picture.info[_BITS] - 1)
        if picture.info[_BITS] == 1 and not blurred:
            values = values > 0
        lossy = "JPEG" if picture.format == "JPEG" else "lossy WebP" if _is_lossy_webp(picture, path) else None
        if lossy is not None and not blurred and len(np.unique(values)) > 2:
            raise ImageError(f"is a {lossy}, which blurs labels; save the mask as PNG")
        alpha = _transparency(picture)
        if alpha is not None and np.ptp(values) == 0 and np.ptp(alpha) > 0:
            raise ImageError("has its shape in the transparency; save the mask with 0 and one other value")
        if alpha is not None and (values[:, alpha == 0] != 0).any():
            raise ImageError("marks pixels that are transparent; save the mask without transparency")
    return values


def _is_grey(picture: Image.Image) -> bool:
    """Return whether a picture with a palette shows greys whose order or distance differs from that of their positions.

    Such a file was grey, as GIF files are that lack some greys; positions in a palette of colours are labels.
    """
    positions = np.unique(np.array(picture))
    colours = np.array(picture.getpalette() or [], dtype=int).reshape(-1, 3)
    if not len(positions) or positions.max() >= len(colours):
        return False
    shown = colours[positions]
    return bool((shown == shown[:, :1]).all() and len(np.unique(shown[:, 0])) == len(positions))


def _transparency(picture: Image.Image) -> NDArray[np.uint8] | None:
    """Return how opaque each pixel is, `[H, W]` from 0 to 255, or None for an opaque picture."""
    if not picture.has_transparency_data:
        return None
    if picture.mode.startswith("I"):
        return np.where(np.asarray(picture) == picture.info["transparency"], 0, 255).astype(np.uint8)
    return np.asarray(picture.convert("RGBA").getchannel("A"))


def _colours(picture: Image.Image) -> NDArray:
    """Return `[C, *S]` values without transparency, as they are stored; inverted where 0 means white."""
    if picture.mode == "1":
        # Pillow's bools hold bytes of 255
        picture = picture.convert("L")
    elif picture.mode not in _PLAIN_MODES:
        picture = picture.convert("RGB")
    stored = np.array(picture)
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if isinstance(picture, TiffImageFile):
        tags = picture.tag_v2
        if stored.dtype == np.uint16 and tags[PHOTOMETRIC_TAG] == WHITE_IS_ZERO:
            # Pillow inverts up to 8 bits alone
            stored = np.iinfo(np.uint16).max - stored
        if stored.dtype == np.int32 and (*tags[BITS_TAG], *tags.get(SAMPLE_FORMAT_TAG, (1,))) == (32, 1):
            # Pillow has no unsigned numbers of 32 bits
            stored = stored.view(np.uint32)
    if stored.ndim == 2:
        return stored[None]
    return np.moveaxis(stored, -1, 0)[: len(picture.getbands()) - ("A" in picture.getbands())]


def _open_volume(path: Path) -> tuple[nibabel.Nifti1Header, ImageHeader]:
    """Check what a NIfTI file claims, without reading any voxels."""
    header = _header(path)
    stored = header.get_data_shape()
    while len(stored) > 4 and stored[-1] == 1:
        stored = stored[:-1]
    require_shape(stored)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ImageError("holds colours or complex numbers; save plain numbers, channels along the fourth axis")
    _require_bytes(path, header, math.prod(stored) * dtype.itemsize)
    # as they are stored, and as numbers of up to 8 bytes
    require_memory(math.prod(stored) * (dtype.itemsize + 8))
    shape = stored[:2] if stored[2:3] == (1,) else stored[:3]
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MM.get(header.get_xyzt_units()[0], 1.0)
    spacing = checked_spacing(affine, len(shape))
    _require_one_place(header, shape)
    channels = stored[3] if len(stored) == 4 else 1
    return header, ImageHeader(shape, channels, spacing, affine)


def _require_one_place(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> None:
    """Check that the transformations of a header agree, since programs differ in which of them they use.

    Raises:
        ImageError: if voxel sizes differ by more than 1 %, or places by more than half a voxel.
    """
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None:
        return
    sizes = voxel_sizes(sform)[: len(shape)]
    # where no qform uses them they may be missing
    given = np.array(header["pixdim"][1 : len(shape) + 1], dtype=np.float64)
    is_known = qform is not None or (given > 0).all()
    if is_known and not np.allclose(sizes, given, rtol=_ROUNDING_OF_SIZES, atol=0):
        shown = [times(one, 4) for one in (sizes, given)]
        raise ImageError(f"its header gives two voxel sizes, {shown[0]} (sform) and {shown[1]} (pixdim); correct one")
    if qform is not None:
        distance = largest_distance(grid_of(shape, sform), grid_of(shape, qform))
        if not distance <= sizes.min() / 2:
            raise ImageError(
                f"its header places the voxels in two ways, up to {distance:.3g} mm apart (sform and qform); keep the "
                "right one, and give the other the same values or the code 0"
            )


def _header(path: Path) -> nibabel.Nifti1Header:
    """Return the start of a NIfTI file, without the extensions behind it, which may claim, and unpack to, any size.

    Raises:
        ImageError: if the voxels do not lie behind the header.
        ValueError: if it is no NIfTI file.
    """
    kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    with ImageOpener(str(path)) as file:
        start = file.read(max(kind.template_dtype.itemsize for kind in kinds))
    for kind in kinds:
        if kind.may_contain_header(start):
            start = start[: kind.template_dtype.itemsize]
            _require_voxels_behind(kind(start, check=False))
            return kind(start)
    raise ValueError("no NIfTI header")


def _require_voxels_behind(header: nibabel.Nifti1Header) -> None:
    if not bytes(header["magic"]).startswith(b"n+"):
        raise ImageError("keeps its voxels in another file (.img); save both as one .nii or .nii.gz")
    begin = float(header["vox_offset"])
    if not begin.is_integer() or begin < header.single_vox_offset:
        raise ImageError(f"its header says that the voxels begin at byte {begin:g}, within the header; save it again")


def _require_bytes(path: Path, header: nibabel.Nifti1Header, voxels: int) -> None:
    """Check that a file can hold what its header claims: memory for the voxels is filled before they are read."""
    before = header.get_data_offset()
    if before > _MOST_BYTES_BEFORE_VOXELS:
        raise ValueError(f"its header claims {before} bytes before the voxels")
    most = path.stat().st_size * (MOST_INFLATION if path.name.lower().endswith(".gz") else 1)
    if before + voxels > most:
        raise ValueError("the file is shorter than its header claims")


def _read_volume(path: Path, dtype: type[np.float32] | None) -> ImageFile:
    """Return `[C, *S]` values, of NIfTI through the slope, in `dtype` or as stored."""
    if _is_itk(path):
        found, itk = read_itk(path)
        return ImageFile(found if dtype is None else found.astype(dtype), itk.spacing, itk.affine)
    stored, header = _open_volume(path)
    with ImageOpener(str(path)) as file:
        values = np.asarray(ArrayProxy(file, stored, mmap=False), dtype=dtype)
        # gzip verifies its checksum at the end of the file
        behind, most = 0, min(values.size * stored.get_data_dtype().itemsize, _MOST_BYTES_BEHIND_VOXELS)
        while behind < most and (chunk := file.read(_CHUNK)):
            behind += len(chunk)
    if behind >= most:
        raise ImageError("holds many more bytes than its header claims; save it again")
    array = np.moveaxis(values.reshape(*header.shape, header.channels), -1, 0)
    return ImageFile(array, header.spacing, header.affine)


def _foreground(channels: NDArray) -> NDArray[np.bool_]:
    """Return where `[C, *S]` values, equal in all channels, are not 0."""
    values = channels[0]
    if (channels[1:] != values).any():
        raise ImageError("is coloured; save the mask as one channel of 0 and one other value")
    tolerance = 0.0
    if values.dtype.kind == "f":
        peak = float(np.abs(values).max())
        tolerance = ROUNDING * peak if math.isfinite(peak) else 0.0
    # NaN counts as a value of its own
    foreground = ~(np.abs(values) <= tolerance) if tolerance else values != 0
    others = values[foreground]
    if not (np.abs(others - others[:1]) <= tolerance if tolerance else others == others[:1]).all():
        raise ImageError(f"holds the values {_listed(np.unique(values))}; a mask holds 0 and one other value")
    return foreground


def _above(channels: NDArray, threshold: float) -> NDArray[np.bool_]:
    """Return where `[C, *S]` values, equal in all channels, are above a threshold."""
    values = channels[0]
    if (channels[1:] != values).any():
        raise ImageError("is coloured; save the mask as one channel of grey levels")
    if np.isnan(values).any():
        raise ImageError("holds NaN; replace these values")
    marked: NDArray[np.bool_] = values > threshold
    # a mask of 0 and 1 below a threshold for 0 to 255
    if not marked.any() and values.any():
        raise ImageError(
            f"holds the values {_listed(np.unique(values))}, none above the threshold {threshold:g}; correct that"
        )
    return marked


def _listed(values: NDArray) -> str:
    shown = values[:_MOST_VALUES_LISTED]
    texts = [f"{value:g}" for value in shown]
    if len({*texts}) < len(texts):
        texts = [np.format_float_positional(value, trim="-") for value in shown]
    return ", ".join(texts) + ", ..." * (len(values) > _MOST_VALUES_LISTED)
