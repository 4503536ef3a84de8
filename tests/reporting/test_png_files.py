"""PNG files hold the pixels they were given."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edue_lightning.reporting.png_files import png_file


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (1, 300), (300, 1), (64, 48, 3), (1, 1, 3)])
def test_the_pixels_are_those_of_the_picture(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    read = Image.open(io.BytesIO(png_file(Image.fromarray(values))))
    read.verify()
    read = Image.open(io.BytesIO(png_file(Image.fromarray(values))))
    assert read.mode == ("RGB" if len(shape) == 3 else "L")
    np.testing.assert_array_equal(np.asarray(read), values)


def test_other_kinds_of_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="picture must be of mode L or RGB, not RGBA"):
        png_file(Image.new("RGBA", (2, 2)))
