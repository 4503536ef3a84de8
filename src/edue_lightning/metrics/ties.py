"""Scores that are equal up to rounding: the one place that says which cases are tied."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics.definition import Array

ROUNDING = 1e-10
"""Largest difference of tied scores, as a share of the larger one: ten significant digits.

The rounding of a sum over a volume, in float64, is a ten-thousandth of this; that of a prediction in float32 a thousand
times as large.
"""


def tied(values: Array) -> Array:
    """Return scores in which those that are equal up to rounding are exactly equal.

    Sums of the same numbers in another order, or products of the same factors, differ in their last digits. Without
    this, ranks would order such cases by chance. Every statistic that ranks scores calls it first.

    Scores are taken from the smallest on. The first one opens a tie, which takes in each following one within
    `ROUNDING` of the first, and then the next one opens the next tie. So a chain of near scores is no wider than
    `ROUNDING`. The difference is relative to the two scores, not to the largest one of the series, so scores near 0
    are as distinct as others, and 0 equals 0 only.

    Args:
        values: `[N]`; infinite ones equal only each other, NaN remain.

    Returns:
        `[N]` float64, for each score the smallest one of its tie.
    """
    distinct, position = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
    first = distinct.copy()
    for i in np.flatnonzero(_near(distinct[1:], distinct[:-1])) + 1:
        if _near(distinct[i], first[i - 1]):
            first[i] = first[i - 1]
    found: Array = first[position]
    return found


def _near(upper: Array, lower: Array) -> NDArray[np.bool_]:
    """Return whether scores are equal up to rounding, for `lower` below `upper`."""
    largest = np.maximum(np.abs(upper), np.abs(lower))
    with np.errstate(invalid="ignore"):
        near: NDArray[np.bool_] = np.isfinite(largest) & (upper - lower <= ROUNDING * largest)
    return near
