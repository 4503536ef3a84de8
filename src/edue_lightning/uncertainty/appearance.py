"""Statistics of an image's appearance that no network computes: intensity, contrast, noise and sharpness."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = (1, 2)
"""Distances of the second differences, in voxels."""

# in the logarithm, so that an image without noise or contrast has finite statistics
_SMALLEST = 1e-6


def appearance_statistics(image: Tensor) -> Tensor:
    """Return statistics of each channel, over all voxels of each image.

    They are mean and logarithm of the standard deviation of the channel, and for each step s the logarithms of the
    standard deviation and of the mean absolute value of its second differences `x[i - s] - 2 x[i] + x[i + s]`, mean
    over the axes. Second differences remove smooth structures and leave noise (Immerkaer, CVIU 1996) and edges, which
    the two measures and the two steps tell apart. Axes shorter than 2s + 1 voxels take no part.

    Args:
        image: `[B, C, *S]`.

    Returns:
        `[B, 6 C]` float64, on the image's device.
    """
    image = image.float()
    statistics = [image.flatten(2).mean(dim=2), _spread(image)]
    for step in STEPS:
        found = [
            torch.stack([_spread(values), _logarithm(values.abs().flatten(2).mean(dim=2))])
            for axis in range(2, image.ndim)
            if (values := _second_differences(image, axis, step)).shape[axis]
        ]
        # an image without such an axis has no differences, like a constant one
        flat = _logarithm(torch.zeros(2, *image.shape[:2], device=image.device))
        statistics += (torch.stack(found).mean(dim=0) if found else flat).unbind()
    return torch.cat(statistics, dim=1).double()


def _second_differences(image: Tensor, axis: int, step: int) -> Tensor:
    count = max(image.shape[axis] - 2 * step, 0)
    before, middle, after = (image.narrow(axis, k * step if count else 0, count) for k in range(3))
    return (before + after).sub_(middle, alpha=2)


def _spread(values: Tensor) -> Tensor:
    return _logarithm(values.flatten(2).std(dim=2, correction=0))


def _logarithm(values: Tensor) -> Tensor:
    return values.clamp_min(_SMALLEST).log()
