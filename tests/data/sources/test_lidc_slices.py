"""LIDC-IDRI's published slices, in a folder and in an archive, in the true layouts with their quirks."""

from __future__ import annotations

import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edue_lightning.data import LidcSlices, RaterDataModule
from edue_lightning.data.sources.lidc_slices import reading, storage
from edue_lightning.data.sources.lidc_slices.layout import list_slices
from edue_lightning.errors import UserError
from tests.helpers.lidc_slice_files import (
    EDGE,
    REAL,
    disc,
    save,
    write_archive,
    write_blurred_slice,
    write_data_set,
    write_slice,
    zipped,
)

needs_real = pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/lidc_slices.zip")


def slices(root: Path, **settings: Any) -> LidcSlices:
    return LidcSlices(str(root), **settings)


def ids(source: LidcSlices) -> list[str]:
    return [record.case_id for record in source.cases()]


@pytest.mark.parametrize("where", ["folder", "folder above", "stored", "deflated"])
def test_the_same_cases_from_a_folder_and_from_archives(tmp_path: Path, where: str) -> None:
    folder = write_data_set(tmp_path / "LIDC-IDRI-slices")
    expected = slices(folder)
    methods = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
    root = zipped(folder, tmp_path / "slices.zip", methods[where]) if where in methods else folder
    source = slices(tmp_path if where == "folder above" else root)
    assert ids(source) == ids(expected)
    assert len(ids(source)) == 8 * 4
    assert ids(source)[:4] == [
        *(f"LIDC-IDRI-0001_nodule-0_slice-{number}" for number in range(3)),
        "LIDC-IDRI-0001_nodule-1_slice-0",
    ]
    assert {record.group for record in source.cases()} == {f"LIDC-IDRI-{patient:04d}" for patient in range(1, 9)}
    for case_id in ids(source):
        sample, same = source.load(case_id), expected.load(case_id)
        assert sample.image.shape == (1, EDGE, EDGE)
        assert sample.image.equal(same.image)
        assert sample.masks.equal(same.masks)
        assert sample.valid.equal(same.valid)
    assert (source.spatial_dims, source.channels, source.structures, source.raters) == (2, 1, ("nodule",), None)
    assert not source.mixed_sizes


def test_values_are_those_of_the_files(tmp_path: Path) -> None:
    write_slice(tmp_path, 1, 0, 0, [6, 4, 0, 0])
    sample = slices(tmp_path).load("LIDC-IDRI-0001_nodule-0_slice-0")
    stored = np.random.default_rng([1, 0, 0, 0]).integers(0, 256, (EDGE, EDGE), dtype=np.uint8)
    np.testing.assert_allclose(sample.image[0].numpy(), stored / 255, atol=1e-7)
    found = sorted(int(mask.sum()) for mask in sample.masks)
    assert found == sorted([int(disc(6).sum()), int(disc(4).sum()), 0, 0])
    assert sample.spacing is None


def test_masks_take_a_place_that_is_drawn_once_per_nodule(tmp_path: Path) -> None:
    for patient in range(1, 30):
        for number in range(2):
            write_slice(tmp_path, patient, 0, number, [8, 6, 4, 2])
    source = slices(tmp_path)
    order = {
        case_id: tuple(np.argsort(source.load(case_id).masks.flatten(1).sum(dim=1).numpy())) for case_id in ids(source)
    }
    for patient in range(1, 30):
        first, second = (order[f"LIDC-IDRI-{patient:04d}_nodule-0_slice-{number}"] for number in range(2))
        assert first == second
    assert len(set(order.values())) > 10
    again = slices(tmp_path)
    assert again.load(ids(again)[5]).masks.equal(source.load(ids(source)[5]).masks)


