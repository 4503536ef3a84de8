"""What every command does around its work: one-line errors, quiet libraries, progress lines."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from edue_lightning.errors import UserError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def command(function: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Turn a `UserError` into its message on standard error and exit status 2, an interrupt into one line and 130."""

    @functools.wraps(function)
    def run(config: DictConfig) -> Result:
        keep_freed_memory()
        try:
            return function(config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def keep_freed_memory() -> None:
    """Let this process keep large blocks of memory that it has freed, as it soon needs their like again.

    Otherwise glibc gives each back to the system and gets it anew, page by page filled with zeros, which on a CPU takes
    a third of a training step (`experiments/benchmarks/allocator.py`). Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(threshold, 2**31 - 1)


def job_folder() -> Path:
    """Return the output folder that Hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)


def quiet_libraries() -> None:
    """Silence what libraries print on every start and no user can act on."""
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # loading happens once, from memory; more workers would not help
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


class EpochLines(pl.Callback):
    """One line an epoch in the log, with the loss, the validation metrics, the time, and the wait for data."""

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
        """Note that this epoch has validation metrics of its own."""
        self._validated = True

    def on_train_batch_start(self, *args: object) -> None:  # noqa: ARG002
        """Count the time since the last step ended: nothing but the loader's work lies between."""
        self._waited += time.monotonic() - self._asked

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:  # noqa: ARG002
        """Start to wait for the next batch; log the share of the epoch so far that was spent waiting."""
        self._asked = time.monotonic()
        self._training = self._asked - self._start
        if trainer.is_last_batch:
            pl_module.log("train/data_wait", self.data_wait, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    @property
    def data_wait(self) -> float:
        """Share of the epoch's training steps that was spent waiting for data."""
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
