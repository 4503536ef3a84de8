"""What all methods share: optimisation, validation and testing on one contract, member logits `[B, M, K, *S]`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods.sliding_window import Inference
from edue_lightning.metrics import VALIDATION_METRICS, CaseTable, MetricSettings
from edue_lightning.networks import HeadLayout

NetworkFactory = Callable[[HeadLayout], nn.Module]
"""Makes a freshly initialised network with the given heads: `[B, C, *S]` to logits `[B, members, K, *S]`.

The network says by its attribute `members` how many heads that makes.
"""


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and the course of its learning rate.

    Attributes:
        learning_rate: the largest.
        weight_decay: decoupled.
        schedule: `one_cycle` (rise over the first tenth of the steps, then cosine to zero) or `constant`.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["one_cycle", "constant"] = "one_cycle"

    def configure(self, module: pl.LightningModule) -> OptimizerLRScheduler:
        """Return what `LightningModule.configure_optimizers` must return."""
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        if self.schedule == "constant":
            return optimizer
        # rise and fall take a step each at least, else the scheduler divides by zero
        steps = max(int(module.trainer.estimated_stepping_batches), 3)
        rise = max(0.1, 2 / steps)
        scheduler = OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class SegmentationMethod(pl.LightningModule):
    """A way to train a segmentation model with an estimate of the raters' disagreement.

    A method says what its members are (`forward`) and what they learn (`training_loss`); all else is shared, so
    that methods differ only in what makes them differ.

    Args:
        structures: names of the K structures.
        optimizer: see `OptimizerSettings`.
    """

    def __init__(self, structures: Sequence[str], optimizer: OptimizerSettings) -> None:
        super().__init__()
        self.structures = tuple(structures)
        self.optimizer_settings = optimizer
        self.checkpoint_entries: dict[str, Any] = {}
        self.inference = Inference()
        self.use_metric_settings(MetricSettings())

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the method in tables, with what distinguishes its variants."""

    @property
    def networks(self) -> int:
        """How many networks run for one prediction."""
        return 1

    @property
    def forward_passes(self) -> int:
        """How often a network runs for one prediction; once each unless a method says otherwise."""
        return self.networks

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Return member logits `[B, M, K, *S]` for an image `[B, C, *S]`."""

    @abstractmethod
    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return the scalar `loss`, and its parts under names of their own."""

    def use_metric_settings(self, settings: MetricSettings) -> None:
        """Choose the definitions that validation and test use from here on; what they hold is forgotten.

        Raises:
            ValueError: if a setting does not fit the structures.
        """
        self.validation_cases = CaseTable(self.structures, VALIDATION_METRICS, settings)
        self.test_cases = CaseTable(self.structures, settings=settings)

    def predict(self, image: Tensor) -> Tensor:
        """Return member logits `[B, M, K, *S]` for whole images `[B, C, *S]`, seen as `inference` says."""
        return self.inference(self, image)

    def trainees(self) -> Sequence[SegmentationMethod]:
        """Return what is trained, one after the other: the method itself, or the members of an ensemble."""
        return [self]

    def compile_networks(self) -> None:
        """Compile the networks in place (`torch.compile`), for training and prediction; weights keep their names."""
        for trainee in self.trainees():
            trainee.compile_networks()

    def training_step(self, batch: RaterBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Optimise `training_loss` on one batch and log its parts."""
        parts = self.training_loss(batch)
        logged = {f"train/{name}": value.detach() for name, value in parts.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        return parts["loss"]

    def validation_step(self, batch: RaterBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch to the validation metrics."""
        self._measure(self.validation_cases, batch)

    def on_validation_epoch_end(self) -> None:
        """Log each of `VALIDATION_METRICS`, averaged over structures, as `val/METRIC`."""
        means = self.validation_cases.summary().means()
        self.validation_cases.reset()
        # the same in all processes, which have gathered the cases
        self.log_dict({f"val/{name}": value for name, value in means.items()}, sync_dist=True)

    def test_step(self, batch: RaterBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Add a batch to the test metrics, and return its member logits `[B, M, K, *S]` for callbacks."""
        return self._measure(self.test_cases, batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser and its schedule."""
        return self.optimizer_settings.configure(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the method beside its weights."""
        checkpoint.update(self.checkpoint_entries)

    def _measure(self, table: CaseTable, batch: RaterBatch) -> Tensor:
        logits = self.predict(batch.image)
        table.update(logits, batch.masks, batch.valid, batch.spacing, batch.case_index)
        return logits


class NetworkMethod(SegmentationMethod):
    """A method with one network.

    Args:
        network: makes the network.
        heads: its heads.
        structures: names of the K structures.
        loss: of each head against its target.
        optimizer: see `OptimizerSettings`.
    """

    def __init__(
        self,
        network: NetworkFactory,
        heads: HeadLayout,
        structures: Sequence[str],
        loss: SegmentationLoss,
        optimizer: OptimizerSettings,
    ) -> None:
        super().__init__(structures, optimizer)
        self.network = network(heads)
        self.loss = loss

    def compile_networks(self) -> None:
        """Compile the network in place."""
        self.network.compile()

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of every head, `[B, M, K, *S]`."""
        return self.network(image)


def parameter_count(module: nn.Module) -> int:
    """Return the number of trained numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
