"""Squared error of the probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from edue_lightning.losses import MemberLoss, voxel_mean


class SquaredError(MemberLoss):
    """Mean squared difference of probability and target; as a proper score, it is smallest where p is the share q."""

    def of_structures(self, logits: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """Return the loss of each structure, `[N, K]`, from logits and targets `[N, K, *S]`."""
        errors = (logits.sigmoid() - target).square()
        # mean over the voxels of the region
        return torch.stack([voxel_mean(error, region) for error in errors.unbind(dim=1)], dim=1)
