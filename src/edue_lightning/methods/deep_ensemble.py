"""Deep ensembles: independently trained networks (Lakshminarayanan et al., NeurIPS 2017, arXiv 1612.01474)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods.base import NetworkFactory, OptimizerSettings, SegmentationMethod
from edue_lightning.methods.single import SingleNetwork
from edue_lightning.methods.targets import Target
from edue_lightning.networks import HeadLayout


class DeepEnsemble(SegmentationMethod):
    """M networks with their own initialisation, data order and augmentation, each trained alone.

    Args:
        network: makes a network; called once a member.
        heads: one head each.
        structures: names of the K structures.
        loss: of each member against its target.
        optimizer: see `OptimizerSettings`.
        members: M, at least two.
        target: what the members are trained on; `rater_per_member` gives member m rater m.
    """

    def __init__(
        self,
        network: NetworkFactory,
        heads: HeadLayout,
        structures: Sequence[str],
        loss: SegmentationLoss,
        optimizer: OptimizerSettings,
        members: int = 5,
        target: Target = "majority",
    ) -> None:
        super().__init__(structures, optimizer)
        if members < 2:
            raise ValueError(f"an ensemble has at least two members, not {members}; for one take method=single")
        self.target: Target = target
        self.members = nn.ModuleList(
            SingleNetwork(network, heads, structures, loss, optimizer, target, member) for member in range(members)
        )

    @property
    def label(self) -> str:
        """`deep_ensemble`, with the target unless it is `majority`."""
        return "deep_ensemble" if self.target == "majority" else f"deep_ensemble_{self.target}"

    @property
    def networks(self) -> int:
        """One network a member."""
        return len(self.members)

    def forward(self, image: Tensor) -> Tensor:
        """Return the members' logits, `[B, M, K, *S]`."""
        return torch.cat([member(image) for member in self.members], dim=1)

    def trainees(self) -> Sequence[SegmentationMethod]:
        """Return the members, which are trained one after the other."""
        return [member for member in self.members if isinstance(member, SegmentationMethod)]

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Not defined: each of `trainees` has a loss of its own."""
        raise NotImplementedError("a deep ensemble is trained member by member: fit each of trainees()")
