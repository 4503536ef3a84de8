"""The one rule by which two methods are compared: three outcomes by interval, with a margin stated beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from edue_lightning.metrics import interval

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

ENOUGH_GROUPS = 20
"""Number of independent groups of cases below which a value is reported with a warning.

Quantiles at 2.5 % then rest on single groups, and an interval of 95 % covers the true value in less than 93 %.
"""


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
    "d_soft": Margin(0.01, False, _ON_A_SCALE),
    "ged2": Margin(0.01, False, "values lie in [0, 2] on all data; publications give two decimals"),
    "nll": Margin(0.02, True, "its size depends on the share of background, so only a share of it can be judged"),
    "ece": Margin(0.1, True, "as for NLL; its bins make it noisy, so a tenth"),
    "ood_auroc": Margin(0.01, False, _ON_A_SCALE),
    "ood_auroc_uncertainty": Margin(0.01, False, _ON_A_SCALE),
    "aurc": Margin(0.01, False, "a mean of 1 - Dice, so as for Dice"),
    "normalised_aurc": Margin(
        0.05, False, "0 is the ideal order of the cases and 1 a blind one; a twentieth of the way"
    ),
}
"""Margins by quantity, the same for every data set and method, and fixed before a comparison is judged by them."""


def outcome(gain: float, low: float, high: float, margin: float, adjusted_p: float) -> Outcome:
    """Return the outcome of a comparison.

    - *undefined*: a value or the interval is undefined.
    - *better*, *worse*: the 95 % interval of the gain excludes 0 on the side of the gain, Holm's p-value is at most
      `LEVEL`, and the interval is not within the margin.
    - *not distinguishable*: everything else. `within_margin` says whether the difference is shown to be small, or
      whether the data could not show one.

    Args:
        gain: difference between two methods, its sign such that more is better.
        low: lower end of its interval.
        high: upper end.
        margin: largest difference that does not matter.
        adjusted_p: p-value of no difference after Holm's correction over all comparisons of the report.
    """
    if np.isnan([gain, low, high]).any():
        return "undefined"
    if within_margin(low, high, margin) or not is_shown(low, high, adjusted_p):
        return "not distinguishable"
    if low > 0 and gain > 0:
        return "better"
    # a biased estimate may lie on the other side of 0 than its interval, and then shows nothing
    return "worse" if high < 0 and gain < 0 else "not distinguishable"


def is_shown(low: float, high: float, adjusted_p: float) -> bool:
    """Return whether a difference is shown: its interval excludes 0, and so does Holm's correction."""
    return (low > _TOLERANCE or high < -_TOLERANCE) and adjusted_p <= LEVEL


def within_margin(low: float, high: float, margin: float) -> bool:
    """Return whether an interval lies within a margin around 0."""
    return -margin - _TOLERANCE <= low and high <= margin + _TOLERANCE


def two_sided_p(differences: NDArray[np.float64], groups: int, of_seeds: Sequence[NDArray[np.float64]] = ()) -> float:
    """Return the p-value of no difference: `inverted_p` with the tails of a t distribution for few groups or seeds.

    The bootstrap takes the variance between G groups of cases for known, and too small by the factor (G - 1) / G. So
    the p-value of z standard errors becomes that of as many of the larger variance, for a t distribution with G - 1
    degrees of freedom; with several seeds with those of Welch and Satterthwaite (Biometrics Bulletin 2, 1946), for the
    sum of the variances between groups and between the seeds of each method.

    Args:
        differences: replicates of the difference, `[resamples]`; undefined ones are NaN. Those over n seeds draw
            n - 1 of them, so that the variance between them is not too small.
        groups: G, the number of independent groups of cases.
        of_seeds: for each method, the difference with each of its seeds in place of their mean, `[seeds]`, up to a
            constant and a sign.

    Returns:
        NaN without an interval, or for fewer than two groups.
    """
    p_value = inverted_p(differences)
    if np.isnan(p_value) or groups < 2:
        return np.nan
    total = float(np.var(differences[~np.isnan(differences)]))
    if not total:
        return p_value
    parts = [(float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in of_seeds if len(values) > 1]
    of_groups = max(total - sum(variance for variance, _ in parts), 0.0) * groups / (groups - 1)
    parts.append((of_groups, groups - 1))
    unbiased = sum(variance for variance, _ in parts)
    freedom = unbiased**2 / sum(variance**2 / degrees for variance, degrees in parts)
    return float(2 * t.sf(norm.isf(p_value / 2) * np.sqrt(total / unbiased), freedom))


def inverted_p(differences: NDArray[np.float64]) -> float:
    """Return the p-value of no difference by inverting the percentile interval of bootstrap replicates.

    It is 2 (1 + c) / (1 + B) with c of B replicates on the rarer side of 0 (Davison and Hinkley, Bootstrap Methods and
    their Application, 1997, 4.2), so the interval excludes 0 wherever the p-value is at most 0.05. If all replicates
    lie on one side, they only show that it is at most 2 / (1 + B): 0.002 for 1000 resamples, too large for Holm's
    correction over more than 25 comparisons. Then `interval_p` takes its place, if it is smaller.

    Args:
        differences: replicates of the difference, `[resamples]`; undefined ones are NaN.

    Returns:
        NaN without an interval.
    """
    low, high = interval(differences)
    if np.isnan(low):
        return np.nan
    defined = differences[~np.isnan(differences)]
    beyond = int(min((defined <= _TOLERANCE).sum(), (defined >= -_TOLERANCE).sum()))
    counted = min(2 * (1 + beyond) / (1 + len(defined)), 1.0)
    return counted if beyond else min(counted, interval_p(low, high))


def interval_p(low: float, high: float) -> float:
    """Return the p-value of no difference from a 95 % interval alone, as that of a normal distribution.

    The middle of the interval is the mean and its half 1.96 standard errors, so the p-value is at most 0.05 exactly if
    the interval excludes 0, and falls as the interval moves away from 0.

    Args:
        low: lower end of the interval; NaN without an interval.
        high: upper end.
    """
    if np.isnan([low, high]).any():
        return np.nan
    middle, half = abs(low + high) / 2, (high - low) / 2
    if half <= _TOLERANCE * middle or middle <= _TOLERANCE:
        return float(middle <= _TOLERANCE)
    return float(2 * norm.sf(norm.isf(0.025) * middle / half))


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
