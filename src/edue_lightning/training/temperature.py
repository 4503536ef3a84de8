"""Temperature scaling: one number per structure that divides all logits, fitted on validation cases after training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from torch import Tensor, distributed
from torchmetrics import Metric

from edue_lightning.data import RaterDataModule
from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import mean_prediction_nll
from edue_lightning.methods import SegmentationMethod
from edue_lightning.runs.checkpoints import add_temperature, read_checkpoint, stored_temperature
from edue_lightning.runtime.processes import is_first_process

log = logging.getLogger(__name__)

LARGEST = 10.0
"""The search looks between this temperature and its inverse."""

_STEPS = 33
GRID: NDArray[np.float64] = np.linspace(-math.log(LARGEST), math.log(LARGEST), _STEPS)
"""Logarithms of the temperatures at which the likelihood is computed; between them it is a cubic spline."""


class TemperatureSearch(Metric):
    """Negative log-likelihood of the mean prediction under a range of temperatures, and the best one of each structure.

    One pass over the cases is enough, and no logits are kept. A case that arrives twice under one index counts once, so
    the result is the same on any number of processes.

    Args:
        structures: names of the K structures.
        link: function from scaled logits to those whose sigmoid gives probabilities, for structures that exclude each
            other, whose probabilities depend on each other; they get one temperature, that of the least mean over
            structures. None for other structures, which get one each.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, structures: Sequence[str], link: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.structures = tuple(structures)
        self.link = link
        count = len(self.structures)
        # structures with one temperature
        self.groups = [slice(k, k + 1) for k in range(count)] if link is None else [slice(0, count)]
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, batch: RaterBatch) -> None:
        """Add a batch of cases.

        Args:
            logits: logits `[B, M, K, *S]` of the members, whose mean is the prediction; what `link` takes, if there is
                one.
            batch: the cases, on the same device.
        """
        columns = [batch.case_index.double()]
        for group in self.groups:
            of_group, masks = logits[:, :, group].float(), batch.masks[:, :, group]
            for log_temperature in GRID.tolist():
                scaled = of_group / math.exp(log_temperature)
                scaled = scaled if self.link is None else self.link(scaled)
                columns.append(mean_prediction_nll(scaled, masks, batch.valid, batch.region).double())
        # one flat vector, since only vectors of different length can be gathered
        self.rows.append(torch.stack(columns, dim=1).flatten())

    def compute(self) -> list[float]:
        """Return the temperature of each structure with the least negative log-likelihood, averaged over cases."""
        rows = self.rows if isinstance(self.rows, Tensor) else torch.cat(self.rows)
        table = rows.reshape(-1, 1 + len(self.groups) * _STEPS).cpu().numpy()
        _, first = np.unique(table[:, 0], return_index=True)
        curves = table[first, 1:].mean(axis=0).reshape(len(self.groups), _STEPS)
        found = [best_temperature(curve) for curve in curves]
        return found if self.link is None else found * len(self.structures)


def best_temperature(curve: NDArray[np.float64]) -> float:
    """Return the temperature with the least value of a curve over `GRID`, by Brent's method on its spline.

    Args:
        curve: value at each temperature of the grid.
    """
    least = int(np.argmin(curve))
    ends = GRID[max(least - 1, 0)], GRID[min(least + 1, _STEPS - 1)]
    found = minimize_scalar(CubicSpline(GRID, curve), bounds=ends, method="bounded", options={"xatol": 1e-6})
    # the spline is exact at the grid alone
    return math.exp(float(found.x) if found.fun < curve[least] else float(GRID[least]))


class _Searching(pl.LightningModule):
    """A trained method whose test predictions are added to a search.

    Attributes:
        found: the temperature of each structure, after the test.
    """

    def __init__(self, method: SegmentationMethod) -> None:
        super().__init__()
        self.method = method
        self.search = TemperatureSearch(method.structures, self._log_odds if method.exclusive else None)
        self.found: list[float] = []

    def test_step(self, batch: RaterBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Add a batch."""
        channels = self.method.raw_logits(batch.image)
        logits = channels if self.method.exclusive else self._of_probability(channels)
        with torch.autocast(channels.device.type, enabled=False):
            self.search.update(logits, batch)

    def _of_probability(self, channels: Tensor) -> Tensor:
        own = self.method.readout.own_map(channels, "probability")
        return self.method.readout.members(channels) if own is None else own[:, None]

    def _log_odds(self, channels: Tensor) -> Tensor:
        return self._of_probability(self.method.readout.log_odds(channels))

    def on_test_epoch_end(self) -> None:
        """Choose the temperatures, while the processes can still exchange their cases."""
        self.found = self.search.compute()


def calibrate(method: SegmentationMethod, data: RaterDataModule, trainer: pl.Trainer, checkpoint: Path) -> None:
    """Set the temperature of a method: that of its checkpoint if it has one, else a fitted one, which is added to it.

    In a distributed run every process takes part.

    Args:
        method: trained method, with the weights of the checkpoint.
        data: data module it was trained on.
        trainer: see `fit_temperature`.
        checkpoint: path of the checkpoint.
    """
    # another process might read the checkpoint before it is complete
    stored = [stored_temperature(read_checkpoint(checkpoint)) if is_first_process() else None]
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast_object_list(stored, src=0)
    temperature = stored[0]
    if temperature is None:
        temperature = fit_temperature(method, data, trainer)
        if is_first_process():
            add_temperature(checkpoint, temperature)
    method.set_temperature(temperature)
    log.info(
        "temperature: %s",
        ", ".join(f"{name} {value:.4g}" for name, value in zip(method.structures, temperature, strict=True)),
    )


def fit_temperature(method: SegmentationMethod, data: RaterDataModule, trainer: pl.Trainer) -> list[float]:
    """Fit the temperature of each structure on the validation cases, by the likelihood of all raters.

    The method is Guo et al., ICML 2017, for the mean prediction of several members and raters.

    In a distributed run every process takes part and gets the same values.

    Args:
        method: trained method, without a temperature.
        data: data module it was trained on.
        trainer: trainer that runs the predictions.

    Returns:
        the temperature of each structure; above 1 for a method that is too sure.
    """
    searching = _Searching(method)
    trainer.test(searching, dataloaders=data.evaluation_dataloader("val"), verbose=False)
    for name, value in zip(method.structures, searching.found, strict=True):
        if not 1.01 / LARGEST < value < LARGEST / 1.01:
            log.warning(
                "temperature of %s: %.3g, at the end of the search; the validation cases do not bound it", name, value
            )
    return searching.found