@pytest.mark.parametrize(
    ("settings", "nodules", "cases", "valid"),
    [
        ({}, 2, 4, 4),
        ({"readers": [4]}, 1, 3, 4),
        ({"readers": [1]}, 1, 1, 4),
        ({"readers": [1], "existence": False}, 1, 1, 1),
        ({"readers": [4], "existence": False}, 1, 3, 4),
        ({"readers": [4], "readers_of": "slice"}, 1, 2, 4),
        ({"readers": [3], "readers_of": "slice", "existence": False}, 1, 1, 3),
        ({"slices": "largest"}, 2, 2, 4),
        ({"readers": [4], "slices": "largest"}, 1, 1, 4),
        ({"readers": [4], "volumes": True}, 1, 1, 4),
    ],
)
def test_choice_of_nodules_slices_and_readers(
    tmp_path: Path, settings: dict[str, Any], nodules: int, cases: int, valid: int
) -> None:
    source = slices(write_data_set(tmp_path, [1]), **settings)
    assert len(ids(source)) == cases
    assert source.facts["nodules"].startswith(f"{nodules};")
    assert int(source.load(ids(source)[0]).valid.sum()) == valid
    if settings.get("slices") == "largest":
        assert ids(source)[0] == "LIDC-IDRI-0001_nodule-0_slice-1"


def test_a_slice_per_nodule_and_epoch_is_drawn_anew(tmp_path: Path) -> None:
    source = LidcSlices(str(write_data_set(tmp_path / "slices", range(1, 13))))
    data = RaterDataModule("slices", source, batch_size=2, train_draw="one_per_unit")
    records = data.records("train")
    loader = data.train_dataloader()
    seen = set()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        drawn = [records[key.position] for key in loader.sampler]
        units = [record.unit for record in drawn]
        assert sorted(units) == sorted({record.unit for record in records})
        seen |= {record.case_id for record in drawn}
    assert seen == {record.case_id for record in records}


def test_a_reader_of_other_slices_votes_with_an_empty_mask(tmp_path: Path) -> None:
    source = slices(write_data_set(tmp_path, [1]), readers=[4], existence=False)
    sample = source.load("LIDC-IDRI-0001_nodule-0_slice-0")
    assert sample.valid.all()
    assert sorted(sample.masks.flatten(1).any(dim=1).tolist()) == [False, True, True, True]


def test_slices_of_a_nodule_are_stacked_in_their_order(tmp_path: Path) -> None:
    for number in range(11):
        write_slice(tmp_path, 7, 0, number, [1 + number, 0, 2, 3])
    write_slice(tmp_path, 8, 0, 0, [1, 0, 2, 3])
    volume = slices(tmp_path, volumes=True)
    flat = slices(tmp_path)
    assert volume.spatial_dims == 3
    assert volume.mixed_sizes
    sample = volume.load("LIDC-IDRI-0007_nodule-0")
    assert sample.image.shape == (1, 11, EDGE, EDGE)
    for number in range(11):
        single = flat.load(f"LIDC-IDRI-0007_nodule-0_slice-{number}")
        assert sample.image[:, number].equal(single.image)
        assert sample.masks[:, :, number].equal(single.masks)
    assert sample.spacing is None
    assert "unknown" in volume.facts["volumes"]


