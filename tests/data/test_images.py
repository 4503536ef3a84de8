"""Reading single files: what was written comes back, and what cannot be a picture is told."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import imageio.v3 as imageio
import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.data.images import (
    ImageError,
    ImageFile,
    read_colours,
    read_image,
    read_label_map,
    read_mask,
)

OBLIQUE = np.array([[0.0, -0.6, 2.0, 10.0], [0.5, 0.0, 0.0, -20.0], [0.0, 0.8, 1.5, 5.0], [0.0, 0.0, 0.0, 1.0]])
"""Voxels of 0.5, 1 and 2.5 mm, turned against the axes of space."""

reused_folder = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_picture(path: Path, array: NDArray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def write_volume(path: Path, array: NDArray, affine: NDArray = OBLIQUE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def write_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Path:
    """Write a PNG file by hand: Pillow writes no 16-bit colours and no lies."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@reused_folder
@given(st.data(), st.sampled_from([".png", ".tif", ".TIFF"]))
def test_grey_pictures_of_8_and_16_bits(tmp_path: Path, data: st.DataObject, ending: str) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    stored = data.draw(arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=6)))
    image = read_image(write_picture(tmp_path / f"image{ending}", stored))
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array, (stored.astype(np.float32) / np.iinfo(dtype).max)[None])
    assert image.spacing is None
    assert image.affine is None


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colours_without_transparency(tmp_path: Path, ending: str, bands: int) -> None:
    stored = np.random.default_rng(bands).integers(0, 256, (5, 7, bands), dtype=np.uint8)
    image = read_image(write_picture(tmp_path / f"image{ending}", stored))
    np.testing.assert_array_equal(
        image.array, np.moveaxis(stored[..., : 1 if bands == 2 else 3], -1, 0) / np.float32(255)
    )


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(tmp_path: Path, compression: str | None) -> None:
    stored = np.arange(35, dtype=np.uint8).reshape(5, 7)
    image = read_image(write_picture(tmp_path / "image.tif", stored, compression=compression))
    np.testing.assert_array_equal(image.array[0], stored / np.float32(255))


def test_tiff_of_both_byte_orders_and_of_numbers_without_a_range(tmp_path: Path) -> None:
    stored = np.arange(6).reshape(2, 3) * 10000
    for order in "<>":
        tifffile.imwrite(tmp_path / "grey.tif", stored.astype(np.uint16), byteorder=order)
        np.testing.assert_allclose(read_image(tmp_path / "grey.tif").array[0], stored / 65535, rtol=1e-6)
    tifffile.imwrite(tmp_path / "float.tif", stored.astype(np.float32))
    np.testing.assert_array_equal(read_image(tmp_path / "float.tif").array[0], stored)


def test_palettes_become_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 51, 102, 153])
    picture.save(tmp_path / "palette.png", transparency=1)
    image = read_image(tmp_path / "palette.png").array
    np.testing.assert_allclose(image[:, 1, 0], [0.2, 0.4, 0.6], rtol=1e-6)
    np.testing.assert_array_equal(image[:, 0, 1], [0, 1, 0])


def test_jpeg_comes_close(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (1, 64, 3))
    image = read_image(write_picture(tmp_path / "image.JPG", ramp, quality=95))
    assert image.array.shape == (3, 64, 64)
    np.testing.assert_allclose(image.array, np.moveaxis(ramp, -1, 0) / 255, atol=0.03)


@reused_folder
@given(st.data(), st.sampled_from([".nii", ".nii.gz"]))
def test_nifti_keeps_values_axes_and_place(tmp_path: Path, data: st.DataObject, ending: str) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.float32]))
    elements = st.floats(-1e6, 1e6, width=32) if dtype == np.float32 else None
    shape = data.draw(array_shapes(min_dims=3, max_dims=4, min_side=2, max_side=4))
    stored = data.draw(arrays(dtype, shape, elements=elements))
    path = write_volume(tmp_path / f"image{ending}", stored)
    image = read_image(path)
    expected = np.moveaxis(stored, -1, 0) if stored.ndim == 4 else stored[None]
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array, expected)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(image.spacing, (0.5, 1.0, 2.5), rtol=1e-6)


