"""The QUBIQ releases as they lie on a disk: every case is listed, and all that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edue_lightning.data.sources.qubiq.layout import list_qubiq


def case_files(folder: str, raters: int, tasks: int = 1) -> list[str]:
    masks = [f"task{task:02d}_seg{rater:02d}" for task in range(1, tasks + 1) for rater in range(1, raters + 1)]
    return [f"{folder}/{name}.nii.gz" for name in ("image", *masks)]


TRAINING = "training_data_v3_QC"
VALIDATION = "validation_data_qubiq2021_QC"
GROWTH = [
    *case_files("brain-growth/Training/case01", 7),
    *case_files("brain-growth/Training/case39", 7),
    *case_files("brain-growth/Validation/case40", 7),
]
RELEASE = [
    *case_files(f"{TRAINING}/kidney/Training/case01", 3),
    *case_files(f"{TRAINING}/pancreas/case1-1", 2),
    *case_files(f"{TRAINING}/pancreas/case1-2", 2),
    *case_files(f"{VALIDATION}/kidney/Validation/case25", 3),
    *case_files(f"{VALIDATION}/pancreas/case13-1", 2),
    "QUBIQ21_test/kidney/Testing/case29/image.nii.gz",
]
ONE_CASE = case_files("kidney/Training/case01", 3)


def touch(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path, data_set: str | None = None) -> dict[str, tuple[str, str | None]]:
    """Return patient and split of each case in a folder that must have no problem."""
    cases, problems = list_qubiq(root, data_set)
    assert problems == []
    return {case.case_id: (case.patient, case.split_hint) for case in cases}


def test_training_is_drawn_from_and_validation_tests(tmp_path: Path) -> None:
    touch(tmp_path, GROWTH)
    assert listed(tmp_path) == {
        "Training_case01": ("Training_case01", None),
        "Training_case39": ("Training_case39", None),
        "Validation_case40": ("Validation_case40", "test"),
    }


@pytest.mark.parametrize("below", ["", "brain-growth", "brain-growth/Training", "brain-growth/Training/case01"])
def test_a_data_set_is_found_from_any_folder(tmp_path: Path, below: str) -> None:
    touch(tmp_path, GROWTH)
    case = list_qubiq(tmp_path / below)[0][0]
    folder = tmp_path / "brain-growth/Training/case01"
    assert (case.case_id, case.image) == ("Training_case01", folder / "image.nii.gz")
    assert case.masks == {(f"{rater:02d}", "task01"): folder / f"task01_seg{rater:02d}.nii.gz" for rater in range(1, 8)}


def test_several_tasks_and_a_missing_rater(tmp_path: Path) -> None:
    touch(tmp_path, case_files("prostate/Training/case09", 3, tasks=2))
    for task in (1, 2):
        (tmp_path / f"prostate/Training/case09/task0{task}_seg02.nii.gz").unlink()
    (case,), problems = list_qubiq(tmp_path)
    assert problems == []
    assert list(case.masks) == [("01", "task01"), ("01", "task02"), ("03", "task01"), ("03", "task02")]


def test_the_archives_side_by_side(tmp_path: Path) -> None:
    touch(tmp_path, RELEASE)
    assert list_qubiq(tmp_path) == (
        [],
        [".: holds the data sets kidney, pancreas; set data.source.data_set to one of them, or choose its folder"],
    )
    assert listed(tmp_path, "kidney") == {
        "Training_case01": ("Training_case01", None),
        "Validation_case25": ("Validation_case25", "test"),
    }


def test_the_archive_tells_the_part_where_no_folder_does(tmp_path: Path) -> None:
    touch(tmp_path, RELEASE)
    expected = {
        "Training_case1-1": ("Training_case1", None),
        "Training_case1-2": ("Training_case1", None),
        "Validation_case13-1": ("Validation_case13", "test"),
    }
    assert listed(tmp_path, "pancreas") == expected
    assert listed(tmp_path / VALIDATION / "pancreas") == {"Validation_case13-1": ("Validation_case13", "test")}


def test_a_folder_that_tells_no_part(tmp_path: Path) -> None:
    touch(tmp_path, case_files("pancreas/case1-1", 2))
    assert listed(tmp_path) == {"case1-1": ("case1", None)}


def test_test_images_count_only_with_masks(tmp_path: Path) -> None:
    touch(tmp_path, ["test_QUBIQ/kidney/Testing/case29/image.nii.gz"])
    assert listed(tmp_path) == {}
    touch(tmp_path, case_files("test_QUBIQ/kidney/Testing/case30", 3))
    assert listed(tmp_path) == {"Testing_case30": ("Testing_case30", "test")}


def test_nothing_is_found_in_an_empty_folder(tmp_path: Path) -> None:
    assert list_qubiq(tmp_path) == ([], [])


def test_masks_named_after_the_case_and_other_endings(tmp_path: Path) -> None:
    touch(tmp_path, [f"kidney/Training/case01/{name}" for name in ("image.nii", "case01_seg1.nii.gz", "._image.nii")])
    (case,), problems = list_qubiq(tmp_path)
    assert problems == []
    assert case.masks == {("01", "task01"): tmp_path / "kidney/Training/case01/case01_seg1.nii.gz"}


def test_an_unknown_data_set(tmp_path: Path) -> None:
    touch(tmp_path, ONE_CASE)
    line = ".: holds no data set 'liver', but kidney; correct data.source.data_set or the folder"
    assert list_qubiq(tmp_path, "liver") == ([], [line])


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        pytest.param(
            ONE_CASE[1:],
            ["{}/task01_seg01.nii.gz: case 'Training_case01': is a mask without image.nii.gz beside it; add that"],
            id="no image",
        ),
        pytest.param(
            ONE_CASE[:1],
            [
                "{}/image.nii.gz: case 'Training_case01': has no mask beside it; add taskNN_segNN.nii.gz, or remove "
                "the case"
            ],
            id="no mask",
        ),
        pytest.param(
            [*ONE_CASE, "kidney/Training/case01/image.nii"],
            ["{0}/image.nii.gz: case 'Training_case01': is the image, and so is {0}/image.nii; remove one"],
            id="two images",
        ),
        pytest.param(
            [*ONE_CASE, "kidney/Training/case01/case01_seg2.nii.gz"],
            [
                "{0}/task01_seg02.nii.gz: case 'Training_case01': is the mask of rater '02' for task01, and so is "
                "{0}/case01_seg2.nii.gz; remove one"
            ],
            id="a rater twice",
        ),
        pytest.param(
            case_files("kidney/Training/case 01", 1),
            [
                "kidney/Training/case 01: case 'Training_case 01': cannot be a file name; use letters, digits, '.', "
                "'_' and '-'"
            ],
            id="name",
        ),
        pytest.param(
            ["kidney/Training/case01/img.nii.gz"],
            ["{}/img.nii.gz: is named neither image nor taskNN_segNN; rename it, or move it out of the data set"],
            id="misnamed",
        ),
    ],
)
def test_what_is_wrong_with_a_case(tmp_path: Path, names: Sequence[str], lines: Sequence[str]) -> None:
    touch(tmp_path, names)
    assert list_qubiq(tmp_path) == ([], [line.format("kidney/Training/case01") for line in lines])


def test_two_editions_hold_the_same_cases(tmp_path: Path) -> None:
    touch(tmp_path, [f"{edition}/{name}" for edition in ("training_data_v2", "training_data_v3") for name in ONE_CASE])
    cases, problems = list_qubiq(tmp_path)
    assert problems == [
        "training_data_v3/kidney/Training/case01: case 'Training_case01': is this case, and so is "
        "training_data_v2/kidney/Training/case01; remove one"
    ]
    assert [case.image.parts[-5] for case in cases] == ["training_data_v2"]


def test_only_the_chosen_data_set_is_judged(tmp_path: Path) -> None:
    touch(tmp_path, [*RELEASE, f"{TRAINING}/pancreas/case1-1/odd.nii.gz"])
    assert list_qubiq(tmp_path, "kidney")[1] == []
    assert len(list_qubiq(tmp_path, "pancreas")[1]) == 1


def test_a_link_that_leads_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, ONE_CASE)
    touch(tmp_path, ["outside.nii.gz"])
    (root / "kidney/Training/case01/task01_seg04.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    (case,), problems = list_qubiq(root)
    assert len(case.masks) == 4
    assert not problems
    (tmp_path / "outside.nii.gz").unlink()
    (case,), problems = list_qubiq(root)
    assert len(case.masks) == 3
    assert problems == [
        "kidney/Training/case01/task01_seg04.nii.gz: is a link that leads nowhere; fetch what it points to, or "
        "remove it"
    ]


@settings(max_examples=25)
@given(st.permutations([*GROWTH, "brain-growth/Training/case02/image.nii.gz", "brain-growth/odd.nii.gz"]))
def test_the_order_on_the_disk_does_not_matter(names: Sequence[str]) -> None:
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        touch(Path(first), names)
        touch(Path(second), sorted(names))
        of_first, of_second = list_qubiq(Path(first)), list_qubiq(Path(second))
        assert of_first[1] == of_second[1]
        assert len(of_first[1]) == 2
        for one, other in zip(of_first[0], of_second[0], strict=True):
            assert (one.case_id, list(one.masks)) == (other.case_id, list(other.masks))
        assert [case.case_id for case in of_first[0]] == ["Training_case01", "Training_case39", "Validation_case40"]
