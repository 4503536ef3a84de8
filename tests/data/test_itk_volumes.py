"""MetaImage and NRRD files: values, places, segments, and files that are damaged or ambiguous."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from edue_lightning.data.images import ImageError, parts_of, read_image, read_mask, read_segment
from edue_lightning.data.itk_volumes import nrrd_file
from edue_lightning.data.sources.manifest.source import ManifestSource

SHAPE = (6, 5, 4)
VALUES = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
SIZE = (0.5, 2.0, 3.0)


def volume(values: np.ndarray = VALUES) -> sitk.Image:
    """Return values `[I, J, K(, C)]` as an image of ITK with its axes to the left, posterior and superior."""
    turned = values.transpose(2, 1, 0, *range(3, values.ndim))
    image = sitk.GetImageFromArray(np.ascontiguousarray(turned), isVector=values.ndim == 4)
    image.SetSpacing(SIZE)
    image.SetOrigin((10, 20, 30))
    return image


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_values_and_places_come_back(tmp_path: Path, name: str, packed: bool) -> None:
    sitk.WriteImage(volume(), str(tmp_path / name), packed)
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(found.array[0], VALUES)
    assert found.affine is not None
    # left, posterior, superior of ITK
    np.testing.assert_allclose(found.affine, [[-0.5, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    assert found.spacing == SIZE
    others = [] if name.endswith(("mha", "nrrd")) else [path for path in tmp_path.iterdir() if path.name != name]
    assert parts_of(tmp_path / name) == (tmp_path / name, *others)


@pytest.mark.parametrize("space", ["right-anterior-superior", "RAS", "left-posterior-superior", "LPS"])
def test_a_nrrd_file_names_its_space(tmp_path: Path, space: str) -> None:
    write_nrrd(tmp_path / "a.nrrd", f"space: {space}")
    sign = -1 if space in ("left-posterior-superior", "LPS") else 1
    expected = [[0.5 * sign, 0, 0, 10 * sign], [0, 2 * sign, 0, 20 * sign], [0, 0, 3, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(read_image(tmp_path / "a.nrrd").affine, expected)


def test_other_units_than_mm_are_refused(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "a.nrrd", "space: LPS", space_units='"mm" "mm" "mm"')
    assert read_image(tmp_path / "a.nrrd").spacing == SIZE
    write_nrrd(tmp_path / "b.nrrd", "space: LPS", space_units='"um" "um" "um"')
    with pytest.raises(ImageError, match="gives its place in um; save it in mm"):
        read_image(tmp_path / "b.nrrd")


def write_nrrd(path: Path, space: str, **other: str) -> None:
    fields = {
        "type": "short",
        "dimension": "3",
        "sizes": "6 5 4",
        "space directions": "(0.5,0,0) (0,2,0) (0,0,3)",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(10,20,30)",
        **{key.replace("_", " "): value for key, value in other.items()},
    }
    # a space stands before the directions in it
    lines = [f"{key}: {value}" for key, value in fields.items() if value]
    lines[2:2] = [space] if space else []
    path.write_bytes("\n".join(["NRRD0004", *lines, "", ""]).encode() + VALUES.tobytes(order="F"))


OF_SLICE = {"dimension": "2", "sizes": "6 5", "spacings": "0.5 2", "space_directions": "", "space_origin": ""}


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_components_and_a_fourth_axis_are_channels(tmp_path: Path, name: str) -> None:
    both = np.stack([VALUES, VALUES // 2], axis=-1)
    sitk.WriteImage(volume(both), str(tmp_path / name))
    np.testing.assert_array_equal(read_image(tmp_path / name).array, np.moveaxis(both, -1, 0))
    sitk.WriteImage(sitk.JoinSeries([volume(both[..., 0]), volume(both[..., 1])]), str(tmp_path / name))
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(found.array, np.moveaxis(both, -1, 0))
    assert found.spacing == SIZE


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_slice_has_two_axes(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(volume()[:, :, 2], str(tmp_path / name))
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(found.array[0], VALUES[:, :, 2])
    assert found.spacing == SIZE[:2]
    sitk.WriteImage(volume()[:, :, 2:3], str(tmp_path / name))
    np.testing.assert_array_equal(read_image(tmp_path / name).array[0], VALUES[:, :, 2])


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) * 2 // 3],
        lambda content: content[:-2],
        lambda content: content[:-2] + bytes([content[-2] ^ 255, content[-1]]),
        lambda content: content[:-60] + bytes([content[-60] ^ 255]) + content[-59:],
        lambda content: content + content,
    ],
)
def test_a_damaged_file_is_never_read(
    tmp_path: Path, name: str, packed: bool, damage: Callable[[bytes], bytes]
) -> None:
    sitk.WriteImage(volume(), str(tmp_path / name), packed)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(damage(content))
    if len(damage(content)) == len(content) and not packed:
        # nothing can tell other voxels without a checksum
        read_image(tmp_path / name)
        return
    if len(damage(content)) > len(content) and packed:
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0], VALUES)
        return
    with pytest.raises(ImageError, match=r"cannot be read|more bytes"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("space", "other", "message"),
    [
        ("space dimension: 3", {}, "does not say which way its axes run"),
        ("space: scanner-xyz", {}, "run in the space 'scanner-xyz'"),
        ("space: left-anterior-superior", {}, "save it in left-posterior-superior"),
        ("space: RAS", {"space_directions": ""}, "gives no voxel size"),
        ("space: RAS", {"encoding": "ascii"}, "in the encoding 'ascii'"),
        ("space: RAS", {"byte_skip": "2"}, "skips bytes"),
        ("space: RAS", {"data_file": "../other.raw"}, "not in one file beside it"),
        ("space: RAS", {"data_file": "/etc/passwd"}, "not in one file beside it"),
        ("space: RAS", {"data_file": "LIST"}, "not in one file beside it"),
        ("space: RAS", {"data_file": "gone.raw"}, "which is not beside it"),
        ("space: RAS", {"sizes": "6000 5000 4000"}, "more than 2\\^31"),
        ("space: RAS", {"sizes": "600 500 400"}, "shorter than its header claims"),
        ("space: RAS", {"space_directions": "(0.5,0,0) (0,0,0) (0,0,3)"}, "cannot be read|voxel size"),
        ("space: RAS", {"old_min": "-1000", "old_max": "400"}, r"values that were quantised \(old min: -1000\)"),
        ("space: RAS", {"oldmax": "400"}, r"values that were quantised \(oldmax: 400\)"),
        ("space: RAS", {"byteskip": "-1"}, "skips bytes"),
        ("space: RAS", {"kinds": "domain domain time"}, r"has an axis of time \(kinds\)"),
        ("", {**OF_SLICE, "units": '"um" "um"'}, "gives its place in um; save it in mm"),
        ("", {**OF_SLICE, "axis_mins": "1 1"}, "gives its place by axis mins"),
    ],
)
def test_an_ambiguous_header_is_refused(tmp_path: Path, space: str, other: dict[str, str], message: str) -> None:
    write_nrrd(tmp_path / "a.nrrd", space, **other)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.nrrd")


def test_a_metaimage_header_without_a_voxel_size_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "a.mha"))
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content.replace(b"ElementSpacing = 0.5 2 3\n", b""))
    with pytest.raises(ImageError, match="gives no voxel size"):
        read_image(tmp_path / "a.mha")


MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1"


@pytest.mark.parametrize(
    ("line", "changed", "message"),
    [
        ("", "ElementToIntensityFunctionSlope = 2", r"scales its values \(ElementToIntensityFunctionSlope = 2\)"),
        ("", "ElementToIntensityFunctionOffset = -1024", "scales its values"),
        ("", "Origin = 1 2 3", r"contradicts itself \(Offset = 10 20 30 and Origin = 1 2 3\)"),
        ("", "Rotation = 0 1 0 1 0 0 0 0 1", "contradicts itself"),
        ("", "ElementByteOrderMSB = True", "contradicts itself"),
        ("", "Offset = 0 0 0", "gives Offset twice"),
        ("Offset = 10", "offset = 10", "gives offset, which other programs know as Offset alone"),
        (
            MATRIX + "\nOffset = 10 20 30\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI",
            "AnatomicalOrientation = RAS",
            r"AnatomicalOrientation = RAS\) without a TransformMatrix",
        ),
        (MATRIX, "TransformMatrix = 2 0 0 0 2 0 0 0 2", "changes sizes, not directions alone"),
        ("ElementSpacing = 0.5", "ElementSpacing = -0.5", "a voxel size below 0"),
    ],
)
def test_metaimage_fields_that_itk_ignores_are_refused(tmp_path: Path, line: str, changed: str, message: str) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "a.mha"))
    content = (tmp_path / "a.mha").read_bytes()
    begin = line.encode() if line else b"ElementDataFile"
    assert begin in content
    (tmp_path / "a.mha").write_bytes(
        content.replace(begin, changed.encode() + (b"" if line else b"\nElementDataFile"), 1)
    )
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.mha")


def test_metaimage_fields_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "a.mha"))
    content = (tmp_path / "a.mha").read_bytes()
    lines = ["ElementToIntensityFunctionSlope = 1.0", "ElementToIntensityFunctionOffset = 0", "Position = 10.0 20 30"]
    more = "\n".join([*lines, "ElementMin = -5", "ElementDataFile"]).encode()
    (tmp_path / "a.mha").write_bytes(content.replace(b"ElementDataFile", more, 1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.mha").array[0], VALUES)


def test_a_mask_with_two_different_channels_is_refused(tmp_path: Path) -> None:
    mask = np.zeros((*SHAPE, 2), np.uint8)
    mask[2:4, 2:4, 1:3, 0] = 1
    for name in ("a.mha", "a.nrrd"):
        sitk.WriteImage(volume(mask), str(tmp_path / name))
        with pytest.raises(ImageError, match="is coloured"):
            read_mask(tmp_path / name)


def save_segments(path: Path, layers: np.ndarray, origin: tuple[float, ...], **segments: tuple[int, int]) -> None:
    """Write labels `[I, J, K, L]` as 3D Slicer does, with layer and value of each segment."""
    image = volume(layers)
    image.SetOrigin(origin)
    for number, (name, (layer, value)) in enumerate(segments.items()):
        for key, text in (("Name", name), ("LabelValue", value), ("Layer", layer), ("ID", f"Segment_{number}")):
            image.SetMetaData(f"Segment{number}_{key}", str(text))
    image.SetMetaData("Segmentation_MasterRepresentation", "Binary labelmap")
    sitk.WriteImage(image, str(path), True)


def test_segments_have_names_and_may_overlap(tmp_path: Path) -> None:
    layers = np.zeros((*SHAPE, 2), np.uint8)
    layers[1:5, 1:4, 1:3, 0] = 1
    layers[0, 0, 0, 0] = 2
    layers[2:4, 2:3, 1:2, 1] = 1
    path = tmp_path / "a.seg.nrrd"
    save_segments(path, layers, (10, 20, 30), organ=(0, 1), vessel=(0, 2), Tumour=(1, 1))
    np.testing.assert_array_equal(read_segment(path, "organ").array, layers[..., 0] == 1)
    np.testing.assert_array_equal(read_segment(path, "vessel").array, layers[..., 0] == 2)
    np.testing.assert_array_equal(read_segment(path, "tumour").array, layers[..., 1] == 1)
    with pytest.raises(ImageError, match="has 0 segments 'bone', its segments: 'organ', 'vessel', 'Tumour'"):
        read_segment(path, "bone")
    with pytest.raises(ImageError, match="is coloured"):
        read_mask(path)


def without_fields(path: Path, *fields: str) -> None:
    """Remove lines of an uncompressed NRRD header."""
    header, mark, voxels = path.read_bytes().partition(b"\n\n")
    lines = [line for line in header.split(b"\n") if not any(f"_{field}:=".encode() in line for field in fields)]
    path.write_bytes(b"\n".join(lines) + mark + voxels)


def test_without_layers_each_segment_is_a_channel_as_in_earlier_versions_of_slicer(tmp_path: Path) -> None:
    layers = np.zeros((*SHAPE, 2), np.uint8)
    layers[1:5, 1:4, 1:3, 0] = 1
    layers[2:4, 2:3, 1:2, 1] = 1
    path = tmp_path / "a.seg.nrrd"
    save_segments(path, layers, (10, 20, 30), organ=(0, 1), tumour=(1, 1))
    without_fields(path, "Layer", "LabelValue")
    np.testing.assert_array_equal(read_segment(path, "organ").array, layers[..., 0] == 1)
    np.testing.assert_array_equal(read_segment(path, "tumour").array, layers[..., 1] == 1)
    # labels of one channel need no layer
    labels = layers[..., 0] + layers[..., 1]
    save_segments(path, labels[..., None], (10, 20, 30), organ=(0, 1), tumour=(0, 2))
    without_fields(path, "Layer")
    np.testing.assert_array_equal(read_segment(path, "tumour").array, labels == 2)
    without_fields(path, "LabelValue")
    with pytest.raises(ImageError, match="has no layer 1, in which its header places 'tumour'"):
        read_segment(path, "tumour")


def test_a_manifest_takes_segments_by_name_and_puts_parts_of_the_image_in_their_place(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "image.mha"))
    whole = np.zeros((*SHAPE, 2), np.uint8)
    whole[1:5, 1:4, 1:3, 0] = 1
    whole[2:4, 2:3, 1:2, 1] = 1
    save_segments(tmp_path / "A.seg.nrrd", whole, (10, 20, 30), organ=(0, 1), tumour=(1, 1))
    # from voxel 1, 1, 1 on
    save_segments(tmp_path / "B.seg.nrrd", whole[1:, 1:, 1:], (10.5, 22, 33), organ=(0, 1), tumour=(1, 1))
    rows = ["case_id,image,mask,rater,structure"]
    rows += [f"one,image.mha,{rater}.seg.nrrd,{rater},{name}" for rater in "AB" for name in ("organ", "tumour")]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    source = ManifestSource(str(tmp_path), standardise=False)
    assert not source.problems
    sample = source.load("one")
    # the axes of the file run to the left and posterior
    np.testing.assert_array_equal(sample.image[0], VALUES[::-1, ::-1])
    for rater in range(2):
        for structure in range(2):
            np.testing.assert_array_equal(sample.masks[rater, structure], whole[::-1, ::-1, :, structure])
    # beyond the image
    save_segments(tmp_path / "B.seg.nrrd", whole, (12.5, 20, 30), organ=(0, 1), tumour=(1, 1))
    assert "has another affine than image.mha" in ManifestSource(str(tmp_path)).problems[0]


def test_segments_on_one_slice_and_empty_ones_are_put_in_their_place(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "image.mha"))
    whole = np.zeros((*SHAPE, 1), np.uint8)
    whole[1:4, 2:4, 2] = 1
    save_segments(tmp_path / "A.seg.nrrd", whole[1:, 1:, 2:3], (10.5, 22, 36), organ=(0, 1))
    # 3D Slicer stores a single voxel, wherever it lies, if all segments are empty
    save_segments(tmp_path / "B.seg.nrrd", whole[:1, :1, :1], (0.2, 0.3, 0.4), organ=(0, 1))
    rows = ["case_id,image,mask,rater,structure"]
    rows += [f"one,image.mha,{rater}.seg.nrrd,{rater},organ" for rater in "AB"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    source = ManifestSource(str(tmp_path), standardise=False)
    assert not source.problems
    sample = source.load("one")
    np.testing.assert_array_equal(sample.masks[0, 0], whole[::-1, ::-1, :, 0])
    assert sample.valid.tolist() == [True, True]
    assert not sample.masks[1].any()


@pytest.mark.parametrize("thickness", [3.0, 0.0])
def test_a_slice_in_any_plane_keeps_its_place_and_pixel_size(tmp_path: Path, thickness: float) -> None:
    affine = np.diag([1.0, 2.0, thickness, 1.0])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = 5, 6, 7
    (tmp_path / "a.nrrd").write_bytes(nrrd_file(VALUES[:, :, 0], affine))
    found = read_image(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(found.array[0], VALUES[:, :, 0])
    assert found.spacing == pytest.approx((1, 2))
    assert found.affine is not None
    np.testing.assert_allclose(found.affine[:, [0, 1, 3]], affine[:, [0, 1, 3]], atol=1e-6)