def test_nifti_slope_big_endian_and_units(tmp_path: Path) -> None:
    volume = nibabel.Nifti1Image(np.arange(24, dtype=">i2").reshape(2, 3, 4), np.diag([1e3, 2e3, 3e3, 1.0]))
    volume.header.set_slope_inter(0.5, -100)
    volume.header.set_xyzt_units("micron")
    nibabel.save(volume, tmp_path / "scaled.nii")
    image = read_image(tmp_path / "scaled.nii")
    raw = np.asarray(nibabel.load(tmp_path / "scaled.nii").dataobj)
    np.testing.assert_allclose(image.array[0], raw, rtol=1e-6)
    assert image.spacing == pytest.approx((1, 2, 3))


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 5), (1, 4, 5)), ((4, 5, 1), (1, 4, 5)), ((4, 5, 1, 2), (2, 4, 5))]
)
def test_a_single_slice_is_2d(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    stored = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = write_volume(tmp_path / "slice.nii.gz", stored)
    image = read_image(path)
    assert image.array.shape == expected
    np.testing.assert_array_equal(image.array[-1], stored.reshape(4, 5, -1)[..., -1])
    assert image.spacing == pytest.approx((0.5, 1.0))


@reused_folder
@given(
    arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=6)),
    st.integers(1, 255),
    st.sampled_from(["grey", "rgb", "rgba", "nifti"]),
)
def test_masks_of_any_one_value(tmp_path: Path, mask: NDArray[np.bool_], value: int, kind: str) -> None:
    stored = mask.astype(np.uint8) * np.uint8(value)
    if kind == "nifti":
        path = write_volume(tmp_path / "mask.nii.gz", stored)
    elif kind == "grey":
        path = write_picture(tmp_path / "mask.png", stored)
    else:
        bands = [stored] * 3 + ([np.full_like(stored, 255)] if kind == "rgba" else [])
        path = write_picture(tmp_path / "mask.png", np.stack(bands, axis=-1))
    found = read_mask(path)
    assert found.array.dtype == bool
    np.testing.assert_array_equal(found.array, mask)


def test_a_palette_from_black_on_lists_labels(tmp_path: Path) -> None:
    labels = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode="P")
    labels.putpalette([0, 0, 0, 128, 0, 0])
    labels.save(tmp_path / "red.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "red.png").array, [[0, 1], [1, 0]])
    labels.putpalette([255, 255, 255, 0, 0, 0])
    labels.save(tmp_path / "white.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "white.png").array, [[1, 0], [0, 1]])


def test_a_palette_of_greys_is_grey(tmp_path: Path) -> None:
    values = np.array([[0, 2, 5], [5, 2, 0]], dtype=np.uint8)
    # GIF drops the greys between
    Image.fromarray(values).save(tmp_path / "grey.gif")
    assert Image.open(tmp_path / "grey.gif").mode in ("P", "L")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.gif", threshold=4).array, values >= 4)


def test_a_jpeg_of_two_values_is_a_mask(tmp_path: Path) -> None:
    blocks = np.kron(np.eye(2, dtype=np.uint8), np.full((8, 8), 255, dtype=np.uint8))
    path = write_picture(tmp_path / "mask.jpg", blocks, quality=100)
    np.testing.assert_array_equal(read_mask(path).array, blocks > 0)


def disc() -> NDArray[np.uint8]:
    y, x = np.indices((32, 32))
    return (np.hypot(y - 16, x - 16) < 9).astype(np.uint8) * 255


def shape_in_transparency() -> NDArray[np.uint8]:
    return np.dstack([np.zeros((32, 32, 3), dtype=np.uint8), disc()])


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        (
            "m.png",
            np.array([[0, 1, 3]], dtype=np.uint8),
            "^holds the values 0, 1, 3; a mask holds 0 and one other value$",
        ),
        ("m.png", np.array([[1, 2]], dtype=np.uint8), "^holds the values 1, 2; a mask"),
        ("m.png", np.arange(100, dtype=np.uint8)[None], r"^holds the values 0, 1, 2, 3, 4, 5, \.\.\.; a mask"),
        ("m.nii", np.array([[[0, 0.5], [1, 1]]]), "^holds the values 0, 0.5, 1; a mask"),
        ("m.nii", np.array([[[0, np.nan], [1, 1]]]), "^holds the values 0, 1, nan; a mask"),
        ("m.png", np.eye(9, dtype=np.uint8)[..., None] * np.array([255, 0, 0], dtype=np.uint8), "^is coloured; save"),
        ("m.jpg", disc(), "^is a JPEG, which blurs labels; save the mask as PNG$"),
        ("m.png", shape_in_transparency(), "^has its shape in the transparency; save"),
    ],
)
def test_what_is_no_mask(tmp_path: Path, name: str, stored: NDArray, message: str) -> None:
    write = write_volume if name.endswith(".nii") else write_picture
    with pytest.raises(ImageError, match=message):
        read_mask(write(tmp_path / name, stored))


