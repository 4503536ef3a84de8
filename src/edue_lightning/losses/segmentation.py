"""The segmentation loss that all methods share: cross-entropy plus soft Dice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from edue_lightning.losses.region import voxel_mean, within
from edue_lightning.uncertainty.maps import at_least_float32


class SegmentationLoss(nn.Module):
    """Binary cross-entropy plus soft Dice, per structure, against hard or soft targets.

    Structures may overlap or nest (disc and cup), so each has its own sigmoid.

    Args:
        cross_entropy: weight of the cross-entropy (nats, mean over voxels).
        dice: weight of the soft Dice loss (per image and structure). For soft targets MONAI's soft-label form,
            whose optimum is the target itself.
    """

    def __init__(self, cross_entropy: float = 1.0, dice: float = 1.0) -> None:
        super().__init__()
        if cross_entropy < 0 or dice < 0 or cross_entropy + dice == 0:
            raise ValueError(f"loss weights must be positive: cross_entropy={cross_entropy}, dice={dice}")
        self.cross_entropy_weight = cross_entropy
        self.dice_weight = dice
        self.dice = DiceLoss(sigmoid=True, soft_label=True, reduction="none")

    def forward(self, logits: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
        """Return the loss of each member, `[B, M]`, averaged over structures.

        Args:
            logits: `[B, M, K, *S]`.
            target: `[B, M, K, *S]` in [0, 1].
            region: `[B, *S]` bool, the voxels that count; None if all do.
        """
        logits = at_least_float32(logits).flatten(0, 1)
        flat_target = target.to(logits.dtype).flatten(0, 1)
        entropy = F.binary_cross_entropy_with_logits(logits, flat_target, reduction="none")
        inside = None if region is None else region.repeat_interleave(target.shape[1], dim=0)
        loss = self.cross_entropy_weight * voxel_mean(entropy, inside)
        if self.dice_weight:
            if inside is not None:
                logits = logits.masked_fill(~inside[:, None], -torch.inf)
                flat_target = within(flat_target, inside)
            loss = loss + self.dice_weight * self.dice(logits, flat_target).flatten(1).mean(dim=1)
        return loss.unflatten(0, target.shape[:2])