def test_a_square_of_the_middle(tmp_path: Path) -> None:
    write_slice(tmp_path, 1, 0, 0, [6, 4, 0, 0])
    write_slice(tmp_path, 2, 0, 0, [11, 4, 0, 0])
    whole, cut = slices(tmp_path), slices(tmp_path, size=16)
    assert ids(cut) == ["LIDC-IDRI-0001_nodule-0_slice-0"]
    assert cut.facts["left out"].startswith("1 case")
    sample, full = cut.load(ids(cut)[0]), whole.load(ids(cut)[0])
    assert sample.image.equal(full.image[:, 8:24, 8:24])
    assert sample.masks.equal(full.masks[..., 8:24, 8:24])
    assert sample.masks.sum() == full.masks.sum()
    with pytest.raises(UserError, match="smaller"):
        slices(tmp_path, size=64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readers": [5]}, "between 1 and 4"),
        ({"readers": []}, "between 1 and 4"),
        ({"readers": [2]}, "no slice is left"),
        ({"volumes": True, "slices": "largest"}, "takes all slices"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        slices(write_data_set(tmp_path, [1]), **settings)


def test_a_root_that_does_not_exist_or_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not set"):
        LidcSlices(None)
    with pytest.raises(UserError, match="no such folder or ZIP"):
        slices(tmp_path / "nothing")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UserError, match="is no readable ZIP archive"):
        slices(tmp_path / "text.zip")
    with pytest.raises(UserError, match="holds no slice"):
        slices(tmp_path).cases()


def problems_of(root: Path, **settings: Any) -> str:
    source = slices(root, **settings)
    with pytest.raises(UserError) as caught:
        source.cases()
    assert str(caught.value).count("\n") == len(source.problems)
    return str(caught.value)


def test_what_is_wrong_is_reported_with_file_and_case(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, [1, 2, 3]) / "LIDC-IDRI-0001"
    (folder / "nodule-1" / "mask-2" / "slice-0.png").unlink()
    save(folder / "nodule-0" / "mask-1" / "slice-0.png", np.zeros((EDGE, EDGE + 1), dtype=np.uint8))
    grey = np.tile(np.arange(EDGE, dtype=np.uint8), (EDGE, 1))
    save(folder / "nodule-0" / "mask-1" / "slice-1.png", grey)
    (folder / "nodule-0" / "images" / "slice-2.png").write_bytes(b"no picture")
    (tmp_path / "LIDC-IDRI-0002" / "nodule-0" / "preview.png").write_bytes(b"")
    text = problems_of(tmp_path)
    assert "'LIDC-IDRI-0001_nodule-1_slice-0': the mask of reader 2 is missing" in text
    assert "mask-1/slice-0.png: case 'LIDC-IDRI-0001_nodule-0_slice-0': is 32x33" in text
    assert "holds the values 0, 1, 2" in text
    assert "images/slice-2.png: case 'LIDC-IDRI-0001_nodule-0_slice-2': cannot be read" in text
    assert "preview.png: is named like no file of this data set" in text
    assert len(slices(tmp_path).healthy()) == 3 * 4 - 4


def test_a_nodule_of_which_slices_are_missing(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, [1, 2]) / "LIDC-IDRI-0001" / "nodule-0"
    for role in ("images", *(f"mask-{reader}" for reader in range(4))):
        (folder / role / "slice-1.png").unlink()
    assert "LIDC-IDRI-0001/nodule-0: has 2 slices but one with number 2" in problems_of(tmp_path)


def test_a_slice_that_is_there_twice(tmp_path: Path) -> None:
    write_slice(tmp_path / "a", 1, 0, 0, [5, 0, 0, 0])
    write_slice(tmp_path / "b", 1, 0, 0, [5, 0, 0, 0])
    assert "is this slice, and so is a/LIDC-IDRI-0001" in problems_of(tmp_path)


def test_one_picture_in_two_patients_is_a_problem_and_in_one_a_warning(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, [1, 2])
    picture = folder / "LIDC-IDRI-0001" / "nodule-0" / "images" / "slice-0.png"
    (folder / "LIDC-IDRI-0001" / "nodule-1" / "images" / "slice-0.png").write_bytes(picture.read_bytes())
    source = slices(folder)
    assert len(source.cases()) == 8
    assert "1 pairs of cases hold the same picture" in source.warnings[0]
    (folder / "LIDC-IDRI-0002" / "nodule-1" / "images" / "slice-0.png").write_bytes(picture.read_bytes())
    assert "of another patient" in problems_of(folder)


def test_hidden_files_and_other_kinds_are_no_slices(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", [1])
    save(folder / "__MACOSX" / "images" / "slice-0.png", np.zeros((2, 2), dtype=np.uint8))
    save(folder / "LIDC-IDRI-0001" / "nodule-0" / "images" / "._slice-0.png", np.zeros((2, 2), dtype=np.uint8))
    (folder / "README.txt").write_text("slices")
    assert len(slices(folder).cases()) == 4
    assert len(slices(zipped(folder, tmp_path / "data.zip")).cases()) == 4


def test_the_second_start_reads_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_data_set(tmp_path / "data")
    archive = zipped(folder, tmp_path / "data.zip")
    cache = str(tmp_path / "cache")
    first = slices(archive, cache=cache)
    with monkeypatch.context() as patched:
        patched.setattr(reading, "read_slice", None)
        second = slices(archive, cache=cache, readers=[4])
    assert len(second.cases()) == 24
    assert second.load(ids(second)[0]).masks.equal(first.load(ids(second)[0]).masks)
    # another content under the same names
    for patient in range(1, 9):
        write_slice(folder, patient, 1, 0, [5, 5, 5, 5])
    changed = slices(zipped(folder, archive), cache=cache, readers=[4])
    assert len(changed.cases()) == 32


def test_files_that_were_just_written_are_read_again(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data")
    slices(folder, cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    archive = zipped(write_data_set(tmp_path / "data"), tmp_path / "data.zip")
    slices(archive, cache=str(tmp_path / "cache"))
    (kept,) = (tmp_path / "cache").iterdir()
    for text in ("", "[]", '{"a": [1]}', '{"a": [[1, 2], [1], [], 3]}'):
        kept.write_text(text)
        assert len(slices(archive, cache=str(tmp_path / "cache")).cases()) == 32


def test_files_that_change_after_the_start(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", [1])
    archive = zipped(folder, tmp_path / "data.zip")
    in_folder, in_archive = slices(folder), slices(archive)
    write_slice(folder, 1, 0, 0, [9, 9, 9, 9])
    with pytest.raises(UserError, match="have changed since the start"):
        in_folder.load(ids(in_folder)[0])
    (folder / "LIDC-IDRI-0001" / "nodule-0" / "mask-0" / "slice-1.png").unlink()
    with pytest.raises(UserError, match=r"mask-0/slice-1\.png"):
        in_folder.load(ids(in_folder)[1])
    zipped(folder, archive, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="has changed since it was listed"):
        in_archive.load(ids(in_archive)[0])


def test_a_source_goes_to_other_processes(tmp_path: Path) -> None:
    source = slices(zipped(write_data_set(tmp_path / "data"), tmp_path / "data.zip"))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.load(ids(source)[3]).image.equal(source.load(ids(source)[3]).image)
    data = RaterDataModule("slices", source, batch_size=4, num_workers=2)
    batches = list(data.train_dataloader())
    assert sum(len(batch) for batch in batches) == len(data.records("train"))


def one_nodule(tmp_path: Path) -> dict[str, bytes]:
    folder = write_slice(tmp_path / "data", 1, 0, 0, [5, 4, 3, 0]).parents[1]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("prefix", ["../", "/", "a/../../", "..\\"])
def test_names_that_lead_out_of_the_archive(tmp_path: Path, prefix: str) -> None:
    members = one_nodule(tmp_path)
    members[prefix + "LIDC-IDRI-0002/nodule-0/images/slice-0.png"] = b"x"
    assert "leads out of the archive" in problems_of(write_archive(tmp_path / "a.zip", members))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("change", ["flipped bit", "smaller", "larger", "huge", "cut"])
def test_archives_that_claim_other_sizes_or_checksums(tmp_path: Path, change: str, method: int) -> None:
    archive = write_archive(tmp_path / "a.zip", one_nodule(tmp_path), method)
    content = bytearray(archive.read_bytes())
    entry = content.index(b"PK\x01\x02")
    if change == "flipped bit":
        content[len(b"LIDC-IDRI-0001/nodule-0/images/slice-0.png") + 60] ^= 1
    elif change == "cut":
        (packed,) = struct.unpack_from("<I", content, entry + 20)
        struct.pack_into("<I", content, entry + 42, len(content) - packed // 2)
    else:
        (size,) = struct.unpack_from("<I", content, entry + 24)
        claimed = {"smaller": size - 9, "larger": size + 9, "huge": 2**31}[change]
        struct.pack_into("<I", content, entry + 24, claimed)
    archive.write_bytes(content)
    assert "images/slice-0.png" in problems_of(archive)


def test_members_that_unpack_to_more_than_they_claim(tmp_path: Path) -> None:
    members = one_nodule(tmp_path)
    members["LIDC-IDRI-0001/nodule-0/images/slice-0.png"] = bytes(2**24)
    archive = write_archive(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED)
    content = bytearray(archive.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 100)
    archive.write_bytes(content)
    assert "its size or checksum does not match" in problems_of(archive)


def test_members_that_are_encrypted_repeated_or_compressed_in_unusual_ways(tmp_path: Path) -> None:
    members = one_nodule(tmp_path)
    archive = write_archive(tmp_path / "a.zip", members)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert "is encrypted" in problems_of(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_archive(tmp_path / "b.zip", members)
        with zipfile.ZipFile(tmp_path / "b.zip", "a") as repeated:
            repeated.writestr(next(iter(members)), b"other")
    assert "is 2 times in the archive" in problems_of(tmp_path / "b.zip")
    assert "is compressed in an unusual way" in problems_of(
        write_archive(tmp_path / "c.zip", members, zipfile.ZIP_LZMA)
    )


def test_a_member_under_another_name_in_its_own_header(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.zip", one_nodule(tmp_path))
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"nodule-0/images", b"nodule-9/images", 1))
    assert "its two headers differ" in problems_of(archive)


def test_pictures_too_large_for_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MOST_BYTES", 300)
    members = one_nodule(tmp_path)
    assert "too many for such a picture" in problems_of(tmp_path / "data")
    assert "too many for such a picture" in problems_of(write_archive(tmp_path / "a.zip", members))


def test_jpeg_slices_are_thresholded_and_keep_their_test_part(tmp_path: Path) -> None:
    for number in range(6):
        write_blurred_slice(tmp_path / "data", "training", number, [6, 5, 0, 4])
    write_blurred_slice(tmp_path / "data", "testing", 12, [6, 0, 0, 0])
    source = slices(tmp_path)
    assert ids(source) == ["testing_12", *(f"training_{number}" for number in range(6))]
    assert source.cases()[0].split == "test"
    sample = source.load("training_3")
    found = sorted(int(mask.sum()) for mask in sample.masks)
    assert found == sorted(int(disc(radius).sum()) for radius in (6, 5, 0, 4))
    assert "127" in source.facts["masks"]
    assert "patients are unknown" in source.facts["slices"]
    assert len(slices(tmp_path, readers=[1]).cases()) == 1


def test_jpeg_masks_that_are_photographs(tmp_path: Path) -> None:
    folder = write_blurred_slice(tmp_path, "training", 0, [6, 5, 0, 4])
    save(folder / "label2_.jpg", np.full((EDGE, EDGE), 120, dtype=np.uint8))
    assert "label2_.jpg: case 'training_0': is no mask" in problems_of(tmp_path)


def test_names_that_are_almost_those_of_slices() -> None:
    names = ["a/LIDC-IDRI-0001/nodule-0/images/slice-0.png"]
    names += [f"a/LIDC-IDRI-0001/nodule-0/mask-{reader}/slice-0.png" for reader in range(4)]
    others = [
        "a/LIDC-IDRI-0001/nodule-0/mask-4/slice-0.png",
        "a/LIDC-IDRI-1/nodule-0/images/slice-0.png",
        "training/3/image_3.jpg",
        "nodule-0/images/slice-0.png",
    ]
    found, problems = list_slices([*names, *others])
    assert [one.case_id for one in found] == ["LIDC-IDRI-0001_nodule-0_slice-0"]
    assert len(problems) == len(others)
    found, problems = list_slices([*names, "a/LIDC-IDRI-0001/nodule-0/images/slice-00.png"])
    assert len(found) == 1
    assert "is the same file of a slice" in problems[0]
    assert list_slices(others[:2]) == ([], [])


@needs_real
def test_names_of_the_real_slices() -> None:
    names = storage.PictureArchive(REAL, (".png",)).names
    found, problems = list_slices(names)
    assert not problems
    assert len(found) == 15_548
    assert len({one.nodule for one in found}) == 2_630
    assert len({one.nodule.patient for one in found}) == 875


@needs_real
def test_a_sample_of_the_real_slices(tmp_path: Path) -> None:
    with zipfile.ZipFile(REAL) as archive:
        wanted = {f"LIDC-IDRI-{number:04d}" for number in random.Random(0).sample(range(1, 1011), 20)}
        members = {name: archive.read(name) for name in archive.namelist() if name.split("/")[1] in wanted}
    source = slices(write_archive(tmp_path / "sample.zip", members))
    cases = source.cases()
    assert len(cases) == len(members) // 5
    samples = [source.load(record.case_id) for record in cases]
    assert {sample.image.shape for sample in samples} == {(1, 128, 128)}
    assert all(sample.valid.all() for sample in samples)
    # no mask reaches the border, and the picture is no constant
    assert not any(sample.masks[..., 0, :].any() or sample.masks[..., -1].any() for sample in samples)
    assert min(float(sample.image.std()) for sample in samples) > 0.05
    four = slices(tmp_path / "sample.zip", readers=[4], slices="largest", readers_of="slice")
    assert all(four.load(record.case_id).masks.flatten(1).any(dim=1).all() for record in four.cases())