def claimed_volume(path: Path, *shape: int) -> Path:
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = header.binaryblock + bytes(4) + bytes(64)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
def test_absurd_volumes_are_refused_by_their_header(tmp_path: Path, name: str, read: object) -> None:
    path = claimed_volume(tmp_path / name, 30000, 30000, 30000)
    with pytest.raises(ImageError, match=r"^its header claims 30000x30000x30000 voxels, more than 2\^31; "):
        read(path)  # type: ignore[operator]


def test_absurd_pictures_are_refused_by_their_header(tmp_path: Path) -> None:
    path = write_png(tmp_path / "huge.png", 100_000, 100_000, 8, 0, bytes(10))
    with pytest.raises(ImageError, match=r"^its header claims more pixels than Pillow's limit; "):
        read_image(path)


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
def test_volumes_shorter_than_they_claim(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"^cannot be read \(.+\); save it again$"):
        read_image(claimed_volume(tmp_path / name, 30, 30, 30))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp", "a.nii", "a.nii.gz"])
def test_damaged_files_give_one_line_without_the_folder(tmp_path: Path, name: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    path = tmp_path / name
    write = write_volume if ".nii" in name else write_picture
    whole = write(path, stored).read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:20], b"", np.random.default_rng(1).bytes(200)):
        path.write_bytes(broken)
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    return str(caught.value)


def test_formats_are_few(tmp_path: Path) -> None:
    bitmap = write_picture(tmp_path / "a.pcx", np.zeros((4, 5), dtype=np.uint8))
    assert refusal(bitmap).startswith("has none of the endings .png, .jpg,")
    assert "(cannot identify image file" in refusal(bitmap.rename(tmp_path / "a.png"))
    other = tmp_path / "a.mgz"
    nibabel.save(nibabel.MGHImage(np.zeros((3, 4, 5), dtype=np.float32), np.eye(4)), other)
    assert refusal(other.rename(tmp_path / "a.nii.gz")).startswith("cannot be read (")


def test_pictures_that_could_be_read_in_two_ways(tmp_path: Path) -> None:
    grey = np.zeros((4, 5), dtype=np.uint8)
    pages = [Image.fromarray(grey) for _ in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert refusal(tmp_path / "pages.tif").startswith("holds 3 pages; ")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert refusal(write_picture(tmp_path / "turned.jpg", grey, exif=exif)).startswith("is stored turned (EXIF")
    assert refusal(write_png(tmp_path / "a.png", 1, 1, 16, 2, bytes(7))).startswith("holds 16-bit colours")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 3), dtype=np.uint16), photometric="rgb")
    assert refusal(tmp_path / "a.tif").startswith("holds 16-bit colours")


