"""Likelihood, Brier score and calibration of the mean prediction against every rater's label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.metrics.case_batch import CaseBatch
from edue_lightning.metrics.definition import Array, Definition, Estimate, Statistic, StructureCases, mean_over_cases
from edue_lightning.metrics.metric import CaseMetric, CasesOfOneMetric, functional

RELIABILITY_BINS = 15

CALIBRATION_THRESHOLDS = tuple(b / RELIABILITY_BINS for b in range(1, 8))
"""Thresholds of `ThresholdedCalibrationError`: the lower edges of all bins that end below one half."""


def _likelihood(cases: CaseBatch) -> Sequence[Tensor]:
    # the labels are 0 or 1, so the mean over raters of each of these needs no more than q
    log_p, log_not_p = cases.log_mean
    share, other = cases.share, 1 - cases.share
    nll = -(share * log_p + other * log_not_p).mean(dim=-1)
    brier = (share * (1 - cases.mean).square() + other * cases.mean.square()).mean(dim=-1)
    return nll, brier


def reliability_bins(probability: Tensor, marked: Tensor, raters: int) -> tuple[Tensor, Tensor]:
    """Count predictions against every rater's label in 15 bins of equal width.

    Args:
        probability: `[..., V]` float64; bin b holds p in [b / 15, (b + 1) / 15), the last one p = 1 too.
        marked: number of raters who marked the voxel, `[..., V]` float64.
        raters: number of valid raters, R.

    Returns:
        bins of all voxels, and of those that a rater marked, each `[..., 15, 3]` float64: voxel-rater pairs, sum of
        their probabilities, marked pairs.
    """
    position = (probability * RELIABILITY_BINS).long().clamp_max_(RELIABILITY_BINS - 1)
    # by bin and number of raters, from which all sums follow
    position = position.mul_(raters + 1).add_(marked.long())
    leading = probability.shape[:-1]
    voxels, sums = (
        probability.new_zeros(*leading, RELIABILITY_BINS * (raters + 1))
        .scatter_add_(-1, position, values)
        .unflatten(-1, (RELIABILITY_BINS, raters + 1))
        for values in (torch.ones_like(probability), probability)
    )
    counts = torch.arange(raters + 1, dtype=torch.float64, device=probability.device)
    columns = torch.stack([raters * voxels, raters * sums, counts * voxels], dim=-1)
    return columns.sum(dim=-2), columns[..., 1:, :].sum(dim=-2)


def adaptive_calibration_error(probability: Tensor, share: Tensor) -> Tensor:
    """Return the calibration error over 15 ranges of equally many voxels (ACE of Nixon et al., CVPR workshops 2019).

    The voxels of a case are ordered by predicted probability. Where a range ends within voxels of one probability, each
    range takes its part of all of them, so the order of the voxels does not matter.

    Args:
        probability: `[..., V]` float64.
        share: share of the raters who marked the voxel, `[..., V]` float64.

    Returns:
        `[...]` float64 in [0, 1]: mean over the ranges of |mean probability - share marked|.
    """
    count = probability.shape[-1]
    values, order = _sorted(probability)
    # sums over the first n voxels, n = 0..V, of p - q
    gaps = F.pad((values - share.gather(-1, order)).cumsum(dim=-1), (1, 0))
    edges = torch.linspace(0, count, RELIABILITY_BINS + 1, dtype=torch.float64, device=probability.device)
    # within voxels of one probability the sum rises evenly, from before the first of them to after the last
    at_edges = values[..., edges[:-1].long()]
    first = torch.searchsorted(values, at_edges)
    last = torch.searchsorted(values, at_edges, right=True)
    start, end = gaps.gather(-1, first), gaps.gather(-1, last)
    sums = start + (end - start) * (edges[:-1] - first) / (last - first)
    return torch.cat([sums, gaps[..., -1:]], dim=-1).diff(dim=-1).abs().sum(dim=-1) / count


def _sorted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values in ascending order along the last axis, and their positions before."""
    if values.device.type != "cpu":
        found = values.sort(dim=-1)
        return found.values, found.indices
    # NumPy sorts doubles several times as fast as torch
    order = torch.from_numpy(np.argsort(values.numpy(), axis=-1))
    return values.gather(-1, order), order


