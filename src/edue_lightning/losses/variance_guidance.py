"""EDUE's disagreement guidance: a loss between the variance of the heads and the variance of the raters."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edue_lightning.losses.region import voxel_mean, within
from edue_lightning.uncertainty.maps import at_least_float32, enough_raters, member_variance, rater_variance

Distance = Literal["mse", "l1", "mse+l1", "ncc", "relative"]

# sum of squared variances below which maps count as zero; a voxel that half of the raters marked has 1/16
_NEGLIGIBLE = 1e-3


def map_distance(variance: Tensor, target: Tensor, distance: Distance, region: Tensor | None = None) -> Tensor:
    """Return the distance between two heatmaps for each case, averaged over structures.

    Args:
        variance: the model's map, `[B, K, *S]`.
        target: the raters' map, `[B, K, *S]`.
        distance: `mse` and `l1` are means over voxels, `mse+l1` their sum; `ncc` is one minus the normalised
            cross-correlation (Pearson), 0 for a structure on which the raters agree everywhere, since the
            correlation with a constant map is undefined; `relative` is the squared error over the sum of both maps'
            squares, in [0, 1], which depends neither on the undisputed part of the image nor on the structure's size.
        region: `[B, *S]` bool, the voxels that count; None if all do.

    Returns:
        `[B]`
    """
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, not {distance!r}")
    target = target.to(variance.dtype)
    if distance == "ncc":
        return _decorrelation(variance, target, region).mean(dim=1)
    difference = within(variance - target, region)
    if distance == "relative":
        power = within(variance.square() + target.square(), region).flatten(2).sum(dim=2)
        return (difference.square().flatten(2).sum(dim=2) / (power + _NEGLIGIBLE)).mean(dim=1)
    result = difference.new_zeros(len(difference))
    if "mse" in distance:
        result = result + voxel_mean(difference.square(), region)
    if "l1" in distance:
        result = result + voxel_mean(difference.abs(), region)
    return result


def _decorrelation(variance: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
    epsilon = torch.finfo(variance.dtype).eps
    variance, target = (_centred(part, region).flatten(2) for part in (variance, target))
    target_power = target.square().sum(dim=2)
    # epsilon keeps the gradient of the square root finite where all heads agree
    norm = ((variance.square().sum(dim=2) + epsilon) * (target_power + epsilon)).sqrt()
    decorrelation = 1 - (variance * target).sum(dim=2) / norm
    return torch.where(target_power > epsilon, decorrelation, 0)


def _centred(maps: Tensor, region: Tensor | None) -> Tensor:
    """Return maps `[B, K, *S]` minus their means over the region; zero outside of it."""
    means = torch.stack([voxel_mean(structure, region) for structure in maps.unbind(dim=1)], dim=1)
    return within(maps - means[(..., *[None] * (maps.ndim - 2))], region)


class VarianceGuidance(nn.Module):
    """Weighted distance between the members' variance map V and the raters' V* (EDUE's guidance term).

    Args:
        weight: lambda, the weight after the ramp-up; 0 switches guidance off.
        distance: see `map_distance`.
        ramp_up_epochs: epochs over which the weight grows linearly from 0; 0 for the full weight from the start.

    Raises:
        ValueError: if the weight or the ramp-up is negative or not finite, or the distance is unknown.
    """

    def __init__(self, weight: float, distance: Distance = "mse", ramp_up_epochs: float = 0.0) -> None:
        super().__init__()
        if not (0 <= weight < math.inf and 0 <= ramp_up_epochs < math.inf):
            raise ValueError(f"weight and ramp-up must be finite and not negative: {weight}, {ramp_up_epochs}")
        if distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, not {distance!r}")
        self.weight = weight
        self.distance: Distance = distance
        self.ramp_up_epochs = ramp_up_epochs

    def current_weight(self, epoch: float) -> float:
        """Return lambda at a (fractional) epoch, counted from 0."""
        if self.ramp_up_epochs == 0:
            return self.weight
        return self.weight * min(1.0, epoch / self.ramp_up_epochs)

    def forward(self, logits: Tensor, masks: Tensor, valid: Tensor, region: Tensor | None = None) -> Tensor:
        """Return the unweighted distance, averaged over the cases with at least two valid raters.

        Args:
            logits: member logits `[B, M, K, *S]`, whose sigmoid are the probabilities, see `Readout.log_odds`; narrower
                types than float32 are converted first.
            masks: `[B, R, K, *S]` in {0, 1}.
            valid: `[B, R]` bool.
            region: `[B, *S]` bool, the voxels that count; None if all do.

        Returns:
            scalar; 0 (with a zero gradient) if no case of the batch has two valid raters.
        """
        variance = member_variance(torch.sigmoid(at_least_float32(logits)))
        distances = map_distance(variance, rater_variance(masks, valid), self.distance, region)
        taking_part = enough_raters(valid).to(distances.dtype)
        return (distances * taking_part).sum() / taking_part.sum().clamp_min(1)
