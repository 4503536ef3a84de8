"""Folders of a user's own: what their files hold comes back, and all that is wrong is told at once."""

from __future__ import annotations

import csv
import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from processes import digest, digest_elsewhere

from edue_lightning.data import CaseRecord, ManifestSource, RaterDataModule
from edue_lightning.data.geometry import DIFFERING_SLICES
from edue_lightning.data.new_images import find_images
from edue_lightning.data.sources.manifest.table import parse_spacing
from edue_lightning.errors import UserError

COLUMNS = ("case_id", "image", "mask", "rater", "structure")
OBLIQUE = np.array([[0.0, -0.8, 1.44, 10.0], [0.5, 0.0, 0.0, -20.0], [0.0, 0.6, 1.92, 5.0], [0.0, 0.0, 0.0, 1.0]])
PIXELS = np.arange(20, dtype=np.uint8).reshape(4, 5)

Row = dict[str, str]
Breaking = Callable[[Path, list[Row]], object]


def save(folder: Path, name: str, array: NDArray, affine: NDArray = OBLIQUE) -> str:
    """Write an array as the name's ending says, and return the name."""
    if ".nii" in name:
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / name)
    else:
        Image.fromarray(array).save(folder / name)
    return name


def rectangle(*edges: int) -> NDArray[np.uint8]:
    """Return a mask on `PIXELS` that ends before row and column `edges`."""
    mask = np.zeros_like(PIXELS)
    mask[: edges[0], : edges[1]] = 255
    return mask


def write(folder: Path, rows: Sequence[Row]) -> Path:
    """Write the manifest; the columns are those of any row."""
    columns = list(dict.fromkeys([*COLUMNS, *(column for row in rows for column in row)]))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def two_cases(folder: Path) -> list[Row]:
    """Write two cases of raters A and B and one structure, and return their rows."""
    rows = []
    for number, case_id in enumerate(("one", "two")):
        image = save(folder, f"{case_id}.png", PIXELS + 100 * number)
        for edge, rater in enumerate("AB", 2):
            mask = save(folder, f"{case_id}_{rater}.png", rectangle(edge, edge + number))
            rows.append({"case_id": case_id, "image": image, "mask": mask, "rater": rater, "structure": "disc"})
    return rows


def source_of(folder: Path, rows: Sequence[Row], **settings: object) -> ManifestSource:
    return ManifestSource(str(write(folder, rows)), **settings)  # type: ignore[arg-type]


