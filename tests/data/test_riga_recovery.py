"""Masks out of lines that were drawn on photographs: right, or refused, and never silently wrong."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from edue_lightning.data.images import ImageError
from edue_lightning.data.riga.drawings import recover

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
PENS = [(0, 0, 0), (20, 20, 230), (255, 255, 255), (10, 200, 10)]


class Scene(NamedTuple):
    photograph: Picture
    drawing: Picture
    disc: Mask
    cup: Mask


def scene(seed: int) -> Scene:
    """Return a fundus with vessels, a bumpy disc and cup, and their outlines in a pen of 2 to 4 pixels."""
    rng = np.random.default_rng(seed)
    shape = (500, 700)
    y, x = np.indices(shape)
    cy, cx = rng.uniform(200, 300), rng.uniform(250, 450)
    angle, distance = np.arctan2(y - cy, x - cx), np.hypot(y - cy, x - cx)

    def filled(radius: float) -> Mask:
        waves = sum(rng.normal(0, 0.05 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(1, 6))
        return distance < radius * (1 + waves)

    radius = rng.uniform(60, 110)
    disc = filled(radius)
    cup = filled(radius * rng.uniform(0.35, 0.75)) & binary_erosion(disc, iterations=6)
    texture = gaussian_filter(rng.normal(size=shape), 4) * 60 + gaussian_filter(rng.normal(size=shape), 1) * 8
    glow = 70 * gaussian_filter(disc.astype(float), 6) + 40 * gaussian_filter(cup.astype(float), 4)
    colours = np.array([160.0, 85.0, 45.0]) + (texture + glow)[..., None] * [0.8, 0.9, 0.7]
    for _ in range(6):
        turn = rng.uniform(0, 2 * np.pi)
        off = np.abs((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn) + rng.normal(0, 20))
        colours -= (40 * np.exp(-0.5 * (off / 3) ** 2))[..., None] * [0.9, 0.6, 0.4]
    photograph = colours.clip(0, 255).astype(np.uint8)
    drawing = photograph.copy()
    width = int(rng.integers(2, 5))
    for mask in (disc, cup):
        line = binary_dilation(mask, iterations=(width + 1) // 2) & ~binary_erosion(mask, iterations=width // 2)
        drawing[line] = PENS[rng.integers(len(PENS))]
    return Scene(photograph, drawing, disc, cup)


def as_jpeg(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def dice(first: Mask, second: Mask) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("quality", [75, 85, 95])
def test_masks_come_back_from_jpeg(quality: int) -> None:
    found: list[tuple[float, float]] = []
    for seed in range(20):
        photograph, drawing, disc, cup = scene(seed)
        # each was saved for itself
        recovered = recover(as_jpeg(photograph, quality), as_jpeg(drawing, quality))
        assert recovered.cup is not None
        found.append((dice(recovered.disc, disc), dice(recovered.cup, cup)))
    medians, worst = np.median(found, axis=0), np.min(found, axis=0)
    assert (medians >= 0.98).all(), medians
    assert (worst >= 0.95).all(), worst


@pytest.mark.parametrize("seed", range(4))
def test_the_width_of_the_pen_neither_grows_nor_shrinks_a_mask(seed: int) -> None:
    photograph, drawing, disc, cup = scene(seed)
    recovered = recover(photograph, drawing)
    assert recovered.cup is not None
    for mask, truth in ((recovered.disc, disc), (recovered.cup, cup)):
        radius = np.sqrt(truth.sum() / np.pi)
        # less than a pixel along the whole outline
        assert abs(np.sqrt(mask.sum() / np.pi) - radius) < 1


def test_gaps_are_bridged_or_refused() -> None:
    photograph, drawing, disc, cup = scene(1)
    rows, columns = np.nonzero(disc)
    right = columns.max()
    middle = int(rows[columns == right].mean())
    small = drawing.copy()
    small[middle - 2 : middle + 3, right - 8 : right + 9] = photograph[middle - 2 : middle + 3, right - 8 : right + 9]
    recovered = recover(photograph, small)
    assert dice(recovered.disc, disc) > 0.97
    assert recovered.cup is not None
    assert dice(recovered.cup, cup) > 0.97
    large = drawing.copy()
    large[:, columns.min() - 9 : int(columns.mean())] = photograph[:, columns.min() - 9 : int(columns.mean())]
    with pytest.raises(ImageError):
        recover(photograph, large)


def test_what_is_no_drawing_of_the_photograph_is_refused() -> None:
    photograph, drawing, *_ = scene(2)
    with pytest.raises(ImageError):
        recover(photograph, photograph)
    with pytest.raises(ImageError):
        recover(as_jpeg(photograph, 90), as_jpeg(photograph, 80))
    with pytest.raises(ImageError):
        recover(photograph, np.roll(drawing, 60, axis=1))
    with pytest.raises(ImageError):
        recover(photograph, scene(5).drawing)
    with pytest.raises(ImageError, match="is 499x700, but its photograph is 500x700"):
        recover(photograph, drawing[1:])


def test_a_disc_alone_has_no_cup() -> None:
    photograph, drawing, disc, cup = scene(3)
    inner = binary_dilation(cup, iterations=4)
    without = np.where(inner[..., None], photograph, drawing)
    recovered = recover(photograph, without)
    assert recovered.cup is None
    assert dice(recovered.disc, disc) > 0.98


def test_a_cup_that_touches_the_disc_is_found() -> None:
    photograph, _, disc, _ = scene(4)
    rows, columns = np.nonzero(disc)
    y, x = np.indices(disc.shape)
    edge = columns.max()
    radius = (edge - columns.min()) * 0.25
    cup = ((y - rows.mean()) ** 2 + (x - (edge - radius)) ** 2 <= radius**2) & disc
    drawing = photograph.copy()
    for mask in (disc, cup):
        drawing[binary_dilation(mask) & ~binary_erosion(mask)] = (0, 0, 0)
    recovered = recover(photograph, drawing)
    assert dice(recovered.disc, disc) > 0.98
    assert recovered.cup is not None
    assert dice(recovered.cup, cup) > 0.95
