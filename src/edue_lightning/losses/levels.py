"""Targets of nested levels: level k learns whether at least k of M raters mark a voxel."""

from __future__ import annotations

import torch
from torch import Tensor

from edue_lightning.uncertainty.maps import at_least_float32


def level_targets(masks: Tensor, valid: Tensor, levels: int) -> Tensor:
    """Return `y_k = clip(M q - (k - 1), 0, 1)`, k = 1..M, for the share q of the valid raters who marked a voxel.

    Their mean over k is q for any number of raters. With M valid raters they are the masks of at least k raters, the
    order statistics of the marks; then `1/M^2 sum_k (M + 1 - 2k) y_k` is V* = q (1 - q). With fewer raters the step
    between two levels is split, and that sum is an interpolation of V*.

    Args:
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        levels: M.

    Returns:
        `[B, M, K, *S]` float32, descending along M; 0 for a case without a valid rater.
    """
    spatial_ones = [1] * (masks.ndim - 2)
    counted = valid.to(torch.float32).reshape(*valid.shape, *spatial_ones)
    # divided last: M q is then exact where it is whole
    scaled = levels * (at_least_float32(masks) * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    below = torch.arange(levels, dtype=scaled.dtype, device=masks.device).reshape(-1, *spatial_ones)
    return (scaled[:, None] - below).clamp(0, 1)
