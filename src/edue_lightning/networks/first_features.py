"""Features of a network's first convolutions, before normalisation removes the appearance of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

FIRST_CONVOLUTIONS = 2
"""Number of convolutions whose outputs are taken."""

# smallest standard deviation in the logarithm, so that a constant channel has a finite one
_SMALLEST = 1e-6


class _Found(Exception):  # noqa: N818
    """All outputs are found, and the rest of the network need not run."""


def first_features(network: nn.Module, image: Tensor) -> list[Tensor] | None:
    """Return the outputs of the first convolutions that are normalised next, and run no layer after them.

    Args:
        network: network of any architecture; its mode is unchanged, and a compiled one is run as written.
        image: `[B, C, *S]`.

    Returns:
        `FIRST_CONVOLUTIONS` tensors `[B, channels, *S]` in the order in which they are computed; None if the network
        has fewer convolutions that are followed by a normalisation (batch, instance or group).
    """
    found: list[Tensor] = []

    def take(output: Tensor) -> None:
        found.append(output)
        if len(found) == FIRST_CONVOLUTIONS:
            raise _Found

    try:
        # a compiled network would not call hooks that are added later
        with normalised_outputs(network, take), torch.compiler.set_stance("force_eager"):
            network(image)
    except _Found:
        return found
    return None


@contextmanager
def normalised_outputs(network: nn.Module, take: Callable[[Tensor], None]) -> Iterator[None]:
    """Pass on the output `[B, channels, *S]` of each convolution that is normalised next, while a network runs.

    Args:
        network: network of any architecture, not compiled.
        take: called with each output, before the normalisation.
    """
    latest: list[Tensor] = []

    def after_convolution(module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001
        latest[:] = [output]

    def before_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001
        if latest and inputs and inputs[0] is latest[0]:
            take(latest.pop())

    hooks = []
    for module in network.modules():
        if isinstance(module, _ConvNd):
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, (_NormBase, nn.GroupNorm)):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class ChannelMoments:
    """Mean and variance of each channel over the voxels of an image, collected from parts of it."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._layers: list[Tensor] = []

    def add(self, features: Sequence[Tensor]) -> None:
        """Add the features of one more part of each image, `[B, channels, *S]` per layer, see `first_features`."""
        counts = [values[0, 0].numel() for values in features]
        layers = [channel_moments(values) for values in features]
        if self._layers:
            earlier = zip(self._counts, self._layers, counts, layers, strict=True)
            layers = [_merged(*parts) for parts in earlier]
            counts = [before + new for before, new in zip(self._counts, counts, strict=True)]
        self._counts, self._layers = counts, layers

    def statistics(self) -> Tensor:
        """Return means and logarithms of standard deviations of all channels, `[B, 2 * channels]` float64."""
        return statistics_of(*torch.cat(self._layers, dim=2))


def _merged(count: int, moments: Tensor, new_count: int, new: Tensor) -> Tensor:
    """Return mean and variance of two parts together, each `[2, B, channels]`, from the numbers of their voxels."""
    share = new_count / (count + new_count)
    away = new[0] - moments[0]
    variance = (1 - share) * moments[1] + share * new[1] + share * (1 - share) * away.square()
    return torch.stack([moments[0] + share * away, variance])


def part_of_features(values: Tensor, box: Sequence[slice], size: Sequence[int]) -> Tensor:
    """Return the features of a part of an image.

    Args:
        values: `[B, channels, *F]`, features of an image of `size`; F is smaller where the network has strides.
        box: part of the image.
        size: length of the image's axes.
    """
    places = zip(box, values.shape[2:], size, strict=True)
    index = [slice(part.start * here // length, -(-part.stop * here // length)) for part, here, length in places]
    return values[:, :, *index]


def channel_moments(values: Tensor) -> Tensor:
    """Return mean and population variance of each channel, `[B, channels, *S]` to `[2, B, channels]` float64."""
    flat = values.flatten(2).float()
    mean = flat.mean(dim=2, keepdim=True)
    return torch.stack([mean[..., 0].double(), (flat - mean).square().mean(dim=2).double()])


def statistics_of(mean: Tensor, variance: Tensor) -> Tensor:
    """Return means and logarithms of standard deviations of channels, each `[B, channels]`, side by side."""
    return torch.cat([mean, variance.sqrt().clamp_min(_SMALLEST).log()], dim=1)
