"""Synthetic PET/CT volumes with lymph nodes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.special import expit

from edue_lightning.data.sources.synthetic.base import SyntheticSource
from edue_lightning.data.sources.synthetic.level_set import LevelSets

Array = NDArray[np.float64]


class SyntheticPetCt(SyntheticSource):
    """Synthetic PET/CT volumes with one to three lymph nodes, whose disagreement is known in closed form.

    - Cases: `n_cases` (120 by default), each a volume of two channels (CT, PET) in about [0, 1], with voxels of 2 mm.
    - Raters: `raters` (six by default), each with a bias, an unsteadiness and a smoothness, see `level_set`.
    - Source: drawn by this code from `seed`, so no licence but that of the package applies. Images and raters are
      synthetic; say so wherever results on them are shown.

    Where an edge is ambiguous, CT contrast fades and the PET uptake is blurred.

    Args:
        n_cases: number of cases.
        size: edge of the volume in voxels of 2 mm.
        raters: number of raters R, the same in every case.
        seed: seed of all draws.
        missing_rater_rate: probability that a rater skipped a case; where all skip it, one of them, drawn at random,
            is kept.
    """

    spatial_dims = 3
    channels = 2
    structures = ("GTVn",)
    prefix: ClassVar[str] = "petct"
    smallest_size: ClassVar[int] = 16
    voxel_spacing: ClassVar[float | None] = 2.0

    def __init__(
        self, n_cases: int = 120, size: int = 48, raters: int = 6, seed: int = 0, missing_rater_rate: float = 0.0
    ) -> None:
        super().__init__(n_cases, size, raters, seed, missing_rater_rate)

    def scene(self, rng: np.random.Generator) -> tuple[Array, LevelSets]:
        """Draw a volume `[2, D, H, W]`, CT and PET each in about [0, 1], and the truth behind it."""
        shape = (self.size,) * 3
        grid = np.indices(shape, dtype=float)
        wobble = self.size / 48 * 1.2 * _unit(gaussian_filter(rng.normal(size=shape), self.size / 12))
        phi = np.full(shape, -np.inf)
        for _ in range(int(rng.integers(1, 4))):
            centre = self.size / 2 + rng.uniform(-0.25, 0.25, size=3) * self.size
            semi_axes = self.size * rng.uniform(0.06, 0.15) * rng.uniform(0.75, 1.25, size=3)
            scaled = np.sqrt((((grid - centre[:, None, None, None]) / semi_axes[:, None, None, None]) ** 2).sum(axis=0))
            phi = np.maximum(phi, (1 - scaled) * semi_axes.min())
        # the wobble must not wipe out the last node: a distance needs an edge
        phi = _signed_distance((phi + wobble > 0) | (phi > phi.max() - 0.5))
        trend = _unit(gaussian_filter(rng.normal(size=shape), self.size / 6))
        sigma = self.size / 48 * rng.uniform(0.5, 1.8) * (1 + 0.6 * np.tanh(trend)) + 0.25

        node = expit(phi / (0.9 * sigma))
        tissue = 0.5 + 0.05 * _unit(gaussian_filter(rng.normal(size=shape), 2.0))
        ct = tissue + 0.3 * node / (1 + 0.4 * sigma) + rng.normal(scale=0.03, size=shape)
        uptake = rng.uniform(0.4, 1.0) * gaussian_filter(node, 1.2)
        pet = 0.1 + uptake + 0.03 * _unit(gaussian_filter(rng.normal(size=shape), 1.2))
        return np.stack([ct, pet]), LevelSets(phi[None], sigma[None])


def _signed_distance(inside: NDArray[np.bool_]) -> Array:
    """Return the distance to the edge in voxels, positive inside; its slope of 1 keeps raters near the edge.

    It is smoothed a little, because a distance on the grid has steps that would show in the image.
    """
    to_voxels: Array = distance_transform_edt(inside) - distance_transform_edt(~inside)
    smoothed: Array = gaussian_filter(to_voxels - 0.5 * np.sign(to_voxels), 0.7)
    return smoothed


def _unit(field: Array) -> Array:
    return field / max(float(field.std()), 1e-9)
