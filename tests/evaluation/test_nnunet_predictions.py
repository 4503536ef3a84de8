"""Probabilities that nnU-Net saves, measured as predictions: axes, labels, regions, and arrays that do not fit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from nnunet_files import PICTURE, REGIONS, VERSION_2, write_nnunet
from numpy.typing import NDArray
from PIL import Image
from processes import run_command

from edue_lightning.data import CaseSource, ManifestSource, NnunetSource
from edue_lightning.errors import UserError
from edue_lightning.evaluation.prediction_folder import READOUT_FILE, PredictionFolder


def one_hot(labels: NDArray, numbers: int, sure: float = 0.9) -> NDArray[np.float16]:
    """Return probabilities `[numbers, ...]` that add up to 1, `sure` for the label itself."""
    rest = (1 - sure) / (numbers - 1)
    return np.stack([np.where(labels == number, sure, rest) for number in range(numbers)]).astype(np.float16)


def save_probabilities(folder: Path, case_id: str, probabilities: NDArray) -> None:
    """Write what `nnUNetv2_predict --save_probabilities` leaves: the array, its properties and the segmentation."""
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{case_id}.npz", probabilities=probabilities)
    (folder / f"{case_id}.pkl").write_bytes(b"properties")
    (folder / f"{case_id}.nii.gz").write_bytes(b"segmentation")


def stored_labels(root: Path, case_id: str, folder: str = "labelsTr") -> NDArray:
    """Return a label map as nnU-Net's readers do, `[Z, Y, X]`, of a slice `[1, Y, X]`."""
    labels = np.asanyarray(nibabel.load(root / folder / f"{case_id}.nii.gz").dataobj).transpose()
    return labels.reshape(1, *labels.shape[-2:]) if labels.ndim == 2 else labels


def predictions_of(folder: Path, source: CaseSource, cases: int | None = None) -> PredictionFolder:
    records = list(source.cases())[:cases]
    predictions = PredictionFolder(folder, source.structures)
    predictions.check(records, list(source.cases()), source)
    return predictions


def test_labels_of_volumes_come_back_on_the_axes_of_the_case(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "data")
    source = NnunetSource(str(root))
    for record in source.cases():
        save_probabilities(tmp_path / "out", record.case_id, one_hot(stored_labels(root, record.case_id), 3))
    predictions = predictions_of(tmp_path / "out", source)
    for record in source.cases():
        sample = source.load(record.case_id)
        found = predictions.load(sample)
        assert found.shape == (1, 2, *sample.image.shape[1:])
        # the label map of labelsTr is the second rater's
        np.testing.assert_allclose(found[0], np.where(sample.masks[1], 0.9, 0.05), atol=1e-3)


def test_regions_have_a_channel_each_and_no_background(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "data", REGIONS)
    for structures in (None, ["tumour"]):
        source = NnunetSource(str(root), structures=structures)
        for record in source.cases():
            labels = stored_labels(root, record.case_id)
            regions = np.stack([np.isin(labels, (1, 2)) * 0.8, (labels == 2) * 0.7]).astype(np.float16)
            save_probabilities(tmp_path / "out", record.case_id, regions)
        predictions = predictions_of(tmp_path / "out", source)
        sample = source.load("case_001")
        expected = sample.masks[1].numpy() * np.array([0.8, 0.7][-len(source.structures) :]).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(predictions.load(sample)[0], expected, atol=1e-3)


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_slices_are_stored_with_an_axis_of_length_one(tmp_path: Path, ending: str) -> None:
    root = write_nnunet(tmp_path / "data", {**VERSION_2, "file_ending": ending}, shape=PICTURE, ending=ending)
    source = NnunetSource(str(root))
    for record in source.cases():
        if ending == ".png":
            labels = np.asarray(Image.open(root / "labelsTr" / f"{record.case_id}.png"))[None]
        else:
            labels = stored_labels(root, record.case_id)
        save_probabilities(tmp_path / "out", record.case_id, one_hot(labels, 3))
    predictions = predictions_of(tmp_path / "out", source)
    sample = source.load("case_003")
    np.testing.assert_allclose(predictions.load(sample)[0], np.where(sample.masks[1], 0.9, 0.05), atol=1e-3)


def write_manifest(folder: Path, root: Path, structures: dict[str, str]) -> None:
    rows = []
    for number in range(5):
        for name, label in structures.items():
            row = {"case_id": f"case_00{number}", "image": f"imagesTr/case_00{number}_0000.nii.gz", "label": label}
            rows.append({**row, "mask": f"labelsTr/case_00{number}.nii.gz", "rater": "A", "structure": name})
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for number in range(5):
        save_probabilities(folder, f"case_00{number}", one_hot(stored_labels(root, f"case_00{number}"), 3))