def bin_gaps(bins: Array) -> tuple[Array, Array]:
    """Return each bin's share of the pairs and its |mean probability - share marked|.

    Args:
        bins: `[..., 15, 3]`, see `reliability_bins`.

    Returns:
        shares `[..., 15]`, NaN without any pair, and gaps `[..., 15]`, NaN in an empty bin.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = bins[..., 0] / bins[..., 0].sum(axis=-1, keepdims=True)
        gaps = np.abs(bins[..., 1] - bins[..., 2]) / bins[..., 0]
    return shares, gaps


def _expected(bins: Array) -> Array:
    """Return the ECE, the mean gap over all pairs (Naeini et al. 2015): `[..., 15, 3]` to `[...]`, NaN for no pair."""
    shares, gaps = bin_gaps(bins)
    total: Array = (shares * np.nan_to_num(gaps)).sum(axis=-1)
    return total


def _average(bins: Array) -> Array:
    """Return the ACE, the mean gap over the bins that hold a pair: `[..., 15, 3]` to `[...]`, NaN for no pair."""
    filled = bins[..., 0] > 0
    gaps = np.nan_to_num(bin_gaps(bins)[1]).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        mean: Array = gaps / filled.sum(axis=-1)
    return mean


def _maximum(bins: Array) -> Array:
    """Return the MCE, the largest gap of a bin (Naeini et al. 2015): `[..., 15, 3]` to `[...]`, NaN for no pair."""
    gaps = np.where(bins[..., 0] > 0, bin_gaps(bins)[1], -np.inf).max(axis=-1)
    largest: Array = np.where(np.isneginf(gaps), np.nan, gaps)
    return largest


def _above_thresholds(bins: Array) -> Array:
    """Return the mean over `CALIBRATION_THRESHOLDS` of the ECE of the bins above: `[..., 15, 3]` to `[...]`."""
    first_bins = range(1, len(CALIBRATION_THRESHOLDS) + 1)
    mean: Array = np.mean([_expected(bins[..., first:, :]) for first in first_bins], axis=0)
    return mean


def brier_split(bins: Array) -> tuple[Array, Array]:
    """Return the calibration and the refinement part of the Brier score (Murphy 1973), of predictions rounded to bins.

    Args:
        bins: `[..., 15, 3]`, see `reliability_bins`.

    Returns:
        calibration, the mean over pairs of (mean probability - share marked)² of their bins, and refinement, that of
        share (1 - share); each `[...]`, NaN for no pair. Their sum is the Brier score of each bin's mean probability,
        which is the Brier score itself if all predictions of a bin are equal.
    """
    shares, gaps = bin_gaps(bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        frequency = bins[..., 2] / bins[..., 0]
    calibration: Array = (shares * np.nan_to_num(gaps) ** 2).sum(axis=-1)
    refinement: Array = (shares * np.nan_to_num(frequency * (1 - frequency))).sum(axis=-1)
    return calibration, refinement


LIKELIHOOD = Statistic(("nll", "brier"), _likelihood)
ADAPTIVE_ERROR = Statistic(("adaptive_ece",), lambda cases: (adaptive_calibration_error(cases.mean, cases.share),))
# without raters all bins are empty, not undefined
BINS = Statistic(
    ("bins", "union_bins"),
    lambda cases: reliability_bins(cases.mean, cases.marked, cases.n_raters),
    fewest_raters=0,
    shape=(RELIABILITY_BINS, 3),
)


def _pooled(name: str, function: Callable[[Array], Array], column: str = "bins") -> Definition:
    """Define a metric of the bins `[..., 15, 3]` of all cases together."""

    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        bins = cases.columns[column]
        return Estimate(function(np.einsum("wn,nbs->wbs", weights, bins)), bins[..., 0].sum(axis=1) > 0)

    return Definition(name, (BINS,), estimate, (column,), "low")


class NegativeLogLikelihood(CaseMetric):
    """Cross-entropy of the mean prediction in nats, mean over voxels, raters and then cases.

    In [0, inf), lower is better; at best the entropy of the raters' own labels. Computed from logits, so that a sure
    prediction gives a large finite value, never infinity.

    >>> metric = NegativeLogLikelihood()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.6931, dtype=torch.float64)
    """

    definition = mean_over_cases("nll", LIKELIHOOD, "low")
    plot_lower_bound = 0.0


negative_log_likelihood = functional(NegativeLogLikelihood)


class BrierScore(CaseMetric):
    """Squared error of the mean prediction against every rater's label, mean over voxels, raters and then cases.

    In [0, 1], lower is better (Brier 1950).

    >>> metric = BrierScore()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    definition = mean_over_cases("brier", LIKELIHOOD, "low")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


