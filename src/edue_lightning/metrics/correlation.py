"""Correlation of two maps over the voxels of a case, and of two scores over cases."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FEWEST_CASES_FOR_CORRELATION = 3

Array = NDArray[np.float64]


def map_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of two maps over their voxels, in float64.

    Args:
        first: `[..., V]`.
        second: `[..., V]`.

    Returns:
        `[...]` in [-1, 1]; NaN where either map is constant.
    """
    first, second = first.double(), second.double()
    constant = (first == first[..., :1]).all(dim=-1) | (second == second[..., :1]).all(dim=-1)
    first, second = (part - part.mean(dim=-1, keepdim=True) for part in (first, second))
    norm = (torch.linalg.vecdot(first, first) * torch.linalg.vecdot(second, second)).sqrt()
    return (torch.linalg.vecdot(first, second) / norm).clamp(-1, 1).masked_fill(constant, torch.nan)


def cross_entropy_correlation(mean: Tensor, mean_log: tuple[Tensor, Tensor], masks: Tensor) -> Tensor:
    """Return S_NCC of PHiSeg (Baumgartner et al., MICCAI 2019), a correlation of cross-entropy maps, not of variances.

    For each rater: the correlation over voxels of the members' mean cross-entropy against their own mean prediction
    with that against the rater's mask; then the mean over raters.

    Args:
        mean: mean prediction p, `[K, V]`.
        mean_log: means over members of log p and log (1 - p), each `[K, V]`.
        masks: of the raters, `[R, K, V]` bool.

    Returns:
        `[K]` in [-1, 1]; NaN if a map is constant.
    """
    log_p, log_not_p = mean_log
    own = -(mean * log_p + (1 - mean) * log_not_p)
    correlations = [map_correlation(own, -torch.where(mask, log_p, log_not_p)) for mask in masks]
    return torch.stack(correlations).mean(dim=0) if correlations else torch.full_like(mean[:, 0], torch.nan)


def weighted_pearson(first: Array, second: Array, weights: Array) -> Array:
    """Return Pearson's correlation over N cases, each counted as often as its weight says.

    Args:
        first: `[N]`, or `[W, N]` where it depends on the weights.
        second: likewise.
        weights: `[W, N]`, whole numbers.

    Returns:
        `[W]` in [-1, 1]; NaN where a series is constant or fewer than three cases have a weight.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    count = weights.sum(axis=1, keepdims=True)
    drawn = weights > 0
    # told by the values themselves: rounding leaves a centred constant with a tiny variance
    varies = np.logical_and.reduce(
        [
            np.where(drawn, part, -np.inf).max(axis=1, initial=-np.inf)
            > np.where(drawn, part, np.inf).min(axis=1, initial=np.inf)
            for part in (first, second)
        ]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (part - (weights * part).sum(axis=1, keepdims=True) / count for part in (first, second))
        power = (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
        result = (weights * first * second).sum(axis=1) / np.sqrt(power)
    defined = varies & (drawn.sum(axis=1) >= FEWEST_CASES_FOR_CORRELATION)
    return np.where(defined, np.clip(result, -1, 1), np.nan)


def weighted_spearman(first: Array, second: Array, weights: Array) -> Array:
    """Return Spearman's rank correlation: as `weighted_pearson`, of average ranks, for `[N]` and `[N]`."""
    return weighted_pearson(_ranks(first, weights), _ranks(second, weights), weights)


def _ranks(values: Array, weights: Array) -> Array:
    """Return average ranks `[W, N]` of values that occur `weights` times each."""
    _, group = np.unique(values, return_inverse=True)
    per_group = np.zeros((len(weights), group.max(initial=0) + 1))
    np.add.at(per_group.T, group, weights.T)
    below = np.cumsum(per_group, axis=1) - per_group
    return (below + (per_group + 1) / 2)[:, group]
