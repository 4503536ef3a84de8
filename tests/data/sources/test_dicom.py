"""Patients' folders of DICOM files: the series, its raters, and what is left out or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import ct_slice, segmentation, write
from dicom_patients import Box, Scan
from numpy.typing import NDArray
from patients import tilted
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from edue_lightning.data import DicomSource
from edue_lightning.errors import UserError

SHAPE = (12, 10, 6)
GTV: Box = ((3, 2, 1), (8, 7, 4))
SMALLER: Box = ((4, 2, 1), (8, 7, 3))
NODE: Box = ((0, 0, 2), (3, 3, 5))


def scan(seed: int = 0, **settings: Any) -> Scan:
    pixels = np.random.default_rng(seed).integers(0, 2000, SHAPE).astype(np.int16)
    return Scan(pixels, **{"patient": f"P{seed}", **settings})


def patient(root: Path, name: str, seed: int = 0, **settings: Any) -> Scan:
    """Write a series with the outlines of Anna and the segmentation of Ben."""
    made = scan(seed, **settings)
    slices = made.save(root / name / "study" / "series")
    write(made.outlines({"GTV": [GTV], "Node": [NODE]}, "Anna", "Dr^A"), root / name / "plan" / "1.dcm")
    masks = np.stack([made.mask(NODE), made.mask(SMALLER)])
    drawn = segmentation(slices, masks, ["node", "gtv"], creator="Dr^B", content_label="BEN")
    write(drawn, root / name / "2.dcm")
    return made


def problems(root: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        DicomSource(str(root), **settings).cases()
    return str(caught.value)


def to_ras(volume: NDArray) -> NDArray:
    """Return a volume with axes to the left and posterior along RAS."""
    return volume[::-1, ::-1]


@pytest.mark.parametrize(
    ("rater", "names"), [("label", ("Anna", "BEN")), ("operator", ("Dr^A", "Dr^B")), ("file", ("1", "2"))]
)
def test_outlines_and_segmentations_of_a_series_are_its_raters(
    tmp_path: Path, rater: Any, names: tuple[str, str]
) -> None:
    made = [patient(tmp_path, f"case{seed}", seed, axes=tilted(20) @ np.diag([-1, -1, 1])) for seed in range(2)]
    source = DicomSource(str(tmp_path), rater=rater, standardise=False, cache=str(tmp_path.parent / "cache"))
    assert not source.problems
    assert source.raters == names
    assert source.structures == ("node", "gtv")
    assert source.facts == {"objects": "2 SEG, 2 RTSTRUCT"}
    assert [(record.case_id, record.group) for record in source.cases()] == [("case0", "P0"), ("case1", "P1")]
    for seed, each in enumerate(made):
        sample = source.load(f"case{seed}")
        np.testing.assert_array_equal(sample.image[0], to_ras(each.pixels).astype(np.float32) - 1024)
        assert sample.valid.all()
        assert sample.origin is not None
        for slot, boxes in enumerate(((NODE, GTV), (NODE, SMALLER))):
            for k, box in enumerate(boxes):
                np.testing.assert_array_equal(sample.masks[slot, k], to_ras(each.mask(box)))
    chosen = DicomSource(str(tmp_path), rater=rater, structures=["GTV"])
    assert chosen.structures == ("GTV",)
    assert chosen.load("case0").masks.sum() == made[0].mask(GTV).sum() + made[0].mask(SMALLER).sum()


def test_feet_first_and_sagittal_series_keep_the_masks_on_their_voxels(tmp_path: Path) -> None:
    for seed, axes in enumerate((np.diag([-1.0, 1.0, -1.0]), np.eye(3)[:, [1, 2, 0]])):
        made = patient(tmp_path, f"case{seed}", seed, axes=axes)
        # the box is where the values are
        sample = DicomSource(str(tmp_path), standardise=False, structures=["GTV"]).load(f"case{seed}")
        inside = np.sort(made.pixels[made.mask(GTV)].astype(np.float32) - 1024)
        np.testing.assert_array_equal(np.sort(sample.image[0][sample.masks[0, 0].bool()]), inside)


def test_names_may_hold_structure_and_rater(tmp_path: Path) -> None:
    made = scan()
    made.save(tmp_path / "a")
    drawn = {"GTV-1vis-1": [GTV], "GTV-1vis-2": [SMALLER], "GTV-1auto-1": [NODE], "Heart": [NODE]}
    write(made.outlines(drawn, "all"), tmp_path / "a" / "rt.dcm")
    source = DicomSource(str(tmp_path), name_pattern=r"(?P<structure>gtv-1)vis-(?P<rater>\d)")
    assert source.raters == ("1", "2")
    assert source.structures == ("GTV-1",)
    masks = source.load("a").masks[:, 0]
    assert [int(mask.sum()) for mask in masks] == [int(made.mask(box).sum()) for box in (GTV, SMALLER)]
    expected = "a: case 'a': data.source.name_pattern matches none of its structures (GTV-1vis-1, GTV-1vis-2"
    lines = problems(tmp_path, name_pattern="(?P<structure>gtv)")
    assert expected in lines
    assert lines.count("case 'a'") == 1
    for wrong, message in (("(", "no regular expression"), ("GTV", "has no group")):
        with pytest.raises(UserError, match=message):
            DicomSource(str(tmp_path), name_pattern=wrong)


def test_a_missing_structure_is_a_problem_or_empty(tmp_path: Path) -> None:
    made = scan()
    made.save(tmp_path / "a")
    write(made.outlines({"GTV": [GTV], "node": [NODE]}, "Anna"), tmp_path / "a" / "1.dcm")
    write(made.outlines({"GTV": [SMALLER]}, "Ben"), tmp_path / "a" / "2.dcm")
    assert "a/2.dcm: case 'a': rater 'Ben' has no node; add it, choose others with" in problems(tmp_path)
    sample = DicomSource(str(tmp_path), absent="empty").load("a")
    assert sample.valid.all()
    assert sample.masks[1, 1].sum() == 0
    assert sample.masks[1, 0].sum() == made.mask(SMALLER).sum()
    assert "no file has lung; choose among GTV, node" in problems(tmp_path, structures=["lung"])


def test_a_rater_without_any_wanted_region_is_a_problem_or_outlined_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = scan()
    made.save(tmp_path / "a")
    for number, (rater, regions) in enumerate((("Anna", {"GTV": [GTV]}), ("Ben", {"BODY": [NODE]}), ("Carla", {}))):
        write(made.outlines(regions, rater), tmp_path / "a" / f"{number}.dcm")
    for settings in ({"structures": ["GTV"]}, {"name_pattern": "(?P<structure>GTV.*)"}):
        lines = problems(tmp_path, **settings)
        assert "a/1.dcm: case 'a': rater 'Ben' has no GTV; add it" in lines
        assert "a/2.dcm: case 'a': rater 'Carla' has no GTV; add it" in lines
        source = DicomSource(str(tmp_path), absent="empty", **settings)
        assert source.raters == ("Anna", "Ben", "Carla")
        sample = source.load("a")
        assert sample.valid.tolist() == [True, True, True]
        assert [bool(mask.any()) for mask in sample.masks[:, 0]] == [True, False, False]
    # where the names of regions say whose they are, an object is of nobody in particular
    source = DicomSource(str(tmp_path), name_pattern="(?P<structure>GTV)(?P<rater>.*)")
    assert source.raters == ("Anna",)
    assert source.cases()
    assert "a/2.dcm: case 'a': no name matches data.source.name_pattern, no rater" in caplog.text


def test_a_structure_is_named_once_and_files_may_lie_in_any_folder(tmp_path: Path) -> None:
    patient(tmp_path, "a")
    with pytest.raises(UserError, match="structures: names 'gtv' twice; name each structure once"):
        DicomSource(str(tmp_path), structures=["GTV", "gtv "])
    deep = tmp_path.joinpath("a", *map(str, range(9)))
    deep.mkdir(parents=True)
    (tmp_path / "a" / "2.dcm").rename(deep / "2.dcm")
    assert DicomSource(str(tmp_path)).raters == ("Anna", "BEN")


def test_raters_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    made = scan()
    made.save(tmp_path / "a")
    for name in ("1", "2"):
        write(made.outlines({"GTV": [GTV]}, "RTSTRUCT"), tmp_path / "a" / f"{name}.dcm")
    expected = "a/2.dcm: case 'a': holds 'GTV' of rater 'RTSTRUCT', and so does a/1.dcm; name the raters apart"
    assert expected in problems(tmp_path)
    assert not DicomSource(str(tmp_path), rater="file").problems
    assert "has no OperatorsName or ContentCreatorName; fill it in, or set data.source.rater to" in problems(
        tmp_path, rater="operator"
    )
    with pytest.raises(UserError, match="choose among label, file, operator"):
        DicomSource(str(tmp_path), rater="nobody")  # type: ignore[arg-type]


def test_upper_and_lower_case_do_not_make_another_rater(tmp_path: Path) -> None:
    # a ContentLabel has upper case alone, a StructureSetLabel any
    for seed, name in enumerate(("a", "b")):
        made = scan(seed)
        slices = made.save(tmp_path / name)
        write(made.outlines({"GTV": [GTV]}, "Anna"), tmp_path / name / "1.dcm")
        node = np.stack([made.mask(NODE)])
        write(segmentation(slices, node, ["node"], content_label="ANNA"), tmp_path / name / "2.dcm")
        both = np.stack([made.mask(SMALLER), made.mask(NODE)])
        if seed:
            write(made.outlines({"gtv": [SMALLER], "Node": [NODE]}, "Ben"), tmp_path / name / "3.dcm")
        else:
            write(segmentation(slices, both, ["GTV", "node"], content_label="BEN"), tmp_path / name / "3.dcm")
    for absent in ("refuse", "empty"):
        source = DicomSource(str(tmp_path), absent=absent)  # type: ignore[arg-type]
        assert not source.problems
        assert (source.raters, source.structures) == (("Anna", "BEN"), ("GTV", "node"))
        for seed, name in enumerate(("a", "b")):
            sample = source.load(name)
            assert sample.valid.tolist() == [True, True]
            for slot, boxes in enumerate(((GTV, NODE), (SMALLER, NODE))):
                for k, box in enumerate(boxes):
                    np.testing.assert_array_equal(sample.masks[slot, k], to_ras(scan(seed).mask(box)))


def localizer(made: Scan) -> Dataset:
    dataset = ct_slice(made.pixels[:, :, 0], 0.0, series=generate_uid())
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return dataset


def test_whatever_is_not_of_the_series_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = patient(tmp_path, "a")
    write(localizer(made), tmp_path / "a" / "scout.dcm")
    other = scan(3)
    write(other.outlines({"GTV": [GTV]}, "Carl"), tmp_path / "a" / "other.dcm")
    # no reference, but the frame of reference of the series
    write(made.outlines({"GTV": [GTV], "node": [NODE]}, "Dora", refers=False), tmp_path / "a" / "dora.dcm")
    write(other.outlines({"GTV": [GTV]}, "Emil", refers=False), tmp_path / "a" / "emil.dcm")
    (tmp_path / "readme.txt").write_text("")
    source = DicomSource(str(tmp_path))
    assert not source.problems
    assert source.raters == ("Anna", "BEN", "Dora")
    assert "files that are no DICOM files are skipped: readme.txt" in caplog.text
    assert "case 'a': left out: a/scout.dcm (localizer)" in caplog.text
    for name in ("other", "emil"):
        assert f"case 'a': left out, as it refers to another series: a/{name}.dcm" in caplog.text


def test_one_of_several_series_is_chosen_by_description_or_uid(tmp_path: Path) -> None:
    made = patient(tmp_path, "a")
    other = scan(5, description="lung window")
    other.save(tmp_path / "a" / "second")
    listed = problems(tmp_path)
    assert "a: case 'a': holds 2 series, several: " in listed
    assert f"{other.series} (CT, lung window, 6 slices)" in listed
    for choice in ("Thorax", "thor*", made.series, ["no", "thorax"]):
        assert DicomSource(str(tmp_path), series=choice, standardise=False).load("a").image.max() == (
            made.pixels.max() - 1024
        )
    assert "of these data.source.series=['x'] takes 0" in problems(tmp_path, series="x")
    assert "of these data.source.series=['5'] takes 0" in problems(tmp_path, series=5)
    assert "has no RTSTRUCT or SEG of its series" in problems(tmp_path, series="lung*")


def test_folders_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    made = patient(tmp_path, "gap")
    slices = {float(dcmread(path).ImagePositionPatient[2]): path for path in (tmp_path / "gap/study/series").iterdir()}
    slices[made.place(0, 0, 2)[2]].unlink()
    twice = patient(tmp_path, "twice", 1)
    repeated = twice.slices()[2]
    repeated.SOPInstanceUID = repeated.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    write(repeated, tmp_path / "twice" / "again.dcm")
    write(made.outlines({"GTV": [GTV]}, "Anna"), tmp_path / "empty" / "1.dcm")
    write(made.slices()[0], tmp_path / "loose.dcm")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    lines = problems(tmp_path)
    assert "gap: case 'gap': lacks slices, or their distances differ" in lines
    assert "twice: case 'twice': has two slices at one position" in lines
    assert "empty: case 'empty': holds no series of modality CT or MR" in lines
    assert "loose.dcm: lies beside the folders of the patients" in lines
    assert "broken: case 'broken': 1.dcm: " in lines
    assert [record.case_id for record in DicomSource(str(tmp_path)).healthy()] == []
    assert "no such folder" in problems(tmp_path / "nowhere")


def test_patients_stay_together_and_a_folder_without_id_is_a_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed, name in enumerate(("P1", "P1", "")):
        patient(tmp_path, f"visit{seed}", seed, patient=name)
    source = DicomSource(str(tmp_path))
    assert [record.group for record in source.cases()] == ["P1", "P1", "visit2"]
    assert "no PatientID, so each folder counts as a patient: visit2" in caplog.text