brier_score = functional(BrierScore)


class BrierCalibration(CaseMetric):
    """Calibration part of the Brier score over the 15 bins of `ExpectedCalibrationError` (Murphy 1973).

    In [0, 1], lower is better: the squared gap of a bin, mean over all voxel-rater pairs of all cases.

    >>> brier_calibration(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.2500, dtype=torch.float64)
    """

    definition = _pooled("brier_calibration", lambda bins: brier_split(bins)[0])
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


brier_calibration = functional(BrierCalibration)


class BrierRefinement(CaseMetric):
    """Refinement part of the Brier score over the 15 bins of `ExpectedCalibrationError` (Murphy 1973).

    In [0, 0.25], lower is better: share (1 - share) of a bin's marked pairs, mean over all pairs of all cases. With
    `BrierCalibration` it adds up to the Brier score of the bins' mean probabilities.

    >>> brier_refinement(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    tensor(0., dtype=torch.float64)
    """

    definition = _pooled("brier_refinement", lambda bins: brier_split(bins)[1])
    plot_lower_bound = 0.0
    plot_upper_bound = 0.25


brier_refinement = functional(BrierRefinement)


class ExpectedCalibrationError(CaseMetric):
    """Mean gap between predicted probability and the share of raters who marked, in 15 bins (Naeini et al. 2015).

    In [0, 1], lower is better. Binned by foreground probability against every rater's label, over all voxels of all
    cases; bin sums are kept, never the voxels.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    definition = _pooled("ece", _expected)
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


expected_calibration_error = functional(ExpectedCalibrationError)


class AverageCalibrationError(CaseMetric):
    """ACE: the gaps of `ExpectedCalibrationError`, mean over the bins that hold a pair (Neumann et al. 2018).

    In [0, 1], lower is better. Sparse bins count as much as full ones, so background does not drown the edge.

    >>> logits = torch.tensor([0.0, 9.0, 9.0, 9.0]).reshape(1, 1, 1, 2, 2)
    >>> average_calibration_error(logits, torch.ones(1, 3, 1, 2, 2), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.2501, dtype=torch.float64)
    """

    definition = _pooled("ace", _average)
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


average_calibration_error = functional(AverageCalibrationError)


class MaximumCalibrationError(CaseMetric):
    """MCE: the largest of the gaps of `ExpectedCalibrationError` (Naeini et al. 2015).

    In [0, 1], lower is better. One pair in an otherwise empty bin can set it.

    >>> logits = torch.tensor([0.0, 9.0, 9.0, 9.0]).reshape(1, 1, 1, 2, 2)
    >>> maximum_calibration_error(logits, torch.ones(1, 3, 1, 2, 2), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.5000, dtype=torch.float64)
    """

    definition = _pooled("mce", _maximum)
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


maximum_calibration_error = functional(MaximumCalibrationError)


class ThresholdedCalibrationError(CaseMetric):
    """ECE of the voxels with p >= t, mean over the thresholds t = 1/15, 2/15, ... 7/15 (after Nixon et al. 2019).

    In [0, 1], lower is better. The background takes no part, and since the prediction alone chooses the voxels, a
    calibrated model has no error. NaN if p lies below 7/15 everywhere.

    >>> logits = torch.tensor([-9.0, -9.0, -9.0, 0.0]).reshape(1, 1, 1, 2, 2)
    >>> thresholded_ece(logits, (logits >= 0).float(), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.5000, dtype=torch.float64)
    """

    definition = _pooled("thresholded_ece", _above_thresholds)
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


thresholded_ece = functional(ThresholdedCalibrationError)


class UnionExpectedCalibrationError(CaseMetric):
    """`ExpectedCalibrationError` of the voxels that at least one valid rater marked.

    In [0, 1], lower is better. The labels choose the voxels, so that a calibrated model has an error here, and one that
    is too sure of the foreground can have a smaller one: read it beside `thresholded_ece`.

    >>> logits = torch.tensor([-9.0, -9.0, -9.0, 0.0]).reshape(1, 1, 1, 2, 2)
    >>> ece_union(logits, (logits >= 0).float(), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.5000, dtype=torch.float64)
    """

    definition = _pooled("ece_union", _expected, "union_bins")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


ece_union = functional(UnionExpectedCalibrationError)


class UnionAverageCalibrationError(CaseMetric):
    """`AverageCalibrationError` of the voxels that at least one valid rater marked; see `ece_union`.

    In [0, 1], lower is better.

    >>> logits = torch.tensor([-9.0, -9.0, 9.0, 0.0]).reshape(1, 1, 1, 2, 2)
    >>> ace_union(logits, (logits >= 0).float(), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.2501, dtype=torch.float64)
    """

    definition = _pooled("ace_union", _average, "union_bins")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


ace_union = functional(UnionAverageCalibrationError)


class AdaptiveCalibrationError(CaseMetric):
    """Calibration error over 15 ranges of equally many voxels, mean over cases (ACE of Nixon et al. 2019).

    In [0, 1], lower is better; see `adaptive_calibration_error`.

    >>> adaptive_ece(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.5000, dtype=torch.float64)
    """

    definition = mean_over_cases("adaptive_ece", ADAPTIVE_ERROR, "low")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


adaptive_ece = functional(AdaptiveCalibrationError)


class ReliabilityCurve(CasesOfOneMetric):
    """The bins behind `ExpectedCalibrationError`, to draw.

    >>> metric = ReliabilityCurve()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()[0, 7]
    tensor([48.0000,  0.5000,  1.0000], dtype=torch.float64)
    """

    definition = ExpectedCalibrationError.definition

    def compute(self) -> Tensor:
        """Return for each bin the voxel-rater pairs, their mean probability and the share marked, `[K, 15, 3]`.

        Mean and share of an empty bin are NaN.
        """
        bins = self._cases()["bins"].sum(dim=0)
        return torch.cat([bins[..., :1], bins[..., 1:] / bins[..., :1]], dim=-1)


@dataclass(frozen=True)
class ReliabilityRow:
    """One bin of a structure's reliability curve.

    Attributes:
        structure: name of the structure.
        bin_low: lower edge of the predicted probability.
        bin_high: upper edge.
        count: number of pairs of a voxel and a rater.
        mean_probability: mean prediction; NaN in an empty bin.
        frequency: share of the pairs that the rater marked; NaN in an empty bin.
    """

    structure: str
    bin_low: float
    bin_high: float
    count: int
    mean_probability: float
    frequency: float


def reliability_rows(structure: str, bins: Array) -> list[ReliabilityRow]:
    """Return the reliability curve of one structure.

    Args:
        structure: name of the structure.
        bins: sums over cases, `[15, 3]`, see `reliability_bins`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        means, frequencies = bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0]
    return [
        ReliabilityRow(structure, b / RELIABILITY_BINS, (b + 1) / RELIABILITY_BINS, round(bins[b, 0]), *pair)
        for b, pair in enumerate(zip(means.tolist(), frequencies.tolist(), strict=True))
    ]


STATISTICS = (LIKELIHOOD, ADAPTIVE_ERROR, BINS)
METRICS = (
    NegativeLogLikelihood.definition,
    BrierScore.definition,
    BrierCalibration.definition,
    BrierRefinement.definition,
    ExpectedCalibrationError.definition,
    AverageCalibrationError.definition,
    MaximumCalibrationError.definition,
    ThresholdedCalibrationError.definition,
    UnionExpectedCalibrationError.definition,
    UnionAverageCalibrationError.definition,
    AdaptiveCalibrationError.definition,
)
