"""Masks from drawn outlines: right on rendered photographs whose masks are known, or refused, but never wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter
from scipy.special import expit

from edue_lightning.data.images import ImageError
from edue_lightning.data.sources.riga.drawings import LONGEST_GAP, recover

Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]

BLACK, GREY, BLUE = (0, 0, 0), (30, 30, 30), (63, 72, 204)
"""Pens of the release; the third rater's is blue."""

SHAPE = (600, 800)
MIDDLE = (310.0, 480.0)
RADIUS = 60.0
OPEN = r"^has no closed outline of a disc with at most one cup in it; close gaps of more than 20 pixels, or remove"
NO_LINE = r"^has no line that its photograph does not have too; draw the outlines, or remove the file$"


@cache
def fundus(
    seed: int, shape: tuple[int, int] = SHAPE, middle: tuple[float, float] = MIDDLE, radius: float = RADIUS
) -> NDArray[np.float32]:
    """Return a photograph, `[H, W, 3]` in 0 to 255: a shaded, grainy eye with vessels that leave a bright disc."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape, dtype=np.float32)
    across = np.hypot(rows - shape[0] / 2, columns - shape[1] / 2) / shape[0]
    picture = (1 - 1.2 * across**2)[..., None] * np.array([165, 85, 35], dtype=np.float32)
    apart = np.hypot(rows - middle[0], columns - middle[1])
    for edge, softness, colour in ((radius, 0.05, (60, 60, 35)), (radius / 2, 0.12, (25, 45, 50))):
        picture += expit((edge - apart) / (softness * radius))[..., None] * np.array(colour, dtype=np.float32)
    centres = np.ones(shape, dtype=np.bool_)
    for angle in rng.uniform(0, 2 * np.pi, 10):
        turns = angle + rng.normal(scale=0.03, size=shape[1]).cumsum()
        path = np.stack([middle[0] + np.sin(turns).cumsum(), middle[1] + np.cos(turns).cumsum()], axis=1)
        inside = path[((path >= 0) & (path < shape)).all(axis=1)].astype(int)
        centres[inside[:, 0], inside[:, 1]] = False
    vessels = np.exp(-((distance_transform_edt(centres) / (0.08 * radius)) ** 2))
    picture *= 1 - vessels[..., None] * np.array([0.4, 0.65, 0.6], dtype=np.float32)
    grain = rng.normal(size=(*shape, 4)).astype(np.float32)
    picture += 12 * gaussian_filter(grain[..., 0], 1.5)[..., None] + 2 * grain[..., 1:]
    return (picture * (across < 0.55)[..., None]).clip(0, 255)


def blob(rng: np.random.Generator, middle: Sequence[float], radius: float, shape: tuple[int, int] = SHAPE) -> Mask:
    """Return a smooth shape around a point, a level set of a wobbling circle."""
    first = [int(at - 2 * radius) for at in middle]
    edge = int(4 * radius)
    down, right = (axis + start - at for axis, start, at in zip(np.indices((edge, edge)), first, middle, strict=True))
    angle = np.arctan2(down, right)
    waves = sum(rng.normal(scale=0.06 / n) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 4, 5))
    mask = np.zeros(shape, dtype=np.bool_)
    mask[first[0] : first[0] + edge, first[1] : first[1] + edge] = np.hypot(down, right) < radius * (1 + waves)
    return mask


def line_of(mask: Mask, thickness: float, soft: bool = False) -> NDArray[np.float32]:
    """Return how much of a pen's colour lies where, centred on the mask's edge."""
    line = np.zeros(mask.shape, dtype=np.float32)
    ((rows, columns),) = find_objects(mask.astype(np.uint8))
    around = np.s_[rows.start - 10 : rows.stop + 10, columns.start - 10 : columns.stop + 10]
    inside = mask[around]
    across = np.abs(np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside)) - 0.5)
    line[around] = np.clip(thickness / 2 + 0.5 - across, 0, 1) if soft else across <= thickness / 2
    return line


def sector(mask: Mask, angle: float, length: float) -> Mask:
    """Return the pixels that see a mask's outline along so many of its pixels from its middle."""
    middle = np.argwhere(mask).mean(axis=0)
    rows, columns = np.indices(mask.shape)
    turned = np.arctan2(rows - middle[0], columns - middle[1]) - angle
    opening = length / np.sqrt(mask.sum() / np.pi)
    return np.abs(np.angle(np.exp(1j * turned))) <= opening / 2


def drawn(photograph: NDArray, *lines: NDArray, pen: tuple[int, int, int] = BLACK) -> NDArray:
    for line in lines:
        photograph = photograph * (1 - line[..., None]) + line[..., None] * np.array(pen)
    return photograph


