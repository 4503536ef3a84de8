"""Raters whose distribution is known in closed form, in 2D and 3D.

Rater r marks the voxels where `phi(x) + b_r + s_r * sigma(x) * g_r(x) > 0`: `phi` is a signed distance to the true
edge (pixels, positive inside), `sigma` how ambiguous the image is there (pixels), `b_r` the rater's bias (pixels,
positive: outlines too large), `s_r` the rater's unsteadiness, and `g_r` a smooth Gaussian field of unit variance, drawn
anew for each case. So the rater marks a voxel with probability `Phi((phi + b_r) / (s_r sigma))`, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RaterHabit:
    """Habit of one rater, the same in every case.

    Attributes:
        bias: distance in pixels of the outline outside (positive) or inside (negative) the true edge.
        unsteadiness: factor on the image's ambiguity, small for a skilled rater.
        smoothness: correlation length of the outline's wobble in pixels.
    """

    bias: float
    unsteadiness: float
    smoothness: float


def draw_habits(raters: int, size: int, rng: np.random.Generator) -> tuple[RaterHabit, ...]:
    """Draw the habits of a panel of raters, whose biases balance out.

    Args:
        raters: number of raters.
        size: edge of the image in pixels; biases and wobbles are proportional to it.
        rng: source of the draws.
    """
    scale = size / 64
    biases = rng.normal(scale=0.8 * scale, size=raters)
    biases -= biases.mean()
    # a wobble much shorter than the ambiguity would tear the outlines into islands
    return tuple(
        RaterHabit(float(bias), float(rng.uniform(0.6, 1.4)), float(rng.uniform(5.0, 9.0)) * scale) for bias in biases
    )


def unit_field(shape: tuple[int, ...], smoothness: float, rng: np.random.Generator) -> Array:
    """Draw a smooth Gaussian field whose variance is exactly 1 at every voxel.

    Args:
        shape: shape of the grid.
        smoothness: standard deviation in pixels of the kernel that smooths white noise.
        rng: source of the noise.
    """
    impulse = np.zeros(shape)
    impulse[tuple(size // 2 for size in shape)] = 1.0
    # on a torus every voxel is a sum of independent noise with the same weights, those of a smoothed impulse
    weights = gaussian_filter(impulse, smoothness, mode="wrap")
    field: Array = gaussian_filter(rng.normal(size=shape), smoothness, mode="wrap")
    return field / np.sqrt((weights**2).sum())


@dataclass(frozen=True)
class LevelSets:
    """True edges of one case.

    Attributes:
        phi: signed distance to each structure's edge in pixels, `[K, *S]`. Structures nest: a later one lies within all
            earlier ones.
        sigma: ambiguity in pixels, `[K, *S]`, positive.
    """

    phi: Array
    sigma: Array

    def _scores(self, habit: RaterHabit) -> Array:
        """Return per voxel the negative of the field value above which the rater marks it."""
        scores = (self.phi + habit.bias) / (habit.unsteadiness * self.sigma)
        # one field for all structures: a voxel of a structure belongs to all that enclose it, hence the smallest score
        nested: Array = np.minimum.accumulate(scores, axis=0)
        return nested

    def marking_probability(self, habits: Sequence[RaterHabit]) -> Array:
        """Return the probability that each rater marks each voxel, `[R, K, *S]`."""
        return np.stack([ndtr(self._scores(habit)) for habit in habits])

    def draw_masks(self, habits: Sequence[RaterHabit], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Draw one mask per rater and structure, `[R, K, *S]`."""
        fields = [unit_field(self.phi.shape[1:], habit.smoothness, rng) for habit in habits]
        masks = [self._scores(habit) + field > 0 for habit, field in zip(habits, fields, strict=True)]
        return np.stack(masks).astype(np.uint8)


def expected_variance(probability: Array) -> Array:
    """Return the expectation of V*, the population variance between the raters' labels.

    For independent raters who mark with probability `p_r`, `E[V*] = E[q] - E[q^2]`, where `q` is the share who marked.

    Args:
        probability: `[R, ...]`.

    Returns:
        `[...]`
    """
    raters = len(probability)
    mean = probability.mean(axis=0)
    variance_of_share = (probability * (1 - probability)).sum(axis=0) / raters**2
    expected: Array = mean - mean**2 - variance_of_share
    return expected
