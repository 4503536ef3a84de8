"""Ensembles of EDUE with levels: independently trained networks whose levels are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses.exclusive import log_total
from edue_lightning.methods.base import MethodParts, SegmentationMethod
from edue_lightning.methods.edue_levels import EDUELevels
from edue_lightning.uncertainty.maps import at_least_float32


class LevelEnsemble(SegmentationMethod):
    """Networks of `EDUELevels`, each trained alone, with its own initialisation, data order and augmentation.

    The probability of each level is averaged over the networks, and so is the map of a mask head. Probability,
    disagreement and decision are then read from the average levels, as from those of one network: the members handed
    over are levels, not networks. It shows what `EDUELevels` would gain by more training or a larger network.

    Args:
        parts: see `MethodParts`; one network is made per member.
        members: number of networks, at least two.
        levels: see `EDUELevels`, as the following.
        stages: stages with heads.
        cross_entropy_weight: weight of the cross-entropy of a level.
        dice_weight: weight of the soft Dice loss of a level.
        stage_weight: weight of the losses of each stage's own logits.
        mean_weight: weight of the likelihood of the raters under p.
        mask_weight: weight of the loss of the mask head; 0 for no such head.

    Raises:
        ValueError: for fewer than two networks, or an invalid option of `EDUELevels`.
    """

    def __init__(
        self,
        parts: MethodParts,
        members: int = 5,
        levels: int | None = None,
        stages: Literal["last", "decoder", "encoder+decoder"] = "decoder",
        cross_entropy_weight: float = 1.0,
        dice_weight: float = 0.3,
        stage_weight: float = 0.3,
        mean_weight: float = 4.0,
        mask_weight: float = 0.0,
    ) -> None:
        super().__init__(parts)
        if members < 2:
            raise ValueError(
                f"an ensemble has at least two members, not {members}; for one network use method=edue_levels"
            )
        networks = [
            EDUELevels(parts, levels, stages, cross_entropy_weight, dice_weight, stage_weight, mean_weight, mask_weight)
            for _ in range(members)
        ]
        self.members = nn.ModuleList(networks)
        self.readout = networks[0].readout

    @property
    def label(self) -> str:
        """`deep_ensemble_levels`, or `deep_ensemble_levels_mask` with a mask head."""
        return "deep_ensemble_levels_mask" if self.readout.own_maps else "deep_ensemble_levels"

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the average levels in descending order, `[B, M, K, *S]`, and of the masks behind."""
        found = [member(image) for member in self.members]
        if not self.exclusive:
            return average_logits(found)
        # the map of a mask head is that of a softmax
        count = self.readout.count(found[0].shape[1])
        levels = average_logits([one[:, :count] for one in found])
        return torch.cat([levels, average_softmax_logits([one[:, count:] for one in found], dim=2)], dim=1)

    def trainees(self) -> Sequence[SegmentationMethod]:
        """Return the networks, which are trained one after the other."""
        return [member for member in self.members if isinstance(member, SegmentationMethod)]

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Raise `NotImplementedError`: each of `trainees` has a loss of its own."""
        raise NotImplementedError("an ensemble is trained member by member: fit each of trainees()")


def average_logits(logits: Sequence[Tensor]) -> Tensor:
    """Return the logits of the average of the probabilities, finite for finite logits, in float32 or better.

    Args:
        logits: tensors of one shape.
    """
    stacked = at_least_float32(torch.stack(list(logits)))
    return F.logsigmoid(stacked).logsumexp(dim=0) - F.logsigmoid(-stacked).logsumexp(dim=0)


def average_softmax_logits(logits: Sequence[Tensor], dim: int) -> Tensor:
    """Return the logits of the average softmax, with a logit of 0 for the background, in float32 or better.

    Args:
        logits: tensors of one shape.
        dim: axis of the structures.
    """
    stacked = at_least_float32(torch.stack(list(logits)))
    total = log_total(stacked, dim + 1)
    return (stacked - total.unsqueeze(dim + 1)).logsumexp(dim=0) - (-total).logsumexp(dim=0).unsqueeze(dim)
