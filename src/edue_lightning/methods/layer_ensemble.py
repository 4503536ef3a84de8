"""Layer ensembles: heads on every stage of one network (Kushibar et al., MICCAI 2022, arXiv 2203.08878)."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.methods.base import MethodParts, NetworkMethod
from edue_lightning.methods.targets import Target, member_target
from edue_lightning.networks import HeadLayout


class LayerEnsemble(NetworkMethod):
    """One network with heads on all its stages, all trained on one target; the later heads are the members.

    Args:
        parts: see `MethodParts`; the loss is summed over all heads.
        heads: heads of the network; in the paper 3x3 convolutions on every encoder and decoder stage.
        target: target of all heads.
        skip_heads: number of leading heads that are trained but left out of the prediction (three or five of ten in
            the paper's code, by data set).

    Raises:
        ValueError: for `rater_per_member`, or if fewer than two heads are left.
    """

    def __init__(
        self,
        parts: MethodParts,
        heads: HeadLayout,
        target: Target = "majority",
        skip_heads: int = 0,
    ) -> None:
        super().__init__(parts, heads)
        if target == "rater_per_member":
            raise ValueError("all heads of a layer ensemble share one target: rater_per_member does not apply")
        if skip_heads < 0:
            raise ValueError(f"skip_heads must not be negative: {skip_heads}")
        if cast(int, self.network.members) - skip_heads < 2:
            raise ValueError(f"skip_heads={skip_heads} leaves fewer than two of {self.network.members} heads")
        self.target: Target = target
        self.skip_heads = skip_heads

    @property
    def label(self) -> str:
        """`layer_ensemble`, with the target unless it is `majority`."""
        return "layer_ensemble" if self.target == "majority" else f"layer_ensemble_{self.target}"

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the heads that are not skipped, `[B, M, K, *S]`, shallow to deep."""
        return self.network(image)[:, self.skip_heads :]

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, the sum over all heads (skipped ones too), averaged over cases."""
        logits = self.network(batch.image)
        target = member_target(batch, self.target, tie=self.majority_tie, exclusive=self.exclusive).expand_as(logits)
        return {"loss": self.member_losses(logits, target, batch).sum(dim=1).mean()}
