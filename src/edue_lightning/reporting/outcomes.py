"""The one rule by which two methods are compared: three outcomes by interval, with a margin stated beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Outcome = Literal["better", "not distinguishable", "worse", "undefined"]

LEVEL = 0.05
"""Largest p-value, after Holm's correction, of a difference that counts as shown."""

LEAST_DICE = 0.1
"""Mean Dice below which a model is degenerate: it segments next to nothing, or the wrong place.

Its NLL, ECE and correlations may look good for that very reason: next to no voxel is marked, so an empty prediction is
nearly always right.
"""

# of a comparison of decimal numbers
_TOLERANCE = 1e-9

FEWEST_CASES = 20
"""Number of cases below which a value is reported with a warning: quantiles at 2.5 % then rest on single cases."""


@dataclass(frozen=True)
class Margin:
    """Largest difference that does not matter.

    Attributes:
        size: size of the margin.
        relative: whether the size is a share of the other method's value.
        reason: reason for the size.
    """

    size: float
    relative: bool
    reason: str

    def of(self, other: float) -> float:
        """Return the margin as a difference from another method's value."""
        return self.size * abs(other) if self.relative else self.size


_ON_A_SCALE = "values lie in [-1, 1] or [0, 1] on all data, so one number serves; a hundredth is what two decimals show"
MARGINS = {
    "dice": Margin(0.01, False, _ON_A_SCALE),
    "image_pearson": Margin(0.01, False, _ON_A_SCALE),
    "image_spearman": Margin(0.01, False, _ON_A_SCALE),
    "image_spearman_normalised": Margin(0.01, False, _ON_A_SCALE),
    "pixel_pearson": Margin(0.01, False, _ON_A_SCALE),
    "nll": Margin(0.02, True, "its size depends on the share of background, so only a share of it can be judged"),
    "ece": Margin(0.1, True, "as for NLL; its bins make it noisy, so a tenth"),
    "normalised_aurc": Margin(
        0.05, False, "0 is the ideal order of the cases and 1 a blind one; a twentieth of the way"
    ),
}
"""Margins by quantity, the same for every data set and method, and fixed before a comparison is judged by them."""


def outcome(gain: float, low: float, high: float, margin: float, adjusted_p: float) -> Outcome:
    """Return the outcome of a comparison.

    - *undefined*: a value or the interval is undefined.
    - *better*, *worse*: the 95 % interval of the gain excludes 0, Holm's p-value is at most `LEVEL`, and the interval
      is not within the margin.
    - *not distinguishable*: everything else. `within_margin` says whether the difference is shown to be small, or
      whether the data could not show one.

    Args:
        gain: difference between two methods, its sign such that more is better.
        low: lower end of its interval.
        high: upper end.
        margin: largest difference that does not matter.
        adjusted_p: p-value of no difference after Holm's correction over all comparisons.
    """
    if np.isnan([gain, low, high]).any():
        return "undefined"
    if within_margin(low, high, margin) or not is_shown(low, high, adjusted_p):
        return "not distinguishable"
    return "better" if gain > 0 else "worse"


def is_shown(low: float, high: float, adjusted_p: float) -> bool:
    """Return whether a difference is shown: its interval excludes 0, and so does Holm's correction."""
    return (low > _TOLERANCE or high < -_TOLERANCE) and adjusted_p <= LEVEL


def within_margin(low: float, high: float, margin: float) -> bool:
    """Return whether an interval lies within a margin around 0."""
    return -margin - _TOLERANCE <= low and high <= margin + _TOLERANCE


def two_sided_p(change: float, low: float, high: float) -> float:
    """Return the p-value of no change that agrees with a 95 % interval: at most 0.05 if the interval excludes 0.

    The distance from the change to the end of the interval that faces 0 is taken for 1.96 standard errors of a normal
    distribution. Counting replicates beyond 0 would be too coarse for many comparisons: none is below 1 / resamples.

    Args:
        change: the estimate.
        low: lower end of its 95 % interval; NaN without an interval.
        high: upper end.
    """
    if np.isnan([change, low, high]).any():
        return np.nan
    facing = change - low if change > 0 else high - change
    # an estimate outside of its own interval, as a biased one may be
    half = facing if facing > 0 else (high - low) / 2
    if half == 0:
        return float(change == 0)
    return float(2 * norm.sf(norm.isf(0.025) * abs(change) / half))


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Return p-values adjusted for many comparisons (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: p-values of the comparisons; NaN for one that was not made.
    """
    values = np.asarray(p_values, dtype=float)
    made = np.flatnonzero(~np.isnan(values))
    order = made[np.argsort(values[made], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def is_degenerate(dice: float) -> bool:
    """Return whether a mean Dice is that of a degenerate model."""
    return dice < LEAST_DICE
