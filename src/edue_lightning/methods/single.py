"""A single network, the plain U-Net; also each member of a deep ensemble."""

from __future__ import annotations

from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.methods.base import MethodParts, NetworkMethod
from edue_lightning.methods.targets import Target, member_target
from edue_lightning.networks import HeadLayout


class SingleNetwork(NetworkMethod):
    """One network with one head: M = 1, so no variance between members; use p (1 - p) or the entropy.

    Args:
        parts: see `MethodParts`.
        heads: the one head of the network.
        target: target of the network.
        member: position in an ensemble, which chooses the rater for `rater_per_member`.
    """

    def __init__(
        self,
        parts: MethodParts,
        heads: HeadLayout,
        target: Target = "majority",
        member: int = 0,
    ) -> None:
        super().__init__(parts, heads)
        self.target: Target = target
        self.member = member

    @property
    def label(self) -> str:
        """`single`, with the target unless it is `majority`."""
        return "single" if self.target == "majority" else f"single_{self.target}"

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, averaged over cases (and over heads, should there be several)."""
        logits = self(batch.image)
        target = member_target(batch, self.target, self.member, self.majority_tie, self.exclusive).expand_as(logits)
        return {"loss": self.member_losses(logits, target, batch).mean()}
