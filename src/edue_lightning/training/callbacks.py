"""Callbacks of a training that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch

from edue_lightning.config.build import build
from edue_lightning.errors import UserError
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import LOWER_IS_BETTER, VALIDATION_METRICS

_VALIDATION = "val/"


def build_callbacks(nodes: Mapping[str, Any] | None) -> list[pl.Callback]:
    """Build the callbacks of node `callbacks` of the configuration.

    Args:
        nodes: one node with a `_target_` per callback, by any name; None for none.

    Raises:
        UserError: if one is no callback, refuses its arguments, or monitors a validation metric that does not exist or
            in the wrong direction.
    """
    made = []
    for name, node in (nodes or {}).items():
        where = f"callbacks.{name}"
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"{where}={node}: is no callback; give a node with the _target_ of a Lightning callback")
        try:
            callback = build(node, where)
        # a library of the callback that is missing
        except ModuleNotFoundError as error:
            raise UserError(f"{where}: {error}") from error
        if not isinstance(callback, pl.Callback):
            raise UserError(f"{where}: {node['_target_']} is no callback of Lightning (pytorch_lightning.Callback)")
        _check_monitor(callback, where)
        made.append(callback)
    return made


def _check_monitor(callback: pl.Callback, where: str) -> None:
    """Check a callback that follows a metric, which Lightning would do after the first epoch."""
    monitor = getattr(callback, "monitor", None)
    if not isinstance(monitor, str) or not monitor.startswith(_VALIDATION):
        return
    metric = monitor.removeprefix(_VALIDATION)
    if metric not in VALIDATION_METRICS:
        known = ", ".join(_VALIDATION + name for name in VALIDATION_METRICS)
        raise UserError(f"{where}.monitor={monitor}: not a validation metric; known: {known}")
    right = "min" if metric in LOWER_IS_BETTER else "max"
    mode = getattr(callback, "mode", right)
    if mode != right:
        raise UserError(f"{where}.mode={mode}: the best {monitor} is the {right}imum; set mode: {right}")


def restart_patience(trainer: pl.Trainer, method: pl.LightningModule) -> None:
    """Let early stopping wait as if the training began now, unless all of the method is trained.

    The best checkpoint is one of a method that is trained whole, so no training must end before.
    """
    if cast(SegmentationMethod, method).complete:
        return
    for stopper in trainer.early_stopping_callbacks:
        stopper.wait_count = stopper.stopped_epoch = 0
        stopper.best_score = torch.tensor(torch.inf if stopper.mode == "min" else -torch.inf)
        trainer.should_stop = False
