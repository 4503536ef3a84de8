"""The HECKTOR releases as they lie on a disk: every case is listed, and all that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edue_lightning.data.sources.hecktor.layout import BoundingBox, LabelFiles, list_cases, read_bounding_boxes
from edue_lightning.errors import UserError

OF_2020 = [
    f"hecktor_train/hecktor_nii/{case}/{case}_{kind}.nii.gz"
    for case in ("CHGJ007", "CHUM001")
    for kind in ("ct", "pt", "ct_gtvt")
]
OF_2021 = [
    f"hecktor2021_train/hecktor_nii/{case}_{kind}.nii.gz"
    for case in ("CHGJ007", "CHUP025")
    for kind in ("ct", "pt", "gtvt")
]
FOLDER_OF_2022 = "hecktor2022_training_corrected_v3/hecktor2022_training/hecktor2022"
OF_2022 = [
    f"{FOLDER_OF_2022}/{name}.nii.gz"
    for case in ("CHUM-001", "MDA-010")
    for name in (f"imagesTr/{case}__CT", f"imagesTr/{case}__PT", f"labelsTr/{case}")
]
OF_2025 = [f"{case}/{case}{kind}.nii.gz" for case in ("HGJ-008", "USZ-001") for kind in ("__CT", "__PT", "")]
ONE_CASE = ["imagesTr/CHUM-001__CT.nii.gz", "imagesTr/CHUM-001__PT.nii.gz", "labelsTr/CHUM-001.nii.gz"]


def touch(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path, names: Iterable[str]) -> list[str]:
    """Return the names of the cases in a folder that must have no problem."""
    touch(root, names)
    cases, problems = list_cases(root)
    assert problems == []
    return [case.case_id for case in cases]


def problems_of(root: Path, names: Iterable[str]) -> list[str]:
    """Return the problems of a folder that must have no complete case."""
    touch(root, names)
    cases, problems = list_cases(root)
    assert cases == []
    return problems


@pytest.mark.parametrize(
    ("names", "cases", "centres"),
    [
        pytest.param(OF_2020, ["CHGJ007", "CHUM001"], ["CHGJ", "CHUM"], id="2020"),
        pytest.param(OF_2021, ["CHGJ007", "CHUP025"], ["CHGJ", "CHUP"], id="2021"),
        pytest.param(OF_2022, ["CHUM-001", "MDA-010"], ["CHUM", "MDA"], id="2022"),
        pytest.param(
            [f"HECKTOR 2025 Training Data Defaced ALL/{name}" for name in OF_2025],
            ["HGJ-008", "USZ-001"],
            ["HGJ", "USZ"],
            id="2025",
        ),
        pytest.param(
            [f"HECKTOR 2026 Training Data/{name}" for name in OF_2025],
            ["HGJ-008", "USZ-001"],
            ["HGJ", "USZ"],
            id="2026",
        ),
        pytest.param(
            [f"hecktor2025_training/Task 1/{name}" for name in OF_2025],
            ["HGJ-008", "USZ-001"],
            ["HGJ", "USZ"],
            id="2025-tasks",
        ),
    ],
)
def test_every_layout(tmp_path: Path, names: Sequence[str], cases: Sequence[str], centres: Sequence[str]) -> None:
    touch(tmp_path, names)
    found, problems = list_cases(tmp_path)
    assert problems == []
    assert [case.case_id for case in found] == cases
    assert [case.centre for case in found] == centres
    of_case = dict(zip(cases, zip(names[::3], names[1::3], names[2::3], strict=True), strict=True))
    for case in found:
        ct, pet, label = (tmp_path / name for name in of_case[case.case_id])
        expected = LabelFiles(structures={"GTVp": label}) if "gtvt" in label.name else LabelFiles(label)
        assert (case.ct, case.pet, case.labels) == (ct, pet, {"release": expected})


def test_a_layout_is_found_from_any_folder_above(tmp_path: Path) -> None:
    touch(tmp_path, OF_2022)
    cases, problems = list_cases(tmp_path)
    assert list_cases(tmp_path / FOLDER_OF_2022) == (cases, problems)
    assert (len(cases), problems) == (2, [])


def test_nothing_is_found_in_an_empty_folder_or_far_below(tmp_path: Path) -> None:
    assert list_cases(tmp_path) == ([], [])
    assert listed(tmp_path, [f"a/b/c/d/e/f/{name}" for name in ONE_CASE]) == []


def test_test_images_other_tasks_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    names = [
        "hecktor2022_testing/imagesTs/USZ-001__CT.nii.gz",
        "imagesTs/MDA-001__CT.nii.gz",
        "labelsTs/MDA-001.nii.gz",
        "hecktor2021_test/hecktor2021_test/hecktor_nii/CHUP025_ct.nii.gz",
        "hecktor_nii_test/CHUP030_ct.nii.gz",
        "Task 2/CHUM-001/CHUM-001__CT.nii.gz",
        "Task 3/CHUM-001/CHUM-001__PT.nii.gz",
        "imagesTr/._CHUM-001__CT.nii.gz",
        "__MACOSX/imagesTr/CHUM-001__CT.nii.gz",
        "hecktor2022_clinical_info_training.csv",
    ]
    assert listed(tmp_path, [*names, *ONE_CASE]) == ["CHUM-001"]


def test_planning_and_dose_files_are_passed_over(tmp_path: Path) -> None:
    kinds = ("__CT", "__PT", "", "__CTPlanning", "__RTDOSE", "__dosimetry_CT", "__radiotherapy_dosemaps")
    assert listed(tmp_path, [f"CHUM-001/CHUM-001{kind}.nii.gz" for kind in kinds]) == ["CHUM-001"]


def test_uncompressed_files_and_capital_endings_count(tmp_path: Path) -> None:
    names = ["imagesTr/CHUM-001__CT.nii", "imagesTr/CHUM-001__PT.NII.GZ", "labelsTr/CHUM-001.nii"]
    assert listed(tmp_path, names) == ["CHUM-001"]


def test_raters_by_file_name_and_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, [*ONE_CASE, "labelsTr/CHUM-001__raterA.nii.gz", "labelsTr_B_2/CHUM-001.nii.gz"])
    (case,), problems = list_cases(tmp_path)
    assert problems == []
    assert case.labels == {
        "A": LabelFiles(tmp_path / "labelsTr/CHUM-001__raterA.nii.gz"),
        "B_2": LabelFiles(tmp_path / "labelsTr_B_2/CHUM-001.nii.gz"),
        "release": LabelFiles(tmp_path / "labelsTr/CHUM-001.nii.gz"),
    }


def test_a_label_in_another_format_is_no_missing_rater(tmp_path: Path) -> None:
    touch(tmp_path, [*ONE_CASE, "labelsTr/CHUM-001__raterB.nrrd"])
    _, problems = list_cases(tmp_path)
    fix = "is no NIfTI file (.nii, .nii.gz); convert it, or move it out of the data set"
    assert problems == [f"labelsTr/CHUM-001__raterB.nrrd: {fix}"]


def test_a_rater_with_a_file_a_structure(tmp_path: Path) -> None:
    files = ["CHUM001_gtvt__raterA.nii.gz", "CHUM001_gtvn__raterA.nii.gz"]
    touch(tmp_path, ["CHUM001_ct.nii.gz", "CHUM001_pt.nii.gz", "CHUM001_gtvt.nii.gz", *files])
    (case,), problems = list_cases(tmp_path)
    assert problems == []
    assert case.labels["A"] == LabelFiles(structures={"GTVp": tmp_path / files[0], "GTVn": tmp_path / files[1]})
    assert list(case.labels) == ["A", "release"]


def test_raters_need_no_label_of_the_release(tmp_path: Path) -> None:
    touch(tmp_path, [*ONE_CASE[:2], "labelsTr_A/CHUM-001.nii.gz"])
    (case,), problems = list_cases(tmp_path)
    assert problems == []
    assert list(case.labels) == ["A"]


def test_a_resampled_copy_is_the_release(tmp_path: Path) -> None:
    touch(tmp_path, [name.replace("Tr/", "Tr_resampled/") for name in ONE_CASE])
    (case,), problems = list_cases(tmp_path)
    assert problems == []
    assert list(case.labels) == ["release"]


def test_a_resampled_copy_beside_the_originals(tmp_path: Path) -> None:
    copies = [name.replace("Tr/", "Tr_resampled/") for name in ONE_CASE]
    assert problems_of(tmp_path, [*ONE_CASE, *copies]) == [
        "imagesTr_resampled/CHUM-001__CT.nii.gz: case 'CHUM-001': is the CT, and so is "
        "imagesTr/CHUM-001__CT.nii.gz; remove one",
        "imagesTr_resampled/CHUM-001__PT.nii.gz: case 'CHUM-001': is the PET, and so is "
        "imagesTr/CHUM-001__PT.nii.gz; remove one",
        "labelsTr_resampled/CHUM-001.nii.gz: case 'CHUM-001': is the label of rater 'release', and so is "
        "labelsTr/CHUM-001.nii.gz; remove one",
    ]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        pytest.param(
            ONE_CASE[:1] + ONE_CASE[2:],
            "imagesTr/CHUM-001__CT.nii.gz: case 'CHUM-001': is a CT without a PET; add the PET, or remove the case",
            id="no PET",
        ),
        pytest.param(
            ONE_CASE[1:],
            "imagesTr/CHUM-001__PT.nii.gz: case 'CHUM-001': is a PET without a CT; add the CT, or remove the case",
            id="no CT",
        ),
        pytest.param(
            ONE_CASE[:2],
            "imagesTr/CHUM-001__CT.nii.gz: case 'CHUM-001': has no label; add it to labelsTr or beside the CT, or "
            "set data.source.leave_out_unlabelled=true",
            id="no label",
        ),
        pytest.param(
            ONE_CASE[2:],
            "labelsTr/CHUM-001.nii.gz: case 'CHUM-001': labels a case without images; add its CT and PET, or remove it",
            id="label alone",
        ),
        pytest.param(
            ["CHUM-001/CHUM-001.nii.gz"],
            "CHUM-001/CHUM-001.nii.gz: case 'CHUM-001': is neither in labelsTr nor beside its images; move it there, "
            "or remove it",
            id="label alone in its folder",
        ),
        pytest.param(
            [*ONE_CASE, "imagesTr/CHUM-001__CT.nii"],
            "imagesTr/CHUM-001__CT.nii.gz: case 'CHUM-001': is the CT, and so is imagesTr/CHUM-001__CT.nii; remove one",
            id="compressed and not",
        ),
        pytest.param(
            [*ONE_CASE, "old/labelsTr/CHUM-001.nii.gz"],
            "old/labelsTr/CHUM-001.nii.gz: case 'CHUM-001': is the label of rater 'release', and so is "
            "labelsTr/CHUM-001.nii.gz; remove one",
            id="two folders",
        ),
        pytest.param(
            [*ONE_CASE, "labelsTr/CHUM-001__raterA.nii.gz", "labelsTr_A/CHUM-001.nii.gz"],
            "labelsTr_A/CHUM-001.nii.gz: case 'CHUM-001': is the label of rater 'A', and so is "
            "labelsTr/CHUM-001__raterA.nii.gz; remove one",
            id="a rater twice",
        ),
        pytest.param(
            [*ONE_CASE, "labelsTr/CHUM-001_gtvt.nii.gz"],
            "labelsTr/CHUM-001.nii.gz: case 'CHUM-001': outlines all structures for rater 'release', and "
            "labelsTr/CHUM-001_gtvt.nii.gz only GTVp; keep one kind",
            id="both kinds of label",
        ),
        pytest.param(
            ["CHUM001_ct.nii.gz", "CHUM001_pt.nii.gz", "CHUM001_ct_gtvt.nii.gz", "CHUM001_gtvt.nii.gz"],
            "CHUM001_gtvt.nii.gz: case 'CHUM001': is the label of rater 'release' for GTVp, and so is "
            "CHUM001_ct_gtvt.nii.gz; remove one",
            id="labels of two editions",
        ),
    ],
)
def test_what_is_wrong_with_a_case(tmp_path: Path, names: Sequence[str], line: str) -> None:
    assert problems_of(tmp_path, names) == [line]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        pytest.param(
            "imagesTr/CHUM-001_0000.nii.gz",
            "has no name of a known release; name it CASE__CT, CASE__PT, CASE or CASE__raterNAME, or move it out "
            "of the data set",
            id="name of another tool",
        ),
        pytest.param(
            "predictions/CHUM-001.nii.gz",
            "case 'CHUM-001': is neither in labelsTr nor beside its images; move it there, or remove it",
            id="prediction",
        ),
        pytest.param(
            "labelsTr_B/CHUM-001__raterA.nii.gz",
            "case 'CHUM-001': belongs to rater 'A' in the folder of 'B'; keep one of the names",
            id="two raters",
        ),
    ],
)
def test_a_stray_file_harms_no_case(tmp_path: Path, name: str, line: str) -> None:
    touch(tmp_path, [*ONE_CASE, name])
    cases, problems = list_cases(tmp_path)
    assert problems == [f"{name}: {line}"]
    assert [case.case_id for case in cases] == ["CHUM-001"]
    assert list(cases[0].labels) == ["release"]


def test_two_editions_hold_the_same_patients(tmp_path: Path) -> None:
    touch(tmp_path, [*OF_2021, *OF_2022])
    assert list_cases(tmp_path)[1] == [
        "hecktor2021_train/hecktor_nii/CHGJ007_ct.nii.gz: is named as in 2020 and 2021, but "
        f"{FOLDER_OF_2022}/imagesTr/CHUM-001__CT.nii.gz as in 2022 and later: "
        "they share patients under different names; set "
        "data.root to one edition"
    ]


def test_links(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, ["store/a.bin", *ONE_CASE[1:]])
    touch(outside, ["blob.nii.gz", *(f"more/{name}".replace("CHUM", "CHUS") for name in ONE_CASE)])
    (root / ONE_CASE[0]).symlink_to(root / "store/a.bin")
    for name in ONE_CASE:
        (root / name.replace("CHUM", "CHUP")).symlink_to(outside / "blob.nii.gz")
    (root / "imagesTr/CHUP-002__CT.nii.gz").symlink_to(root / "gone")
    (root / "imagesTr/CHUP-003__CT.nii.gz").symlink_to(root / "imagesTr/CHUP-003__CT.nii.gz")
    (root / "more").symlink_to(outside / "more")
    # neither what lies within anyway, nor what holds the folder itself
    (root / "again").symlink_to(root / "imagesTr")
    (root / "up").symlink_to(tmp_path)
    (outside / "more" / "round").symlink_to(outside / "more")
    cases, problems = list_cases(root)
    found = [root / ONE_CASE[0], root / ONE_CASE[0].replace("CHUM", "CHUP")]
    assert [case.ct for case in cases] == [*found, root / "more" / ONE_CASE[0].replace("CHUM", "CHUS")]
    nowhere = "is a link that leads nowhere; fetch what it points to, or remove it"
    assert sorted(problems) == [
        f"imagesTr/CHUP-002__CT.nii.gz: {nowhere}",
        f"imagesTr/CHUP-003__CT.nii.gz: {nowhere}",
    ]


def test_a_folder_that_cannot_be_looked_into(tmp_path: Path) -> None:
    line = ".: cannot be searched (No such file or directory); make it readable"
    assert list_cases(tmp_path / "gone") == ([], [line])


def test_a_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    touch(tmp_path / "disk", ONE_CASE)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert list_cases(tmp_path / "link") == list_cases(tmp_path / "disk")
    assert len(list_cases(tmp_path / "link")[0]) == 1


@settings(max_examples=25)
@given(st.permutations([*OF_2022, *OF_2025, "labelsTr_A/MDA-010.nii.gz", "imagesTr/bad.nii.gz", "labelsTr/X1.nii.gz"]))
def test_the_order_on_the_disk_does_not_matter(names: Sequence[str]) -> None:
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        touch(Path(first), names)
        touch(Path(second), sorted(names))
        of_first, of_second = list_cases(Path(first)), list_cases(Path(second))
        assert of_first[1] == of_second[1]
        cases, expected = ([case.case_id for case in cases] for cases, _ in (of_first, of_second))
        assert cases == expected == ["CHUM-001", "HGJ-008", "MDA-010", "USZ-001"]
        for one, other in zip(of_first[0], of_second[0], strict=True):
            assert one.ct.relative_to(Path(first).resolve()) == other.ct.relative_to(Path(second).resolve())
            assert list(one.labels) == list(other.labels)


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "bbox.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_boxes_are_turned_from_lps_into_ras(tmp_path: Path) -> None:
    text = "PatientID,x1,x2,y1,y2,z1,z2\nCHGJ007,-70.5,73.5,-200,-56,-150.25,-6.25\n\nCHUM001,1,2,3,4,5,6\n"
    assert read_bounding_boxes(table(tmp_path, text)) == {
        "CHGJ007": BoundingBox(low=(-73.5, 56.0, -150.25), high=(70.5, 200.0, -6.25)),
        "CHUM001": BoundingBox(low=(-2.0, -4.0, 5.0), high=(-1.0, -3.0, 6.0)),
    }


def test_boxes_with_a_byte_order_mark_other_columns_and_blanks(tmp_path: Path) -> None:
    text = "\ufeff,PatientID, z2,z1,y2,y1,x2,x1\r\n0, CHUM001 ,6,5,4,3,2,1\r\n"
    assert read_bounding_boxes(table(tmp_path, text))["CHUM001"].high == (-1.0, -3.0, 6.0)


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        pytest.param(
            ["A1,1,x,3,4,5,6", "A2,2,1,3,4,5,6", "A3,1,2,3,4,5,nan", "A4,1,2,3,4", "A5,1,2,3,4,5,5"],
            [
                "line 2: case 'A1': x2 is 'x', not a number; correct it",
                "line 3: case 'A2': x2 is 1, not above x1, which is 2; correct them",
                "line 4: case 'A3': z2 is 'nan', not a number; correct it",
                "line 5: case 'A4': z1 is '', not a number; correct it",
                "line 6: case 'A5': z2 is 5, not above z1, which is 5; correct them",
            ],
            id="numbers",
        ),
        pytest.param(
            ["A1,1,2,3,4,5,6", "A1,1,2,3,4,5,6", ",1,2,3,4,5,6"],
            [
                "line 3: case 'A1': has two boxes; remove one",
                "line 4: case '': PatientID is empty; fill it in",
            ],
            id="names",
        ),
    ],
)
def test_every_wrong_row_is_told(tmp_path: Path, rows: Sequence[str], lines: Sequence[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_bounding_boxes(table(tmp_path, "\n".join(["PatientID,x1,x2,y1,y2,z1,z2", *rows])))
    assert str(caught.value).splitlines() == [f"bbox.csv: {line}" for line in lines]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param(
            "PatientID;x1;x2;y1;y2;z1;z2\n",
            "has no column PatientID, x1, x2, y1, y2, z1, z2; its first line must be PatientID,x1,x2,y1,y2,z1,z2",
            id="semicolons",
        ),
        pytest.param(
            "PatientID,x1,y1,y2,z1,z2\nA1,1,2,3,4,5\n",
            "has no column x2; its first line must be PatientID,x1,x2,y1,y2,z1,z2",
            id="column",
        ),
        pytest.param(
            'PatientID,x1,x2,y1,y2,z1,z2\n"A1,1,2,3,4,5,6\nA2,1,2,3,4,5,6\nA3",1,2,3,4,5,6\n',
            'line 2: PatientID contains a line break; write it on one line, or remove the quotation mark (") in front '
            "of it",
            id="quotation mark",
        ),
        pytest.param("PatientID,x1,x2,y1,y2,z1,z2\n", "has no rows; write one row per case", id="no rows"),
        pytest.param("PatientID,x1".encode("utf-16"), "is not UTF-8; save it as CSV UTF-8", id="encoding"),
        pytest.param(
            f"PatientID,x1\n{'1' * 200_000}\n",
            "cannot be read as CSV (field larger than field limit (131072)); correct it, or its name",
            id="no table",
        ),
    ],
)
def test_what_is_no_table_of_boxes(tmp_path: Path, text: str | bytes, line: str) -> None:
    with pytest.raises(UserError) as caught:
        read_bounding_boxes(table(tmp_path, text))
    assert str(caught.value) == f"bbox.csv: {line}"


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^bbox\.csv: cannot be read as CSV \(No such file or directory\)"):
        read_bounding_boxes(tmp_path / "bbox.csv")


def test_cases_without_labels_can_be_left_out_by_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("MDA-001/MDA-001__CT", "MDA-001/MDA-001__PT", "MDA-001/MDA-001", "MDA-002/MDA-002__CT"):
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with caplog.at_level("INFO"):
        cases, problems = list_cases(tmp_path, leave_out_unlabelled=True)
    assert [case.case_id for case in cases] == ["MDA-001"]
    assert not problems
    assert "1 cases without a label are left out: MDA-002" in caplog.text