def problems_of(folder: Path, **settings: object) -> list[str]:
    """Return the lines that a folder's check ends with, without the first, which must count them."""
    source = ManifestSource(str(folder), **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        source.cases()
    first, *lines = str(caught.value).splitlines()
    assert first == f"data.root={folder}: {len(lines)} problem{'s' * (len(lines) > 1)}:"
    assert lines == list(source.problems)
    return lines


def test_pictures_come_back_as_written(tmp_path: Path) -> None:
    source = source_of(tmp_path, two_cases(tmp_path), standardise=False)
    assert (source.spatial_dims, source.channels) == (2, 1)
    assert (source.structures, source.raters) == (("disc",), ("A", "B"))
    assert source.storage == "picture"
    assert source.cases() == [CaseRecord("one", "one"), CaseRecord("two", "two")]
    sample = source.load("two")
    np.testing.assert_array_equal(sample.image[0], (PIXELS + 100) / np.float32(255))
    for slot, edge in enumerate((2, 3)):
        np.testing.assert_array_equal(sample.masks[slot, 0], rectangle(edge, edge + 1) > 0)
    assert sample.valid.all()
    assert sample.case_id == "two"
    assert sample.spacing is None
    assert sample.affine is None


def test_each_channel_is_standardised(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    colours = np.stack([PIXELS, np.full_like(PIXELS, 77), PIXELS[::-1] * 9], axis=-1)
    for row in rows:
        row["image"] = save(tmp_path, f"{row['case_id']}_colours.png", colours)
    image = source_of(tmp_path, rows).load("one").image
    expected = (PIXELS - PIXELS.mean()) / PIXELS.std()
    np.testing.assert_allclose(image[0], expected, rtol=1e-5)
    assert not image[1].any()
    assert image[2].mean().item() == pytest.approx(0, abs=1e-6)
    assert image[2].std(correction=0).item() == pytest.approx(1)


def test_volumes_of_two_images_keep_channels_and_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ct, pet = rng.normal(0, 300, (3, 4, 5)).astype(np.float32), rng.uniform(0, 9, (3, 4, 5)).astype(np.float32)
    mask = (pet > 5).astype(np.uint8)
    row = {
        "case_id": "a case",
        "image": save(tmp_path, "ct.nii.gz", ct),
        "image2": save(tmp_path, "pet.nii", pet),
        "mask": save(tmp_path, "mask.nii.gz", mask),
        "rater": "A",
        "structure": "GTVn",
    }
    source = source_of(tmp_path, [row], standardise=False)
    assert (source.spatial_dims, source.channels) == (3, 2)
    sample = source.load("a case")
    turned = [nibabel.as_closest_canonical(nibabel.Nifti1Image(array, OBLIQUE)) for array in (ct, pet, mask)]
    np.testing.assert_array_equal(sample.image, np.stack([image.get_fdata() for image in turned[:2]]))
    np.testing.assert_array_equal(sample.masks[0, 0], turned[2].get_fdata())
    assert sample.spacing == pytest.approx((1.0, 0.5, 2.4))
    assert sample.affine is not None
    assert sample.origin is not None
    np.testing.assert_allclose(sample.affine, turned[0].affine, atol=1e-6)
    np.testing.assert_allclose(sample.origin.affine, OBLIQUE, atol=1e-6)
    # a table's spacing runs along the axes of the file
    assert source_of(tmp_path, [row | {"spacing": "0.5 1 2.4"}]).load("a case").spacing == sample.spacing
    write(tmp_path, [row | {"spacing": "1 2 3"}])
    (line,) = problems_of(tmp_path)
    assert line == (
        "ct.nii.gz: case 'a case': the table gives the spacing 1x2x3 mm, but the header 0.5x1x2.4 mm; "
        "correct one of them"
    )


def test_slices_beside_pictures_are_refused(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    square = np.zeros((6, 6), dtype=np.uint8)
    square[1:3, 2:6] = 255
    for row in rows:
        row["image"] = save(tmp_path, f"{row['case_id']}.nii", (square.T / 2).astype(np.float32), np.eye(4))
        row["mask"] = save(tmp_path, f"{row['case_id']}_{row['rater']}.png", square)
    write(tmp_path, rows)
    lines = problems_of(tmp_path)
    assert len(lines) == 4
    assert lines[0].startswith("one_A.png: case 'one': is a picture, but one.nii is a NIfTI slice: NIfTI slices and ")
    # each case of one kind, but not the same one
    for row in rows[:2]:
        row["mask"] = save(tmp_path, f"{row['case_id']}_{row['rater']}.nii", square.T, np.eye(4))
    for row in rows[2:]:
        row["image"] = save(tmp_path, f"{row['case_id']}.png", square)
    third = {"case_id": "three", "image": save(tmp_path, "three.png", np.roll(square, 2)), "mask": ""}
    write(tmp_path, [*rows, rows[2] | third])
    (line,) = problems_of(tmp_path)
    assert line == "one.nii: case 'one': is a NIfTI slice, but most cases: is a picture; keep one kind per data set"


def test_slices_with_axes_in_other_directions_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = two_cases(tmp_path)
    for row in rows:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if row["case_id"] == "one" else np.eye(4)
        row["image"] = save(tmp_path, f"{row['case_id']}.nii", PIXELS if row["case_id"] == "one" else PIXELS**2, affine)
        row["mask"] = save(tmp_path, f"{row['case_id']}_{row['rater']}.nii", rectangle(2, 2), affine)
    assert source_of(tmp_path, rows[:2]).storage == "NIfTI slice LP"
    assert not caplog.records
    source = source_of(tmp_path, rows)
    assert source.cases()
    assert source.storage == DIFFERING_SLICES
    assert source.storage_of("two") == "NIfTI slice RA"
    assert "give their axes different directions (1 NIfTI slice LP, 1 NIfTI slice RA)" in caplog.text


def test_sizes_of_a_data_set_are_in_one_unit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = two_cases(tmp_path)
    for row in rows:
        row["spacing"] = "0.25x0.5"
    assert source_of(tmp_path, rows).load("two").spacing == (0.25, 0.5)
    assert not caplog.records
    for row in rows[2:]:
        row["spacing"] = ""
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        caplog.clear()
        source = source_of(tmp_path, rows, cache=cache)
        assert [source.load(case).spacing for case in ("one", "two")] == [None, None]
        assert "the voxel size is known for 1 of 2 cases only" in caplog.text


def test_raters_differ_between_cases(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    rows[3]["rater"] = "C"
    rows[2]["mask"] = ""  # B's neighbour A looked at the second case and outlined nothing
    source = source_of(tmp_path, rows)
    assert source.raters == ("A", "B", "C")
    first, second = source.load("one"), source.load("two")
    assert first.valid.tolist() == [True, True, False]
    assert second.valid.tolist() == [True, False, True]
    assert first.masks.flatten(1).sum(dim=1).tolist() == [4, 9, 0]
    assert second.masks.flatten(1).sum(dim=1).tolist() == [0, 0, 12]


def test_structures_come_in_the_order_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    discs = two_cases(tmp_path)
    cups = [row | {"structure": "cup", "mask": ""} for row in discs]
    rows = [*discs, *cups]
    assert source_of(tmp_path, rows).structures == ("disc", "cup")
    both = source_of(tmp_path, rows, structures=["cup", "disc"])
    assert both.structures == ("cup", "disc")
    assert both.load("one").masks.flatten(2).sum(dim=2).tolist() == [[0, 4], [0, 9]]
    with caplog.at_level(logging.INFO):
        single = source_of(tmp_path, rows, structures=["cup"])
    assert single.structures == ("cup",)
    assert "4 rows of structures other than cup are left out" in caplog.text


def test_splits_patients_and_spacings(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    for row in rows:
        row |= {"patient": f"patient of {row['case_id']}", "split": "", "spacing": "0.25x0.5"}
    for row in rows[2:]:
        row |= {"patient": "", "split": "test", "spacing": ""}
    source = source_of(tmp_path, rows)
    assert source.cases() == [CaseRecord("one", "patient of one"), CaseRecord("two", "two", "test")]
    for row in rows:
        row["spacing"] = "0.25x0.5"
    assert source_of(tmp_path, rows).load("one").spacing == (0.25, 0.5)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=3), st.sampled_from(["x", " x ", " ", "X"]))
def test_spacings_are_read_as_written(sizes: list[float], between: str) -> None:
    assert parse_spacing(between.join(map(repr, sizes))) == tuple(sizes)


def test_single_slices_have_no_place(tmp_path: Path) -> None:
    row = {
        "case_id": "a",
        "image": save(tmp_path, "image.nii", PIXELS[..., None]),
        "mask": save(tmp_path, "mask.nii", rectangle(2, 2)[..., None]),
        "rater": "A",
        "structure": "disc",
    }
    sample = source_of(tmp_path, [row]).load("a")
    assert sample.image.shape == (1, 4, 5)
    assert sample.affine is None
    assert sample.spacing == pytest.approx((0.5, 1.0))


def test_spreadsheets_habits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = two_cases(tmp_path)
    lines = [",".join([*COLUMNS, "remark", ""]), ",,,,,,", ""]
    lines += [", ".join([*(row[column] for column in COLUMNS), "NA", ""]) for row in rows]
    text = "\r\n".join(lines).replace("one_A.png", ".\\one_A.png")
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8-sig")
    source = ManifestSource(str(tmp_path))
    assert [record.case_id for record in source.cases()] == ["one", "two"]
    assert "unknown columns are ignored: remark" in caplog.text


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    for row, spacing in zip(rows, ("1x2", "1x2", "0.5x0.7", "0.5x0.7"), strict=True):
        row |= {"spacing": spacing, "rater": {"A": "1", "B": "2"}[row["rater"]]}
    rows[1]["mask"] = ""
    expected = source_of(tmp_path, rows)
    table = [
        row
        | {
            "rater": int(row["rater"]),
            "mask": row["mask"] or None,
            "spacing": [float(part) for part in row["spacing"].split("x")] if row["spacing"] else None,
        }
        for row in rows
    ]
    pd.DataFrame(table).to_parquet(tmp_path / "manifest.parquet")
    found = ManifestSource(str(tmp_path), file="manifest.parquet")
    assert found.raters == expected.raters == ("1", "2")
    assert digest(found) == digest(expected)
    assert found.load("two").spacing == (0.5, 0.7)
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 of some kind")
    (line,) = ManifestSource(str(tmp_path), file="manifest.parquet").problems
    assert line.startswith("manifest.parquet: cannot be read as Parquet (")
    (line,) = ManifestSource(str(tmp_path), file="gone.parquet").problems
    assert line == "gone.parquet: not found; set data.root to the folder with this file"


def test_numbers_and_missing_value_names_stay_text(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    for row in rows:
        row |= {"case_id": {"one": "007", "two": "nan"}[row["case_id"]], "rater": {"A": "01", "B": "NA"}[row["rater"]]}
    source = source_of(tmp_path, rows)
    assert [record.case_id for record in source.cases()] == ["007", "nan"]
    assert source.raters == ("01", "NA")


def test_what_may_surprise_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = two_cases(tmp_path)
    source_of(tmp_path, rows)
    assert not caplog.text
    rows[0]["image"] = save(tmp_path, "wide.png", np.zeros((4, 9), dtype=np.uint8))
    rows[0]["mask"] = ""
    source_of(tmp_path, [rows[0], *rows[2:]])
    assert "1 of 2 cases have a single rater" in caplog.text


def test_a_source_is_the_same_in_every_process(tmp_path: Path) -> None:
    source = source_of(tmp_path, two_cases(tmp_path))
    assert digest(source) == digest(source)
    assert digest(pickle.loads(pickle.dumps(source))) == digest(source)
    assert digest_elsewhere(f"ManifestSource({str(tmp_path)!r})") == digest(source)


def test_loader_processes_give_the_same_batches(tmp_path: Path) -> None:
    rows = []
    for split in ("train", "val", "test"):
        for row in two_cases(tmp_path):
            image = save(tmp_path, f"{split}_{row['image']}", PIXELS + len(rows))
            mask = save(tmp_path, f"{split}_{row['mask']}", rectangle(2, 3))
            rows.append(row | {"case_id": f"{split} {row['case_id']}", "image": image, "mask": mask, "split": split})
    source = source_of(tmp_path, rows)
    batches = []
    for workers in (0, 1):
        module = RaterDataModule("manifest", source, batch_size=2, num_workers=workers, cache_cases=0)
        batches.append(next(iter(module.test_dataloader())))
    assert torch.equal(batches[0].image, batches[1].image)
    assert torch.equal(batches[0].masks, batches[1].masks)


def test_a_file_removed_after_the_check_is_named(tmp_path: Path) -> None:
    source = source_of(tmp_path, two_cases(tmp_path))
    (tmp_path / "one_A.png").unlink()
    with pytest.raises(UserError, match=r"^one_A\.png: case 'one': not found; "):
        source.load("one")


def change(row: int, **fields: str) -> Breaking:
    return lambda folder, rows: rows[row].update(fields)


def change_case(name: str, /, **fields: str) -> Breaking:
    return lambda folder, rows: [row.update(fields) for row in rows if row["case_id"] == name]


def patients(*names: str) -> Breaking:
    return lambda folder, rows: [row.update(patient=names[row["case_id"] == "two"]) for row in rows]


def damage(name: str) -> Breaking:
    return lambda folder, rows: (folder / name).write_bytes((folder / name).read_bytes()[:50])


def put(name: str, array: NDArray) -> Breaking:
    return lambda folder, rows: save(folder, name, array)


def link_to_nothing(folder: Path, rows: list[Row]) -> None:
    (folder / "one_A.png").unlink()
    (folder / "one_A.png").symlink_to(folder.parent / "annex" / "not-fetched.png")


def circle(folder: Path, rows: list[Row]) -> None:
    (folder / "one_A.png").unlink()
    (folder / "one_A.png").symlink_to("one_A.png")


def one_is_3d(folder: Path, rows: list[Row]) -> None:
    third = [row | {"case_id": "three", "image": "three.png"} for row in rows[:2]]
    save(folder, "three.png", PIXELS)
    rows += third
    volume = save(folder, "one.nii", np.zeros((3, 4, 5), dtype=np.uint8))
    for row in rows[:2]:
        row |= {"image": volume, "mask": ""}


def volumes(mask_shape: tuple[int, ...], shift: float) -> Breaking:
    def apply(folder: Path, rows: list[Row]) -> None:
        affine = OBLIQUE.copy()
        affine[1, 3] += shift
        for row in rows:
            row["image"] = save(folder, f"{row['case_id']}.nii", np.zeros((3, 4, 5), dtype=np.uint8))
            row["mask"] = ""
        rows[0]["mask"] = save(folder, "mask.nii", np.zeros(mask_shape, dtype=np.uint8), affine)

    return apply


def second_image_of_other_shape(folder: Path, rows: list[Row]) -> None:
    for row in rows:
        row["image2"] = save(folder, f"{row['case_id']}_second.png", np.zeros((4, 5), dtype=np.uint8))
    save(folder, "one_second.png", np.zeros((5, 4), dtype=np.uint8))


def cup_for_one_rater(folder: Path, rows: list[Row]) -> None:
    rows += [row | {"structure": "cup", "mask": ""} for row in rows[:1] + rows[2:]]


def not_a_number(folder: Path, rows: list[Row]) -> None:
    Image.fromarray(np.full((4, 5), np.nan, dtype=np.float32)).save(folder / "nan.tif")
    for row in rows[:2]:
        row["image"] = "nan.tif"


def one_image_in_two_spellings(folder: Path, rows: list[Row]) -> None:
    (folder / "sub").mkdir()
    (folder / "one.png").rename(folder / "sub" / "one.png")
    for row in rows:
        row["image"] = "sub/one.png" if row["case_id"] == "one" else "sub\\one.png"
        # one patient and split, so that the same picture is no leak
        row["patient"] = "p"


def second_image_of_another_case(folder: Path, rows: list[Row]) -> None:
    del folder
    for row in rows:
        row["image2"] = "two_A.png" if row["case_id"] == "one" else "one.png"


MANIFEST = "manifest.csv: case 'one': "
BROKEN = [
    (change(0, mask="gone.png"), "gone.png: case 'one': not found; add it, or correct its path in the manifest"),
    (change(0, mask="a\0b.png"), "a?b.png: case 'one': not found; "),
    (change(0, mask="x" * 300 + ".png"), "x" * 300 + ".png: case 'one': not found; "),
    (circle, "one_A.png: case 'one': is a link that leads nowhere; fetch what it points to"),
    (damage("one.png"), "one.png: case 'one': cannot be read ("),
    (damage("two_B.png"), "two_B.png: case 'two': cannot be read ("),
    (change(0, mask="/etc/hostname"), "/etc/hostname: case 'one': leaves the manifest's folder; move or link the file"),
    (change(0, mask="C:\\one_A.png"), "C:\\one_A.png: case 'one': leaves the manifest's folder; "),
    (change(0, mask="../one_A.png"), "../one_A.png: case 'one': leaves the manifest's folder; "),
    (change(0, mask="sub/../one_A.png"), "sub/../one_A.png: case 'one': leaves the manifest's folder; "),
    (link_to_nothing, "one_A.png: case 'one': is a link that leads nowhere; fetch what it points to"),
    (put("one_A.png", PIXELS.T // 19), "one_A.png: case 'one': is 5x4, but one.png is 4x5; resample to one grid"),
    (volumes((3, 4, 6), 0.0), "mask.nii: case 'one': is 3x4x6, but one.nii is 3x4x5; resample"),
    (
        volumes((3, 4, 5), 0.01),
        "mask.nii: case 'one': has another affine than one.nii; resample to one grid, or correct",
    ),
    (second_image_of_other_shape, "one_second.png: case 'one': is 5x4, but one.png is 4x5; resample"),
    (not_a_number, "nan.tif: case 'one': holds NaN or infinity; replace these values"),
    (
        put("one_A.png", PIXELS % 3),
        "one_A.png: case 'one': holds the values 0, 1, 2; a mask holds 0 and one other value",
    ),
    (one_is_3d, "one.nii: case 'one': is 3D, but most cases: is 2D; keep one kind per data set"),
    (
        put("two.png", np.zeros((4, 5, 3), np.uint8)),
        "two.png: case 'two': has 3 channels, but most cases: has 1 channels; ",
    ),
    (change(1, rater="A"), f"{MANIFEST}lines 2 and 3 are both rater 'A', structure 'disc'; remove one"),
    (
        change_case("two", image="./one.png"),
        "manifest.csv: cases 'one', 'two' share the image one.png; give its rows one",
    ),
    (one_image_in_two_spellings, "manifest.csv: cases 'one', 'two' share the image sub/one.png; give its rows one"),
    (second_image_of_another_case, "manifest.csv: cases 'one', 'two' share the image one.png; name each case's own"),
    (change(0, case_id=""), "manifest.csv: line 2: case_id is empty; fill it in"),
    (change(0, rater=" "), f"{MANIFEST}line 2: rater is empty; fill it in"),
    (change(0, structure=""), f"{MANIFEST}line 2: structure is empty; fill it in"),
    (change_case("one", case_id="a/b"), "manifest.csv: case 'a/b': cannot be a file name; use letters, digits, "),
    (change_case("one", case_id=".one"), "manifest.csv: case '.one': cannot be a file name; "),
    (change_case("one", image=""), f"{MANIFEST}image is empty; name its file"),
    (change(0, image="two.png"), f"{MANIFEST}its rows differ in image ('two.png', 'one.png'); write the same in all"),
    (change(0, split="val"), f"{MANIFEST}its rows differ in split ('val', ''); write the same in all"),
    (change(0, patient="p"), f"{MANIFEST}its rows differ in patient ('p', ''); write the same in all"),
    (change(0, spacing="1x1"), f"{MANIFEST}its rows differ in spacing ('1x1', ''); write the same in all"),
    (change_case("one", split="training"), f"{MANIFEST}split 'training' is not one of train, val, test; correct it or"),
    (
        change_case("one", spacing="1,2"),
        f"{MANIFEST}spacing '1,2' is not in mm like 0.7x0.7; correct it or leave it empty",
    ),
    (change_case("one", spacing="0x1"), f"{MANIFEST}spacing '0x1' is not in mm like 0.7x0.7; "),
    (change_case("one", spacing="nan 1"), f"{MANIFEST}spacing 'nan 1' is not in mm like 0.7x0.7; "),
    (change_case("one", spacing="1x1x1"), "one.png: case 'one': spacing has 3 numbers for 2 axes; write one per axis"),
    (
        change_case("one", patient="two", split="test"),
        "manifest.csv: cases of patient 'two' differ in split (none, test); ",
    ),
    (
        change_case("one", image3="one.png"),
        "manifest.csv: column image3 does not follow image; number images 2, 3, ...",
    ),
    (
        change(0, rater="b"),
        "manifest.csv: rater 'b', 'B' differ in upper and lower case or blanks only; write one name",
    ),
    (
        change(0, structure="Di sc"),
        "manifest.csv: structure 'Di sc', 'disc' differ in upper and lower case or blanks only",
    ),
    (
        change_case("two", case_id="ONE"),
        "data: cases 'one', 'ONE' have names that some file systems take for one, so their results would share files; ",
    ),
    (patients("P  1", "p1"), "manifest.csv: patient 'P  1', 'p1' differ in upper and lower case or blanks only; write"),
    (
        change_case("two", mask="one_A.png"),
        "one_A.png: case 'one': is the mask of rater 'A', disc, and of: case 'two', rater 'A', disc; case 'two', rater",
    ),
    (
        put("two.png", PIXELS),
        "one.png: case 'one': holds the same picture as case 'two' (two.png), so a training case may be a test case; ",
    ),
    (
        change_case("one", rater_position="2"),
        "manifest.csv: rater 'A' has the rater_position '', '2'; write one whole number in all rows of a rater, or",
    ),
    (cup_for_one_rater, f"{MANIFEST}rater 'B' has no row of cup; add it, with an empty mask field if"),
]


@pytest.mark.parametrize(("break_it", "line"), BROKEN, ids=[line[:60] for _, line in BROKEN])
def test_every_problem_is_one_line(tmp_path: Path, break_it: Breaking, line: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = two_cases(folder)
    break_it(folder, rows)
    write(folder, rows)
    found = problems_of(folder)
    # where two cases are compared, changing the rows of one cannot but leave a second trace
    if "its rows differ in image" not in line and "Di sc" not in line:
        assert len(found) == 1, found
    assert found[0].startswith(line)


def test_a_further_channel_that_all_cases_share_may_be_meant(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    save(tmp_path, "place.png", PIXELS.T[:4, :4].repeat(2, axis=1)[:, :5])
    for row in rows:
        row["image2"] = "place.png"
    assert source_of(tmp_path, rows).channels == 2


def test_a_file_that_is_two_channels_of_a_case_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = two_cases(tmp_path)
    for row in rows:
        row["image2"] = row["image"]
    assert source_of(tmp_path, rows).channels == 2
    assert "files that are several channels of one case: one.png of case 'one', two.png of case 'two'; " in caplog.text


def with_second_image(folder: Path, first: str, second: str) -> list[Row]:
    """Return one case of two images with these names, one of them in a folder."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images = [save(folder, name, rng.normal(0, 1, (3, 4, 5)).astype(np.float32)) for name in (first, second)]
    mask = save(folder, "mask.nii.gz", np.eye(3, 4, dtype=np.uint8)[..., None].repeat(5, axis=-1))
    row = {"case_id": "a", "image": images[0], "image2": images[1], "mask": mask, "rater": "A", "structure": "GTV"}
    return [row]


@pytest.mark.parametrize(("first", "second"), [("__CT", "__PT"), ("_0000", "_0001"), ("__1", "__2")])
def test_images_against_the_order_of_their_names_are_a_problem(tmp_path: Path, first: str, second: str) -> None:
    names = f"images/a{second}.nii.gz", f"a{first}.nii.gz"
    found = source_of(tmp_path, with_second_image(tmp_path, *names)).problems
    assert len(found) == 1
    assert found[0].startswith(f"manifest.csv: 1 case, such as 'a', with the images in the order {', '.join(names)}, ")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a__CT", "a__PT"),
        # channels of a data set that are not taken from the first; `predict` reports such names
        ("a_0002", "a_0001"),
        # numbers of two images
        ("a_0001", "b_0000"),
        ("a__PT", "b"),
    ],
)
def test_images_in_the_order_of_their_names_or_without_one(tmp_path: Path, first: str, second: str) -> None:
    source = source_of(tmp_path, with_second_image(tmp_path, f"{first}.nii.gz", f"{second}.nii.gz"))
    assert not source.problems


def test_files_are_named_from_the_folder_of_the_manifest(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    write(below, two_cases(below))
    save(tmp_path, "one.png", PIXELS[::-1])
    sample = ManifestSource(str(tmp_path), file="below/manifest.csv", standardise=False).load("one")
    np.testing.assert_array_equal(sample.image[0], PIXELS / np.float32(255))


def test_affines_within_the_tolerance_are_one(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    volumes((3, 4, 5), 0.0009)(tmp_path, rows)
    source_of(tmp_path, rows)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", "manifest.csv: is empty; its first line must be case_id,image,mask,rater,structure"),
        (b"case_id,image,mask,rater,structure\n,,,,\n", "manifest.csv: has no rows; write one per mask"),
        (
            b"case_id,image,mask\na,b,c\n",
            "manifest.csv: has no column rater, structure among case_id, image, mask; add",
        ),
        (
            b"case_id;image;mask;rater;structure\n",
            "manifest.csv: has no column case_id, image, mask, rater, structure ",
        ),
        (b"case_id,image,mask,rater,structure,mask\n1,2,3,4,5,6\n", "manifest.csv: has two columns mask; remove one"),
        (b"case_id,image,mask,rater,structure\n1,2,3,4,5,6\n", "manifest.csv: cannot be read as CSV (Error tokenizing"),
        (b'case_id,image,mask,rater,structure\n"1,2,3,4,5\n', "manifest.csv: cannot be read as CSV ("),
        (
            b'case_id,image,mask,rater,structure\na,i,m,A,disc\n\nb,i,m,"A,disc\nc,i,m,A,disc\nd,i,m,B",disc\n',
            "manifest.csv: line 4: rater contains a line break; write it on one line, or remove the quotation mark",
        ),
        (
            b'case_id,image,mask,rater,structure,"note\na,i,m,A,disc,"\nb,i,m,A,disc,\n',
            "manifest.csv: line 1: note contains a line break; write it on one line, or remove the quotation mark",
        ),
        ("case_id,image,mask,rater,structure\nä,b,c,d,e\n".encode("latin-1"), "manifest.csv: is not UTF-8; save it"),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, text: bytes, line: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(text)
    (found,) = problems_of(tmp_path)
    assert found.startswith(line)


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    assert problems_of(tmp_path) == ["manifest.csv: not found; set data.root to the folder with this file"]
    (tmp_path / "manifest.csv").mkdir()
    assert problems_of(tmp_path)[0].startswith("manifest.csv: cannot be read as CSV (")


def test_settings_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.root: not set; set data\.root=FOLDER, the folder with the data set$"):
        ManifestSource()
    write(tmp_path, two_cases(tmp_path))
    with pytest.raises(UserError, match=r"^data\.source\.structures: is empty"):
        ManifestSource(str(tmp_path), structures=[])
    absent = "manifest.csv: has no row of data.source.structures cup; choose among disc"
    assert problems_of(tmp_path, structures=["disc", "cup"])[0] == absent
    (twice,) = problems_of(tmp_path, structures=["disc", "disc"])
    assert twice == "manifest.csv: data.source.structures names one twice; name each once"


def test_a_case_without_any_rater(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    for row in rows[:2]:
        row["structure"] = "cup"
    write(tmp_path, rows)
    (found,) = problems_of(tmp_path, structures=["disc"])
    assert found == "manifest.csv: case 'one': no rater has a row of disc; add one, or remove the case"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    rows[0]["mask"] = "gone.png"
    rows[1]["rater"] = ""
    (tmp_path / "two.png").write_bytes(b"")
    save(tmp_path, "two_A.png", PIXELS % 5)
    for row in rows[2:]:
        row["split"] = "tset"
    write(tmp_path, rows)
    starts = ["manifest.csv: case 'one': line 3", "manifest.csv: case 'two': split 'tset'"]
    starts += ["gone.png: case 'one'", "two.png: case 'two'", "two_A.png: case 'two'"]
    found = problems_of(tmp_path)
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True))


def test_of_very_many_problems_the_first_are_listed(tmp_path: Path) -> None:
    row = two_cases(tmp_path)[0]
    write(tmp_path, [row | {"case_id": f"c{i}", "image": f"gone{i}.png", "mask": ""} for i in range(60)])
    with pytest.raises(UserError) as caught:
        ManifestSource(str(tmp_path)).cases()
    first, *lines, last = str(caught.value).splitlines()
    assert "60 problems" in first
    assert len(lines) == 50
    assert last == "... and 10 more; `check` lists all"


def test_names_that_differ_in_more_than_blanks(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    for row in rows:
        row |= {"rater": {"A": "reader 1 1", "B": "reader 11"}[row["rater"]], "patient": f"{row['case_id']} 1"}
    source = source_of(tmp_path, rows)
    assert source.cases()
    assert source.raters == ("reader 1 1", "reader 11")


def test_raters_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    first = two_cases(tmp_path)[0]
    names = ["rater 10", "rater 2", "rater 1", "senior", "rater 02"]
    rows = [first | {"rater": name, "mask": first["mask"] if name == "rater 10" else ""} for name in names]
    source = source_of(tmp_path, rows)
    assert source.raters == ("rater 1", "rater 02", "rater 2", "rater 10", "senior")
    assert source.load("one").masks.flatten(1).any(dim=1).tolist() == [False, False, False, True, False]


def test_raters_are_in_the_order_of_their_positions(tmp_path: Path) -> None:
    first = two_cases(tmp_path)[0]
    names = {"rater 10": "1", "rater 2": "3", "senior": "12"}
    rows = [
        first | {"rater": name, "mask": first["mask"] if name == "rater 10" else "", "rater_position": position}
        for name, position in names.items()
    ]
    source = source_of(tmp_path, rows[::-1])
    assert source.raters == ("rater 10", "rater 2", "senior")
    assert source.load("one").masks.flatten(1).any(dim=1).tolist() == [True, False, False]
    same = source_of(tmp_path, [row | {"rater_position": "1"} for row in rows])
    assert "manifest.csv: raters 'rater 10', 'rater 2', 'senior' have one rater_position, 1" in same.problems[0]


def test_one_file_of_two_raters_is_a_warning_unless_it_is_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = two_cases(tmp_path)
    empty = save(tmp_path, "empty.png", rectangle(0, 0))
    for row in rows:
        row["mask"] = empty
    assert source_of(tmp_path, rows).cases()
    assert not caplog.text
    rows[0]["mask"] = rows[1]["mask"] = "one_A.png"
    assert source_of(tmp_path, rows).cases()
    line = "one_A.png: case 'one': is the mask of rater 'A', disc, and of: case 'one', rater 'B', disc; check that each"
    assert f"1 mask files stand in several rows, such as {line} has its own" in caplog.text


def test_a_picture_twice_of_one_patient_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = two_cases(tmp_path)
    Image.fromarray(PIXELS).save(tmp_path / "two.tif")
    for row in rows:
        row |= {"patient": "p", "image": row["image"].replace("two.png", "two.tif")}
    # other bytes, the same pixels; and from the notes of the cache too
    for _ in range(2):
        assert source_of(tmp_path, rows, cache=str(tmp_path / "cache")).cases()
        assert "case 'one' (one.png) holds the same picture as case 'two' (two.tif)" in caplog.text
        caplog.clear()


def test_a_pictures_own_files_may_lie_elsewhere(tmp_path: Path) -> None:
    store, folder = tmp_path / "annex", tmp_path / "data"
    store.mkdir()
    folder.mkdir()
    rows = two_cases(store)
    expected = source_of(store, rows)
    (folder / "linked").symlink_to(store, target_is_directory=True)
    for row in rows:
        row["image"] = f"linked/{row['image']}"
        # absolute, as some exporters write, to where the folder links
        row["mask"] = str(store / row["mask"])
    assert digest(source_of(folder, rows)) == digest(expected)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_text_stays_text_in_all_tables(tmp_path: Path, ending: str) -> None:
    ids = {"one": "007", "two": "1e3"}
    rows = two_cases(tmp_path)
    for row in rows:
        row |= {
            "case_id": ids[row["case_id"]],
            "rater": {"A": "NA", "B": "1"}[row["rater"]],
            "patient": "",
            "split": "",
        }
    rows = [row | {"structure": name} for row in rows for name in ("1", "NA", "nan", "None")]
    for row in rows:
        row["mask"] = row["mask"] if row["structure"] == "1" else ""
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "table.csv", index=False) if ending == ".csv" else frame.to_parquet(
        tmp_path / "table.parquet"
    )
    source = ManifestSource(str(tmp_path), file=f"table{ending}")
    assert [record.case_id for record in source.cases()] == ["007", "1e3"]
    assert source.structures == ("1", "NA", "nan", "None")
    assert source.raters == ("1", "NA")
    assert [case.case_id for case in find_images(tmp_path / f"table{ending}", 1).cases] == ["007", "1e3"]


def test_training_and_test_without_validation_says_what_to_write(tmp_path: Path) -> None:
    rows = two_cases(tmp_path)
    for row in rows:
        row["split"] = {"one": "train", "two": "test"}[row["case_id"]]
    with pytest.raises(UserError) as caught:
        RaterDataModule("manifest", source_of(tmp_path, rows)).require("train", "val", "test")
    assert str(caught.value) == (
        "data=manifest: no case is left for val, as all 2 cases have another split; write this one for some patients, "
        "or leave training cases without one to draw from them"
    )
    # the second of the fixes
    third = [row | {"case_id": "three", "split": "", "image": save(tmp_path, "3.png", PIXELS + 9)} for row in rows[:2]]
    for row in rows[:2] + third:
        row |= {"split": "", "mask": ""}
    RaterDataModule("manifest", source_of(tmp_path, [*rows, *third])).require("train", "val", "test")
