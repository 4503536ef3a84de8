"""The base of all methods: one contract (member logits `[B, M, K, *S]`), losses, and the optimizer's set-up."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import Boundary, MemberLoss, SegmentationLoss
from edue_lightning.methods.sliding_window import Inference
from edue_lightning.networks import HeadLayout
from edue_lightning.uncertainty import Readout, Tie

NetworkFactory = Callable[[HeadLayout], nn.Module]
"""Make a freshly initialised network with the given heads: `[B, C, *S]` to logits `[B, members, K, *S]`.

The attribute `members` of the network is the number of its heads.
"""


Schedule = Literal["one_cycle", "constant", "poly", "cosine_warmup"]
"""Course of the learning rate over all steps of a training, by torch's own schedulers:

- `one_cycle`: rise over the first tenth of the steps, then cosine to zero;
- `constant`: the learning rate itself, at every step;
- `poly`: `(1 - step / steps) ** 0.9`, as nnU-Net has it (Isensee et al., Nature Methods 2021);
- `cosine_warmup`: linear rise over the first twentieth of the steps, then cosine to zero.
"""

_POLY_POWER = 0.9
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate schedule.

    Attributes:
        learning_rate: the largest one.
        weight_decay: decoupled weight decay.
        schedule: `one_cycle`, `constant`, `poly` or `cosine_warmup`, see `Schedule`.

    Raises:
        ValueError: if a number is out of its range, or the schedule is unknown.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Schedule = "one_cycle"

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative: {self.weight_decay}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, not {self.schedule!r}")

    def configure(self, module: pl.LightningModule) -> OptimizerLRScheduler:
        """Return the value of `LightningModule.configure_optimizers`."""
        optimizer = self._optimizer(module)
        if self.schedule == "constant":
            return optimizer
        # rise and fall take at least one step each, else a scheduler divides by zero
        steps = max(int(module.trainer.estimated_stepping_batches), 3)
        scheduler = self._scheduler(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self, module: nn.Module) -> Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def _scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        if self.schedule == "poly":
            return PolynomialLR(optimizer, total_iters=steps, power=_POLY_POWER)
        if self.schedule == "cosine_warmup":
            rise = max(round(_WARM_UP_SHARE * steps), 1)
            warm_up = LinearLR(optimizer, start_factor=1 / (rise + 1), total_iters=rise)
            return SequentialLR(optimizer, [warm_up, CosineAnnealingLR(optimizer, steps - rise)], milestones=[rise])
        return self._one_cycle(optimizer, steps)

    def _one_cycle(self, optimizer: Optimizer, steps: int, cycle_momentum: bool = True) -> LRScheduler:
        rise = max(0.1, 2 / steps)
        return OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps, pct_start=rise, cycle_momentum=cycle_momentum
        )


@dataclass(frozen=True)
class SGDSettings(OptimizerSettings):
    """Stochastic gradient descent with Nesterov momentum, and its learning rate schedule.

    The default values are those of nnU-Net (Isensee et al., Nature Methods 2021).

    Attributes:
        learning_rate: the largest one.
        weight_decay: factor of the weights that is added to their gradient.
        schedule: see `Schedule`.
        momentum: Nesterov momentum, the same at all steps.

    Raises:
        ValueError: if a number is out of its range, or the schedule is unknown.
    """

    learning_rate: float = 1e-2
    weight_decay: float = 3e-5
    schedule: Schedule = "poly"
    momentum: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.momentum < 1:
            raise ValueError(f"momentum must lie between 0 and 1, not {self.momentum}")

    def _optimizer(self, module: nn.Module) -> Optimizer:
        return torch.optim.SGD(
            module.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )

    def _one_cycle(self, optimizer: Optimizer, steps: int, cycle_momentum: bool = False) -> LRScheduler:
        return super()._one_cycle(optimizer, steps, cycle_momentum)


@dataclass(frozen=True)
class MethodParts:
    """The parts that every method is built from, whatever its own options.

    Attributes:
        network: factory of the networks.
        structures: names of the K structures.
        loss: loss of one member against its target.
        optimizer: optimizer and learning rate schedule.
        inference: prediction of whole images, at once or window by window.
        majority_tie: class of a voxel that exactly half of the raters marked, in the target `majority`.
        exclusive: whether the structures exclude each other; `loss` is then one of a softmax, see
            `Readout.log_odds`.
    """

    network: NetworkFactory
    structures: Sequence[str]
    loss: SegmentationLoss | MemberLoss
    optimizer: OptimizerSettings
    inference: Inference = field(default_factory=Inference)
    majority_tie: Tie = "foreground"
    exclusive: bool = False


class SegmentationMethod(pl.LightningModule):
    """A way to train a segmentation model that estimates the raters' disagreement.

    A method defines its members (`forward`) and what they learn (`training_loss`). Everything else is shared, so that
    methods differ only in what is their own. Metrics and checkpoints are not its business: see `Measuring`.

    Args:
        parts: see `MethodParts`.

    Attributes:
        readout: how probability, disagreement and decision are read from what `forward` returns; the default takes the
            members' mean and variance. A method with another one sets it in its constructor.
        exclusive: whether the structures exclude each other, so that logits are those of a softmax.
        temperature: `[K]`, divides the logits of each structure in a prediction; None before one is fitted.
        takes_loss: whether `MethodParts.loss` is part of the training, beside its weights of structures.
        takes_structure_weights: whether these weights are part of the training.
        first_epochs: number of first epochs in which a part of the method is not trained yet, or not fully.
    """

    temperature: Tensor | None
    takes_loss: bool = True
    takes_structure_weights: bool = True
    first_epochs: float = 0.0

    def __init__(self, parts: MethodParts) -> None:
        super().__init__()
        self.readout = Readout(majority_tie=parts.majority_tie, exclusive=parts.exclusive)
        self.exclusive = parts.exclusive
        self.structures = tuple(parts.structures)
        self.optimizer_settings = parts.optimizer
        self.inference = parts.inference
        self.majority_tie: Tie = parts.majority_tie
        # beside the weights: it is fitted after them
        self.register_buffer("temperature", None, persistent=False)

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the method in tables, including what distinguishes its variants."""

    @property
    def complete(self) -> bool:
        """Whether all of the method is trained by now, so that its weights may be the best of the training."""
        return self.current_epoch >= self.first_epochs

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Return member logits `[B, M, K, *S]`, and those of `readout.own_maps` behind, for images `[B, C, *S]`.

        Of structures that exclude each other they are those of a softmax, before `Readout.log_odds`.
        """

    @abstractmethod
    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return the scalar `loss`, and its parts under names of their own."""

    def set_temperature(self, temperature: Sequence[float] | None) -> None:
        """Set the temperature of each structure, or None for predictions as they were trained.

        Raises:
            ValueError: if there is not one positive number per structure.
        """
        if temperature is None:
            self.temperature = None
            return
        if len(temperature) != len(self.structures) or not all(0 < value < math.inf for value in temperature):
            raise ValueError(f"temperature must be {len(self.structures)} positive numbers, not {list(temperature)}")
        self.temperature = torch.tensor(list(temperature), device=self.device)

    @property
    def temperature_by_structure(self) -> dict[str, float] | None:
        """Temperatures by the names of the structures, or None."""
        if self.temperature is None:
            return None
        return dict(zip(self.structures, self.temperature.tolist(), strict=True))

    def calibrated(self, image: Tensor) -> Tensor:
        """Return what `forward` does, with the logits of the probability divided by the temperature.

        These are the members', and those of a probability of its own. Own maps of disagreement and decision have not
        been fitted, and stay as they are.
        """
        channels: Tensor = self(image)
        if self.temperature is None:
            return channels
        fitted = [True] * self.readout.count(channels.shape[1])
        fitted += [name == "probability" for name in self.readout.own_maps]
        unchanged = torch.ones_like(self.temperature)
        divisors = torch.stack([self.temperature if is_fitted else unchanged for is_fitted in fitted])
        return channels / divisors[(..., *[None] * (channels.ndim - 3))]

    def raw_logits(self, image: Tensor) -> Tensor:
        """Return what `calibrated` does for whole images `[B, C, *S]`, see `inference`."""
        return self.inference(self.calibrated, image)

    def predict(self, image: Tensor) -> Tensor:
        """Return the logits of whole images `[B, C, *S]`, whose sigmoid are the probabilities, see `Readout.log_odds`.

        Returns:
            `[B, M + n, K, *S]`, members and own maps.
        """
        return self.readout.log_odds(self.raw_logits(image))

    def slabs(self, image: Tensor) -> Iterator[Tensor]:
        """Yield what `predict` returns in slabs along the first spatial axis, see `Inference.slabs`."""
        for logits in self.inference.slabs(self.calibrated, image):
            yield self.readout.log_odds(logits)

    def trainees(self) -> Sequence[SegmentationMethod]:
        """Return the parts that are trained one after the other: the method itself, or an ensemble's members."""
        return [self]

    def compile_networks(self) -> None:
        """Compile the networks in place (`torch.compile`), for training and prediction; weights keep their names."""
        for trainee in self.trainees():
            trainee.compile_networks()

    def training_step(self, batch: RaterBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return `training_loss` of one batch, and log its parts.

        The log of an epoch is the mean over its batches, weighted by their numbers of cases, of all processes alike. So
        `guidance`, a mean over the cases with two raters or more, is the mean over all such cases only if each batch
        has as many of them.
        """
        parts = self.training_loss(batch)
        logged = {f"train/{name}": value.detach() for name, value in parts.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        return parts["loss"]

    def validation_step(self, batch: RaterBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return a batch's logits (see `predict`) for callbacks, such as those that compute metrics."""
        return self.predict(batch.image)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule."""
        return self.optimizer_settings.configure(self)


class NetworkMethod(SegmentationMethod):
    """A method with one network.

    Args:
        parts: see `MethodParts`.
        heads: heads of the network.
    """

    def __init__(self, parts: MethodParts, heads: HeadLayout) -> None:
        super().__init__(parts)
        self.network = parts.network(heads)
        self.loss = parts.loss

    def compile_networks(self) -> None:
        """Compile the network in place."""
        self.network.compile()

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of every head, `[B, M, K, *S]`."""
        return self.network(image)

    def member_losses(self, logits: Tensor, target: Tensor, batch: RaterBatch) -> Tensor:
        """Return the loss of each member against its target, `[B, M]`.

        Args:
            logits: `[B, M, K, *S]`.
            target: `[B, M, K, *S]` in [0, 1].
            batch: cases with their regions and voxel sizes.
        """
        if isinstance(self.loss, Boundary):
            return self.loss(logits, target, batch.region, batch.spacing, self.current_epoch)
        return self.loss(logits, target, batch.region)


def parameter_count(module: nn.Module) -> int:
    """Return the number of trained parameters in a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
