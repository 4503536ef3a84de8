"""Measurement of a method's predictions, batch by batch, into a table of statistics."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.methods.base import SegmentationMethod
from edue_lightning.methods.density import Density
from edue_lightning.metrics.metric import CaseRows

SMALL_BATCH = 2**18
"""Largest number of values of a batch's members that is measured on the CPU: a GPU takes longer to start its many small
computations than they take, the more so where several trainings share it."""


class Measuring(pl.LightningModule):
    """A trained method whose test predictions are added to a table of cases.

    Args:
        method: method to measure.
        table: table that receives the cases, with the method's `readout`; it moves to the method's device.
        density: density of the method's training images, or None.
        thresholds: further table that receives the same cases, or None.

    Attributes:
        distances: distance of each case from the training images by its index, as far as this process saw it.
    """

    def __init__(
        self,
        method: SegmentationMethod,
        table: CaseRows,
        density: Density | None = None,
        thresholds: CaseRows | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.table = table
        self.density = density
        self.thresholds = thresholds
        self.distances: dict[int, float] = {}

    def test_step(self, batch: RaterBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Add a batch to the table, and return its logits (see `predict`) for callbacks."""
        logits = self.method.predict(batch.image)
        add_batch(self.table, logits, batch)
        if self.thresholds is not None:
            add_batch(self.thresholds, logits, batch)
        if self.density is not None:
            distances = self.density(self.method, batch.image)
            self.distances |= dict(zip(batch.case_index.tolist(), distances.tolist(), strict=True))
        return logits


def add_batch(table: CaseRows, logits: Tensor, batch: RaterBatch) -> None:
    """Add predicted cases to a table, in full precision whatever the precision of the prediction.

    Args:
        table: table that receives the cases.
        logits: logits `[B, M + n, K, *S]` as the table's read-out takes them.
        batch: the cases, on the same device.
    """
    device = torch.device("cpu") if logits.numel() <= SMALL_BATCH else logits.device
    region = None if batch.region is None else batch.region.to(device)
    masks, valid, spacing, index = (
        part.to(device) for part in (batch.masks, batch.valid, batch.spacing, batch.case_index)
    )
    with torch.autocast(device.type, enabled=False):
        table.update(logits.to(device), masks, valid, spacing, index, region)
