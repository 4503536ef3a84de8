"""Segmentation heads: their layout, and what they share in every network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class HeadLayout:
    """Segmentation heads of a network: their places, kernels and number.

    Attributes:
        stages: `last` (the full-resolution decoder stage alone, as in a plain U-Net), `decoder` (every decoder
            stage) or `encoder+decoder` (every stage, the bottleneck among the encoder's).
        kernel_size: kernel size of each head's convolution; 1, or 3 as in layer ensembles.
        per_stage: number of heads on each of these stages.

    Raises:
        ValueError: if there is less than one head per stage.
    """

    stages: Literal["last", "decoder", "encoder+decoder"] = "last"
    kernel_size: Literal[1, 3] = 1
    per_stage: int = 1

    def __post_init__(self) -> None:
        if self.per_stage < 1:
            raise ValueError(f"heads per stage must be at least 1, not {self.per_stage}")


def set_foreground_prior(layer: nn.Module, prior: float) -> None:
    """Set every bias of a head so that it predicts one probability everywhere where its features are zero.

    Args:
        layer: head, with biases that are all of its output.
        prior: probability, between 0 and 1.

    Raises:
        ValueError: if the probability does not lie between 0 and 1.
    """
    if not 0 < prior < 1:
        raise ValueError(f"foreground_prior must lie between 0 and 1, not {prior}")
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, math.log(prior / (1 - prior)))


def stack_heads(logits: Sequence[Tensor], size: torch.Size, structures: int) -> Tensor:
    """Return the logits of all heads `[B, M, K, *S]`, those of coarse stages interpolated.

    Args:
        logits: logits of each stage, `[B, heads x K, *s]`.
        size: size of the image, `*S`.
        structures: number of structures K.
    """
    if any(of_stage.shape[2:] != size for of_stage in logits):
        logits = _resized(list(logits), size)
    return torch.cat(list(logits), dim=1).unflatten(1, (-1, structures))


# not compiled: with deterministic algorithms, the default of trainings, the compiler of torch 2.13 silently loses
# gradients of an interpolation
@torch.compiler.disable
def _resized(logits: list[Tensor], size: torch.Size) -> list[Tensor]:
    return [of_head if of_head.shape[2:] == size else _interpolated(of_head, size) for of_head in logits]


def _interpolated(values: Tensor, size: torch.Size) -> Tensor:
    # an exported program would keep the device of the other formula
    if len(size) == 2 or values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.interpolate(values, size=size, mode=_INTERPOLATION[len(size)], align_corners=False)
    # a third of the time of the kernel for volumes, or less
    for axis in reversed(range(2, values.ndim)):
        values = _interpolated_along(axis, values, size[axis - 2])
    return values


def _interpolated_along(axis: int, values: Tensor, length: int) -> Tensor:
    """Interpolate linearly along one axis, as `torch.nn.functional.interpolate` without aligned corners."""
    given = values.shape[axis]
    places = torch.arange(length, dtype=torch.float64, device=values.device)
    places = ((places + 0.5) * (given / length) - 0.5).clamp(0, given - 1)
    below = places.long()
    weights = (places - below).to(values.dtype).reshape(-1, *[1] * (values.ndim - 1 - axis))
    above = (below + 1).clamp_max(given - 1)
    return torch.lerp(values.index_select(axis, below), values.index_select(axis, above), weights)
