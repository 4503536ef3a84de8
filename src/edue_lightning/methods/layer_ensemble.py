"""Layer ensembles: heads on every stage of one network (Kushibar et al., MICCAI 2022, arXiv 2203.08878)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods.base import NetworkFactory, NetworkMethod, OptimizerSettings
from edue_lightning.methods.targets import Target, member_target
from edue_lightning.networks import HeadLayout


class LayerEnsemble(NetworkMethod):
    """One network with heads on all its stages, all trained on one target; the later heads are the members.

    Args:
        network: makes the network.
        heads: its heads; in the paper 3x3 convolutions on every encoder and decoder stage.
        structures: names of the K structures.
        loss: summed over all heads.
        optimizer: see `OptimizerSettings`.
        target: one and the same for all heads.
        skip_heads: the first so many heads are trained but are no members of a prediction (the paper's code
            drops three or five of ten, by data set).
    """

    def __init__(
        self,
        network: NetworkFactory,
        heads: HeadLayout,
        structures: Sequence[str],
        loss: SegmentationLoss,
        optimizer: OptimizerSettings,
        target: Target = "majority",
        skip_heads: int = 0,
    ) -> None:
        super().__init__(network, heads, structures, loss, optimizer)
        if target == "rater_per_member":
            raise ValueError("all heads of a layer ensemble share one target: rater_per_member has no meaning here")
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
        """Return the logits of the heads that count, `[B, M, K, *S]`, shallow to deep."""
        return self.network(image)[:, self.skip_heads :]

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, the sum over all heads (skipped ones too), averaged over cases."""
        logits = self.network(batch.image)
        target = member_target(batch, self.target).expand_as(logits)
        return {"loss": self.loss(logits, target).sum(dim=1).mean()}
