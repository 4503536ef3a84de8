"""Deep ensembles: independently trained networks (Lakshminarayanan et al., NeurIPS 2017, arXiv 1612.01474)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edue_lightning.data.sample import RaterBatch
from edue_lightning.methods.base import MethodParts, SegmentationMethod
from edue_lightning.methods.single import SingleNetwork
from edue_lightning.methods.targets import Target
from edue_lightning.networks import HeadLayout


class DeepEnsemble(SegmentationMethod):
    """M networks, each trained alone, with its own initialisation, data order and augmentation.

    Args:
        parts: see `MethodParts`; one network is made per member.
        heads: the one head of each network.
        members: M, at least two.
        target: target of the members; with `rater_per_member`, member m learns from rater m.

    Raises:
        ValueError: for fewer than two members.
    """

    def __init__(
        self,
        parts: MethodParts,
        heads: HeadLayout,
        members: int = 5,
        target: Target = "majority",
    ) -> None:
        super().__init__(parts)
        if members < 2:
            raise ValueError(f"an ensemble has at least two members, not {members}; for one network use method=single")
        self.target: Target = target
        self.members = nn.ModuleList(SingleNetwork(parts, heads, target, member) for member in range(members))

    @property
    def label(self) -> str:
        """`deep_ensemble`, with the target unless it is `majority`."""
        return "deep_ensemble" if self.target == "majority" else f"deep_ensemble_{self.target}"

    def forward(self, image: Tensor) -> Tensor:
        """Return the members' logits, `[B, M, K, *S]`."""
        return torch.cat([member(image) for member in self.members], dim=1)

    def trainees(self) -> Sequence[SegmentationMethod]:
        """Return the members, which are trained one after the other."""
        return [member for member in self.members if isinstance(member, SegmentationMethod)]

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Raise `NotImplementedError`: each of `trainees` has a loss of its own."""
        raise NotImplementedError("a deep ensemble is trained member by member: fit each of trainees()")
