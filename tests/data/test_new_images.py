"""Which cases a file, a folder or a table holds."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from edue_lightning.data.new_images import ImageCases, find_images
from edue_lightning.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def listed(found: ImageCases) -> dict[str, list[str]]:
    return {case.case_id: [path.name for path in case.files] for case in found.cases}


def test_each_file_is_a_case(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "deep/b.NII.GZ", "deep/c.tif", ".hidden.png", "notes.txt", "out/a__mask.png")
    found = find_images(tmp_path, 1, leave_out=tmp_path / "out")
    assert listed(found) == {"a": ["a.png"], "b": ["b.NII.GZ"], "c": ["c.tif"]}
    assert not found.problems


def test_cases_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "one/image.png", "two/image.png", "three.png")
    assert set(listed(find_images(tmp_path, 1))) == {"one_image.png", "two_image.png", "three"}


def test_no_case_has_the_name_of_another_cases_file(tmp_path: Path) -> None:
    touch(tmp_path, "s1/image.png", "s2/image.png", "s1_image.png")
    found = {case.case_id: case.files[0] for case in find_images(tmp_path, 1).cases}
    assert found["s1_image"] == tmp_path / "s1_image.png"
    assert found["s2_image.png"] == tmp_path / "s2" / "image.png"
    (left,) = set(found) - {"s1_image", "s2_image.png"}
    assert left.startswith("s1_image.png-")


@pytest.mark.parametrize(
    "names",
    [
        ["a/b_c.png", "a_b/c.png", "x/b_c.png", "x/c.png"],
        # a stem that is the name of another's path
        ["a/b.png", "c/b.png", "a_b.png.tif"],
        ["a/b.png", "a/b.nii", "a_b.png/b.png", "a/b.png_b.png"],
        ["A.png", "a.png", "b.png"],
        ["A/image.png", "a/Image.png", "IMAGE.png"],
        # an accent as a letter of its own
        ["Jos\u00e9.png", "jose\u0301.png"],
    ],
)
def test_cases_never_share_a_name(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    found = find_images(tmp_path, 1)
    assert not found.problems
    files = [case.files[0].relative_to(tmp_path).as_posix() for case in found.cases]
    assert sorted(files) == sorted(names)
    # also where upper and lower case, and the composition of accents, make no difference
    distinct = {unicodedata.normalize("NFC", case.case_id).lower() for case in found.cases}
    assert len(distinct) == len(names)
    # the same names again, so that an interrupted prediction finds its files, also beside another case
    touch(tmp_path, "another.png")
    assert {case.case_id for case in found.cases} < {case.case_id for case in find_images(tmp_path, 1).cases}


def test_a_broken_case_takes_no_other_of_its_name_with_it(tmp_path: Path) -> None:
    touch(tmp_path, "one/c__CT.nii.gz", "one/c_ct.nii.gz", "one/c__PT.nii.gz", "two/c__CT.nii.gz", "two/c__PT.nii.gz")
    touch(tmp_path, "three/c__CT.nii.gz", "four/c__PT.nii.gz")
    found = find_images(tmp_path, 2)
    assert listed(found) == {"c": ["c__CT.nii.gz", "c__PT.nii.gz"]}
    assert found.cases[0].files[0].parent.name == "two"
    assert [name for name, _ in found.problems] == ["one/c", "four/c", "three/c"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["C-1/C-1__PT.nii.gz", "C-1/C-1__CT.nii.gz", "C-1/C-1.nii.gz"], {"C-1": ["C-1__CT.nii.gz", "C-1__PT.nii.gz"]}),
        (
            ["CHGJ007_ct.nii.gz", "CHGJ007_pt.nii.gz", "CHGJ007_gtvt.nii.gz"],
            {"CHGJ007": ["CHGJ007_ct.nii.gz", "CHGJ007_pt.nii.gz"]},
        ),
        (["a_0001.nii", "a_0000.nii"], {"a": ["a_0000.nii", "a_0001.nii"]}),
        (
            ["a__1.tif", "a__2.tif", "b__2.tif", "b__1.tif"],
            {"a": ["a__1.tif", "a__2.tif"], "b": ["b__1.tif", "b__2.tif"]},
        ),
        # numbers of cases, not of channels
        (["a_0000.nii", "a_0001.nii", "a_0002.nii"], {f"a_000{n}": [f"a_000{n}.nii"] for n in range(3)}),
        (["a_0000.png", "a_0001.png"], {"a_0000": ["a_0000.png"], "a_0001": ["a_0001.png"]}),
        # of pictures in colours, each holds all channels
        (["a.png", "b.png"], {"a": ["a.png"], "b": ["b.png"]}),
    ],
)
def test_files_that_are_named_by_channel_are_one_case(
    tmp_path: Path, names: list[str], expected: dict[str, list[str]]
) -> None:
    touch(tmp_path, *names)
    assert listed(find_images(tmp_path, 2)) == expected
    # one file of a case leads to the others
    first = next(path for path in tmp_path.rglob("*") if path.name == next(iter(expected.values()))[0])
    assert listed(find_images(first, 2)) == dict([next(iter(expected.items()))])


def test_a_case_without_one_of_its_channels_is_a_problem_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a__CT.nii.gz", "b__CT.nii.gz", "b__PT.nii.gz", "c__CT.nii.gz", "c_ct.nii.gz", "c_pt.nii.gz")
    found = find_images(tmp_path, 2)
    assert set(listed(found)) == {"b"}
    problems = dict(found.problems)
    assert problems["a"] == "lacks a channel: only a__CT.nii.gz exists; add the other files"
    assert "are the same channel" in problems["c"]


def test_a_table_names_the_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "list.csv").write_text(
        "case_id,image,spacing,mask\nfirst,a.png,0.5x0.7,m1\nfirst,a.png,0.5x0.7,m2\nsecond,sub/b.png,,\n"
        "third,../a.png,,\nEight,a.png,,\neight,sub/b.png,,\nfourth,gone.png,,\nfifth,,,\nsixth,a.png,wide,\n../x,a.png,,\nseventh,a.png,,\nseventh,sub/b.png,,\n"
    )
    found = find_images(tmp_path / "list.csv", 3)
    assert listed(found) == {"first": ["a.png"], "second": ["b.png"]}
    assert [case.spacing for case in found.cases] == [(0.5, 0.7), None]
    problems = dict(found.problems)
    assert "leaves the manifest's folder" in problems["third"]
    assert "not found" in problems["fourth"]
    assert problems["fifth"] == "image is empty; name its file"
    assert problems["sixth"].startswith("spacing is ")
    assert "cannot be a file name" in problems["../x"]
    assert "its rows differ" in problems["seventh"]
    assert problems["Eight"] == "some file systems take its name for that of 'eight'; rename one"
    assert problems["eight"] == "some file systems take its name for that of 'Eight'; rename one"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("notes.txt", "has none of the endings"),
        ("empty", "holds no image"),
        ("wrong.csv", "has no column image"),
    ],
)
def test_nothing_to_be_found_is_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "notes.txt")
    (tmp_path / "wrong.csv").write_text("case_id,picture\na,b.png\n")
    with pytest.raises(UserError, match=message):
        find_images(tmp_path / name, 1)


def test_earlier_predictions_below_the_input_are_no_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "001.png", "002.nii.gz", "deep/003.png")
    for folder in ("first", "deep/second"):
        touch(tmp_path / folder, "001__mask.png", "001__probability.tif", "prediction.yaml", "records/001.json")
    # somebody's own file of that name
    touch(tmp_path, "own/prediction.yaml", "own/004.png")
    found = find_images(tmp_path, 1)
    assert sorted(listed(found)) == ["001", "002", "003", "004"]
    assert not found.problems
    assert sorted(caplog.messages) == [
        *(
            f"{tmp_path}/{folder}: contains predictions, not images, and is skipped"
            for folder in ("deep/second", "first")
        ),
        f"{tmp_path}: files that are no images are skipped: own/prediction.yaml",
    ]
    with pytest.raises(UserError, match="first: contains predictions; choose the folder of the images"):
        find_images(tmp_path / "first", 1)


@pytest.mark.parametrize("channels", [1, 2])
def test_whatever_is_no_image_of_ours_is_named(tmp_path: Path, channels: int, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a__CT.nii.gz", "a__PT.nii.gz", "b.mnc", "deep/c.DCM", "d.mgz", "e.jp2", "notes.txt", "table.xlsx")
    # a damaged slice is that of a patient
    (tmp_path / "patient").mkdir()
    (tmp_path / "patient" / "IM1").write_bytes(bytes(128) + b"DICM")
    found = find_images(tmp_path, channels)
    assert dict(found.problems) == {
        "b.mnc": "is of a format that is not read; convert it to NIfTI, or move it away",
        "deep/c.DCM": "is of a format that is not read; convert it to NIfTI, or move it away",
        "d.mgz": "is of a format that is not read; convert it to NIfTI, or move it away",
        "e.jp2": "is of a format that is not read; convert it to PNG, or move it away",
    }
    assert f"{tmp_path}: files that are no images are skipped: notes.txt, table.xlsx" in caplog.messages
    assert len(found.cases) == 4 - channels
    assert listed(found)["patient"] == ["patient"]


def test_files_without_a_channel_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a__CT.nii.gz", "a__PT.nii.gz", *(f"a_label{n}.nii.gz" for n in range(5)))
    assert set(listed(find_images(tmp_path, 2))) == {"a"}
    assert caplog.messages == [
        f"{tmp_path}: files without a channel in their names are skipped: "
        "a_label0.nii.gz, a_label1.nii.gz, a_label2.nii.gz and 2 more"
    ]


def test_files_in_deep_folders_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "1/2/3/4/5/6/7/8/a.png")
    assert set(listed(find_images(tmp_path, 1))) == {"a"}


@pytest.mark.parametrize("channels", [1, 3])
def test_names_of_nnunets_first_channel_lose_it_if_all_files_have_it(tmp_path: Path, channels: int) -> None:
    ending = "nii.gz" if channels == 1 else "png"
    touch(tmp_path, f"liver_1_0000.{ending}", f"liver_2_0000.{ending}")
    assert set(listed(find_images(tmp_path, channels))) == {"liver_1", "liver_2"}
    assert set(listed(find_images(tmp_path / f"liver_2_0000.{ending}", channels))) == {"liver_2"}
    touch(tmp_path / "one", f"liver_1_0000.{ending}")
    assert set(listed(find_images(tmp_path / "one", channels))) == {"liver_1_0000"}
    (tmp_path / "one" / f"liver_1_0000.{ending}").unlink()
    touch(tmp_path, f"liver_3_0001.{ending}")
    assert f"liver_1_0000.{ending}" in {path[0] for path in listed(find_images(tmp_path, channels)).values()}
    assert "liver_1_0000" in listed(find_images(tmp_path, channels))
