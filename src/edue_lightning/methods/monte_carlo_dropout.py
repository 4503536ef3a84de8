"""Monte Carlo dropout: one network, run several times with different units dropped (Gal and Ghahramani, ICML 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from edue_lightning.data.sample import RaterBatch
from edue_lightning.methods.base import MethodParts, NetworkMethod
from edue_lightning.methods.targets import Target, member_target
from edue_lightning.networks import HeadLayout

_WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class MonteCarloDropout(NetworkMethod):
    """One network with one head, whose dropout stays on at prediction: each pass is a member (arXiv 1506.02142).

    In training mode the layers drop units as usual. In evaluation mode the masks come from the method's own generator:
    a prediction is the same each time (on one kind of device; CPU and GPU draw differently), and the global random
    state is unchanged. A member drops the same units in all images of one size, so its prediction of a case does not
    depend on the batch, and it is the same network in every window of an image.

    Args:
        parts: see `MethodParts`; the network needs dropout layers, whose probability may be 0.
        heads: the one head of the network.
        dropout: probability in every dropout layer, in place of the network's own; None to keep that.
        samples: M, forward passes per prediction, at least two.
        target: target of the network.
        seed: seed of the masks in evaluation mode.

    Raises:
        ValueError: if no layer or a whole layer would be dropped; for fewer than two samples; or for
            `rater_per_member`.
    """

    def __init__(
        self,
        parts: MethodParts,
        heads: HeadLayout,
        dropout: float | None = 0.1,
        samples: int = 10,
        target: Target = "majority",
        seed: int = 0,
    ) -> None:
        super().__init__(parts, heads)
        if target == "rater_per_member":
            raise ValueError("all passes are of one network with one target: rater_per_member does not apply")
        if samples < 2:
            raise ValueError(f"samples must be at least 2, not {samples}; for one pass use method=single")
        layers = self._dropout_layers()
        if dropout is not None:
            for layer in layers:
                layer.p = dropout
        if not any(layer.p for layer in layers):
            raise ValueError(
                "Monte Carlo dropout needs dropout: set method.dropout above 0 (or network.dropout, if it is "
                "null), and choose a network with dropout layers"
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
        target = member_target(batch, self.target, tie=self.majority_tie, exclusive=self.exclusive).expand_as(logits)
        return {"loss": self.member_losses(logits, target, batch).mean()}

    def _dropout_layers(self) -> list[nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d]:
        return [module for module in self.network.modules() if isinstance(module, (nn.Dropout, *_WHOLE_CHANNELS))]

    @contextmanager
    def _dropping(self, generator: torch.Generator) -> Iterator[None]:
        """Apply dropout in evaluation mode within this block, with the same units dropped in all cases of a batch."""

        def drop(layer: nn.Module, inputs: tuple[Tensor, ...], kept: Tensor) -> Tensor:  # noqa: ARG001
            share = 1 - cast(float, layer.p)
            shape = list(kept.shape)
            shape[0] = 1
            if isinstance(layer, _WHOLE_CHANNELS):
                shape[2:] = [1] * (kept.ndim - 2)
            return kept * kept.new_empty(shape).bernoulli_(share, generator=generator).div_(share)

        # layers with p = 0 cost no draw
        hooks = [layer.register_forward_hook(drop) for layer in self._dropout_layers() if layer.p]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
