"""An encoder from an image to a normal distribution over a latent vector, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

USUAL, BEYOND = 5.0, 2.0
"""Bounds of an encoder's log deviations, see `bounded`.

Deviations from exp(-7) to exp(7), with means of any size that occurs, leave every divergence finite in float32. Without
bounds, large learning rates lead to an infinite divergence and then to weights that are no numbers.
"""


class DiagonalGaussian(NamedTuple):
    """Normal distributions with independent components over a latent vector of L numbers, one per case.

    Attributes:
        mean: `[B, L]`.
        log_deviation: `[B, L]`, logarithm of the standard deviation.
    """

    mean: Tensor
    log_deviation: Tensor

    def draws(self, noise: Tensor) -> Tensor:
        """Return the latent vectors `[B, n, L]` of standard normal noise `[B or 1, n, L]`."""
        return self.mean[:, None] + self.log_deviation.exp()[:, None] * noise

    def divergence_from(self, prior: DiagonalGaussian) -> Tensor:
        """Return the Kullback-Leibler divergence KL(self || prior) of each component, `[B, L]`, in nats."""
        first, second = (Normal(one.mean, one.log_deviation.exp(), validate_args=False) for one in (self, prior))
        divergence: Tensor = kl_divergence(first, second)
        return divergence


class GaussianEncoder(nn.Module):
    """Stages of two 3x3 convolutions, averaged over the image into mean and deviation of a latent vector.

    There is no normalisation of features: it would erase the mean of each channel, which is what the average over the
    image passes on.

    Args:
        spatial_dims: 2 or 3.
        in_channels: number of channels of the input.
        features: channels of each stage; every stage but the first begins with an average pooling by two.
        latent_dim: L.

    Shapes:
        input `[B, C, *S]`, every axis at least `2 ** (len(features) - 1)`; output `[B, L]`, float32 or better.
    """

    def __init__(self, spatial_dims: Literal[2, 3], in_channels: int, features: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        convolution, pooling = Conv[Conv.CONV, spatial_dims], Pool[Pool.AVG, spatial_dims]
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, width in enumerate(features):
            if stage:
                layers.append(pooling(kernel_size=2))
            for _ in range(2):
                layers += [convolution(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.stages = nn.Sequential(*layers)
        self.moments = nn.Linear(channels, 2 * latent_dim)
        # without normalisation, the default would shrink the signal from layer to layer
        for layer in layers:
            if isinstance(layer, convolution):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Return the distribution of the latent vector for images `[B, C, *S]`."""
        pooled = self.stages(image).flatten(2).mean(dim=2)
        # a product in half precision would round every sample
        with torch.autocast(pooled.device.type, enabled=False):
            moments = self.moments(pooled.to(self.moments.weight.dtype))
        mean, log_deviation = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
        return DiagonalGaussian(mean, bounded(log_deviation))


def bounded(log_deviation: Tensor) -> Tensor:
    """Return values up to `USUAL` in size as they are, and larger ones bent so that they stay below `USUAL + BEYOND`.

    The derivative is 1 up to there, then falls without reaching 0, so that a training finds its way back.
    """
    inner = log_deviation.clamp(-USUAL, USUAL)
    return inner + BEYOND * F.softsign((log_deviation - inner) / BEYOND)