def test_labels_of_a_nested_structure_of_a_manifest_are_added(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "data")
    write_manifest(tmp_path / "out", root, {"organ": "1 2", "tumour": "2"})
    source = ManifestSource(str(root))
    predictions = predictions_of(tmp_path / "out", source)
    sample = source.load("case_002")
    expected = [np.where(sample.masks[0, 0], 0.95, 0.1), np.where(sample.masks[0, 1], 0.9, 0.05)]
    np.testing.assert_allclose(predictions.load(sample)[0], expected, atol=1e-3)


def test_labels_for_structures_that_overlap_are_refused(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "data")
    write_manifest(tmp_path / "out", root, {"organ": "1 2", "tumour": "2"})
    converted = tmp_path / "converted"
    assert (
        run_command("convert", ["data=manifest", f"data.root={root}", f"output={converted}"], tmp_path).returncode == 0
    )
    with pytest.raises(UserError, match="structures of the data set overlap, and labels of nnU-Net do not"):
        predictions_of(tmp_path / "out", ManifestSource(str(converted), standardise=False))


def broken(how: str, probabilities: NDArray) -> NDArray:
    if how == "logits":
        return probabilities * 12
    if how == "no softmax":
        return np.full_like(probabilities, 0.9)
    if how == "nan":
        return np.full_like(probabilities, np.nan)
    if how == "axes":
        return probabilities.transpose(0, 3, 2, 1)
    return probabilities[:-1] if how == "channels" else probabilities


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("logits", "probabilities holds values outside of"),
        ("no softmax", "its channels do not add up to 1 in each voxel"),
        ("nan", "probabilities holds values outside of"),
        ("axes", r"probabilities has shape \[3, 9, 10, 6\], expected \[C, 6, 10, 9\]"),
        ("channels", r"probabilities has shape \[2, 6, 10, 9\], expected \[C, 6, 10, 9\], with one channel per label"),
        ("reader", r"nnU-Net turned the axes of these probabilities \(NibabelIOWithReorient\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, how: str, line: str) -> None:
    reader: dict[str, Any] = {"overwrite_image_reader_writer": "NibabelIOWithReorient"} if how == "reader" else {}
    root = write_nnunet(tmp_path / "data", {**VERSION_2, **reader})
    source = NnunetSource(str(root))
    for record in source.cases():
        probabilities = one_hot(stored_labels(root, record.case_id), 3)
        if record.case_id == "case_002" or how == "reader":
            probabilities = broken(how, probabilities)
        save_probabilities(tmp_path / "out", record.case_id, probabilities)
    with pytest.raises(UserError, match=rf"case_002: case_002.npz: {line}"):
        predictions_of(tmp_path / "out", source)


def test_what_nnunet_cropped_is_background(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "data")
    source = NnunetSource(str(root))
    for record in source.cases():
        probabilities = one_hot(stored_labels(root, record.case_id), 3)
        probabilities[:, 0] = 0
        save_probabilities(tmp_path / "out", record.case_id, probabilities)
    sample = source.load("case_000")
    assert not predictions_of(tmp_path / "out", source).load(sample)[0, ..., 0].any()


def test_the_command_measures_them(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "data", cases=12, tests=3)
    for number in range(3):
        labels = stored_labels(root, f"test_00{number}", "labelsTs")
        save_probabilities(tmp_path / "out", f"test_00{number}", one_hot(labels, 3))
    done = run_command(
        "evaluate",
        ["predictions=out", "data=nnunet", "data.root=data", "output=measured", "bootstrap_resamples=50"],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    cases = pd.read_csv(tmp_path / "measured" / "cases.csv")
    assert cases.case_id.tolist() == ["test_000", "test_001", "test_002"] * 2
    assert (cases.dice > 0.8).all()


def test_maps_of_a_folder_need_members_beside_them(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path / "data")
    source = NnunetSource(str(root))
    for record in source.cases():
        save_probabilities(tmp_path / "out", record.case_id, one_hot(stored_labels(root, record.case_id), 3))
    (tmp_path / "out" / READOUT_FILE).write_text('{"own_maps": ["probability"]}')
    with pytest.raises(UserError, match=r"holds no member beside the maps that readout\.json names; save "):
        predictions_of(tmp_path / "out", source)
