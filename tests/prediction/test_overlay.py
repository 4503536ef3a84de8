"""The picture of a predicted case: outline, maps in their colours, title and scale, in their places."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.reporting.overlay import CaseMaps, overlay_picture

ORANGE = (213, 94, 0)
# left edges of the three panels and of the two scales
PANELS, SCALES, WIDTH = (12, 354, 760), (696, 1102), 330


def maps_of(shape: tuple[int, ...], *, colour: bool = False, aspect: float = 1.0) -> CaseMaps:
    probability = np.zeros(shape, np.float32)
    probability[..., 8:24, 8:24] = 1
    disagreement = np.zeros(shape, np.float32)
    disagreement[..., 4:8, 8:24] = 0.25
    image = np.full((*shape, 3) if colour else shape, 0.5, np.float32)
    return CaseMaps(image, probability, disagreement, probability, 0.5, aspect)


def pixels(
    maps: CaseMaps, title: str = "case, structure: no flag", variance: str = "disagreement"
) -> NDArray[np.uint8]:
    return np.asarray(overlay_picture(maps, title, variance))


@pytest.mark.parametrize("colour", [False, True])
def test_each_panel_shows_its_map_over_the_image(colour: bool) -> None:
    drawn = pixels(maps_of((32, 32), colour=colour))
    first_row = drawn.shape[0] - 12 - WIDTH

    def at(panel: int, row: int, column: int) -> tuple[int, ...]:
        scale = WIDTH / 32
        where = first_row + int((row + 0.5) * scale), PANELS[panel] + int((column + 0.5) * scale)
        return tuple(drawn[where].tolist())

    grey = (128, 128, 128)
    assert [at(panel, 28, 28) for panel in range(3)] == [grey] * 3
    assert at(0, 16, 16) == grey
    yellow = 255 * (0.15 * 0.5 + 0.85 * np.array(colormaps["viridis"](1.0)[:3]))
    np.testing.assert_allclose(at(1, 16, 16), yellow, atol=1)
    pale = 255 * (0.15 * 0.5 + 0.85 * np.array(colormaps["magma"](1.0)[:3]))
    np.testing.assert_allclose(at(2, 6, 16), pale, atol=1)
    outline = (drawn == ORANGE).all(axis=-1)
    rows, columns = np.nonzero(outline)
    # around the voxels 8 to 23, in the first panel alone
    scale = WIDTH / 32
    expected = np.array([8, 24]) * scale
    np.testing.assert_allclose([rows.min() - first_row, rows.max() + 1 - first_row], expected, atol=2)
    np.testing.assert_allclose([columns.min() - PANELS[0], columns.max() + 1 - PANELS[0]], expected, atol=2)
    for left, name in zip(SCALES, ("viridis", "magma"), strict=True):
        top, bottom = drawn[first_row, left + 3], drawn[first_row + WIDTH - 1, left + 3]
        np.testing.assert_allclose(top, 255 * np.array(colormaps[name](1.0)[:3]), atol=1)
        np.testing.assert_allclose(bottom, 255 * np.array(colormaps[name](0.0)[:3]), atol=1)


def test_a_volume_is_drawn_at_its_most_disputed_slice_with_its_aspect() -> None:
    maps = maps_of((3, 32, 32), aspect=2.0)
    maps.disagreement[[0, 2]] = 0
    maps.probability[[0, 2]] = 0
    volume, picture = pixels(maps), pixels(maps.slice(1))
    # the same panels, below one more line of the title
    assert volume.shape[0] == picture.shape[0] + 18
    np.testing.assert_array_equal(volume[-660:], picture[-660:])
    assert picture.shape[0] > 660


def test_the_title_is_shown_whole_and_as_it_is() -> None:
    maps = maps_of((32, 32))
    short, long = pixels(maps, "case"), pixels(maps, " ".join(["percentile_99 $of$ channel"] * 20))
    lines = (long.shape[0] - short.shape[0]) // 18
    assert lines >= 2
    ink = (long < 128).any(axis=(1, 2))
    assert all(ink[12 + 18 * line : 30 + 18 * line].any() for line in range(lines + 1))
    # nothing is cut off at the sides
    assert (long[: 18 * lines, [0, 5, -6, -1]] == 255).all()


def test_a_large_image_is_made_smaller_and_an_empty_mask_has_no_outline() -> None:
    maps = maps_of((900, 640))
    maps.decision[:] = 0
    drawn = pixels(maps, variance="total_variance")
    assert drawn.shape[1] == pixels(maps_of((32, 32))).shape[1]
    assert not (drawn == ORANGE).all(axis=-1).any()
    assert Image.fromarray(drawn).mode == "RGB"