def stored(picture: NDArray, quality: int | None) -> Picture:
    """Return a picture as it is read back from a JPEG file, or from a lossless one."""
    pixels = picture.round().clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, **({"format": "PNG"} if quality is None else {"format": "JPEG", "quality": quality})
    )
    return np.asarray(Image.open(file))


def dice(first: Mask | None, second: Mask) -> float:
    assert first is not None
    assert first.dtype == np.bool_
    assert first.shape == second.shape
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@dataclass
class Eye:
    """A photograph with a disc and a cup that a rater sees, and a pen to draw them."""

    seed: int
    cup_share: float | None = None

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 1])
        self.photograph = fundus(self.seed % 4)
        middle = np.array(MIDDLE) + rng.normal(scale=8, size=2)
        radius = RADIUS * rng.uniform(0.85, 1.2)
        self.disc = blob(rng, middle, radius)
        share = rng.uniform(0.3, 0.75) if self.cup_share is None else self.cup_share
        self.cup = blob(rng, middle + rng.normal(scale=0.05 * radius, size=2), share * radius) & self.disc
        self.thickness = float(rng.choice([2, 3, 4]))
        self.soft = bool(rng.random() < 0.5)
        self.pen = (BLACK, GREY, BLUE)[rng.integers(3)]
        self.qualities = (int(rng.integers(75, 96)), int(rng.integers(75, 96)))

    def line(self, mask: Mask) -> NDArray[np.float64]:
        return line_of(mask, self.thickness, self.soft)

    def pair(self, *lines: NDArray, lossless: bool = False) -> tuple[Picture, Picture]:
        """Return photograph and drawing, each from a file of its own."""
        first, second = (None, None) if lossless else self.qualities
        return stored(self.photograph, first), stored(drawn(self.photograph, *lines, pen=self.pen), second)


def test_random_outlines_in_jpeg_files() -> None:
    discs, cups = [], []
    for seed in range(36):
        eye = Eye(seed)
        found = recover(*eye.pair(eye.line(eye.disc), eye.line(eye.cup)))
        discs.append(dice(found.disc, eye.disc))
        cups.append(dice(found.cup, eye.cup))
        assert not (found.cup & ~found.disc).any()  # type: ignore[operator]
    assert np.median(discs) >= 0.995
    assert min(discs) >= 0.99
    assert np.median(cups) >= 0.99
    assert min(cups) >= 0.97


@pytest.mark.parametrize("quality", [None, 75, 95])
@pytest.mark.parametrize("thickness", [1, 2, 3, 4, 7])
def test_masks_neither_grow_nor_shrink_with_the_pen(quality: int | None, thickness: int) -> None:
    eye = Eye(5)
    lines = [line_of(mask, thickness) for mask in (eye.disc, eye.cup)]
    found = recover(stored(eye.photograph, quality), stored(drawn(eye.photograph, *lines), quality))
    for mask, truth in ((found.disc, eye.disc), (found.cup, eye.cup)):
        assert mask is not None
        outline = 2 * np.sqrt(np.pi * truth.sum())
        assert abs(int(mask.sum()) - int(truth.sum())) < 0.5 * outline


@pytest.mark.parametrize("pen", [BLACK, GREY, BLUE, (255, 255, 255), (0, 200, 0)])
def test_pens_of_any_colour(pen: tuple[int, int, int]) -> None:
    eye = Eye(2)
    picture = drawn(eye.photograph, eye.line(eye.disc), eye.line(eye.cup), pen=pen)
    found = recover(stored(eye.photograph, 80), stored(picture, 90))
    assert dice(found.disc, eye.disc) > 0.99
    assert dice(found.cup, eye.cup) > 0.98


def test_lossless_files() -> None:
    for seed in range(4):
        eye = Eye(seed)
        found = recover(*eye.pair(eye.line(eye.disc), eye.line(eye.cup), lossless=True))
        assert dice(found.disc, eye.disc) > 0.99
        assert dice(found.cup, eye.cup) > 0.98


def test_a_photograph_of_true_size() -> None:
    shape, middle, radius = (1936, 2743), (900.0, 1900.0), 150.0
    rng = np.random.default_rng(0)
    photograph = fundus(0, shape, middle, radius)
    disc, cup = blob(rng, middle, radius, shape), blob(rng, middle, 0.5 * radius, shape)
    picture = drawn(photograph, line_of(disc, 3, soft=True), line_of(cup, 3, soft=True))
    found = recover(stored(photograph, 75), stored(picture, 85))
    assert dice(found.disc, disc) > 0.995
    assert dice(found.cup, cup) > 0.99


