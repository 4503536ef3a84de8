"""Parts of small methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edue_lightning.data import RaterBatch
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods import MethodParts, NetworkFactory, OptimizerSettings, SegmentationMethod
from edue_lightning.networks import HeadLayout, MultiHeadUNet

STRUCTURES = ("disc", "cup")


def small_network(heads: HeadLayout) -> MultiHeadUNet:
    """Return a network for 2D images of three channels with two structures."""
    return MultiHeadUNet(2, 3, 2, heads, features=(4, 6, 8))


def parts_of(
    network: NetworkFactory = small_network, structures: Sequence[str] = STRUCTURES, **options: Any
) -> MethodParts:
    """Return the parts of a method, with the default loss and optimizer unless `options` has others."""
    return MethodParts(network, structures, **{"loss": SegmentationLoss(), "optimizer": OptimizerSettings(), **options})


def loss_before_and_after(method: SegmentationMethod, batch: RaterBatch) -> tuple[float, float]:
    """Return a method's loss of one batch before and after five steps on it, with the same draws in each."""
    method.train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return method.training_loss(batch)["loss"]

    before = loss().item()
    for _ in range(5):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return before, loss().item()
