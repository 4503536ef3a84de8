"""Votes: data that say how many raters marked each voxel, but not who, read as nested level masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.images import ImageError, ImageFile, palette_positions, read_levels

MOST_RATERS = 64
"""Largest number of raters whose votes differ by several of the 255 grey levels."""

CAVEAT = (
    "the raters' own masks are unknown: their votes are read as nested level masks, so GED², D_max, D_match, matched "
    "IoU, volume CRPS, and the Dice per rater and between raters are those of the level masks"
)
"""Caveat on every result on such data."""


def read_votes(path: Path, raters: int) -> ImageFile:
    """Read a file with the number of raters who marked each voxel, or with their share.

    A share is a value between 0 and 1, or between 0 and the largest value of 8 or 16 bits, rounded. A picture of whole
    numbers up to the number of raters holds numbers; so does one of 2 or 4 bits.

    Args:
        path: picture or NIfTI file.
        raters: number of raters R, at most `MOST_RATERS`.

    Returns:
        the file with the numbers of votes, `[*S]` uint8 from 0 to R.

    Raises:
        ImageError: if the file cannot be read, or holds other values than the R + 1 possible ones.
    """
    stored = read_levels(path)
    if stored.array.dtype.kind == "b" and raters > 1:
        raise ImageError(
            "holds one bit per pixel, which may be one rater or all; save the number of raters with 8 bits"
        )
    values = stored.array.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("holds NaN or infinity; replace these values")
    whole = stored.array.dtype.kind in "iub"
    scale = _full_vote(values, whole, raters)
    votes = np.rint(values * raters / scale)
    # rounded, or cut off, to a whole grey level; a number is exact
    tolerance = 1.0 if whole and scale > raters else 1e-3 * scale / raters
    off = (np.abs(votes * scale / raters - values) >= tolerance) | (votes < 0) | (votes > raters)
    if off.any():
        expected = ", ".join(f"{scale * number / raters:g}" for number in range(min(raters, 6) + 1))
        found = ", ".join(f"{value:g}" for value in np.unique(values[off])[:6])
        raise ImageError(
            f"holds the values {found}, which are no votes of {raters} raters ({expected}{', ...' * (raters > 6)}, "
            "rounded); correct the file or n_raters"
        )
    positions = palette_positions(path)
    if positions is not None and positions.max() <= raters and not np.array_equal(positions, votes):
        raise ImageError(
            "has a palette of greys, so the votes may be the greys or the positions in the palette; save it as grey"
        )
    return ImageFile(votes.astype(np.uint8), stored.spacing, stored.affine, stored.origin)


def level_mask(votes: NDArray[np.uint8], level: int) -> NDArray[np.bool_]:
    """Return the mask of one level: the voxels that at least so many raters marked.

    The masks of levels 1 to R are nested. Their mean is the share q of the raters, and their variance q (1 - q), as of
    the raters' own masks.

    Args:
        votes: numbers of raters, `[*S]`.
        level: 1 to R.
    """
    found: NDArray[np.bool_] = votes >= level
    return found


def _full_vote(values: NDArray[np.float64], whole: bool, raters: int) -> float:
    """Return the value that means all raters."""
    largest = float(values.max(initial=0))
    if whole:
        if largest <= raters:
            shares = np.round(values * raters / 255)
            if shares.any() and (np.abs(values - shares * 255 / raters) <= 1).all():
                raise ImageError(
                    f"holds values up to {largest:g}, which may be numbers of raters or few of {raters} raters as "
                    "shares of 255; save the shares with 16 bits, or as floating-point numbers"
                )
            return raters
        return 255.0 if largest <= 255 else 65535.0
    if largest > 1 + 1e-3:
        return raters
    if largest > 0 and set(np.unique(values)) <= {0.0, 1.0}:
        raise ImageError(
            "holds 0 and 1 as floating-point numbers, which may be one rater or all; save the number of raters as "
            "whole numbers (uint8)"
        )
    return 1.0
