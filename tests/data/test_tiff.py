"""TIFF files hold numbers in many ways: each is read as other programs read it, or refused in one line."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.data.images import ImageError, read_colours, read_image, read_mask

ORIENTATION, SHORT = 274, 3


def scale_of(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if dtype in (np.uint8, np.uint16) else 1.0


def refusal(path: Path) -> str:
    for read in (read_image, read_mask):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    return str(caught.value)


def disc(dtype: type) -> NDArray:
    """Return a dark picture with a bright disc."""
    y, x = np.indices((24, 32))
    values = np.where(np.hypot(y - 12, x - 16) < 8, 200, 30)
    return (values * (257 if dtype == np.uint16 else 1)).astype(dtype)


@pytest.mark.parametrize(("dtype", "order"), [(np.uint8, "<"), (np.uint8, ">"), (np.uint16, "<")])
def test_where_0_means_white_values_are_inverted(tmp_path: Path, dtype: type, order: str) -> None:
    shown = disc(dtype)
    path = tmp_path / "a.tif"
    stored = (np.iinfo(dtype).max - shown).astype(dtype)
    tifffile.imwrite(path, stored, photometric="miniswhite", byteorder=order)  # type: ignore[arg-type]
    np.testing.assert_allclose(read_image(path).array[0], shown / scale_of(shown.dtype), rtol=1e-6)
    marked = np.where(shown > shown.min(), np.iinfo(dtype).max, 0)
    tifffile.imwrite(path, (np.iinfo(dtype).max - marked).astype(dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(path).array, marked > 0)


@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack"])
@pytest.mark.parametrize("compression", [None, "group4", "packbits"])
def test_pictures_of_one_bit(tmp_path: Path, photometric: str, compression: str | None) -> None:
    mask = disc(np.uint8) > 100
    path = tmp_path / "a.tif"
    tags = {262: 0 if photometric == "miniswhite" else 1}
    stored = Image.fromarray(~mask if photometric == "miniswhite" and compression is None else mask)
    stored.save(path, compression=compression, tiffinfo=tags)
    with tifffile.TiffFile(path) as file:
        means_white = file.pages[0].photometric == 0  # type: ignore[union-attr]
    expected = tifffile.imread(path).astype(bool) ^ means_white if compression is None else mask
    np.testing.assert_array_equal(read_mask(path).array, expected)
    np.testing.assert_array_equal(read_image(path).array[0], expected)


KINDS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.float16, np.float32, np.float64]
LAYOUTS: list[dict[str, Any]] = [
    {"photometric": "minisblack"},
    {"photometric": "minisblack", "tile": (16, 16)},
    {"photometric": "minisblack", "rowsperstrip": 5},
    {"photometric": "minisblack", "compression": "zlib"},
    {"photometric": "miniswhite"},
    {"photometric": "rgb", "planarconfig": "contig"},
    {"photometric": "rgb", "planarconfig": "separate"},
    {"photometric": "rgb", "planarconfig": "contig", "tile": (16, 16)},
    {"photometric": "rgb", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
    {"photometric": "rgb", "extrasamples": ["unspecified"], "planarconfig": "contig"},
    {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
    {"photometric": "minisblack", "extrasamples": ["unspecified"], "planarconfig": "contig"},
    {"photometric": "minisblack", "extrasamples": ["unspecified"] * 2, "planarconfig": "separate"},
    {"photometric": "separated", "planarconfig": "contig"},
    {"photometric": "cielab", "planarconfig": "contig"},
    {"photometric": "ycbcr", "planarconfig": "contig", "subsampling": (1, 1)},
]


def of_layout(layout: dict[str, Any], dtype: type) -> NDArray:
    """Return numbers that use the range of a type, in a shape for a layout."""
    extra = len(layout.get("extrasamples", ()))
    channels = {"rgb": 3, "separated": 4, "cielab": 3, "ycbcr": 3}.get(layout["photometric"], 1) + extra
    shape = (24, 32) if channels == 1 else (24, 32, channels)
    if layout.get("planarconfig") == "separate":
        shape = (channels, 24, 32)
    rng = np.random.default_rng(channels)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize(("layout", "dtype"), list(product(LAYOUTS, KINDS)), ids=str)
def test_no_number_differs_from_another_decoder(tmp_path: Path, layout: dict[str, Any], dtype: type) -> None:
    stored = of_layout(layout, dtype)
    path = tmp_path / "a.tif"
    for order in "<>":
        tifffile.imwrite(path, stored, byteorder=order, **layout)  # type: ignore[arg-type]
        try:
            found = read_image(path).array
        except ImageError:
            # which are refused, the tests below say
            continue
        expected = tifffile.imread(path)
        assert expected.dtype == dtype
        if layout.get("planarconfig") == "contig":
            expected = np.moveaxis(expected, -1, 0)
        expected = expected.reshape(-1, 24, 32)
        if layout["photometric"] == "miniswhite":
            expected = np.iinfo(dtype).max - expected
        if layout.get("extrasamples") == ["unassalpha"]:
            expected = expected[:-1]
        np.testing.assert_allclose(found, expected / scale_of(expected.dtype), rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        (LAYOUTS[0], np.uint8),
        (LAYOUTS[0], np.uint16),
        (LAYOUTS[0], np.int16),
        (LAYOUTS[0], np.uint32),
        (LAYOUTS[0], np.int32),
        (LAYOUTS[0], np.float32),
        *((LAYOUTS[position], np.uint8) for position in (1, 2, 3, 4, 5, 6, 7, 8, 10)),
    ],
    ids=str,
)
def test_usual_pictures_are_read_not_refused(tmp_path: Path, layout: dict[str, Any], dtype: type) -> None:
    tifffile.imwrite(tmp_path / "a.tif", of_layout(layout, dtype), **layout)
    read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("layout", "dtype", "words"),
    [
        (LAYOUTS[0], np.int8, "holds signed numbers of 8 bits; save it with 8 or 16 bits"),
        (LAYOUTS[4], np.float32, "holds floating-point numbers of 32 bits, and 0 means white; save it"),
        (LAYOUTS[5], np.uint16, "holds 16-bit colours, which would be cut to 8 bits"),
        (LAYOUTS[9], np.uint8, "holds 4 channels, some neither colour nor transparency; save one file per channel"),
        (LAYOUTS[11], np.uint8, "holds 2 channels, some neither"),
        (
            LAYOUTS[13],
            np.uint8,
            "holds colours of an unusual kind (PhotometricInterpretation 5); save it as grey or RGB",
        ),
        (LAYOUTS[14], np.uint8, "holds colours of an unusual kind (PhotometricInterpretation 8)"),
        (LAYOUTS[15], np.uint8, "holds colours of an unusual kind (PhotometricInterpretation 6)"),
    ],
)
def test_what_programs_show_differently_is_refused(
    tmp_path: Path, layout: dict[str, Any], dtype: type, words: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", of_layout(layout, dtype), **layout)
    assert refusal(tmp_path / "a.tif").startswith(words)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_pictures_that_are_stored_turned(tmp_path: Path, orientation: int, compression: str | None) -> None:
    tags = [(ORIENTATION, SHORT, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", disc(np.uint8), extratags=tags, compression=compression)
    words = f"is stored turned (TIFF orientation {orientation}); save it upright"
    assert refusal(tmp_path / "a.tif") == words
    with pytest.raises(ImageError, match="is stored turned"):
        read_colours(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", disc(np.uint8), extratags=[(ORIENTATION, SHORT, 1, 1, True)])
    read_image(tmp_path / "a.tif")


def test_stacks_behind_a_single_directory(tmp_path: Path) -> None:
    stack = np.zeros((3, 24, 32), dtype=np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack, imagej=True)
    assert refusal(path) == "holds 3 pages; save one 2D picture per file, volumes as NIfTI"
    # what ImageJ writes from 4 GB on
    description = "ImageJ=1.53\nimages=3\nslices=3"
    tifffile.imwrite(path, stack[0], description=description, metadata=None)
    assert refusal(path).startswith("holds 3 pages")
    tifffile.imwrite(path, stack, truncate=True, photometric="minisblack")
    assert refusal(path).startswith("holds 3 pages")
    tifffile.imwrite(path, stack, volumetric=True, tile=(16, 16, 16), photometric="minisblack")
    assert refusal(path)
    tifffile.imwrite(path, stack[0], imagej=True)
    read_image(path)
    tifffile.imwrite(path, stack[0])
    read_image(path)


def test_numbers_of_12_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((24, 24), dtype=np.uint16), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[258].overwrite(12)  # type: ignore[union-attr]
    assert refusal(path) == "holds unsigned numbers of 12 bits; save it with 8 or 16 bits"


def test_palettes(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    colours = np.zeros((3, 256), dtype=np.uint16)
    colours[0, 1] = 65535
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, labels, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read_mask(path).array, labels)
    np.testing.assert_array_equal(read_image(path).array, [labels, 0 * labels, 0 * labels])
    tifffile.imwrite(path, labels, photometric="palette", colormap=colours // 257)
    assert refusal(path) == "has a palette of 8 bits per colour, where TIFF wants 16; save it again"


def test_colours_packed_as_jpeg(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (1, 64, 3))
    Image.fromarray(ramp).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").array, np.moveaxis(ramp, -1, 0) / 255, atol=0.03)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_compressed_numbers_with_the_highest_byte_first(tmp_path: Path, dtype: type) -> None:
    stored = np.arange(12).reshape(3, 4).astype(dtype)
    for order, words in (("<", ""), (">", "is compressed, its highest byte first, which Pillow misreads; save it")):
        tifffile.imwrite(tmp_path / "a.tif", stored, byteorder=order, compression="zlib")  # type: ignore[arg-type]
        if words:
            assert refusal(tmp_path / "a.tif").startswith(words)
        else:
            np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0], stored)
