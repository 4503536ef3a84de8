"""Limits of what the header of an image file may claim, checked before memory is allocated, and the error of a file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from edue_lightning.text import times

MOST_VOXELS = 2**31
"""Largest number of voxels that the header of a volume may claim; pictures have Pillow's own, lower limit."""

MOST_INFLATION = 1032
"""Largest ratio of unpacked to packed size of deflate, the compression of gzip and ZIP."""

TOO_LARGE = "does not fit into this machine's memory; cut it into parts"
"""Problem of a file that is too large."""

_VOXEL_SIZES = (1e-6, 1e4)  # mm, from a nanometre on
_SMALLEST_SINE = 1e-6  # of the angle between two axes of a volume

RIGHT_ANGLE_TOLERANCE = 0.1
"""Largest deviation of the angle between two axes from a right angle, degrees.

Headers give directions with three digits or more, which turn an axis by less than 0.06 degrees. The tolerance changes
volumes by less than 2e-6 and distances by less than 1e-3 of themselves.
"""


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
    claimed = times(stored)
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
        ImageError: if a size is not that of a voxel, two axes have one direction, or axes are not at right angles.
    """
    spacing = tuple(float(size) for size in voxel_sizes(affine)[:axes])
    if not np.isfinite(affine).all() or not all(_VOXEL_SIZES[0] <= size <= _VOXEL_SIZES[1] for size in spacing):
        raise ImageError("its header gives no valid voxel size; correct its affine")
    if np.linalg.matrix_rank(affine[:3, :axes] / spacing, tol=_SMALLEST_SINE) < axes:
        raise ImageError("its header gives two axes the same direction; correct its affine")
    require_right_angles(affine, axes)
    return spacing


def require_right_angles(affine: NDArray[np.float64], axes: int) -> None:
    """Check that the axes of a volume are at right angles, so that the product of its voxel's edges is its volume.

    Args:
        affine: `[4, 4]`, its axes not of length 0.
        axes: number of spatial axes, 2 or 3.

    Raises:
        ImageError: if an angle deviates from a right angle by more than `RIGHT_ANGLE_TOLERANCE`.
    """
    directions = affine[:3, :axes] / np.linalg.norm(affine[:3, :axes], axis=0)
    cosines = np.triu(directions.T @ directions, k=1)
    first, second = np.unravel_index(np.abs(cosines).argmax(), cosines.shape)
    angle = math.degrees(math.acos(np.clip(cosines[first, second], -1, 1)))
    if abs(angle - 90) > RIGHT_ANGLE_TOLERANCE:
        raise ImageError(
            f"axes {first + 1} and {second + 1} are at an angle of {angle:.4g} degrees, not at a right angle (shear or "
            "tilted gantry), which makes volumes and distances wrong; resample to a grid with right angles"
        )
