"""Image-level measures of disagreement, one number per case and structure."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_variances(variance: Tensor, voxel_size: Tensor) -> Tensor:
    """Return SV, the sum of a variance map over the image, times the size of a voxel.

    Args:
        variance: `[B, K, *S]`, see `member_variance`, `rater_variance` and `total_variance`.
        voxel_size: `[B]`, mm² or mm³; 1 where it is unknown.

    Returns:
        `[B, K]` float64, in mm² or mm³ (or pixels, voxels).
    """
    return variance.flatten(2).sum(dim=2, dtype=torch.float64) * voxel_size[:, None].double()


def layer_agreement(pair_dice: Tensor) -> Tensor:
    """Return the Dice between the masks of neighbouring heads (Kushibar et al. 2022), high where they agree.

    Args:
        pair_dice: Dice of each pair of members' thresholded masks, `[..., M, M]`, members ordered by depth; see
            `pair_overlap`.

    Returns:
        `[..., M - 1]` in [0, 1].
    """
    return pair_dice.diagonal(offset=1, dim1=-2, dim2=-1)


def area_under_layer_agreement(agreement: Tensor) -> Tensor:
    """Return AULA, the trapezoidal area under the layer agreement over depth (Kushibar et al. 2022).

    The depth axis counts pairs of neighbours, one apart, as in the paper's code; the area is not divided by its
    length, so AULA compares cases of one model, not models with different numbers of heads.

    Args:
        agreement: `[..., M - 1]`, see `layer_agreement`.

    Returns:
        `[...]` in [0, M - 2]; NaN for fewer than three members, which span no area.
    """
    if agreement.shape[-1] < 2:
        return agreement.new_full(agreement.shape[:-1], torch.nan)
    return torch.trapezoid(agreement, dim=-1)


def model_agreement(pair_dice: Tensor) -> Tensor:
    """Return the mean Dice over pairs of different members (Kushibar et al. 2022), high where they agree.

    Args:
        pair_dice: Dice of each pair of members' thresholded masks, `[..., M, M]`; see `pair_overlap`.

    Returns:
        `[...]` in [0, 1]; NaN for a single member.
    """
    members = pair_dice.shape[-1]
    above = torch.triu_indices(members, members, offset=1, device=pair_dice.device)
    return pair_dice[..., above[0], above[1]].mean(dim=-1)
