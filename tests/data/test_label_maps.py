"""Label maps and masks with grey levels, in the files of a manifest."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.config.build import build_data
from edue_lightning.data import ManifestSource
from edue_lightning.data.images import ImageError, read_label_map, read_mask
from edue_lightning.data.label_maps import LabelMap
from edue_lightning.errors import UserError

SHAPE = (10, 12)
Rows = list[dict[str, str]]


def labels_of(rater: str) -> NDArray[np.uint8]:
    """Return a label map: 1 the rim, 2 the cup, 3 ignored."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:8, 2:9] = 1
    labels[4:6, 4 : 6 + (rater == "B")] = 2
    if rater == "B":
        labels[0] = 3
    return labels


def save(path: Path, array: NDArray) -> None:
    if ".nii" in path.name:
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -2.0, 3.0, 1.0])), path)
    else:
        Image.fromarray(array).save(path)


def stacked(array: NDArray, ending: str) -> NDArray:
    """Return a picture's array, or a volume's of two such slices."""
    return np.stack([array, array], axis=2) if ending == ".nii.gz" else array


def write_manifest(folder: Path, rows: Sequence[dict[str, str]]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_maps(folder: Path, ending: str = ".png") -> Rows:
    """Write a case whose raters A and B have a label map each, and return its rows without structures."""
    pixels = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    save(folder / f"image{ending}", stacked(pixels, ending))
    rows = []
    for rater in "AB":
        save(folder / f"{rater}{ending}", stacked(labels_of(rater), ending))
        rows.append({"case_id": "one", "image": f"image{ending}", "mask": f"{rater}{ending}", "rater": rater})
    return rows


def source_of(folder: Path, rows: Sequence[dict[str, str]], **settings: Any) -> ManifestSource:
    return ManifestSource(str(write_manifest(folder, rows)), **settings)


NESTED = {"disc": [1, 2], "cup": 2}


@pytest.mark.parametrize("ending", [".png", ".tif", ".nii.gz"])
def test_one_file_holds_nested_structures_and_ignored_voxels(tmp_path: Path, ending: str) -> None:
    source = source_of(tmp_path, write_maps(tmp_path, ending), labels=NESTED, ignore=3)
    assert source.structures == ("disc", "cup")
    assert source.raters == ("A", "B")
    sample = source.load(source.cases()[0].case_id)
    flip = (slice(None, None, -1),) * 2 if ending == ".nii.gz" else (slice(None),) * 2
    for slot, rater in enumerate("AB"):
        labels = labels_of(rater)[flip]
        expected = [stacked((labels == 1) | (labels == 2), ending), stacked(labels == 2, ending)]
        np.testing.assert_array_equal(sample.masks[slot], expected)
    np.testing.assert_array_equal(sample.region, stacked(labels_of("B") != 3, ending)[flip])


def test_a_column_gives_the_numbers_of_each_row(tmp_path: Path) -> None:
    written = {"disc": "1 2", "cup": "2"}
    rows = [
        {**row, "structure": name, "label": label} for row in write_maps(tmp_path) for name, label in written.items()
    ]
    by_column = source_of(tmp_path, rows, ignore=3).load("one")
    by_option = source_of(tmp_path, write_maps(tmp_path), labels=NESTED, ignore=3).load("one")
    np.testing.assert_array_equal(by_column.masks, by_option.masks)
    np.testing.assert_array_equal(by_column.region, by_option.region)


def test_label_maps_and_masks_of_one_structure_stand_in_one_table(tmp_path: Path) -> None:
    rows = [{**row, "structure": "cup", "label": "2"} for row in write_maps(tmp_path)]
    save(tmp_path / "vessel.png", np.eye(10, 12, dtype=np.uint8) * 255)
    rows += [{**row, "structure": "vessel", "label": "", "mask": "vessel.png"} for row in rows[:2]]
    rows[3]["mask"] = ""
    with pytest.raises(UserError, match=r"A.png: case 'one': holds the value 1; labels are 0, 2 \(cup\)"):
        source_of(tmp_path, rows).cases()
    rows += [{**row, "structure": "rim", "label": "1"} for row in rows[:2]]
    source = source_of(tmp_path, rows, structures=["cup", "vessel"], ignore=3)
    sample = source.load(source.cases()[0].case_id)
    np.testing.assert_array_equal(sample.masks[0, 1], np.eye(10, 12) * (labels_of("B") != 3))
    np.testing.assert_array_equal(sample.masks[0, 0], labels_of("A") == 2)
    assert not sample.masks[1, 1].any()


def test_structures_chooses_among_the_labels(tmp_path: Path) -> None:
    source = source_of(tmp_path, write_maps(tmp_path), labels=NESTED, ignore=3, structures=["cup"])
    assert source.structures == ("cup",)
    np.testing.assert_array_equal(source.load("one").masks[0, 0], labels_of("A") == 2)


def test_the_field_of_view_and_ignored_voxels_join(tmp_path: Path) -> None:
    view = np.full(SHAPE, 255, dtype=np.uint8)
    view[:, :3] = 0
    save(tmp_path / "view.png", view)
    rows = [{**row, "region": "view.png"} for row in write_maps(tmp_path)]
    region = source_of(tmp_path, rows, labels=NESTED, ignore=3).load("one").region
    np.testing.assert_array_equal(region, (view > 0) & (labels_of("B") != 3))


def test_without_an_ignored_voxel_there_is_no_region(tmp_path: Path) -> None:
    rows = write_maps(tmp_path)[:1]
    assert source_of(tmp_path, rows, labels=NESTED, ignore=3).load("one").region is None


def test_another_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        source_of(tmp_path, write_maps(tmp_path), labels=NESTED).cases()
    assert "B.png: case 'one': holds the value 3; labels are 0, 1 (disc), 2 (disc and cup): correct it" in str(
        caught.value
    )


def test_one_map_of_two_raters_is_still_suspicious(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = write_maps(tmp_path)
    source_of(tmp_path, rows, labels=NESTED, ignore=3)
    assert "stand in several rows" not in caplog.text
    source_of(tmp_path, [rows[0], {**rows[0], "rater": "B"}], labels=NESTED)
    assert "1 mask files stand in several rows, such as A.png: case 'one'" in caplog.text


def test_a_changed_label_is_another_prepared_case(tmp_path: Path) -> None:
    rows, cache = write_maps(tmp_path), str(tmp_path / "cache")
    first = source_of(tmp_path, rows, labels=NESTED, ignore=3, cache=cache).load("one")
    second = source_of(tmp_path, rows, labels={"disc": 1, "cup": 2}, ignore=3, cache=cache).load("one")
    assert first.masks[0, 0].sum() > second.masks[0, 0].sum()
    third = source_of(tmp_path, rows, labels={"disc": 1, "cup": [2, 3]}, cache=cache).load("one")
    assert third.region is None


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"labels": {}}, "data.source.labels: is empty"),
        ({"labels": {"disc": []}}, r"data.source.labels: disc has \[\]"),
        ({"labels": {"disc": 0}}, r"data.source.labels: disc has \[0\]; give whole numbers from 1 to 255"),
        ({"labels": {"disc": [1, 256]}}, r"disc has \[1, 256\]"),
        ({"labels": {"disc": True}}, r"disc has \[True\]"),
        ({"labels": {"disc": 1.0}}, r"disc has \[1.0\]"),
        ({"labels": {"disc": None}}, r"disc has \[None\]"),
        ({"labels": NESTED, "ignore": 2}, "the number of ignored voxels is 2"),
        ({"ignore": 3}, "data.source.ignore=3: the masks are no label maps"),
    ],
)
def test_settings_that_are_invalid(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    rows = write_maps(tmp_path)
    if "labels" not in settings:
        rows = [{**row, "structure": "disc"} for row in rows]
    with pytest.raises(UserError, match=line):
        source_of(tmp_path, rows, **settings)


def test_problems_of_the_columns_are_named(tmp_path: Path) -> None:
    rows = [{**row, "structure": "disc", "label": label} for row, label in zip(write_maps(tmp_path), "1x", strict=True)]
    with pytest.raises(UserError, match=r"line 3: label 'x' is no list of whole numbers"):
        source_of(tmp_path, rows).cases()
    rows[1]["label"] = "2"
    with pytest.raises(UserError, match=r"line 3: structure 'disc' has the label '2', but '1' in an earlier row"):
        source_of(tmp_path, rows).cases()
    with pytest.raises(UserError, match=r"line 2: structure must be empty, as data.source.labels names all"):
        source_of(tmp_path, rows, labels=NESTED).cases()


def test_a_configuration_reaches_the_source(tmp_path: Path) -> None:
    rows = write_maps(tmp_path)
    target = {"_target_": "edue_lightning.data.ManifestSource", "root": str(write_manifest(tmp_path, rows))}
    source = {**target, "labels": NESTED, "ignore": 3}
    data = build_data({"data": {"_target_": "edue_lightning.data.RaterDataModule", "name": "maps", "source": source}})
    assert data.source.structures == ("disc", "cup")


def test_a_picture_of_colours_is_no_label_map(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 3, (*SHAPE, 3), dtype=np.uint8))
    with pytest.raises(ImageError, match="is coloured, or has channels; save one number per voxel"):
        read_label_map(tmp_path / "a.png", {1: "one", 2: "two"})


