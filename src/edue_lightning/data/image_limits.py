"""Limits of what the header of an image file may claim, checked before memory is allocated, and the error of a file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

MOST_VOXELS = 2**31
"""Largest number of voxels that the header of a volume may claim; pictures have Pillow's own, lower limit."""

MOST_INFLATION = 1032
"""Largest ratio of unpacked to packed size of deflate, the compression of gzip and ZIP."""

TOO_LARGE = "does not fit into this machine's memory; cut it into parts"
"""Problem of a file that is too large."""

_VOXEL_SIZES = (1e-6, 1e4)  # mm, from a nanometre on
_SMALLEST_SINE = 1e-6  # of the angle between two axes of a volume


class ImageError(ValueError):
    """A file cannot be used; the message gives the reason and the fix, without the file's name."""


def require_memory(size: int) -> None:
    """Check that a number of bytes fits into this machine's memory; the system would end the process otherwise.

    Raises:
        ImageError: if it does not fit.
    """
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ImageError(TOO_LARGE)


def require_shape(stored: Sequence[int]) -> None:
    """Check the shape that the header of a volume claims, the channels along a fourth axis.

    Raises:
        ImageError: if it has another number of axes than 2 to 4, an empty one, or too many voxels.
    """
    claimed = "x".join(map(str, stored))
    if len(stored) not in (2, 3, 4) or min(stored) < 1:
        raise ImageError(f"its header claims the shape {claimed}; give it 2 or 3 axes, and one more for channels")
    if math.prod(stored) > MOST_VOXELS:
        raise ImageError(f"its header claims {claimed} voxels, more than 2^31; save it again, or cut it into parts")


def checked_spacing(affine: NDArray[np.float64], axes: int) -> tuple[float, ...]:
    """Return the voxel size in mm along the axes of a volume.

    Args:
        affine: affine of the header, `[4, 4]`, mm.
        axes: number of spatial axes, 2 or 3.

    Raises:
        ImageError: if a size is not that of a voxel, or two axes have one direction.
    """
    spacing = tuple(float(size) for size in voxel_sizes(affine)[:axes])
    if not np.isfinite(affine).all() or not all(_VOXEL_SIZES[0] <= size <= _VOXEL_SIZES[1] for size in spacing):
        raise ImageError("its header gives no valid voxel size; correct its affine")
    if np.linalg.matrix_rank(affine[:3, :axes] / spacing, tol=_SMALLEST_SINE) < axes:
        raise ImageError("its header gives two axes the same direction; correct its affine")
    return spacing
