"""Writes pictures as the releases of RIGA hold them: photographs, drawings on them, and masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

Mask = NDArray[np.bool_]


@dataclass
class Eye:
    """A photograph with six raters' discs and cups, ellipses of known place.

    Attributes:
        number: of the picture; all that is drawn at random follows from it.
        shape: rows and columns.
        middle: of the disc.
        texture: seed of the photograph's texture, by which pictures of one number differ.
    """

    number: int
    shape: tuple[int, int] = (240, 320)
    middle: tuple[float, float] = (110.0, 190.0)
    texture: int = 1
    raters: dict[str, tuple[Mask, Mask]] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.number)
        self.raters = {}
        for rater in "123456":
            radii = np.array([34.0, 30.0]) + rng.uniform(-3, 3, 2)
            disc = self.ellipse(radii, rng.uniform(-2, 2, 2))
            cup = self.ellipse(radii * rng.uniform(0.4, 0.6), rng.uniform(-2, 2, 2))
            self.raters[rater] = (disc, cup & disc)

    def ellipse(self, radii: NDArray, shift: NDArray) -> Mask:
        """Return a filled ellipse around the middle of the disc."""
        rows, columns = np.indices(self.shape)
        middle = np.array(self.middle) + shift
        return ((rows - middle[0]) / radii[0]) ** 2 + ((columns - middle[1]) / radii[1]) ** 2 <= 1

    def photograph(self) -> NDArray[np.uint8]:
        """Return the untouched picture, `[H, W, 3]`."""
        rng = np.random.default_rng([self.number, self.texture])
        disc, cup = self.raters["1"]
        glow = gaussian_filter(disc.astype(float), 5) * 60 + gaussian_filter(cup.astype(float), 3) * 40
        texture = gaussian_filter(rng.normal(size=self.shape), 3) * 40
        colours = np.array([150.0, 80.0, 40.0]) + (glow + texture)[..., None] * [0.8, 0.9, 0.7]
        return colours.clip(0, 255).astype(np.uint8)

    def drawing(self, rater: str, with_cup: bool = True) -> NDArray[np.uint8]:
        """Return the photograph with a rater's outlines."""
        picture = self.photograph()
        for mask in self.raters[rater] if with_cup else self.raters[rater][:1]:
            edge = mask & ~np.pad(mask, 1)[2:, 1:-1] | mask ^ np.roll(mask, 1, axis=0) | mask ^ np.roll(mask, 1, axis=1)
            picture[binary_dilation(edge)] = (20, 20, 230)
        return picture


def save(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a picture, JPEG at quality 92."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {"quality": 92} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    Image.fromarray(picture).save(path, **quality)


def write_drawn(root: Path, folder: str, eye: Eye, endings: tuple[str, str] = ("jpg", "jpg")) -> Path:
    """Write a case of the raw release, and return its folder; as there, spelling and endings differ within it."""
    place = root / folder
    save(eye.photograph(), place / f"image{eye.number}prime.{endings[0]}")
    for rater in eye.raters:
        name = f"Image{eye.number}" if rater == "1" else f"image{eye.number}"
        save(eye.drawing(rater), place / f"{name}-{rater}.{endings[1] if rater == '3' else endings[0]}")
    return place


def mask_of(eye: Eye, rater: str, rim: int, cup: int) -> NDArray[np.uint8]:
    """Return a mask with one value for the disc's rim and one for the cup."""
    disc, inner = eye.raters[rater]
    return (np.where(disc, rim, 0) * ~inner + np.where(inner, cup, 0)).astype(np.uint8)
