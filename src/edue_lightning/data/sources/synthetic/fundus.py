"""Synthetic fundus photographs with optic disc and cup."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from edue_lightning.data.sources.synthetic.base import SyntheticSource
from edue_lightning.data.sources.synthetic.level_set import LevelSets

Array = NDArray[np.float64]

# red, green, blue
_RETINA = np.array([0.66, 0.30, 0.14])
_DISC = np.array([0.93, 0.66, 0.38])
_CUP = np.array([1.00, 0.88, 0.66])
_VESSEL = np.array([0.42, 0.10, 0.08])


class SyntheticFundus(SyntheticSource):
    """Synthetic fundus photographs, with outlines of disc and cup whose disagreement is known in closed form.

    - Cases: `n_cases` (400 by default), each an image of three channels in about [0, 1].
    - Raters: `raters` (six by default), each with a bias, an unsteadiness and a smoothness, see `level_set`.
    - Source: drawn by this code from `seed`, so no licence but that of the package applies. Images and raters are
      synthetic; say so wherever results on them are shown.

    Where an edge is ambiguous it is blurred in the picture: the disc on one side, the cup on another, in a direction
    and to a degree that differ per case, and more so under vessels.

    Args:
        n_cases: number of cases.
        size: edge of the image in pixels.
        raters: number of raters R, the same in every case.
        seed: seed of all draws.
        missing_rater_rate: probability that a rater skipped a case; where all skip it, one of them, drawn at random,
            is kept.
    """

    spatial_dims = 2
    channels = 3
    structures = ("disc", "cup")
    prefix: ClassVar[str] = "fundus"
    smallest_size: ClassVar[int] = 24
    voxel_spacing: ClassVar[float | None] = None

    def __init__(
        self, n_cases: int = 400, size: int = 64, raters: int = 6, seed: int = 0, missing_rater_rate: float = 0.0
    ) -> None:
        super().__init__(n_cases, size, raters, seed, missing_rater_rate)

    def scene(self, rng: np.random.Generator) -> tuple[Array, LevelSets]:
        """Draw a photograph `[3, H, W]` in about [0, 1] and the truth behind it."""
        size = self.size
        y, x = np.indices((size, size), dtype=float)
        centre = size / 2 + rng.uniform(-0.06, 0.06, size=2) * size
        dy, dx = y - centre[0], x - centre[1]
        radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)

        disc_radius = size * rng.uniform(0.22, 0.32)
        cup_radius = disc_radius * rng.uniform(0.35, 0.7)
        phi = np.stack([_wobbly(r, angle, rng) - radius for r in (disc_radius, cup_radius)])
        vessels = self._vessels(angle, radius, disc_radius, rng)
        # the cup's edge is a slope, not a line: harder for everybody
        ambiguity = size / 64 * np.array([rng.uniform(0.4, 1.5), rng.uniform(0.6, 2.2)])
        sigma = np.stack(
            [level * (1 + 0.8 * np.cos(angle - rng.uniform(0, 2 * np.pi))) + 0.3 for level in ambiguity]
        ) * (1 + 0.25 * vessels)

        visible = expit(phi / (0.9 * sigma))
        shading = 1 + 0.18 * _cloud((size, size), size / 5, rng)
        image = _RETINA[:, None, None] * shading
        for share, colour in zip(visible, (_DISC, _CUP), strict=True):
            contrast = rng.uniform(0.55, 1.0)
            image = image + contrast * share * (colour[:, None, None] * shading - image)
        image = image + 0.75 * vessels * (_VESSEL[:, None, None] - image)
        image = image + rng.normal(scale=0.025, size=image.shape)
        return image, LevelSets(phi, sigma)

    def _vessels(self, angle: Array, radius: Array, disc_radius: float, rng: np.random.Generator) -> Array:
        """Return the share of each pixel that lies under a vessel; vessels fan out from the centre of the disc."""
        covered = np.zeros_like(radius)
        for _ in range(int(rng.integers(5, 9))):
            start, bend = rng.uniform(0, 2 * np.pi), rng.normal(scale=0.35)
            direction = start + bend * radius / disc_radius
            off = radius * np.abs(np.angle(np.exp(1j * (angle - direction))))
            width = self.size / 64 * rng.uniform(0.5, 1.3)
            covered = np.maximum(covered, np.exp(-0.5 * (off / width) ** 2) * expit((radius - 2) / 1.5))
        return covered


def _wobbly(radius: float, angle: Array, rng: np.random.Generator) -> Array:
    """Return the distance of a slightly elliptic, slightly irregular edge in each direction."""
    waves = np.zeros_like(angle)
    for k in (2, 3, 4):
        waves += rng.normal(scale=0.06 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    return radius * (1 + waves)


def _cloud(shape: tuple[int, ...], smoothness: float, rng: np.random.Generator) -> Array:
    """Return a smooth field of about unit variance."""
    field: Array = gaussian_filter(rng.normal(size=shape), smoothness)
    return field / max(float(field.std()), 1e-9)
