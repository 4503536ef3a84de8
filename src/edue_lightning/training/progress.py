"""Progress of a training in the log."""

from __future__ import annotations

import logging
import math
import time

import pytorch_lightning as pl

log = logging.getLogger(__name__)


class EpochLines(pl.Callback):
    """One log line per epoch, with the loss, validation metrics, time, and time spent waiting for data."""

    def __init__(self) -> None:
        self._start = self._asked = time.monotonic()
        self._waited = self._training = 0.0
        self._validated = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the epoch's clock."""
        self._start = self._asked = time.monotonic()
        self._waited = 0.0
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Note that this epoch was validated."""
        self._validated = True

    def on_train_batch_start(self, *args: object) -> None:  # noqa: ARG002
        """Add the time since the end of the last step, in which only the loader works."""
        self._waited += time.monotonic() - self._asked

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:  # noqa: ARG002
        """Start to wait for the next batch; log the share of the epoch spent waiting so far."""
        self._asked = time.monotonic()
        self._training = self._asked - self._start
        if trainer.is_last_batch:
            pl_module.log("train/data_wait", self.data_wait, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    @property
    def data_wait(self) -> float:
        """Share of the epoch's training time that was spent waiting for data."""
        return self._waited / max(self._training, 1e-9)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Write the line."""
        if not trainer.is_global_zero:
            return
        validated = ("val/dice", "val/nll", "val/image_pearson", "val/pixel_pearson") if self._validated else ()
        shown = ("train/loss", *validated)
        found = {name: float(trainer.callback_metrics.get(name, math.nan)) for name in shown}
        # a single network has no variance between members to correlate
        values = "  ".join(f"{name} {value:.4f}" for name, value in found.items() if not math.isnan(value))
        seconds = time.monotonic() - self._start
        log.info(
            "epoch %d/%s  %s  %.1f s, %.1f %% of the training steps waiting for data",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            values,
            seconds,
            100 * self.data_wait,
        )
