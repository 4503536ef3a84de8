"""One head per rater."""

from __future__ import annotations

import torch
from torch import Tensor

from edue_lightning.data import RaterBatch
from edue_lightning.methods.base import NetworkMethod
from edue_lightning.methods.targets import member_target


class RaterHeads(NetworkMethod):
    """One network whose head m learns from rater m, always."""

    @property
    def label(self) -> str:
        """Name in tables."""
        return "rater_heads"

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, averaged over cases and heads."""
        logits = self(batch.image)  # [B, M, K, *S]
        heads = range(logits.shape[1])
        targets = torch.cat([member_target(batch, "rater_per_member", head) for head in heads], dim=1)
        # within the region of each case, and with the voxel sizes and the epoch for a loss that needs them
        return {"loss": self.member_losses(logits, targets, batch).mean()}
