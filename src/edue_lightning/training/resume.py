"""Resumption of interrupted trainings, with the same result as without the interruption."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from torch import Tensor, distributed

from edue_lightning.errors import UserError
from edue_lightning.methods import SegmentationMethod
from edue_lightning.runtime.signals import StopSignals
from edue_lightning.training.callbacks import restart_patience

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Writer of `best.ckpt`, the weights with the best value of a validation metric once the method is `complete`.

    Args:
        folder: folder of the checkpoint; it may have been moved before a resumption.
        metric: name of the validation metric.
        lower_is_better: direction of that metric.
    """

    def __init__(self, folder: Path, metric: str, lower_is_better: bool) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=f"val/{metric}",
            mode="min" if lower_is_better else "max",
            save_weights_only=True,
            auto_insert_metric_name=False,
            # replace the file of a killed process
            enable_version_counter=False,
        )

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether the present weights are the best so far."""
        method = cast(SegmentationMethod, trainer.lightning_module)
        return method.complete and super().check_monitor_top_k(trainer, current)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Write the weights that were validated: with averages of weights, these.

        Lightning gives `WeightAveraging` no hook for a checkpoint of weights alone.
        """
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averages = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
        for callback in averages:
            callback.on_validation_epoch_start(trainer, trainer.lightning_module)
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            for callback in averages:
                callback.on_validation_epoch_end(trainer, trainer.lightning_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far, in the present folder."""
        path = str(Path(self.dirpath or ".") / "best.ckpt")
        moved: dict[str, Any] = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        moved["best_k_models"] = {path: state_dict["best_model_score"]}
        super().load_state_dict({**state_dict, **moved} if state_dict["best_model_path"] else state_dict)


class ResumePoint(Checkpoint):
    """Writer of `last.ckpt`, from which a training resumes and ends with the same weights as without interruption.

    It is written after each epoch and its validation, every `every_n_steps` steps, and at a signal to stop: then after
    the current step or, if that is the last of the epoch, after the validation. Where a validation within the epoch
    follows a step, it is written after the next step, since the resumed training would skip that validation.

    Beside Lightning's own state (weights, optimizer, schedule, epoch, step, place in the epoch's order, best value so
    far) it holds the random states of every process.

    Args:
        path: path of the checkpoint.
        signals: signals to stop.
        every_n_steps: optimizer steps between two checkpoints within an epoch, or None.
    """

    def __init__(self, path: Path, signals: StopSignals, every_n_steps: int | None = None) -> None:
        self.path = path
        self.signals = signals
        self.every_n_steps = every_n_steps
        self._earlier_seconds = 0.0
        self._start = time.monotonic()
        self._to_restore: list[dict[str, Any]] = []
        self._ended = False
        self._overdue = False

    def state_dict(self) -> dict[str, Any]:
        """Return the random states of all processes, the seconds of training so far, and whether it ended early."""
        states: list[Any] = [_random_state()]
        if distributed.is_available() and distributed.is_initialized():
            states = [None] * distributed.get_world_size()
            distributed.all_gather_object(states, _random_state())
        seconds = self._earlier_seconds + time.monotonic() - self._start
        return {"random": states, "seconds": seconds, "ended": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds now; the random states follow before the first step."""
        self._to_restore = state_dict["random"]
        self._earlier_seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Handle the signals here; Lightning's handler loses the steps since its last checkpoint."""
        self.signals.deferred = True
        self.signals.listen()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop handling the signals."""
        self.signals.deferred = False

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Restore the random states, once.

        Raises:
            UserError: if a different number of processes wrote them.
        """
        if not self._to_restore:
            return
        _require_processes(self._to_restore, trainer.world_size, self.path)
        _restore_random_state(self._to_restore[trainer.global_rank])
        self._to_restore = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Write the checkpoint within an epoch if it is due."""
        # accumulated gradients are in no checkpoint; the last step is followed by the checkpoint of the epoch
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        self._overdue = self._overdue or due
        if not _validation_follows(trainer, batch_idx):
            self._save_or_end(trainer, self._overdue)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the patience of early stopping, which may have decided by then."""
        restart_patience(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint of the epoch; callbacks of the configuration have decided by then to stop early."""
        restart_patience(trainer, pl_module)
        enough_epochs = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
        self._ended = trainer.should_stop and enough_epochs and trainer.global_step >= (trainer.min_steps or 0)
        self._save_or_end(trainer, due=True)

    def _save_or_end(self, trainer: pl.Trainer, due: bool) -> None:
        # the processes receive the signal at different steps, and must end at the same one
        stop = trainer.strategy.reduce_boolean_decision(self.signals.received, all=False)
        if due or stop:
            trainer.save_checkpoint(self.path)
            self._overdue = False
        if stop:
            log.warning("received a signal to stop; %s is written, resume with resume=auto or resume=PATH", self.path)
            self.signals.end()


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether a validation within the epoch may follow a batch."""
    every = trainer.val_check_batch
    if not isinstance(every, int):
        return False
    # without a number of epochs between validations, batches count on from one epoch to the next
    batches = (trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx) + 1
    return batches % every == 0


def resume_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of `ResumePoint` in a read checkpoint, also of an earlier version."""
    stored: dict[str, Any] = checkpoint["callbacks"][ResumePoint.__qualname__]
    return {"ended": False, **stored}


def check_processes(checkpoint: Mapping[str, Any], processes: int, path: Path) -> None:
    """Check that the training of a read checkpoint of `ResumePoint`, if it has steps left, can take them.

    Args:
        checkpoint: content of the checkpoint.
        processes: number of processes of the resumed training.
        path: path of the checkpoint.

    Raises:
        UserError: if a different number of processes wrote it.
    """
    stored = resume_state(checkpoint)
    if not stored["ended"]:
        _require_processes(stored["random"], processes, path)


def _require_processes(states: list[dict[str, Any]], processes: int, path: Path) -> None:
    if len(states) != processes:
        raise UserError(
            f"{path}: was written by {len(states)} processes and cannot be resumed by {processes}; set "
            "trainer.devices (and trainer.num_nodes) accordingly"
        )


def _random_state() -> dict[str, Any]:
    """Return the states of all global generators as plain values and tensors, which load with `weights_only=True`."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, state, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        # of this process' own device only; a query of all devices would allocate memory on each
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [str(name), torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "python": [version, list(state), next_gauss],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
