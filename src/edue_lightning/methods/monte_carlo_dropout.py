"""Monte Carlo dropout: one network, run again with other units dropped (Gal and Ghahramani, ICML 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods.base import NetworkFactory, NetworkMethod, OptimizerSettings
from edue_lightning.methods.targets import Target, member_target
from edue_lightning.networks import HeadLayout

_WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class MonteCarloDropout(NetworkMethod):
    """One network with one head, whose dropout stays on at prediction: each pass is a member (arXiv 1506.02142).

    In training mode the layers drop as ever. In evaluation mode the masks come from a generator of the method's own,
    so that a prediction is the same each time (on one kind of device; CPU and GPU draw differently) and the global
    random state is left alone. A member drops the same units in all images of one size: its prediction of a case does
    not depend on the batch, and it is one and the same network in every window of an image.

    Args:
        network: makes the network, with dropout layers, which may be idle (p = 0) so far.
        heads: its one head.
        structures: names of the K structures.
        loss: of one pass against the target.
        optimizer: see `OptimizerSettings`.
        dropout: the probability in every dropout layer, whatever the network was made with; None leaves it at that.
        samples: M, passes for one prediction, at least two.
        target: what the network is trained on.
        seed: of the masks in evaluation mode.

    Raises:
        ValueError: if nothing would be dropped, or all; for fewer than two samples; or for `rater_per_member`.
    """

    def __init__(
        self,
        network: NetworkFactory,
        heads: HeadLayout,
        structures: Sequence[str],
        loss: SegmentationLoss,
        optimizer: OptimizerSettings,
        dropout: float | None = 0.1,
        samples: int = 10,
        target: Target = "majority",
        seed: int = 0,
    ) -> None:
        super().__init__(network, heads, structures, loss, optimizer)
        if target == "rater_per_member":
            raise ValueError("all passes are of one network with one target: rater_per_member has no meaning here")
        if samples < 2:
            raise ValueError(f"samples must be at least 2, not {samples}; for one pass take method=single")
        layers = self._dropout_layers()
        if dropout is not None:
            for layer in layers:
                layer.p = dropout
        if not any(layer.p for layer in layers):
            raise ValueError(
                "Monte Carlo dropout needs a network that drops something: set method.dropout above 0 (or, where that "
                "is null, network.dropout), and take a network with dropout layers"
            )
        if not all(0 <= layer.p < 1 for layer in layers):
            raise ValueError(f"dropout must lie between 0 and 1, not {max(layers, key=lambda one: abs(one.p)).p}")
        self.samples = samples
        self.target: Target = target
        self.seed = seed

    @property
    def label(self) -> str:
        """`mc_dropout`, with the target unless it is `majority`."""
        return "mc_dropout" if self.target == "majority" else f"mc_dropout_{self.target}"

    @property
    def forward_passes(self) -> int:
        """One pass a sample."""
        return self.samples

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of every pass, `[B, M, K, *S]`; in training mode of a single one, `[B, 1, K, *S]`."""
        if self.training:
            return self.network(image)
        generator = torch.Generator(image.device).manual_seed(self.seed)
        with self._dropping(generator):
            return torch.cat([self.network(image) for _ in range(self.samples)], dim=1)

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss` of one pass, averaged over cases."""
        logits = self.network(batch.image)
        target = member_target(batch, self.target).expand_as(logits)
        return {"loss": self.loss(logits, target).mean()}

    def _dropout_layers(self) -> list[nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d]:
        return [module for module in self.network.modules() if isinstance(module, (nn.Dropout, *_WHOLE_CHANNELS))]

    @contextmanager
    def _dropping(self, generator: torch.Generator) -> Iterator[None]:
        """Let the dropout layers drop although they are in evaluation mode, the same units in all cases of a batch."""

        def drop(layer: nn.Module, inputs: tuple[Tensor, ...], kept: Tensor) -> Tensor:  # noqa: ARG001
            share = 1 - cast(float, layer.p)
            shape = list(kept.shape)
            shape[0] = 1
            if isinstance(layer, _WHOLE_CHANNELS):
                shape[2:] = [1] * (kept.ndim - 2)
            return kept * kept.new_empty(shape).bernoulli_(share, generator=generator).div_(share)

        # only where something is dropped, so that the others cost no draw
        hooks = [layer.register_forward_hook(drop) for layer in self._dropout_layers() if layer.p]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
