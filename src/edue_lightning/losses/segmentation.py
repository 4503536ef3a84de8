"""The segmentation loss that all methods share: cross-entropy plus soft Dice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from edue_lightning.losses.exclusive import categorical_cross_entropy
from edue_lightning.losses.region import voxel_mean, within
from edue_lightning.losses.structures import checked_weights, structure_mean
from edue_lightning.uncertainty.exclusive import exclusive_log_odds
from edue_lightning.uncertainty.maps import at_least_float32


class SegmentationLoss(nn.Module):
    """Binary cross-entropy plus soft Dice, per structure, against hard or soft targets.

    Structures may overlap or nest (disc and cup), so each has its own sigmoid. Those that exclude each other have a
    softmax with the background, and its cross-entropy, which is a sum over the classes and not a mean over structures;
    the soft Dice is that of each structure, without the background.

    Args:
        cross_entropy: weight of the cross-entropy (nats, mean over voxels).
        dice: weight of the soft Dice loss (per image and structure). For soft targets MONAI's soft-label form,
            whose optimum is the target itself.
        structure_weights: positive weight of each structure in the mean; None for equal weights. Of exclusive
            structures, in the cross-entropy, those of the voxels of a structure, relative to their mean; the voxels of
            the background have the weight 1.
        exclusive: whether the structures exclude each other.

    Raises:
        ValueError: if a weight is out of its range.
    """

    def __init__(
        self,
        cross_entropy: float = 1.0,
        dice: float = 1.0,
        structure_weights: Sequence[float] | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        if not (0 <= cross_entropy < math.inf and 0 <= dice < math.inf and cross_entropy + dice > 0):
            raise ValueError(
                "loss weights must be finite and not negative, and not both 0: "
                f"cross_entropy={cross_entropy}, dice={dice}"
            )
        self.cross_entropy_weight = cross_entropy
        self.dice_weight = dice
        self.structure_weights = checked_weights(structure_weights)
        self.exclusive = exclusive
        self.dice = DiceLoss(sigmoid=True, soft_label=True, reduction="none")

    def forward(self, logits: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
        """Return the loss of each member, `[B, M]`, averaged over structures.

        Args:
            logits: `[B, M, K, *S]`.
            target: `[B, M, K, *S]` in [0, 1]; of exclusive structures they add up to at most 1.
            region: `[B, *S]` bool, the voxels that count; None if all do.

        Raises:
            ValueError: if there are not as many weights as structures.
        """
        logits = at_least_float32(logits).flatten(0, 1)
        flat_target = target.to(logits.dtype).flatten(0, 1)
        if self.exclusive:
            entropy = categorical_cross_entropy(logits, flat_target, dim=1, weights=self.structure_weights)
        else:
            entropy = F.binary_cross_entropy_with_logits(logits, flat_target, reduction="none")
        inside = None if region is None else region.repeat_interleave(target.shape[1], dim=0)
        if self.structure_weights is None or self.exclusive:
            loss = voxel_mean(entropy, inside)
        else:
            of_structures = torch.stack([voxel_mean(part, inside) for part in entropy.unbind(dim=1)], dim=1)
            loss = structure_mean(of_structures, self.structure_weights)
        loss = self.cross_entropy_weight * loss
        if self.dice_weight:
            logits = exclusive_log_odds(logits, dim=1) if self.exclusive else logits
            if inside is not None:
                logits = logits.masked_fill(~inside[:, None], -torch.inf)
                flat_target = within(flat_target, inside)
            loss = loss + self.dice_weight * structure_mean(
                self.dice(logits, flat_target).flatten(1), self.structure_weights
            )
        return loss.unflatten(0, target.shape[:2])