def test_numbers_that_are_none(tmp_path: Path) -> None:
    volume = np.zeros((3, 4, 5), dtype=np.float32)
    volume[1, 2, 3] = np.inf
    path = write_volume(tmp_path / "inf.nii", volume)
    assert refusal(path) == "holds NaN or infinity; replace these values"
    tifffile.imwrite(tmp_path / "nan.tif", np.full((3, 4), np.nan, dtype=np.float32))
    assert refusal(tmp_path / "nan.tif") == "holds NaN or infinity; replace these values"


def test_volumes_that_are_no_images(tmp_path: Path) -> None:
    vectors = write_volume(tmp_path / "vectors.nii", np.zeros((3, 4, 5, 1, 2), dtype=np.uint8))
    assert "claims the shape 3x4x5x1x2" in refusal(vectors)
    colours = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refusal(write_volume(tmp_path / "colours.nii", colours)).startswith("holds colours or complex numbers")
    flat = write_volume(tmp_path / "flat.nii", np.zeros((3, 4, 5), dtype=np.uint8), np.eye(4))
    content = bytearray(flat.read_bytes())
    content[296:312] = bytes(16)  # srow_y, the second row of the affine
    flat.write_bytes(content)
    assert refusal(flat) == "its header gives no valid voxel size; correct its affine"


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("marked", [0, 1, 7, 16, 30])
def test_masks_of_one_bit(tmp_path: Path, ending: str, marked: int) -> None:
    mask = np.arange(30).reshape(5, 6) < marked
    path = write_picture(tmp_path / f"mask{ending}", mask)
    assert imageio.imread(path).astype(bool).sum() == marked
    np.testing.assert_array_equal(read_mask(path).array, mask)
    np.testing.assert_array_equal(read_image(path).array[0], mask)