def test_positions_in_a_palette_are_labels(tmp_path: Path) -> None:
    picture = Image.fromarray(labels_of("A"), mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png", {1: "one", 2: "two"}).array, labels_of("A"))


def test_regions_need_an_ignored_number() -> None:
    assert LabelMap.of(NESTED, None, "labels").region([labels_of("B")]) is None


def anti_aliased() -> NDArray[np.uint8]:
    return np.array([[0, 0, 60, 128, 255], [0, 127, 200, 255, 255]], dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_threshold_marks_the_values_above_it(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, anti_aliased())
    with pytest.raises(ImageError, match="a mask holds 0 and one other value"):
        read_mask(tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name, 127).array, anti_aliased() > 127)


def test_a_threshold_in_a_manifest_is_for_jpeg_files_and_volumes_too(tmp_path: Path) -> None:
    disc = (np.hypot(*np.indices((16, 16)) - 7.5) < 5).astype(np.uint8) * 255
    Image.fromarray(disc).save(tmp_path / "disc.jpg", quality=90)
    Image.fromarray(disc).save(tmp_path / "image.png")
    row = {"case_id": "a", "image": "image.png", "mask": "disc.jpg", "rater": "A", "structure": "disc"}
    np.testing.assert_array_equal(source_of(tmp_path, [row], threshold=127).load("a").masks[0, 0], disc > 0)
    save(tmp_path / "soft.nii.gz", (disc / 510).astype(np.float32).reshape(16, 16, 1))
    assert read_mask(tmp_path / "soft.nii.gz", 0.4).array.sum() == (disc > 0).sum()


def test_a_threshold_for_another_range_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.eye(3, dtype=np.uint8))
    with pytest.raises(ImageError, match="holds the values 0, 1, none above the threshold 127"):
        read_mask(tmp_path / "a.png", 127)
    save(tmp_path / "b.png", np.zeros((3, 3), dtype=np.uint8))
    assert not read_mask(tmp_path / "b.png", 127).array.any()
