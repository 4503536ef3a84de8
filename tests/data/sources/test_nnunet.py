"""Data sets in nnU-Net's raw format: versions, regions, ignored labels, further raters, pictures, splits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copies import require_known
from nnunet_files import PICTURE, REGIONS, VERSION_1, VERSION_2, VOLUME, label_map, save, write_nnunet
from processes import run_command

from edue_lightning.data import NnunetSource, RaterDataModule
from edue_lightning.errors import UserError


def source_of(root: Path, **settings: Any) -> NnunetSource:
    return NnunetSource(str(root), **settings)


def problems_of(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        source_of(root).cases()
    return str(caught.value)


@pytest.mark.parametrize("description", [VERSION_2, VERSION_1])
def test_channels_structures_and_raters_are_named(tmp_path: Path, description: dict[str, Any]) -> None:
    source = source_of(write_nnunet(tmp_path, description))
    assert [record.case_id for record in source.cases()] == [f"case_00{number}" for number in range(5)]
    assert source.structures == ("liver", "tumour")
    assert source.raters == ("ANNA", "labels")
    assert source.facts == {"channels": "CT"}
    assert (source.spatial_dims, source.channels) == (3, 1)
    sample = source.load("case_001")
    # axes to the left and posterior are turned
    for slot, shift in enumerate((1, 0)):
        labels = label_map(VOLUME, shift)[::-1, ::-1]
        np.testing.assert_array_equal(sample.masks[slot, 0], labels == 1)
        np.testing.assert_array_equal(sample.masks[slot, 1], labels == 2)
    assert sample.spacing == pytest.approx((0.8, 0.7, 2.5))
    assert sample.region is None


def test_regions_nest_and_ignored_voxels_count_for_nobody(tmp_path: Path) -> None:
    source = source_of(write_nnunet(tmp_path, REGIONS))
    sample = source.load("case_000")
    labels = label_map(VOLUME, ignored=True)[::-1, ::-1]
    np.testing.assert_array_equal(sample.region, labels != 3)
    np.testing.assert_array_equal(sample.masks[1, 0], (labels == 1) | (labels == 2))
    np.testing.assert_array_equal(sample.masks[1, 1], labels == 2)
    assert source.load("case_001").region is None


def test_structures_are_chosen_in_the_order_wanted(tmp_path: Path) -> None:
    source = source_of(write_nnunet(tmp_path, REGIONS), structures=["tumour"])
    assert source.structures == ("tumour",)
    assert source.load("case_001").masks.shape[1] == 1
    for wrong in (["kidney"], [], ["liver", "liver"]):
        with pytest.raises(UserError, match="choose among liver, tumour, each once"):
            source_of(tmp_path, structures=wrong)


@pytest.mark.parametrize(("ending", "colours"), [(".png", False), (".png", True), (".tif", True)])
def test_pictures_grey_or_in_colours(tmp_path: Path, ending: str, colours: bool) -> None:
    names = {"0": "red", "1": "green", "2": "blue"} if colours else {"0": "grey", "1": "infrared"}
    description = {**VERSION_2, "channel_names": names, "file_ending": ending}
    source = source_of(write_nnunet(tmp_path, description, shape=PICTURE, ending=ending, colours=colours))
    assert source.storage == "picture"
    sample = source.load(source.cases()[0].case_id)
    assert sample.image.shape == (len(names), *PICTURE)
    np.testing.assert_array_equal(sample.masks[1, 1], label_map(PICTURE) == 2)
    assert source.facts == {"channels": ", ".join(names.values())}


def test_a_case_may_lack_a_rater(tmp_path: Path) -> None:
    write_nnunet(tmp_path)
    (tmp_path / "labelsTr_ANNA" / "case_002.nii.gz").unlink()
    (tmp_path / "labelsTr" / "case_003.nii.gz").unlink()
    source = source_of(tmp_path)
    assert source.load("case_002").valid.tolist() == [False, True]
    assert source.load("case_003").valid.tolist() == [True, False]


def test_labelled_cases_of_images_ts_are_the_test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nnunet(tmp_path, cases=9, tests=3)
    for folder in ("labelsTs", "labelsTs_ANNA"):
        (tmp_path / folder / "test_002.nii.gz").unlink()
    source = source_of(tmp_path)
    splits = RaterDataModule("liver", source).splits
    assert [record.case_id for record in splits["test"]] == ["test_000", "test_001"]
    assert len(splits["train"]) + len(splits["val"]) == 9
    assert "1 image of imagesTs without labels left out" in caplog.text


def test_a_fold_of_nnunet_is_the_test_split_or_for_validation(tmp_path: Path) -> None:
    names = [f"case_{number:03d}" for number in range(10)]
    folds = [{"train": names[:k] + names[k + 2 :], "val": names[k : k + 2]} for k in range(0, 10, 2)]
    write_nnunet(tmp_path, cases=10)
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    splits = RaterDataModule("liver", source_of(tmp_path, splits_file="splits_final.json", fold=1)).splits
    assert [record.case_id for record in splits["test"]] == names[2:4]
    assert len(splits["train"]) + len(splits["val"]) == 8
    write_nnunet(tmp_path, cases=10, tests=2)
    splits = RaterDataModule("liver", source_of(tmp_path, splits_file="splits_final.json", fold=4)).splits
    assert [record.case_id for record in splits["val"]] == names[8:]
    assert [record.case_id for record in splits["train"]] == names[:8]
    assert [record.case_id for record in splits["test"]] == ["test_000", "test_001"]
    with pytest.raises(UserError, match=r"data.source.fold=5: splits_final.json has the folds 0 to 4"):
        source_of(tmp_path, splits_file="splits_final.json", fold=5)
    folds[0]["val"].append("case_999")
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(UserError, match="case 'case_999': is no case of imagesTr"):
        source_of(tmp_path, splits_file="splits_final.json").cases()


def test_a_case_in_no_list_of_the_fold_takes_no_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nnunet(tmp_path, cases=6)
    names = [f"case_{number:03d}" for number in range(6)]
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": names[:3], "val": names[3:4]}]))
    source = source_of(tmp_path, splits_file="splits_final.json")
    assert [record.case_id for record in source.cases()] == names[:4]
    assert "2 cases of imagesTr in no list of fold 0, so left out: case_004, case_005" in caplog.text


@pytest.mark.parametrize("lost", [True, False])
def test_a_case_that_is_lost_with_all_its_files_is_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: bool
) -> None:
    root = write_nnunet(tmp_path, tests=2)
    if lost:
        for path in root.rglob("case_003*"):
            path.unlink()
    NnunetSource(root=str(root))
    line = "imagesTr has 4 cases with labels, but dataset.json says numTraining 5; add the missing files"
    assert (line in caplog.text) == lost


def test_no_rater_is_lost_by_the_name_of_a_file_or_folder(tmp_path: Path) -> None:
    write_nnunet(tmp_path)
    labels = tmp_path / "labelsTr"
    (labels / "case_001.nii.gz").rename(labels / "case_001.nrrd")
    shutil.copy(labels / "case_002.nii.gz", labels / "case_002.NII.GZ")
    shutil.copytree(tmp_path / "labelsTr_ANNA", tmp_path / "labelsTr_labels")
    shutil.copytree(tmp_path / "labelsTr_ANNA", tmp_path / "labelsTr_Anna")
    text = problems_of(tmp_path)
    assert "labelsTr/case_001.nrrd: is no .nii.gz file, as dataset.json says; convert it, or move it out" in text
    assert "labelsTr/case_002.nii.gz: case 'case_002': is the label map of this case, and so is " in text
    assert "labelsTr_labels: names a rater 'labels', as labelsTr does; rename the folder" in text
    assert "raters 'ANNA', 'Anna' differ in upper and lower case or blanks only; write one name" in text


def test_the_folder_above_will_do_if_it_holds_one_data_set(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "Dataset001_Liver")
    assert len(source_of(tmp_path).cases()) == 5
    write_nnunet(tmp_path / "Dataset002_Other")
    with pytest.raises(UserError, match=r"holds several data sets \(Dataset001_Liver, Dataset002_Other\)"):
        source_of(tmp_path)
    with pytest.raises(UserError, match=r"holds no dataset\.json; choose the folder of a data set"):
        source_of(tmp_path / "Dataset001_Liver" / "imagesTr")


def test_problems_of_files_are_named(tmp_path: Path) -> None:
    write_nnunet(tmp_path, {**VERSION_2, "channel_names": {"0": "CT", "1": "PET"}}, cases=8)
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    (images / "case_000_0001.nii.gz").rename(images / "case_000_0002.nii.gz")
    (images / "case_001_0001.nii.gz").unlink()
    (images / "case_002_0000.nii.gz").rename(images / "plain.nii.gz")
    (images / "case_002_0001.nii.gz").unlink()
    save(labels / "case_003.nii.gz", np.full(VOLUME, 7, dtype=np.uint8))
    save(labels / "case_004.nii.gz", label_map((4, 4, 4)))
    for folder in ("labelsTr", "labelsTr_ANNA"):
        (tmp_path / folder / "case_005.nii.gz").unlink()
    text = problems_of(tmp_path)
    assert (
        "imagesTr/case_000_0000.nii.gz: case 'case_000': has the channels 0000, 0002 of 2; add or remove files" in text
    )
    assert "imagesTr/case_001_0000.nii.gz: case 'case_001': has 1 of 2 channels (CT, PET); add the files" in text
    assert "imagesTr/plain.nii.gz: has no number of its channel in its name; call it CASE_0000.nii.gz" in text
    assert "labelsTr/case_002.nii.gz: case 'case_002': has no image in imagesTr; add it" in text
    assert "case 'case_003': holds the value 7; labels are 0, 1 (liver), 2 (tumour): correct it" in text
    assert "labelsTr/case_004.nii.gz: case 'case_004': is 4x4x4, but imagesTr/case_004_0000.nii.gz is 9x10x6" in text
    assert "case 'case_005': has no label map; add it, or remove the image" in text


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("no json", "cannot be read"),
        ("[]", "is no JSON object"),
        (json.dumps({**VERSION_2, "channel_names": {}}), "has no channel_names"),
        (
            json.dumps({**VERSION_2, "channel_names": {"1": "CT"}}),
            "channel_names are numbered 1; number them from 0 on",
        ),
        (json.dumps({**VERSION_2, "labels": {}}), "has no labels"),
        (json.dumps({**VERSION_2, "labels": {"background": 0}}), "labels: is empty; name at least one structure"),
        (json.dumps({**VERSION_2, "labels": {"background": 0, "liver": 300}}), r"labels: liver has \[300\]"),
        (json.dumps({**VERSION_2, "labels": {"a": 1, "ignore": 1}}), "labels: the number of ignored voxels is 1"),
        (json.dumps({**VERSION_2, "labels": {"liver": "one"}}), "labels are names on both sides"),
        (json.dumps({**VERSION_1, "labels": {"1": "liver", "2": "liver"}}), "labels have liver twice"),
        (
            json.dumps({**VERSION_2, "file_ending": ".mgz"}),
            "file_ending .mgz is not read; convert the files to .nii.gz",
        ),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path: Path, content: str, line: str) -> None:
    write_nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=rf"dataset.json: {line}"):
        source_of(tmp_path)


def test_prepared_cases_follow_the_description(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data")
    cache = str(tmp_path / "cache")
    before = source_of(tmp_path / "data", cache=cache).load("case_000").masks
    changed = {**VERSION_2, "labels": {"background": 0, "liver": [1, 2], "tumour": 2}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(changed))
    after = source_of(tmp_path / "data", cache=cache).load("case_000").masks
    assert after[1, 0].sum() == before[1].sum()


def test_check_summarises_it(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", REGIONS, shape=(32, 32, 32))
    done = run_command("check", ["data=nnunet", "data.root=data", "data.cache=null"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("5 cases", "liver", "tumour", "ANNA", "channels"):
        assert words in done.stdout, done.stdout


def test_a_copy_is_known_however_it_is_prepared(tmp_path: Path) -> None:
    first, copy = (str(write_nnunet(tmp_path / name, cases=3)) for name in ("first", "copy"))
    require_known(NnunetSource(first), NnunetSource(copy, standardise=False))
