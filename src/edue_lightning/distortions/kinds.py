"""The kinds of distortion, at severities from 1 to 5 (after Hendrycks and Dietterich, ICLR 2019).

All take and return `[C, *S]` float32 with two or three spatial axes. Strengths are relative to each channel's mean,
spread and range, so that they do not depend on the normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

KindFunction = Callable[[Tensor, int, torch.Generator], Tensor]

# strengths by severity
_NOISE = (0.1, 0.2, 0.35, 0.55, 0.8)  # standard deviations of the channel
_BLUR = (0.5, 0.8, 1.2, 1.7, 2.4)  # sigma of the filter, voxels
_CONTRAST = (0.8, 0.65, 0.5, 0.35, 0.2)  # remaining share of the contrast
_GAMMA = (1.25, 1.5, 2.0, 2.75, 4.0)
_RESOLUTION = (1.5, 2.0, 2.75, 3.5, 4.5)  # factor between the voxels' edges
_GHOSTING = (0.1, 0.2, 0.35, 0.5, 0.7)  # share of the image in each of its ghosts
_GHOSTS = 2
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def noise(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise, independent for each voxel."""
    drawn = torch.randn(image.shape, generator=generator, dtype=image.dtype)
    return image + _NOISE[severity - 1] * _spread(image) * drawn


def blur(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Smooth with a Gaussian filter; the border values continue outside the image."""
    sigma = (0, *[_BLUR[severity - 1]] * (image.ndim - 1))
    return torch.from_numpy(gaussian_filter(image.numpy(), sigma, mode="nearest"))


def contrast(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Reduce the contrast of each channel around its mean."""
    mean = _mean(image)
    return mean + _CONTRAST[severity - 1] * (image - mean)


def gamma(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Darken the middle tones of each channel by a power law between its smallest and largest value."""
    low = image.flatten(1).amin(dim=1).reshape(_per_channel(image))
    extent = (image.flatten(1).amax(dim=1).reshape(_per_channel(image)) - low).clamp_min(torch.finfo(image.dtype).tiny)
    return low + extent * ((image - low) / extent).clamp(0, 1) ** _GAMMA[severity - 1]


def resolution(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Scale the image down with averaging, and back by interpolation."""
    size = [max(1, round(length / _RESOLUTION[severity - 1])) for length in image.shape[1:]]
    coarse = F.interpolate(image[None], size=size, mode="area")
    mode = _INTERPOLATION[image.ndim - 1]
    return F.interpolate(coarse, size=image.shape[1:], mode=mode, align_corners=False)[0]


def ghosting(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add copies of the image, shifted along one axis by equal parts of its length, like movement during a scan."""
    axis = 1 + int(torch.randint(image.ndim - 1, (1,), generator=generator))
    step = image.shape[axis] // (_GHOSTS + 1)
    mean = _mean(image)
    ghosts = sum((torch.roll(image - mean, step * (n + 1), dims=axis) for n in range(_GHOSTS)), torch.zeros_like(image))
    return image + _GHOSTING[severity - 1] * ghosts


KIND_FUNCTIONS: Mapping[str, KindFunction] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "gamma": gamma,
    "resolution": resolution,
    "ghosting": ghosting,
}
"""Every kind by its name."""


def _per_channel(image: Tensor) -> tuple[int, ...]:
    return (-1, *[1] * (image.ndim - 1))


def _mean(image: Tensor) -> Tensor:
    return image.flatten(1).mean(dim=1).reshape(_per_channel(image))


def _spread(image: Tensor) -> Tensor:
    return image.flatten(1).std(dim=1, correction=0).reshape(_per_channel(image))
