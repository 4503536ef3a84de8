"""Calibration of a predicted probability against every rater's label."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RELIABILITY_BINS = 15

Array = NDArray[np.float64]


def reliability_bins(probability: Tensor, marked: Tensor, raters: int) -> Tensor:
    """Count predictions against every rater's label in 15 bins of equal width.

    Args:
        probability: `[K, V]`; bin b holds p in [b / 15, (b + 1) / 15), the last one p = 1 too.
        marked: number of raters who marked the voxel, `[K, V]`.
        raters: number of valid raters.

    Returns:
        `[K, 15, 3]` float64: voxel-rater pairs, sum of their probabilities, marked pairs.
    """
    probability = probability.double()
    position = (probability * RELIABILITY_BINS).long().clamp_max(RELIABILITY_BINS - 1)
    sums = [torch.full_like(probability, float(raters)), probability * raters, marked.double()]
    bins = torch.zeros(len(probability), RELIABILITY_BINS, 3, dtype=torch.float64, device=probability.device)
    for column, values in enumerate(sums):
        bins[..., column].scatter_add_(1, position, values)
    return bins


def adaptive_calibration_error(probability: Tensor, share: Tensor) -> Tensor:
    """Return the calibration error over 15 ranges of equally many voxels (ACE of Nixon et al., CVPR workshops 2019).

    The voxels of a case are ordered by predicted probability. Where a range ends within voxels of one probability, each
    range takes its part of all of them, so the order of the voxels does not matter.

    Args:
        probability: `[K, V]`.
        share: share of the raters who marked the voxel, `[K, V]`.

    Returns:
        `[K]` float64 in [0, 1]: mean over the ranges of |mean probability - share marked|.
    """
    return torch.stack([_adaptive_error(p, q) for p, q in zip(probability, share, strict=True)])


def _adaptive_error(probability: Tensor, share: Tensor) -> Tensor:
    values = probability.double().cpu().numpy()
    # NumPy sorts doubles several times as fast as torch
    order = np.argsort(values)
    values = values[order]
    # within voxels of one probability both sums rise evenly: they are known after the last voxel of each
    last = np.flatnonzero(np.append(np.diff(values) > 0, True))
    voxels = np.append(0.0, last + 1.0)
    sums = [np.append(0.0, np.cumsum(part)[last]) for part in (values, share.double().cpu().numpy()[order])]
    edges = np.linspace(0, len(values), RELIABILITY_BINS + 1)
    gaps = np.abs(np.subtract(*(np.diff(np.interp(edges, voxels, part)) for part in sums)))
    return torch.tensor(gaps.sum() / len(values), dtype=torch.float64, device=probability.device)


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


def expected_calibration_error(bins: Array) -> Array:
    """Return the ECE, the mean gap over all pairs (Naeini et al. 2015): `[..., 15, 3]` to `[...]`, NaN for no pair."""
    shares, gaps = bin_gaps(bins)
    total: Array = (shares * np.nan_to_num(gaps)).sum(axis=-1)
    return total


def average_calibration_error(bins: Array) -> Array:
    """Return the ACE, the mean gap over the bins that hold a pair: `[..., 15, 3]` to `[...]`, NaN for no pair."""
    filled = bins[..., 0] > 0
    gaps = np.nan_to_num(bin_gaps(bins)[1]).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        mean: Array = gaps / filled.sum(axis=-1)
    return mean


def maximum_calibration_error(bins: Array) -> Array:
    """Return the MCE, the largest gap of a bin (Naeini et al. 2015): `[..., 15, 3]` to `[...]`, NaN for no pair."""
    gaps = np.where(bins[..., 0] > 0, bin_gaps(bins)[1], -np.inf).max(axis=-1)
    largest: Array = np.where(np.isneginf(gaps), np.nan, gaps)
    return largest


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
