"""Image-level scores of disagreement, one number a case and structure."""

from __future__ import annotations

from itertools import combinations, pairwise

import torch
from torch import Tensor


def mask_dice(first: Tensor, second: Tensor) -> Tensor:
    """Return the Dice coefficient of two masks over their spatial axes, in float64.

    Args:
        first: `[B, K, *S]` bool.
        second: `[B, K, *S]` bool.

    Returns:
        `[B, K]` in [0, 1]; 1 where both masks are empty, 0 where one is.
    """
    overlap = (first & second).flatten(2).sum(dim=2).double()
    total = first.flatten(2).sum(dim=2).double() + second.flatten(2).sum(dim=2)
    return torch.where(total > 0, 2 * overlap / total.clamp_min(1), 1.0)


def sum_of_variances(variance: Tensor, voxel_size: Tensor) -> Tensor:
    """Return SV, the sum of a variance map over the image, times the size of a voxel.

    Args:
        variance: `[B, K, *S]`, see `member_variance`, `rater_variance` and `total_variance`.
        voxel_size: `[B]`, mm² or mm³; 1 where it is unknown.

    Returns:
        `[B, K]` float64, in mm² or mm³ (or pixels, voxels).
    """
    return variance.flatten(2).sum(dim=2, dtype=torch.float64) * voxel_size[:, None].double()


def layer_agreement(masks: Tensor) -> Tensor:
    """Return the Dice between the masks of neighbouring heads (Kushibar et al. 2022), high where they agree.

    Args:
        masks: thresholded member masks, `[B, M, K, *S]` bool, ordered by depth.

    Returns:
        `[B, M - 1, K]` in [0, 1], float64.
    """
    pairs = [mask_dice(masks[:, i], masks[:, j]) for i, j in pairwise(range(masks.shape[1]))]
    return torch.stack(pairs, dim=1) if pairs else masks.new_empty((len(masks), 0, masks.shape[2]), dtype=torch.float64)


def area_under_layer_agreement(agreement: Tensor) -> Tensor:
    """Return AULA, the trapezoidal area under the layer agreement over depth (Kushibar et al. 2022).

    The depth axis counts pairs of neighbours, one apart, as in the paper's code; the area is not divided by its
    length, so AULA compares cases of one model, not models with different numbers of heads.

    Args:
        agreement: `[B, M - 1, K]`, see `layer_agreement`.

    Returns:
        `[B, K]` in [0, M - 2]; NaN for fewer than three members, where no area is.
    """
    if agreement.shape[1] < 2:
        return torch.full_like(agreement[:, :0].sum(dim=1), torch.nan)
    return torch.trapezoid(agreement, dim=1)


def model_agreement(masks: Tensor) -> Tensor:
    """Return the mean Dice over pairs of members (Kushibar et al. 2022), high where they agree.

    Args:
        masks: thresholded member masks, `[B, M, K, *S]` bool.

    Returns:
        `[B, K]` in [0, 1], float64; NaN for a single member.
    """
    members = masks.shape[1]
    if members < 2:
        return torch.full(masks[:, 0].shape[:2], torch.nan, dtype=torch.float64, device=masks.device)
    pairs = [mask_dice(masks[:, i], masks[:, j]) for i, j in combinations(range(members), 2)]
    return torch.stack(pairs).mean(dim=0)
