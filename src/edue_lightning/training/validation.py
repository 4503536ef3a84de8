"""Validation metrics during a training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from edue_lightning.data.sample import RaterBatch
from edue_lightning.methods.measuring import add_batch
from edue_lightning.metrics import CaseTable


class ValidationMetrics(pl.Callback):
    """Log each metric of a table, averaged over structures, as `val/METRIC` after each validation.

    Args:
        table: table that receives the validation cases; it is emptied after each validation.
    """

    def __init__(self, table: CaseTable) -> None:
        self.table = table

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Move the table to the module's device."""
        self.table.to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: RaterBatch,
        *rest: int,  # noqa: ARG002
    ) -> None:
        """Add a batch, whose member logits the validation step returned."""
        add_batch(self.table, outputs, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Log the metrics over the cases of all processes."""
        means = self.table.summary().means()
        self.table.reset()
        # the same in all processes, which have gathered the cases
        pl_module.log_dict({f"val/{name}": value for name, value in means.items()}, sync_dist=True)
