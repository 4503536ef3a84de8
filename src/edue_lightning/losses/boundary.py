"""Boundary loss: the distance between the outlines of a prediction and of its target, beside a loss of regions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from edue_lightning.losses.region import voxel_mean
from edue_lightning.losses.segmentation import SegmentationLoss
from edue_lightning.losses.structures import structure_mean
from edue_lightning.uncertainty.exclusive import exclusive_log_odds
from edue_lightning.uncertainty.maps import at_least_float32


class Boundary(SegmentationLoss):
    """Boundary loss (Kervadec et al., MIDL 2019 and Medical Image Analysis 2021) beside that of `SegmentationLoss`.

    It is `(1 - a) L_R + a L_B` (`L_R + a L_B` without `rebalance`), with the loss of regions L_R, and L_B the mean over
    voxels of `phi (p - y)`: p is the probability, y the target, and phi the `signed_distance` to its outline, in mm
    (pixels or voxels where the spacing is unknown). For a mask p, the integral of `phi (p - y)` is half of the distance
    between the two outlines; `phi y` does not depend on the prediction, and makes the best value 0.

    L_B is 0 for a structure without an outline, of which all voxels or none are marked. Of a patch, the outline within
    it counts. The distances are computed on the CPU.

    Args:
        weight: largest a.
        start: a in the first epoch.
        per_epoch: growth of a per epoch: a is `min(start + per_epoch * epoch, weight)`, with epochs counted from 0.
        rebalance: whether the weight of the loss of regions is `1 - a`, so that it falls as a grows.
        cross_entropy: see `SegmentationLoss`.
        dice: see `SegmentationLoss`.
        structure_weights: see `SegmentationLoss`, for both losses.
        exclusive: see `SegmentationLoss`; p is then the probability of the softmax.

    Raises:
        ValueError: if a number is out of its range, or the boundary loss would never count.
    """

    takes_soft_targets = False

    def __init__(
        self,
        weight: float = 0.99,
        start: float = 0.0,
        per_epoch: float = 0.01,
        rebalance: bool = True,
        cross_entropy: float = 1.0,
        dice: float = 1.0,
        structure_weights: Sequence[float] | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(cross_entropy, dice, structure_weights, exclusive)
        most = 1.0 if rebalance else math.inf
        if not (0 < weight < math.inf and weight <= most):
            raise ValueError(
                f"weight must be above 0{' and at most 1 with rebalance' if rebalance else ''}, not {weight}"
            )
        if not 0 <= start <= weight:
            raise ValueError(f"start must be at least 0 and at most weight={weight}, not {start}")
        if not 0 <= per_epoch < math.inf:
            raise ValueError(f"per_epoch must be at least 0, not {per_epoch}")
        if start == 0 and per_epoch == 0:
            raise ValueError("start and per_epoch are 0, so the boundary loss never counts; set one of them above 0")
        self.weight, self.start, self.per_epoch, self.rebalance = weight, start, per_epoch, rebalance

    def current_weight(self, epoch: float) -> float:
        """Return a at an epoch, counted from 0."""
        return min(self.start + self.per_epoch * epoch, self.weight)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        region: Tensor | None = None,
        spacing: Tensor | None = None,
        epoch: float | None = None,
    ) -> Tensor:
        """Return the loss of each member, `[B, M]`.

        Args:
            logits: `[B, M, K, *S]`.
            target: `[B, M, K, *S]` in {0, 1}.
            region: `[B, *S]` bool, the voxels that count; None if all do.
            spacing: `[B, n]`, mm along each spatial axis; None for pixels or voxels.
            epoch: epoch of the training, counted from 0; None for the largest a.

        Raises:
            ValueError: if a target is neither 0 nor 1, or there are not as many weights as structures.
        """
        share = self.weight if epoch is None else self.current_weight(epoch)
        regions = super().forward(logits, target, region)
        if share == 0:
            return regions
        distances = self.distances(logits, target, region, spacing)
        return (1 - share if self.rebalance else 1.0) * regions + share * distances

    def distances(self, logits: Tensor, target: Tensor, region: Tensor | None, spacing: Tensor | None) -> Tensor:
        """Return the boundary loss L_B of each member, `[B, M]` in mm; see `forward`."""
        flat = at_least_float32(logits).flatten(0, 1)
        wanted = target.to(flat.dtype).flatten(0, 1)
        phi = _signed_distances(target, spacing).to(flat).flatten(0, 1)
        inside = None if region is None else region.repeat_interleave(target.shape[1], dim=0)
        if self.exclusive:
            flat = exclusive_log_odds(flat, dim=1)
        product = phi * (torch.sigmoid(flat) - wanted)
        of_structures = torch.stack([voxel_mean(part, inside) for part in product.unbind(dim=1)], dim=1)
        return structure_mean(of_structures, self.structure_weights).unflatten(0, target.shape[:2])


def signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Return the distance of each voxel from the nearest voxel of the other class, negative inside of the mask.

    Args:
        mask: `[*S]`.
        spacing: mm along each axis; None for pixels or voxels.

    Returns:
        `[*S]`; 0 everywhere for a mask without an outline, which marks all voxels or none.
    """
    if mask.all() or not mask.any():
        return np.zeros(mask.shape, dtype=np.float32)
    outside, within = (distance_transform_edt(part, sampling=spacing) for part in (~mask, mask))
    found: NDArray[np.float32] = (outside - within).astype(np.float32)
    return found


def _signed_distances(target: Tensor, spacing: Tensor | None) -> Tensor:
    """Return the signed distances of targets, `[B, M, K, *S]` to the same float32 on the CPU.

    Raises:
        ValueError: if a target is neither 0 nor 1.
    """
    values = target.detach().cpu().numpy()
    masks = values > 0
    if not (values == masks).all():
        raise ValueError("the boundary loss needs masks as targets, not shares of raters")
    sizes = None if spacing is None else spacing.detach().cpu().double().numpy()
    found = np.empty(masks.shape, dtype=np.float32)
    for case, of_case in enumerate(masks):
        # members often learn from the same mask
        known: dict[bytes, NDArray[np.float32]] = {}
        for place in np.ndindex(*of_case.shape[:2]):
            mask = of_case[place]
            key = mask.tobytes()
            if key not in known:
                known[key] = signed_distance(mask, None if sizes is None else sizes[case].tolist())
            found[case][place] = known[key]
    return torch.from_numpy(found)
