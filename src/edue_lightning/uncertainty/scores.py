"""Image-level scores: one number a case and structure that says how uncertain a model, or how divided raters, are.

Sums and overlaps are taken in float64 whatever the input's precision, since a volume has a million voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_variances(variance_map: Tensor, voxel_size: Tensor) -> Tensor:
    """Return SV, the sum of a variance map over the image: the paper's image-level score.

    Args:
        variance_map: V, V* or any other map in [0, 0.25], `[B, K, *S]`.
        voxel_size: mm² or mm³ a voxel, `[B]`.

    Returns:
        `[B, K]` float64, at least 0, in mm² or mm³; higher is more uncertain.
    """
    return variance_map.flatten(2).sum(dim=2, dtype=torch.float64) * voxel_size.to(torch.float64).unsqueeze(1)


def size_normalised_sum(variance_map: Tensor, mask: Tensor) -> Tensor:
    """Return SV over the size of a mask, so that a large structure does not seem uncertain by its size alone.

    Args:
        variance_map: `[B, K, *S]`.
        mask: the predicted or the consensus mask, `[B, K, *S]` in {0, 1}.

    Returns:
        `[B, K]` float64, at least 0, without unit (the voxel size cancels); NaN where the mask is empty.
    """
    size = mask.flatten(2).count_nonzero(dim=2).to(torch.float64)
    total = variance_map.flatten(2).sum(dim=2, dtype=torch.float64)
    return torch.where(size > 0, total / size, torch.nan)


def mask_dice(first: Tensor, second: Tensor) -> Tensor:
    """Return the Dice coefficient of two masks over the last axis.

    Args:
        first: bool `[..., N]`.
        second: bool `[..., N]`.

    Returns:
        `[...]` float64 in [0, 1], higher is more alike; 1 where both are empty, since they are equal.
    """
    return _dice((first & second).sum(dim=-1), first.sum(dim=-1) + second.sum(dim=-1))


def layer_agreement(probabilities: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the Dice coefficient between the thresholded masks of neighbouring heads.

    It means something only for members ordered by depth, such as the heads of a layer ensemble.

    Source: Kushibar et al., MICCAI 2022 (their code puts raw probabilities into this Dice; masks are meant).

    Args:
        probabilities: members ordered by depth, `[B, M, K, *S]`.
        threshold: a voxel belongs to the mask from this probability on.

    Returns:
        `[B, M - 1, K]` float64 in [0, 1], lower is more uncertain; two empty masks agree fully (1).
    """
    masks = probabilities.flatten(3) >= threshold
    return mask_dice(masks[:, :-1], masks[:, 1:])


def area_under_layer_agreement(agreement: Tensor) -> Tensor:
    """Return AULA, the trapezoidal area under the layer agreement, over the depth that the curve spans.

    Source: Kushibar et al., MICCAI 2022. Their code takes `np.trapz(agreement, dx=1)`; dividing by the span
    `M - 2` keeps the value in [0, 1] for any number of heads and changes no ranking. The end points count half.

    Args:
        agreement: see `layer_agreement`, `[B, M - 1, K]`.

    Returns:
        `[B, K]` float64 in [0, 1], lower is more uncertain (its negative is the score). With two heads the curve
        is one point, whose value is returned; with one head NaN.
    """
    points = agreement.shape[1]
    if points == 0:
        return agreement.new_full((agreement.shape[0], agreement.shape[2]), torch.nan)
    if points == 1:
        return agreement[:, 0]
    return torch.trapezoid(agreement, dim=1) / (points - 1)


def model_agreement(probabilities: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the mean Dice coefficient over all pairs of members' thresholded masks.

    Source: the image-level score of deep ensembles (Lakshminarayanan et al., NeurIPS 2017) in Kushibar et al., 2022.

    Args:
        probabilities: `[B, M, K, *S]`.
        threshold: a voxel belongs to the mask from this probability on.

    Returns:
        `[B, K]` float64 in [0, 1], lower is more uncertain; two empty masks agree fully (1); NaN for one member.
    """
    members = probabilities.shape[1]
    masks = (probabilities.flatten(3) >= threshold).transpose(1, 2).to(torch.float64)
    overlap = masks @ masks.transpose(-1, -2)
    size = overlap.diagonal(dim1=-2, dim2=-1)
    dice = _dice(overlap, size.unsqueeze(-1) + size.unsqueeze(-2))
    first, second = torch.triu_indices(members, members, offset=1, device=dice.device)
    # the mean over no pair is NaN
    return dice[..., first, second].mean(dim=-1)


def _dice(overlap: Tensor, sizes: Tensor) -> Tensor:
    return torch.where(sizes > 0, 2 * overlap.to(torch.float64) / sizes, 1.0)
