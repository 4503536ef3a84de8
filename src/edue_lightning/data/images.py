"""One image or mask file: PNG, JPEG, TIFF or NIfTI.

Files are data of strangers: a decoder is chosen from a short list, a header's claims are checked before anything is
allocated, and what could be read in two ways is refused instead of guessed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from edue_lightning.text import reason_of

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz")
MOST_VOXELS = 2**31
"""Voxels that a NIfTI header may claim; for pictures Pillow's own, lower limit holds."""

MOST_INFLATION = 1032
"""Times its own size that a file which is packed by deflate, as gzip and ZIP do, can unpack to."""

AFFINE_TOLERANCE = 1e-3
"""Largest difference of any entry, in mm, between affines that count as one."""

_FORMATS = ("PNG", "JPEG", "TIFF")
_PLAIN_MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "F")
_TOO_LARGE = "does not fit this machine's memory; cut it up"
_ORIENTATION_TAG = 0x0112
_MM = {"meter": 1000.0, "micron": 0.001}
_VOXEL_SIZES = (1e-6, 1e4)  # mm, from a nanometre on
_SMALLEST_SINE = 1e-6  # of the angle between two axes of a volume
_MOST_BYTES_BEFORE_VOXELS = 2**26
_MOST_VALUES_LISTED = 6


