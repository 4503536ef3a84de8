"""Lightning's trainer as every command of ours wants it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from edue_lightning.config.build import build
from edue_lightning.runs.checkpoints import WholeFileIO


def build_trainer(node: Mapping[str, Any], **arguments: Any) -> pl.Trainer:
    """Make the trainer of a configuration.

    Args:
        node: `trainer` of the configuration, resolved.
        arguments: of `pytorch_lightning.Trainer`.

    Raises:
        UserError: if it refuses its arguments, as for a device that is not there.
    """
    plugins: list[Any] = [WholeFileIO()]
    if SLURMEnvironment.detect():
        # a stopped job is put back into the queue by `StopSignals`, which knows of all trainers of a run
        plugins.append(SLURMEnvironment(auto_requeue=False))
    # what `deterministic` switches on too: to fill memory before it is written to, which costs some per cent of a
    # step and would show an error that is none of ours, memory that is read unwritten
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer: pl.Trainer = build(node, "trainer", plugins=plugins, enable_model_summary=False, **arguments)
    return trainer


def build_test_trainer(node: Mapping[str, Any], **arguments: Any) -> pl.Trainer:
    """Make the trainer of a configuration for a measurement: it logs and stores nothing."""
    return build_trainer(
        node, logger=False, enable_checkpointing=False, enable_progress_bar=sys.stderr.isatty(), **arguments
    )