def test_the_photograph_is_not_needed_around_the_drawing() -> None:
    # no side is a multiple of a block, and the disc is cut close on two sides
    eye = Eye(1)
    window = np.s_[201:433, 380:797]
    pair = [picture[window] for picture in eye.pair(eye.line(eye.disc), eye.line(eye.cup))]
    found = recover(pair[0], pair[1])
    assert dice(found.disc, eye.disc[window]) > 0.99
    assert dice(found.cup, eye.cup[window]) > 0.98


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length", [1.5, 4, 8, 16])
def test_short_gaps_are_closed(seed: int, length: float) -> None:
    eye = Eye(seed)
    angle = 2.0 + seed
    lines = [eye.line(mask) * ~sector(mask, angle + part, length) for part, mask in enumerate((eye.disc, eye.cup))]
    found = recover(*eye.pair(*lines))
    assert dice(found.disc, eye.disc) > 0.99
    assert dice(found.cup, eye.cup) > 0.95


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("which", ["disc", "cup"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_long_gaps_are_not(seed: int, which: str, share: float) -> None:
    eye = Eye(seed, cup_share=0.6)
    lines = []
    for name, mask in (("disc", eye.disc), ("cup", eye.cup)):
        length = 2 * np.sqrt(np.pi * mask.sum()) * share
        assert length > 1.5 * LONGEST_GAP
        lines.append(eye.line(mask) * ~sector(mask, 1.0, length) if name == which else eye.line(mask))
    with pytest.raises(ImageError, match=OPEN):
        recover(*eye.pair(*lines))


def test_half_a_disc_alone_is_open() -> None:
    eye = Eye(0)
    with pytest.raises(ImageError, match=OPEN):
        recover(*eye.pair(eye.line(eye.disc) * ~sector(eye.disc, 1.0, np.pi * RADIUS)))


def test_no_cup() -> None:
    for seed in range(4):
        eye = Eye(seed)
        found = recover(*eye.pair(eye.line(eye.disc)))
        assert found.cup is None
        assert dice(found.disc, eye.disc) > 0.99


def moved_to_edge(eye: Eye, angle: float, beyond: float) -> Mask:
    """Return the cup, moved until so large a share of it lies beyond the disc, and that share cut off."""
    for step in range(100):
        moved = (round(step * np.sin(angle)), round(step * np.cos(angle)))
        cup = np.roll(eye.cup, moved, axis=(0, 1))
        if (cup & ~eye.disc).sum() > beyond * cup.sum():
            break
    mask: Mask = cup & eye.disc
    return mask


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cup_share", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("beyond", [0.0, 0.05, 0.2])
def test_cups_that_touch_the_disc_or_share_its_line(seed: int, cup_share: float, beyond: float) -> None:
    eye = Eye(seed, cup_share)
    cup = moved_to_edge(eye, 2.0 * seed, beyond)
    found = recover(*eye.pair(eye.line(eye.disc), eye.line(cup)))
    assert dice(found.disc, eye.disc) > 0.99
    assert dice(found.cup, cup) > 0.95


def test_a_cup_between_two_sides_of_the_disc() -> None:
    eye = Eye(3)
    middle = np.argwhere(eye.disc).mean(axis=0)
    rows, columns = np.indices(SHAPE)
    cup = eye.disc & (((rows - middle[0]) / 90) ** 2 + ((columns - middle[1]) / 30) ** 2 < 1)
    found = recover(*eye.pair(eye.line(eye.disc), eye.line(cup)))
    assert dice(found.disc, eye.disc) > 0.99
    assert dice(found.cup, cup) > 0.95


def stroke(start: Sequence[float], end: Sequence[float], thickness: float = 3) -> NDArray[np.float64]:
    """Return a straight line of a pen."""
    away = np.ones(SHAPE, dtype=np.bool_)
    path = np.linspace(start, end, 400).round().astype(int)
    away[path[:, 0], path[:, 1]] = False
    return (distance_transform_edt(away) <= thickness / 2).astype(float)


def test_a_slip_of_the_pen_is_no_open_outline() -> None:
    eye = Eye(0)
    top = np.argwhere(eye.disc)[0]
    found = recover(*eye.pair(eye.line(eye.disc), eye.line(eye.cup), stroke(top, top - [10, 4])))
    assert dice(found.disc, eye.disc) > 0.99
    assert dice(found.cup, eye.cup) > 0.98


@pytest.mark.parametrize("place", [(0, 0), (0, 75)])
def test_a_stray_stroke_by_the_outline_is_refused(place: tuple[int, int]) -> None:
    eye = Eye(0)
    start = np.argwhere(eye.disc).mean(axis=0) + place
    with pytest.raises(ImageError, match=OPEN):
        recover(*eye.pair(eye.line(eye.disc), stroke(start, (start[0] + 5, start[1] + 40))))


def test_a_stray_stroke_far_away_does_not_matter() -> None:
    eye = Eye(0)
    found = recover(*eye.pair(eye.line(eye.disc), eye.line(eye.cup), stroke((100, 200), (105, 215))))
    assert dice(found.disc, eye.disc) > 0.99
    assert dice(found.cup, eye.cup) > 0.98


def test_two_cups_are_refused() -> None:
    eye = Eye(0)
    middle = np.argwhere(eye.disc).mean(axis=0)
    cups = [eye.line(blob(np.random.default_rng(0), (middle[0], middle[1] + side), 15)) for side in (-24, 24)]
    with pytest.raises(ImageError, match=OPEN):
        recover(*eye.pair(eye.line(eye.disc), *cups))


def test_a_rim_as_thin_as_a_line_is_never_taken_for_a_missing_cup() -> None:
    for seed in range(8):
        eye = Eye(seed)
        cup = distance_transform_edt(eye.disc) > 4 + eye.thickness
        try:
            found = recover(*eye.pair(eye.line(eye.disc), eye.line(cup)))
        except ImageError:
            continue
        assert dice(found.cup, cup) > 0.95
        assert dice(found.disc, eye.disc) > 0.95


def test_outlines_torn_at_random_are_right_or_refused() -> None:
    refused = 0
    for seed in range(30):
        rng = np.random.default_rng([seed, 2])
        eye = Eye(seed, cup_share=float(rng.uniform(0.3, 0.8)))
        lines = []
        for mask in (eye.disc, eye.cup):
            line = eye.line(mask)
            for _ in range(rng.integers(0, 3)):
                # at most some 60 % of an outline
                length = float(rng.choice([rng.uniform(2, 15), rng.uniform(0, 0.3) * np.sqrt(mask.sum() * 4 * np.pi)]))
                line = line * ~sector(mask, float(rng.uniform(0, 7)), length)
            lines.append(line)
        try:
            found = recover(*eye.pair(*lines))
        except ImageError:
            refused += 1
            continue
        assert dice(found.disc, eye.disc) > 0.9
        assert dice(found.cup, eye.cup) > 0.9
    assert 0 < refused < 20


@pytest.mark.parametrize("seed", range(3))
def test_another_eye(seed: int) -> None:
    eye = Eye(seed)
    other = fundus(seed + 10)[:, ::-1]
    with pytest.raises(ImageError, match=r"^differs from its photograph everywhere; replace it with a drawing on that"):
        recover(stored(eye.photograph, 85), stored(drawn(other, eye.line(eye.disc), eye.line(eye.cup)), 85))


def test_no_line() -> None:
    eye = Eye(0)
    photograph = stored(eye.photograph, 80)
    with pytest.raises(ImageError, match=NO_LINE):
        recover(photograph, photograph)
    for first, second in ((75, 95), (90, 80)):
        with pytest.raises(ImageError):
            recover(stored(eye.photograph, first), stored(eye.photograph, second))


@pytest.mark.parametrize("shape", [(5, 7), (64, 64)])
def test_pictures_that_are_no_photographs(shape: tuple[int, int]) -> None:
    black = np.zeros((*shape, 3), dtype=np.uint8)
    with pytest.raises(ImageError, match=NO_LINE):
        recover(black, black)
    with pytest.raises(ImageError):
        recover(black, black + np.uint8(200))
    dotted = black.copy()
    dotted[2, 3] = 255
    with pytest.raises(ImageError):
        recover(black, dotted)


def test_sizes_that_differ() -> None:
    photograph = stored(fundus(0), None)
    with pytest.raises(ImageError, match=r"^is 600x799, but its photograph is 600x800; replace it with a copy of the"):
        recover(photograph, photograph[:, 1:])


def test_the_same_pictures_give_the_same_masks_and_stay_as_they_are() -> None:
    eye = Eye(4)
    pair = eye.pair(eye.line(eye.disc) * ~sector(eye.disc, 1.0, 6), eye.line(eye.cup))
    before = [picture.copy() for picture in pair]
    first, second = recover(*pair), recover(*pair)
    np.testing.assert_array_equal(first.disc, second.disc)
    np.testing.assert_array_equal(first.cup, second.cup)
    for picture, copy in zip(pair, before, strict=True):
        np.testing.assert_array_equal(picture, copy)