def test_pictures_of_few_bits(tmp_path: Path) -> None:
    for depth in (1, 2, 4):
        levels = 2**depth
        values = np.arange(8 // depth * 2) % levels
        packed = values.reshape(2, -1, 1) * levels ** np.arange(8 // depth)[::-1][:, None]
        rows = b"".join(b"\0" + bytes([row]) for row in packed.sum(axis=(1, 2)) % 256)
        path = write_png(tmp_path / f"{depth}.png", 8 // depth, 2, depth, 0, rows)
        expected = imageio.imread(path)
        np.testing.assert_allclose(
            read_image(path).array[0], expected.astype(float) / imageio_range(expected), rtol=1e-6
        )


def imageio_range(array: NDArray) -> float:
    return 1.0 if array.dtype == bool else float(np.iinfo(array.dtype).max)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_png_files_whose_checksum_does_not_match(tmp_path: Path, read: Callable[[Path], ImageFile]) -> None:
    mask = np.zeros((9, 9), dtype=np.uint8)
    mask[2:4, 3:5] = 255
    path = write_picture(tmp_path / "a.png", mask, compress_level=0)
    read(path)
    content = bytearray(path.read_bytes())
    pixel = content.index(bytes([255, 255]), content.index(b"IDAT") + 16)
    checksum = content.index(b"IEND") - 8
    for place, words in ((pixel, "broken data stream"), (checksum, "a checksum does not match")):
        content[place] ^= 255
        path.write_bytes(content)
        with pytest.raises(ImageError, match=rf"^cannot be read \({words}.*\); save it again$"):
            read(path)
        content[place] ^= 255


def gross_volumes(path: Path) -> ImageFile:
    return read_label_map(path, {1: "GTVp", 2: "GTVn"})


@pytest.mark.parametrize("read", [read_image, read_mask, gross_volumes])
@pytest.mark.parametrize("place", [-8, -4, 60])
def test_gzip_files_whose_checksum_or_length_does_not_match(
    tmp_path: Path, read: Callable[[Path], ImageFile], place: int
) -> None:
    volume = np.zeros((14, 15, 16), dtype=np.uint8)
    volume[1:3, 2, 3] = 1
    path = write_volume(tmp_path / "a.nii", volume)
    packed = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(packed)
    read(path)
    # of the checksum, of the length, and of a description in the header, which decides on no voxel
    packed[place if place < 0 else packed.index(b"n+1") - 200] ^= 1
    path.write_bytes(packed)
    with pytest.raises(ImageError, match=r"^cannot be read \((CRC check failed|Incorrect length).*\); save it again$"):
        read(path)
    # other decoders do not look
    assert nibabel.load(path).get_fdata().shape == volume.shape
    path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes())[:-3])
    with pytest.raises(ImageError, match=r"^cannot be read \(.+\); save it again$"):
        read(path)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_that_would_begin_within_the_header(tmp_path: Path, kind: type, packed: bool) -> None:
    path = tmp_path / "a.nii"
    nibabel.save(kind(np.arange(60, dtype=np.int16).reshape(3, 4, 5), OBLIQUE), path)
    right = path.read_bytes()
    np.testing.assert_array_equal(read_image(path).array[0].ravel(), np.arange(60))
    place, code = (108, "<f") if kind is nibabel.Nifti1Image else (168, "<q")
    for offset in (0, 100, 340):
        content = right[:place] + struct.pack(code, offset) + right[place + struct.calcsize(code) :]
        target = tmp_path / ("a.nii.gz" if packed else "a.nii")
        target.write_bytes(gzip.compress(content) if packed else content)
        words = f"^its header says that the voxels begin at byte {offset}, within the header; save it again$"
        with pytest.raises(ImageError, match=words):
            read_image(target)


def test_headers_whose_voxels_lie_elsewhere(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.nii", np.zeros((3, 4, 5), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[344:348] = b"ni1\0"
    path.write_bytes(content)
    assert refusal(path) == "keeps its voxels in another file (.img); save both as one .nii or .nii.gz"
    content[344:348], content[108:112] = b"n+1\0", struct.pack("<f", 352.5)
    path.write_bytes(content)
    assert "begin at byte 352.5" in refusal(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_files_that_hold_more_voxels_than_their_header_claims(tmp_path: Path, ending: str) -> None:
    path = write_volume(tmp_path / "a.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    content = path.read_bytes()
    path = tmp_path / f"a{ending}"
    for surplus, is_read in ((16, True), (120, False), (5000, False)):
        longer = content + bytes(surplus)
        path.write_bytes(gzip.compress(longer) if ending == ".nii.gz" else longer)
        if is_read:
            np.testing.assert_array_equal(read_image(path).array[0].ravel(), np.arange(60))
        else:
            assert refusal(path) == "holds many more bytes than its header claims; save it again"


def test_further_axes_of_length_one(tmp_path: Path) -> None:
    stored = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    image = read_image(write_volume(tmp_path / "a.nii", stored[..., None, None, None]))
    np.testing.assert_array_equal(image.array, stored[None])
    assert "claims the shape 3x4x5x1x2" in refusal(write_volume(tmp_path / "b.nii", np.zeros((3, 4, 5, 1, 2), "u1")))


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [(0, 0, (1, 0)), (0, 7, (1, 0)), (np.nan, np.nan, (1, 0)), (np.nan, 3, (1, 0)), (2, -3, (2, -3)), (-1, 0, (-1, 0))],
)
def test_slopes_that_scale_and_those_that_do_not(
    tmp_path: Path, slope: float, intercept: float, expected: tuple[float, float]
) -> None:
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = write_volume(tmp_path / "a.nii", stored)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", slope, intercept)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).array[0], stored * expected[0] + expected[1])


def test_a_slope_without_its_intercept(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.nii", np.zeros((3, 4, 5), dtype=np.int16))
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", 2, np.nan)
    path.write_bytes(content)
    assert refusal(path).startswith("cannot be read (")


JUST_ABOVE, JUST_BELOW = np.nextafter(np.float32(1), 2), np.nextafter(np.float32(1), 0)


@pytest.mark.parametrize("factor", [1, 255, 1e-6, -3])
def test_masks_whose_values_are_rounded(tmp_path: Path, factor: float) -> None:
    mask = np.array([[[0, 1e-9, 1], [JUST_ABOVE, JUST_BELOW, 0.9998]]]) * factor
    found = read_mask(write_volume(tmp_path / "m.nii", mask)).array
    np.testing.assert_array_equal(found, [[[0, 0, 1], [1, 1, 1]]])


def test_masks_whose_whole_numbers_are_close(tmp_path: Path) -> None:
    stored = np.array([[[0, 65534, 65535]]], dtype=np.uint16)
    with pytest.raises(ImageError, match=r"^holds the values 0, 65534, 65535; a mask holds"):
        read_mask(write_volume(tmp_path / "m.nii", stored))


def test_values_are_listed_with_digits_that_tell_them_apart(tmp_path: Path) -> None:
    stored = np.array([[[0, 1, 0.9999999, 5]]])
    with pytest.raises(ImageError, match=r"^holds the values 0, 0\.9999999, 1, 5; a mask"):
        read_mask(write_volume(tmp_path / "m.nii", stored))


def test_labels_that_are_rounded(tmp_path: Path) -> None:
    stored = np.array([[[0, 1e-7, JUST_ABOVE], [JUST_BELOW, 2.0000002, 1.9999]]], dtype=np.float32)
    np.testing.assert_array_equal(
        gross_volumes(write_volume(tmp_path / "l.nii", stored)).array, [[[0, 0, 1], [1, 2, 2]]]
    )
    for value, shown in ((1.5, "1.5"), (1.01, "1.01"), (np.nan, "nan")):
        stored[0, 0, 0] = value
        with pytest.raises(ImageError, match=f"^holds the value {shown}; labels are 0, 1"):
            gross_volumes(write_volume(tmp_path / "l.nii", stored))


def test_a_palette_whose_colours_hide_labels(tmp_path: Path) -> None:
    labels = Image.fromarray(np.array([[0, 1], [2, 0]], dtype=np.uint8), mode="P")
    labels.putpalette([0, 0, 0, 0, 0, 0, 255, 255, 255])
    labels.save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"^its palette shows the value 1 as black, like 0; save the mask as grey$"):
        read_mask(tmp_path / "m.png")


def test_marks_that_are_transparent(tmp_path: Path) -> None:
    colours = np.dstack([disc()] * 3 + [np.full((32, 32), 255, dtype=np.uint8)])
    path = write_picture(tmp_path / "m.png", colours)
    np.testing.assert_array_equal(read_mask(path).array, disc() > 0)
    # nothing is seen where nothing is marked
    write_picture(path, np.dstack([*[disc()] * 3, disc()]))
    np.testing.assert_array_equal(read_mask(path).array, disc() > 0)
    write_picture(path, np.dstack([*[disc()] * 3, 255 - disc()]))
    with pytest.raises(ImageError, match=r"^marks pixels that are transparent; save the mask without transparency$"):
        read_mask(path)
    grey = Image.fromarray(disc())
    grey.save(path, transparency=255)
    with pytest.raises(ImageError, match=r"^marks pixels that are transparent"):
        read_mask(path)
    grey.save(path, transparency=0)
    np.testing.assert_array_equal(read_mask(path).array, disc() > 0)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_pictures_that_are_stored_turned(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_picture(tmp_path / f"a{ending}", np.zeros((16, 24), dtype=np.uint8), exif=exif)
    for read in (read_image, read_mask, read_colours):
        with pytest.raises(ImageError, match=r"^is stored turned "):
            read(path)


@pytest.mark.parametrize("ending", [".jpg", ".tif"])
def test_colours_for_print(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(np.zeros((16, 24, 4), dtype=np.uint8), mode="CMYK").save(path)
    assert refusal(path).startswith("holds colours of an unusual kind (")


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("ending", [".ppm", ".ppm.gz"])
def test_portable_pixmaps_as_they_are_and_packed(tmp_path: Path, ending: str, bands: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)[..., :bands].squeeze()
    path = write_picture(tmp_path / "image.ppm", stored)
    if ending == ".ppm.gz":
        packed = tmp_path / "image.ppm.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    expected = np.moveaxis(np.atleast_3d(stored), -1, 0).astype(np.float32) / 255
    np.testing.assert_array_equal(read_image(path).array, expected)


@pytest.mark.parametrize(
    "content",
    [b"P6 2 2 65535 " + bytes(24), b"P5 2 2 65535 " + bytes(8), b"P5 2 2 15 " + bytes(4), b"P3 1 1 255 1 2 3"],
)
def test_portable_pixmaps_of_other_numbers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.ppm"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="holds other numbers than 0 to 255"):
        read_image(path)


def test_a_packed_pixmap_that_is_damaged_or_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.ppm.gz"
    packed = gzip.compress(b"P5 2 2 255 " + bytes(4))
    path.write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(path)
    path.write_bytes(packed)
    monkeypatch.setattr("edue_lightning.data.images._MOST_UNPACKED_BYTES", 10)
    with pytest.raises(ImageError, match="unpacks to more than"):
        read_image(path)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_in_gif(tmp_path: Path, mode: str) -> None:
    mask = np.random.default_rng(0).random((6, 5)) < 0.5
    Image.fromarray((mask * 255).astype(np.uint8)).convert(mode).save(tmp_path / "mask.gif")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.gif").array, mask)


def test_the_content_of_a_picture_is_read_like_its_file(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (5, 4), dtype=np.uint8)
    content = write_picture(tmp_path / "image.png", stored).read_bytes()
    np.testing.assert_array_equal(read_image(BytesIO(content)).array, read_image(tmp_path / "image.png").array)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(BytesIO(content[:-6]))


def contradicting(path: Path, sform: NDArray, qform: NDArray | None, codes: tuple[int, int] = (2, 1)) -> Path:
    """Write a volume whose header holds two transformations."""
    image = nibabel.Nifti1Image(np.zeros((6, 5, 4), dtype=np.float32), None)
    image.header.set_sform(sform, codes[0])
    if qform is not None:
        image.header.set_qform(qform, codes[1])
    nibabel.save(image, path)
    return path


RAS, MOVED, LPS, LARGE = (
    np.diag([1.0, 1.0, 2.0, 1.0]),
    nibabel.affines.from_matvec(np.diag([1.0, 1.0, 2.0]), [0, 0, 5]),
    nibabel.affines.from_matvec(np.diag([-1.0, -1.0, 2.0]), [5, 4, 0]),
    np.diag([1.0, 1.0, 3.0, 1.0]),
)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("other", "codes", "message"),
    [
        (MOVED, (2, 1), "two ways, up to 5 mm apart"),
        (MOVED, (1, 1), "two ways, up to 5 mm apart"),
        (LPS, (4, 1), "two ways, up to "),
        (LARGE, (1, 1), r"two voxel sizes, 1x1x2 \(sform\) and 1x1x3 \(pixdim\)"),
        # what a qform of code 0 holds is not used, but its voxel sizes are, by ITK
        (LARGE, (1, 0), r"two voxel sizes, 1x1x2 \(sform\) and 1x1x3 \(pixdim\)"),
        (MOVED, (1, 0), None),
        (MOVED, (0, 1), None),
        (RAS, (2, 1), None),
        # rounding of the quaternions
        (nibabel.affines.from_matvec(np.diag([1.0, 1.0, 2.0]), [0.01, 0, 0]), (2, 1), None),
    ],
)
def test_a_header_that_places_the_voxels_twice_is_refused(
    tmp_path: Path, ending: str, other: NDArray, codes: tuple[int, int], message: str | None
) -> None:
    path = contradicting(tmp_path / f"a{ending}", RAS, other, codes)
    for read in (read_image, read_mask):
        if message is None:
            assert read(path).affine is not None
        else:
            with pytest.raises(ImageError, match=message):
                read(path)
