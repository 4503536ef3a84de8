"""A single network, the plain U-Net; also each member of a deep ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods.base import NetworkFactory, NetworkMethod, OptimizerSettings
from edue_lightning.methods.targets import Target, member_target
from edue_lightning.networks import HeadLayout


class SingleNetwork(NetworkMethod):
    """One network with one head: M = 1, so no variance between members; its read-out is p (1 - p) or entropy.

    Args:
        network: makes the network.
        heads: its one head.
        structures: names of the K structures.
        loss: against the target.
        optimizer: see `OptimizerSettings`.
        target: what it is trained on.
        member: which rater it follows for `rater_per_member`.
    """

    def __init__(
        self,
        network: NetworkFactory,
        heads: HeadLayout,
        structures: Sequence[str],
        loss: SegmentationLoss,
        optimizer: OptimizerSettings,
        target: Target = "majority",
        member: int = 0,
    ) -> None:
        super().__init__(network, heads, structures, loss, optimizer)
        self.target: Target = target
        self.member = member

    @property
    def label(self) -> str:
        """`single`, with the target unless it is `majority`."""
        return "single" if self.target == "majority" else f"single_{self.target}"

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, averaged over cases (and over heads, should there be several)."""
        logits = self(batch.image)
        target = member_target(batch, self.target, self.member).expand_as(logits)
        return {"loss": self.loss(logits, target).mean()}
