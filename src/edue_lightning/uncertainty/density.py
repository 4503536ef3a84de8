"""Mahalanobis distance of feature vectors from those of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# standard deviation of a feature, as a share of its size, that rounding can explain
_ROUNDING = 1e-5

# of the covariance of standardised features, so that the distance is finite along directions without variance
_SMALLEST_EIGENVALUE = 1e-6


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to feature vectors of length F.

    Attributes:
        mean: `[F]` float64.
        whitening: matrix W, `[F, F]` float64, such that the distance of x is the length of `W (x - mean)`.
    """

    mean: Tensor
    whitening: Tensor

    def distance(self, features: Tensor) -> Tensor:
        """Return the Mahalanobis distance of each vector, `[N, F]` to `[N]` float64."""
        return torch.linalg.vector_norm((features.double() - self.mean) @ self.whitening.T, dim=1)


def mean_distance(gaussians: Sequence[Gaussian], features: Sequence[Tensor]) -> Tensor:
    """Return the distance of each image, mean over the networks, `[N]` float64.

    Args:
        gaussians: Gaussian of each network.
        features: features of the images for each network, `[N, F]`.
    """
    return torch.stack([one.distance(part) for one, part in zip(gaussians, features, strict=True)]).mean(dim=0)


def fit_gaussian(features: Tensor) -> Gaussian:
    """Fit mean and covariance, the latter of the standardised features, shrunk by Ledoit and Wolf's formula.

    A feature that is constant but for rounding is centred, not scaled.

    Args:
        features: `[N, F]`, N at least 2.
    """
    features = features.double()
    mean, spread = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(spread > _ROUNDING * (1 + mean.abs()), spread, 1.0)
    values, vectors = torch.linalg.eigh(ledoit_wolf((features - mean) / scale))
    whitening = (vectors / values.clamp_min(_SMALLEST_EIGENVALUE).sqrt()).T / scale
    return Gaussian(mean, whitening)


def ledoit_wolf(centred: Tensor) -> Tensor:
    """Return a covariance, shrunk towards a multiple of the identity (Ledoit and Wolf 2004).

    Args:
        centred: `[N, F]` float64, of mean 0.

    Returns:
        `[F, F]`, positive definite unless all values are 0.
    """
    count, features = centred.shape
    empirical = centred.T @ centred / count
    level = empirical.diagonal().mean()
    identity = torch.eye(features, dtype=centred.dtype, device=centred.device)
    apart = (empirical - level * identity).square().sum()
    # mean squared distance of the single cases' outer products from the covariance
    noise = (centred.square().sum(dim=1).square().sum() / count - empirical.square().sum()) / count
    shrinkage = torch.where(apart > 0, (noise / apart).clamp(0, 1), 1.0)
    return (1 - shrinkage) * empirical + shrinkage * level * identity
