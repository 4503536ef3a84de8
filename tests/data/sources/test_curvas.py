"""CURVAS and CURVAS-PDACVI in their true layouts, with the faults of the published files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from copies import require_known
from numpy.typing import NDArray

from edue_lightning.data import CurvasSource, ManifestSource, RaterDataModule
from edue_lightning.errors import UserError

AFFINE = np.array([[-0.8, 0, 0, 200], [0, -0.8, 0, 180], [0, 0, 1, -900], [0, 0, 0, 1]], dtype=float)
SHAPE = (12, 11, 9)


def save(path: Path, array: NDArray, affine: NDArray = AFFINE, slope: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)


def organs(expert: int) -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:4, 1 : 3 + expert] = 1
    labels[5:7, 2:8, :4] = 2
    labels[8:11, 2:9] = 3
    return labels


def write_patient(folder: Path, seed: int, experts: int = 3, labels: NDArray | None = None) -> None:
    ct = np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)
    save(folder / "image.nii.gz", ct)
    for expert in range(1, experts + 1):
        save(folder / f"annotation_{expert}.nii.gz", organs(expert) if labels is None else labels)


def write_curvas(root: Path) -> Path:
    """Write the three parts; the training archive has a doubled folder, as some unpack it."""
    for part, first, count in (("training_set/training_set", 1, 5), ("validation_set", 20, 2), ("testing_set", 30, 3)):
        for number in range(first, first + count):
            write_patient(root / part / f"UKCHLL{number:03d}", number)
    return root


def test_three_experts_and_three_organs(tmp_path: Path) -> None:
    source = CurvasSource(str(write_curvas(tmp_path)))
    assert len(source.cases()) == 10
    assert source.facts == {"data set": "CURVAS"}
    assert source.structures == ("pancreas", "kidney", "liver")
    assert source.raters == ("expert 1", "expert 2", "expert 3")
    sample = source.load("UKCHLL002")
    for slot, expert in enumerate((1, 2, 3)):
        for k, number in enumerate((1, 2, 3)):
            np.testing.assert_array_equal(sample.masks[slot, k], (organs(expert) == number)[::-1, ::-1])
    assert float(sample.image.min()) >= 0
    assert 1.9 < float(sample.image.max()) <= 2


def test_the_testing_set_is_the_test_split(tmp_path: Path) -> None:
    splits = RaterDataModule("curvas", CurvasSource(str(write_curvas(tmp_path)))).splits
    assert [record.case_id for record in splits["test"]] == ["UKCHLL030", "UKCHLL031", "UKCHLL032"]
    assert len(splits["train"]) + len(splits["val"]) == 7


def test_folders_above_the_data_set_prescribe_no_split(tmp_path: Path) -> None:
    root = write_curvas(tmp_path / "testing_set" / "curvas")
    splits = RaterDataModule("curvas", CurvasSource(str(root))).splits
    assert [record.case_id for record in splits["test"]] == ["UKCHLL030", "UKCHLL031", "UKCHLL032"]
    records = CurvasSource(str(root / "testing_set")).cases()
    assert [record.split for record in records] == ["test"] * 3


def test_labels_through_a_slope_are_numbers_just_off_whole_ones(tmp_path: Path) -> None:
    write_curvas(tmp_path)
    stored = np.round(organs(1) / 0.0117647).astype(np.uint8)
    image = nibabel.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.0117647, 0)
    nibabel.save(image, tmp_path / "testing_set" / "UKCHLL030" / "annotation_1.nii.gz")
    sample = CurvasSource(str(tmp_path)).load("UKCHLL030")
    np.testing.assert_array_equal(sample.masks[0, 0], (organs(1) == 1)[::-1, ::-1])


def test_an_annotation_whose_header_places_it_elsewhere(tmp_path: Path) -> None:
    write_curvas(tmp_path)
    wrong = AFFINE.copy()
    wrong[2] = [0, 0, 0.7, 128]
    path = tmp_path / "testing_set" / "UKCHLL031" / "annotation_2.nii.gz"
    save(path, organs(2), wrong)
    with pytest.raises(UserError, match=r"UKCHLL031/annotation_2.nii.gz: case 'UKCHLL031': has another affine than"):
        CurvasSource(str(tmp_path)).cases()
    source = CurvasSource(str(tmp_path), header_of_image=["UKCHLL031"])
    source.cases()
    np.testing.assert_array_equal(source.load("UKCHLL031").masks[1, 0], (organs(2) == 1)[::-1, ::-1])
    save(path, organs(2)[:-1], wrong)
    with pytest.raises(UserError, match="is 11x11x9, but"):
        CurvasSource(str(tmp_path), header_of_image=["UKCHLL031"]).cases()
    with pytest.raises(UserError, match="no case is named UKCHLL999"):
        CurvasSource(str(tmp_path), header_of_image=["UKCHLL999"])


def test_an_organ_that_an_expert_left_out_is_an_empty_mask(tmp_path: Path) -> None:
    write_curvas(tmp_path)
    labels = organs(3)
    labels[labels == 1] = 0
    save(tmp_path / "testing_set" / "UKCHLL032" / "annotation_3.nii.gz", labels)
    sample = CurvasSource(str(tmp_path)).load("UKCHLL032")
    assert sample.valid.all()
    assert not sample.masks[2, 0].any()
    assert sample.masks[2, 1].any()


def test_five_experts_are_pdacvi(tmp_path: Path) -> None:
    tumour = (organs(1) == 1).astype(np.uint8)
    for number in range(4):
        write_patient(tmp_path / f"10000{number}_00001", number, experts=5, labels=np.roll(tumour, number, axis=2))
        save(tmp_path / "vessels" / f"10000{number}_00001.nii.gz", tumour)
    source = CurvasSource(str(tmp_path))
    assert len(source.cases()) == 4
    assert source.facts == {"data set": "PDACVI"}
    assert source.structures == ("pdac",)
    assert source.raters == tuple(f"expert {number}" for number in range(1, 6))


def test_structures_are_chosen(tmp_path: Path) -> None:
    write_curvas(tmp_path)
    assert CurvasSource(str(tmp_path), structures=["pancreas"]).load("UKCHLL001").masks.shape[1] == 1
    with pytest.raises(UserError, match=r"choose among pancreas, kidney, liver \(CURVAS\), each once"):
        CurvasSource(str(tmp_path), structures=["pdac"])


def test_problems_are_named(tmp_path: Path) -> None:
    write_curvas(tmp_path)
    save(tmp_path / "testing_set" / "UKCHLL030" / "annotation_1.nii.gz", np.full(SHAPE, 4, dtype=np.uint8))
    (tmp_path / "testing_set" / "UKCHLL031" / "image.nii.gz").unlink()
    for expert in (1, 2, 3):
        (tmp_path / "testing_set" / "UKCHLL032" / f"annotation_{expert}.nii.gz").unlink()
    write_patient(tmp_path / "validation_set" / "UKCHLL001", 77)
    with pytest.raises(UserError) as caught:
        CurvasSource(str(tmp_path)).cases()
    text = str(caught.value)
    assert "annotation_1.nii.gz: case 'UKCHLL030': holds the value 4; labels are 0, 1 (pancreas), 2 (kidney), 3" in text
    assert "annotation_1.nii.gz: case 'UKCHLL031': is an annotation without its image.nii.gz; add that" in text
    assert "image.nii.gz: case 'UKCHLL032': has no annotation_1.nii.gz, ...; add them, or remove the image" in text
    assert "validation_set/UKCHLL001/image.nii.gz: case 'UKCHLL001': is this patient, and so is" in text


def test_an_annotation_in_another_format_is_no_missing_expert(tmp_path: Path) -> None:
    write_curvas(tmp_path)
    patient = tmp_path / "testing_set" / "UKCHLL030"
    (patient / "annotation_2.nii.gz").rename(patient / "annotation_2.NRRD")
    with pytest.raises(
        UserError, match=r"annotation_2\.NRRD: is no NIfTI file \(\.nii, \.nii\.gz\); convert it, or move"
    ):
        CurvasSource(str(tmp_path)).cases()


def test_a_linked_folder_that_another_link_leads_to_is_named(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    for name in ("P1", "P1/followup", "P2"):
        write_patient(store / name, len(name))
    root.mkdir()
    for name, target in (("A", "P1/followup"), ("P1", "P1"), ("P2", "P2")):
        (root / name).symlink_to(store / target)
    with pytest.raises(
        UserError, match="P1: leads to a folder that shares files with that of A; link each folder once"
    ):
        CurvasSource(str(root)).cases()


def test_a_copy_of_a_scan_is_known_however_it_is_prepared(tmp_path: Path) -> None:
    rows = ["case_id,image,mask,rater,structure"]
    for number in range(3):
        write_patient(tmp_path / "first" / "training_set" / f"UKCHLL{number:03d}", number)
        write_patient(tmp_path / "copy" / f"c{number}", number, experts=1)
        rows.append(f"c{number},c{number}/image.nii.gz,,A,liver")
    (tmp_path / "copy" / "manifest.csv").write_text("\n".join(rows))
    require_known(CurvasSource(str(tmp_path / "first")), ManifestSource(str(tmp_path / "copy")))