class ImageError(ValueError):
    """A file cannot be used; the message is the reason and the mend, without the file's name."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What a file holds; `*S` is two axes (rows, columns; of NIfTI i, j) or three (i, j, k).

    Attributes:
        array: `[C, *S]` float32 of an image, `[*S]` bool of a mask, `[*S]` uint8 of a label map.
        spacing: voxel size in mm along each spatial axis, or None where the format does not tell.
        affine: `[4, 4]` from the file's three voxel indices to mm, or None where the format does not tell.
    """

    array: NDArray[np.float32] | NDArray[np.bool_] | NDArray[np.uint8]
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of the spatial axes, `S`."""
        return self.array.shape[1:] if self.array.dtype == np.float32 else self.array.shape


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """What a file says of its grid.

    Attributes:
        shape: of the spatial axes, `S`.
        channels: C.
        spacing: as in `ImageFile`.
        affine: as in `ImageFile`.
    """

    shape: tuple[int, ...]
    channels: int
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None


def header_of(path: Path) -> nibabel.Nifti1Header:
    """Return the header of a NIfTI file that can be read (that of NIfTI 2 is a kind of NIfTI 1's).

    Raises:
        ImageError: if it is none.
    """
    with _decoding(path):
        return _open_volume(path)[0]


def require_memory(size: int) -> None:
    """Refuse what would take more bytes than this machine has memory: the system would end the process instead.

    Raises:
        ImageError: if it does.
    """
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ImageError(_TOO_LARGE)


def same_affine(first: ArrayLike, second: ArrayLike) -> bool:
    """Tell whether two affines place their voxels alike, to a thousandth of a millimetre an entry."""
    return np.allclose(first, second, rtol=0, atol=AFFINE_TOLERANCE)


def read_image(path: Path) -> ImageFile:
    """Read an image: 8-bit values over 255, 16-bit over 65535, all others and NIfTI's as they are stored.

    Transparency is dropped, palettes become RGB. The last axis of a 4D NIfTI file is the channels; a third axis of
    length one is none.

    Raises:
        ImageError: if the file cannot be read, holds NaN or infinity, or could be read in more than one way.
    """
    with _decoding(path):
        image = _read_volume(path, np.float32) if _is_volume(path) else ImageFile(_read_picture(path))
    if not np.isfinite(image.array).all():
        raise ImageError("holds NaN or infinity; replace these values")
    return image


def read_mask(path: Path) -> ImageFile:
    """Read a mask: true where the file's one value other than 0 is.

    A palette that begins with black is taken for a list of labels, whatever the colours.

    Raises:
        ImageError: if the file cannot be read or holds more than a mask.
    """
    with _decoding(path):
        labels = _read_volume(path, None) if _is_volume(path) else ImageFile(_read_labels(path))
    return replace(labels, array=_foreground(labels.array))


def read_colours(path: Path) -> NDArray[np.uint8]:
    """Read a picture of 8 bits as `[H, W, 3]` uint8; grey ones get three equal channels, transparency is dropped.

    Raises:
        ImageError: if the file is no such picture.
    """
    with _decoding(path):
        if _is_volume(path):
            raise ImageError("is a volume; save a picture of 8 bits a colour")
        with _open_picture(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ImageError("holds more than 8 bits a colour; save it with 8")
            return np.asarray(picture.convert("RGB"))


def read_label_map(path: Path, labels: Mapping[int, str]) -> ImageFile:
    """Read a NIfTI file of one number a structure, 0 being the background.

    Args:
        path: of the file.
        labels: names of the structures by their numbers, from 1 to 255.

    Raises:
        ImageError: if the file cannot be read, has channels, or holds another number.
    """
    with _decoding(path):
        if not _is_volume(path):
            raise ImageError("is a picture; save the labels as NIfTI")
        volume = _read_volume(path, None)
    if len(volume.array) > 1:
        raise ImageError("has channels; save one number a voxel")
    values = volume.array[0]
    found = np.zeros(values.shape, dtype=np.uint8)
    for number in labels:
        found[values == number] = number
    if np.count_nonzero(found) != np.count_nonzero(values):
        known = ", ".join(f"{number} ({name})" for number, name in labels.items())
        others = _listed(np.unique(values[(found == 0) & (values != 0)]))
        raise ImageError(f"holds the value {others}; labels are 0, {known}: correct it")
    return replace(volume, array=found)


def _is_volume(path: Path) -> bool:
    name = path.name.lower()
    if not name.endswith(PICTURES + VOLUMES):
        raise ImageError(f"has none of the endings {', '.join(PICTURES + VOLUMES)}; save it as one of these")
    return name.endswith(VOLUMES)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Tell whatever goes wrong in a decoder as an `ImageError`."""
    try:
        # a pipe would be waited for, a device may have no end
        if path.exists() and not path.is_file():
            raise ImageError("is no regular file; put the image itself there")
        # values that are out of range become infinite, and are told then
        with np.errstate(all="ignore"):
            yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(_TOO_LARGE) from error
    except Image.DecompressionBombError as error:
        raise ImageError("its header claims more pixels than Pillow's limit; save it again, or cut it up") from error
    # a decoder raises whatever it stumbles over in a damaged file: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(f"cannot be read ({reason_of(error, path)}); save it again") from error


def _open_picture(path: Path) -> Image.Image:
    # the list keeps Pillow from formats that it hands to other programs
    picture = Image.open(path, formats=_FORMATS)
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise ImageError(f"holds {pages} pages; save one 2D picture a file, volumes as NIfTI")
    if ";16" in str(picture.tile) and not picture.mode.startswith("I"):
        raise ImageError("holds 16-bit colours, which would be cut to 8 bits; save it with 8, or a file a channel")
    picture.load()
    # some programs turn such pictures, others do not: a mask may have been drawn on either
    orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    if orientation > 1:
        raise ImageError(f"is stored turned (EXIF orientation {orientation}); save it upright")
    return picture


def _read_picture(path: Path) -> NDArray[np.float32]:
    with _open_picture(path) as picture:
        stored = _colours(picture)
    largest = np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 1
    return stored.astype(np.float32) / np.float32(largest)


def _read_labels(path: Path) -> NDArray:
    """Return `[C, *S]` values of a mask as they are stored."""
    with _open_picture(path) as picture:
        palette = picture.getpalette()
        if picture.mode == "P" and palette and not any(palette[:3]):
            return np.array(picture)[None]
        colours = _colours(picture)
        if picture.format == "JPEG" and len(np.unique(colours)) > 2:
            raise ImageError("is a JPEG, which blurs labels; save the mask as PNG")
        if "A" in picture.getbands() and np.ptp(colours) == 0 and np.ptp(np.asarray(picture.getchannel("A"))) > 0:
            raise ImageError("has its shape in the transparency; save the mask with 0 and one other value")
    return colours


def _colours(picture: Image.Image) -> NDArray:
    """Return `[C, *S]` values as they are stored, without transparency."""
    if picture.mode not in _PLAIN_MODES:
        picture = picture.convert("RGB")
    stored = np.array(picture)
    if stored.ndim == 2:
        return stored[None]
    return np.moveaxis(stored, -1, 0)[: len(picture.getbands()) - ("A" in picture.getbands())]


def _open_volume(path: Path) -> tuple[nibabel.Nifti1Header, ImageHeader]:
    """Check what a NIfTI file claims; none of its voxels are read."""
    header = _header(path)
    stored = header.get_data_shape()
    claimed = "x".join(map(str, stored))
    if len(stored) not in (2, 3, 4) or min(stored) < 1:
        raise ImageError(f"its header claims the shape {claimed}; give it 2 or 3 axes, and one more for channels")
    if math.prod(stored) > MOST_VOXELS:
        raise ImageError(f"its header claims {claimed} voxels, more than 2^31; save it again, or cut it up")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ImageError("holds colours or complex numbers; save plain numbers, channels along the fourth axis")
    _require_bytes(path, header.get_data_offset(), math.prod(stored) * dtype.itemsize)
    # as they are stored, and as numbers of up to 8 bytes
    require_memory(math.prod(stored) * (dtype.itemsize + 8))
    shape = stored[:2] if stored[2:3] == (1,) else stored[:3]
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MM.get(header.get_xyzt_units()[0], 1.0)
    spacing = tuple(float(size) for size in voxel_sizes(affine)[: len(shape)])
    if not np.isfinite(affine).all() or not all(_VOXEL_SIZES[0] <= size <= _VOXEL_SIZES[1] for size in spacing):
        raise ImageError("its header gives no valid voxel size; correct its affine")
    if np.linalg.matrix_rank(affine[:3, : len(shape)] / spacing, tol=_SMALLEST_SINE) < len(shape):
        raise ImageError("its header gives two axes one direction; correct its affine")
    channels = stored[3] if len(stored) == 4 else 1
    return header, ImageHeader(shape, channels, spacing, affine)


def _header(path: Path) -> nibabel.Nifti1Header:
    """Return what a NIfTI file begins with, without the extensions behind it, which may claim, and unpack to, any size.

    Raises:
        ValueError: if it is no NIfTI file.
    """
    kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    with ImageOpener(str(path)) as file:
        start = file.read(max(kind.template_dtype.itemsize for kind in kinds))
    for kind in kinds:
        if kind.may_contain_header(start):
            return kind(start[: kind.template_dtype.itemsize])
    raise ValueError("no NIfTI header")


def _require_bytes(path: Path, before: int, voxels: int) -> None:
    """Check that a file can hold what its header claims: memory for the voxels is filled before they are read."""
    if before > _MOST_BYTES_BEFORE_VOXELS:
        raise ValueError(f"its header claims {before} bytes before the voxels")
    most = path.stat().st_size * (MOST_INFLATION if path.name.lower().endswith(".gz") else 1)
    if before + voxels > most:
        raise ValueError("the file is shorter than its header claims")


def _read_volume(path: Path, dtype: type[np.float32] | None) -> ImageFile:
    """Return `[C, *S]` values through the slope, in `dtype` or as stored."""
    stored, header = _open_volume(path)
    values = np.asarray(ArrayProxy(path, stored, mmap=False), dtype=dtype)
    array = np.moveaxis(values.reshape(*header.shape, header.channels), -1, 0)
    return ImageFile(array, header.spacing, header.affine)


def _foreground(channels: NDArray) -> NDArray[np.bool_]:
    """Return where `[C, *S]` values, equal in all channels, are not 0."""
    values = channels[0]
    if (channels[1:] != values).any():
        raise ImageError("is coloured; save the mask as one channel of 0 and one other value")
    foreground = values != 0
    others = values[foreground]
    if (others != others[:1]).any():
        raise ImageError(f"holds the values {_listed(np.unique(values))}; a mask holds 0 and one other value")
    return foreground


def _listed(values: NDArray) -> str:
    return ", ".join(f"{value:g}" for value in values[:_MOST_VALUES_LISTED]) + ", ..." * (
        len(values) > _MOST_VALUES_LISTED
    )
