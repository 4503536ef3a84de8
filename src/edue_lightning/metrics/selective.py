"""How well a score of uncertainty finds the poor segmentations: quality control and selective segmentation.

Cases are ordered by the score. Cases of one score have no order, so every curve here is the mean over all their orders.
All functions count case n as often as `weights` says, in W weightings (bootstrap resamples) at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class QualityControl(NamedTuple):
    """The quality-control curve, from its start at (0, share of poor segmentations).

    Attributes:
        flagged: x, fraction of the cases that are flagged.
        missed: y, poor segmentations that remain unflagged, as a fraction of all cases.
    """

    flagged: Array
    missed: Array


def quality_control_curve(uncertainty: Array, poor: Array) -> QualityControl:
    """Return the curve of one set of cases, flagged from the most uncertain on (the paper's Fig. 2).

    The ideal line leads from (0, p) straight to (p, 0), with p the share of poor ones; that of a score without
    information from (0, p) to (1, 0).

    Args:
        uncertainty: `[N]`, high for cases to be flagged first.
        poor: `[N]`, 1 for a poor segmentation, 0 for any other.

    Returns:
        a point a distinct score, and the start.
    """
    counts, poor_counts = _by_score(-uncertainty, poor, np.ones((1, len(poor))))
    flagged = np.append(0.0, np.cumsum(counts[0])) / max(len(poor), 1)
    missed = (poor_counts[0].sum() - np.append(0.0, np.cumsum(poor_counts[0]))) / max(len(poor), 1)
    return QualityControl(flagged, missed)


def distance_to_ideal_area(uncertainty: Array, poor: Array, weights: Array) -> Array:
    """Return d-AUC, the area under the quality-control curve minus p²/2, that under its ideal line (Fig. 2).

    Args:
        uncertainty: `[N]`.
        poor: `[N]`, 1 or 0.
        weights: `[W, N]`.

    Returns:
        `[W]` in [0, 0.25]; NaN where no case or every case is poor (or there is none).
    """
    counts, poor_counts = _by_score(-uncertainty, poor, weights)
    cases = counts.sum(axis=1, keepdims=True)
    all_poor = poor_counts.sum(axis=1, keepdims=True)
    after = all_poor - np.cumsum(poor_counts, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (counts * (after + poor_counts / 2)).sum(axis=1) / cases[:, 0] ** 2
        share = (all_poor / cases)[:, 0]
    # at least 0, but for rounding
    return np.where((share > 0) & (share < 1), np.maximum(area - share**2 / 2, 0), np.nan)


class RiskCoverage(NamedTuple):
    """Areas under risk-coverage curves, each `[W]`.

    Attributes:
        area: AURC, of the score.
        optimum: of the best order there is, by the risk itself.
        random: of a score without information, the mean risk.
    """

    area: Array
    optimum: Array
    random: Array

    @property
    def excess(self) -> Array:
        """E-AURC, the area minus the optimum (Geifman et al. 2019)."""
        return self.area - self.optimum

    @property
    def normalised(self) -> Array:
        """The excess as a share of the way from optimum to random; NaN if all cases have the same risk."""
        way = self.random - self.optimum
        # the three are sums of the same numbers in another order
        apart = way > 1e-12 * np.abs(self.random)
        return np.where(apart, self.excess / np.where(apart, way, 1), np.nan)


def risk_coverage(uncertainty: Array, risk: Array, weights: Array) -> RiskCoverage:
    """Return the areas under the curve of mean risk over the n surest cases, n = 1 to N (Geifman et al., ICLR 2019).

    Args:
        uncertainty: `[N]`, low for cases that are kept longest.
        risk: `[N]`, not negative, such as 1 - Dice.
        weights: `[W, N]`, whole numbers.

    Returns:
        see `RiskCoverage`; NaN where no case has a weight.
    """
    cases = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        random = (weights @ risk) / cases
    return RiskCoverage(_area(uncertainty, risk, weights), _area(risk, risk, weights), random)


def _area(score: Array, risk: Array, weights: Array) -> Array:
    counts, risks = _by_score(score, risk, weights)
    before, risk_before = np.cumsum(counts, axis=1) - counts, np.cumsum(risks, axis=1) - risks
    # mean over the orders of n cases of one score: each adds their mean risk r, so with c cases of sum s before them
    # the curve is (s + j r) / (c + j) at their j-th, and these sum to n r + (s - c r) (H(c + n) - H(c))
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, int(counts.sum(axis=1).max(initial=0)) + 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counts > 0, risks / counts, 0)
        steps = harmonic[(before + counts).astype(int)] - harmonic[before.astype(int)]
        area: Array = (risks + (risk_before - before * mean) * steps).sum(axis=1) / counts.sum(axis=1)
    return area


def _by_score(score: Array, values: Array, weights: Array) -> tuple[Array, Array]:
    """Return the weights and the weighted values of the cases of each distinct score, ascending, each `[W, G]`."""
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    ordered = weights[:, order]
    return np.add.reduceat(ordered, starts, axis=1), np.add.reduceat(ordered * values[order], starts, axis=1)
