"""Members and raters as samples of two distributions: of masks, and of volumes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def energy_distance(between: Tensor, members: Tensor, raters: Tensor) -> Tensor:
    """Return the squared generalised energy distance `2 E d(s, y) - E d(s, s') - E d(y, y')` (Kohl et al. 2018).

    All pairs count, a mask with itself too, as in the public code of the probabilistic U-Net and of PHiSeg.

    Args:
        between: distances of every member to every rater, `[K, M, R]`.
        members: of every two members, `[K, M, M]`.
        raters: of every two raters, `[K, R, R]`.

    Returns:
        `[K]` in [0, 2]; NaN without raters.
    """
    return 2 * between.mean(dim=(1, 2)) - members.mean(dim=(1, 2)) - raters.mean(dim=(1, 2))


def gaussian_crps(value: Tensor, samples: Tensor) -> Tensor:
    """Return the continuous ranked probability score of a value under a Gaussian fitted to samples.

    In closed form (Gneiting and Raftery 2007, equation 21), where the public code of the CURVAS challenge integrates
    numerically over three standard deviations to either side and so can never exceed them. The fit has the population
    standard deviation, as there; if all samples agree (or there is one), the score is the distance to it.

    Args:
        value: `[K]`.
        samples: `[R, K]`.

    Returns:
        `[K]`, not negative, in the unit of the value; NaN without samples.
    """
    if not len(samples):
        return torch.full_like(value, torch.nan)
    centre, spread = samples.mean(dim=0), samples.std(dim=0, correction=0)
    off = value - centre
    scaled = off / torch.where(spread > 0, spread, 1)
    density = torch.exp(-scaled.square() / 2) / math.sqrt(2 * math.pi)
    score = spread * (scaled * torch.erf(scaled / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    return torch.where(spread > 0, score, off.abs())
