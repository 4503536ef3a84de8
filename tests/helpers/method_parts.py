"""Parts of small methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods import MethodParts, NetworkFactory, OptimizerSettings
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
