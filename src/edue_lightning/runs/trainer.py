"""Lightning's trainer with the settings that all commands share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from edue_lightning.config.build import build, refuse_keys
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import WholeFileIO

# arguments of the trainer that the commands choose themselves
_SET_BY_COMMANDS = (
    *("logger", "callbacks", "plugins", "default_root_dir", "enable_progress_bar", "enable_checkpointing"),
    "enable_model_summary",
)
# arguments with which results would be those of other cases than they say, and their usual values
_UNSUPPORTED: Mapping[str, Any] = {
    "fast_dev_run": False,
    "overfit_batches": 0.0,
    "barebones": False,
    "use_distributed_sampler": False,
    "limit_test_batches": 1.0,
}
_LARGEST_SEED = 2**32 - 1
_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")


def check_seed(seed: int) -> None:
    """Check that Lightning takes a seed.

    Raises:
        UserError: if it does not.
    """
    if not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"seed must be at least 0 and at most {_LARGEST_SEED}, not {seed}")


def check_trainer(node: Mapping[str, Any]) -> None:
    """Check a trainer's configuration for settings that would have no effect or cannot work.

    Raises:
        UserError: naming the first of them.
    """
    refuse_keys(node, "trainer", _SET_BY_COMMANDS)
    for name, default in _UNSUPPORTED.items():
        value = node.get(name)
        if value is not None and value != default:
            raise UserError(f"trainer.{name}={value}: not supported; remove it")
    precision = node.get("precision")
    if precision is not None and str(precision) not in _PRECISIONS:
        raise UserError(
            f"trainer.precision={precision}: not supported; choose 32-true, bf16-mixed or 16-mixed (weights in 32 bits)"
        )


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
