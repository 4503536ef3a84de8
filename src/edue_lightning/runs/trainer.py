"""Lightning's trainer with the settings that all commands share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from edue_lightning.config.build import build
from edue_lightning.runs.checkpoints import WholeFileIO


def build_trainer(
    node: Mapping[str, Any], checkpoint_entries: Mapping[str, Any] | None = None, **arguments: Any
) -> pl.Trainer:
    """Build the trainer of a configuration.

    Args:
        node: node `trainer` of the configuration, resolved.
        checkpoint_entries: entries that each checkpoint holds beside Lightning's own.
        arguments: further arguments of `pytorch_lightning.Trainer`.

    Raises:
        UserError: if the trainer refuses its arguments, as for a device that does not exist.
    """
    plugins: list[Any] = [WholeFileIO(checkpoint_entries)]
    if SLURMEnvironment.detect():
        # `StopSignals` puts a stopped job back into the queue, once for all trainers of a run
        plugins.append(SLURMEnvironment(auto_requeue=False))
    # `deterministic` also fills uninitialised memory, which slows each step by some per cent and would only reveal
    # reads of unwritten memory, which is no error of this package
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer: pl.Trainer = build(node, "trainer", plugins=plugins, enable_model_summary=False, **arguments)
    return trainer


def build_test_trainer(node: Mapping[str, Any], **arguments: Any) -> pl.Trainer:
    """Build the trainer of a configuration for a measurement: it logs and stores nothing."""
    return build_trainer(
        node, logger=False, enable_checkpointing=False, enable_progress_bar=sys.stderr.isatty(), **arguments
    )
