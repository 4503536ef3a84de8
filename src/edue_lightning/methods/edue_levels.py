"""EDUE with levels: one network whose head k learns whether at least k of the raters mark a voxel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import SegmentationLoss, level_targets, mean_prediction_nll
from edue_lightning.methods.base import MethodParts, NetworkMethod
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import HeadLayout
from edue_lightning.uncertainty import Readout
from edue_lightning.uncertainty.maps import at_least_float32, member_mean

MemberLosses = Callable[[Tensor, Tensor, RaterBatch], Tensor]
"""Losses `[B, M]` of logits `[B, M, K, *S]` and targets for a batch, see `NetworkMethod.member_losses`."""


class EDUELevels(NetworkMethod):
    """Expert disagreement by levels: heads estimate `pi_k = P(at least k of M raters mark the voxel)`.

    Each stage of the decoder has one 1x1 head per level; a level's logit is the mean over the stages, and the levels
    are sorted at prediction, so that they descend. With the `level_targets` `y_k = clip(M q - (k - 1), 0, 1)` the loss
    is

        mean_k L(pi_k, y_k) + stage_weight * (the same on each stage alone) + mean_weight * NLL(p, q)

    where L is `cross_entropy_weight` times the cross-entropy plus `dice_weight` times the soft Dice loss, and NLL the
    likelihood of all raters under `p = mean_k pi_k`. No rater is drawn, none needs an identity, and any may be missing.

    The members handed over are the levels: nested masks from the strictest reader, level M, to the most generous,
    level 1. Probability, disagreement and decision are read from them in closed form, see `Readout`.

    With `mask_weight` there is one more head per stage and structure for the mask alone, trained with the loss that all
    methods share on the majority mask; then the decision is its probability, and the levels can do without a Dice term,
    which costs them calibration.

    Levels of agreement as an ordinal target are known from calibration (arXiv 2605.02437); the read-outs, the average
    over the stages and the mask head are ours.

    Args:
        parts: see `MethodParts`; `loss` is that of the mask head, and its weights of structures hold for levels too.
        levels: M, at least two; a training takes the largest number of raters of a training case if it is None.
        stages: stages with heads, see `HeadLayout`.
        cross_entropy_weight: weight of the cross-entropy of a level.
        dice_weight: weight of the soft Dice loss of a level.
        stage_weight: weight of the losses of each stage's own logits, averaged over the stages.
        mean_weight: weight of the likelihood of the raters under p.
        mask_weight: weight of the loss of the mask head; 0 for no such head.

    Raises:
        ValueError: if a weight is negative, or there are fewer than two levels.
    """

    def __init__(
        self,
        parts: MethodParts,
        levels: int | None = None,
        stages: Literal["last", "decoder", "encoder+decoder"] = "decoder",
        cross_entropy_weight: float = 1.0,
        dice_weight: float = 0.3,
        stage_weight: float = 0.3,
        mean_weight: float = 4.0,
        mask_weight: float = 0.0,
    ) -> None:
        if levels is None:
            raise ValueError("levels is not set; give the largest number of raters of a training case")
        if levels < 2:
            raise ValueError(f"levels must be at least 2, not {levels}: for one rater use method=single")
        for name, weight in (("stage", stage_weight), ("mean", mean_weight), ("mask", mask_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}_weight must be finite and not negative: {weight}")
        super().__init__(parts, HeadLayout(stages, per_stage=levels + (mask_weight > 0)))
        self.levels = levels
        weights = getattr(parts.loss, "structure_weights", None)
        self.level_loss = SegmentationLoss(cross_entropy_weight, dice_weight, weights)
        self.stage_weight = stage_weight
        self.mean_weight = mean_weight
        self.mask_weight = mask_weight
        self.takes_loss = mask_weight > 0
        own_maps = ("decision",) if mask_weight else ()
        self.readout = Readout(levels=True, own_maps=own_maps, majority_tie=self.majority_tie, exclusive=self.exclusive)

    @property
    def label(self) -> str:
        """`edue_levels`, or `edue_levels_mask` with a mask head."""
        return "edue_levels_mask" if self.mask_weight else "edue_levels"

    def forward(self, image: Tensor) -> Tensor:
        """Return the levels' logits in descending order, `[B, M, K, *S]`, and behind them those of the mask head."""
        logits = member_mean(self.stage_logits(image)).unbind(dim=1)
        return torch.stack([*_descending(logits[: self.levels]), *logits[self.levels :]], dim=1)

    def stage_logits(self, image: Tensor) -> Tensor:
        """Return the logits of each stage, `[B, N, M, K, *S]`, or `[B, N, M + 1, K, *S]` with a mask head."""
        return self.network(image).unflatten(1, (-1, self.levels + len(self.readout.own_maps)))

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, and its unweighted parts `levels`, `stages`, `mean`, `mask` and `mask_stages` where used."""
        of_stages = at_least_float32(self.stage_logits(batch.image))
        logits = member_mean(of_stages)
        targets = level_targets(batch.masks, batch.valid, self.levels)
        parts = {"levels": self.level_loss(logits[:, : self.levels], targets, batch.region).mean()}
        weights = {"levels": 1.0, "stages": self.stage_weight, "mean": self.mean_weight}
        if self.stage_weight:
            parts["stages"] = self._of_stages(self._level_losses, of_stages[:, :, : self.levels], targets, batch)
        if self.mean_weight:
            levels = logits[:, : self.levels]
            parts["mean"] = mean_prediction_nll(levels, batch.masks, batch.valid, batch.region).mean()
        if self.mask_weight:
            weights |= {"mask": self.mask_weight, "mask_stages": self.mask_weight * self.stage_weight}
            wanted = member_target(batch, "majority", tie=self.majority_tie, exclusive=self.exclusive)
            parts["mask"] = self.member_losses(logits[:, self.levels :], wanted, batch).mean()
            if self.stage_weight:
                parts["mask_stages"] = self._of_stages(
                    self.member_losses, of_stages[:, :, self.levels :], wanted, batch
                )
        return {"loss": torch.stack([weights[name] * part for name, part in parts.items()]).sum(), **parts}

    def _level_losses(self, logits: Tensor, targets: Tensor, batch: RaterBatch) -> Tensor:
        losses: Tensor = self.level_loss(logits, targets, batch.region)
        return losses

    @staticmethod
    def _of_stages(losses: MemberLosses, logits: Tensor, targets: Tensor, batch: RaterBatch) -> Tensor:
        """Return the mean loss of each stage's logits `[B, N, m, K, *S]` against targets `[B, m, K, *S]`."""
        repeated = targets[:, None].expand_as(logits)
        return losses(logits.flatten(1, 2), repeated.flatten(1, 2), batch).mean()


def _descending(logits: Sequence[Tensor]) -> list[Tensor]:
    """Sort the M logits of each voxel, largest first, by exchanges of neighbours.

    For so few values this takes a tenth of the time of `torch.sort`.
    """
    parts = list(logits)
    for begin in range(len(parts)):
        for upper in range(begin % 2, len(parts) - 1, 2):
            first, second = parts[upper], parts[upper + 1]
            parts[upper], parts[upper + 1] = torch.maximum(first, second), torch.minimum(first, second)
    return parts
