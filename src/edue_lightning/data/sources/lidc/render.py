"""Rendered CT patches for nodules whose scans are not at hand.

An image depends on the readers' consensus shape, their mean ratings and a seed, but not on the single outlines, so it
cannot leak the disagreement that a model is to predict. Results on such images must say that they are rendered.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

AIR, SOFT_TISSUE = 0.15, 1.05
"""Lung parenchyma and soft tissue on the image's scale, (HU + 1000) / 1000."""


def render(consensus: NDArray[np.bool_], ratings: Mapping[str, float], seed: int) -> NDArray[np.float32]:
    """Draw a nodule in lung.

    Args:
        consensus: `[H, W]`, mask of at least half of the readers.
        ratings: means over the readers, 1 to 5: `margin` (1 is poorly defined) sets the blur of the edge, `texture` (1
            is ground glass, 5 solid) the density, `spiculation` and `lobulation` the spikes and lobes of the outline,
            `subtlety` (1 is hardly visible) the contrast.
        seed: seed of everything else: parenchyma, vessels, noise and the phase of spikes.

    Returns:
        `[H, W]` float32 on the scale (HU + 1000) / 1000: 0 is air, 1 water.
    """
    rng = np.random.default_rng(seed)
    scaled = {name: (value - 1) / 4 for name, value in ratings.items()}
    depth = _depth(consensus) + _protrusions(consensus, scaled["spiculation"], scaled["lobulation"], rng)
    softness = 0.6 + 2.4 * (1 - scaled["margin"])
    density = 0.35 + 0.65 * scaled["texture"]
    contrast = 0.45 + 0.55 * scaled["subtlety"]
    filled = 1 / (1 + np.exp(-depth / softness))

    texture = gaussian_filter(rng.normal(size=consensus.shape), 2.0) * 2.0
    lung = AIR + 0.12 * texture + _vessels(consensus.shape, rng)
    tissue = AIR + (SOFT_TISSUE - AIR) * density * contrast * (1 + 0.15 * texture)
    image = lung + filled * np.clip(tissue - lung, 0, None)
    noise = gaussian_filter(rng.normal(size=consensus.shape), 0.6) * 0.12
    return (image + noise).astype(np.float32)


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the signed distance in pixels to the edge, positive inside."""
    depth: NDArray[np.float64] = distance_transform_edt(mask) - distance_transform_edt(~mask)
    return depth - np.sign(depth) * 0.5


def _protrusions(
    mask: NDArray[np.bool_], spiculation: float, lobulation: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the distance in pixels by which spikes and lobes move the edge outwards in each direction."""
    rows, columns = np.nonzero(mask) if mask.any() else np.array([[mask.shape[0] // 2], [mask.shape[1] // 2]])
    y, x = np.indices(mask.shape, dtype=float)
    angle = np.arctan2(y - rows.mean(), x - columns.mean())
    spikes, lobes = int(rng.integers(7, 13)), int(rng.integers(3, 6))
    phases = rng.uniform(0, 2 * np.pi, size=2)
    pointed = np.clip(np.cos(spikes * angle + phases[0]), 0, None) ** 6
    return 3.5 * spiculation * pointed + 0.8 * lobulation * np.cos(lobes * angle + phases[1])


def _vessels(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw bright, slightly bent tubes."""
    y, x = np.indices(shape, dtype=float)
    vessels = np.zeros(shape)
    for _ in range(int(rng.integers(1, 5))):
        angle, bend = rng.uniform(0, np.pi), rng.normal(scale=0.006)
        offset = rng.uniform(-0.45, 0.45) * max(shape)
        along = (x - shape[1] / 2) * np.cos(angle) + (y - shape[0] / 2) * np.sin(angle)
        across = (y - shape[0] / 2) * np.cos(angle) - (x - shape[1] / 2) * np.sin(angle) - offset - bend * along**2
        width = rng.uniform(0.8, 1.8)
        vessels = np.maximum(vessels, rng.uniform(0.25, 0.7) * np.exp(-0.5 * (across / width) ** 2))
    return vessels
