"""QUBIQ's data sets: slices, slices with modalities, and volumes, with the raters of each task."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from edue_lightning.data import QubiqSource, RaterDataModule

AFFINE = np.diag([0.5, 0.75, 2.0, 1.0])


def save(path: Path, array: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


def write(root: Path, part: str, number: int, shape: tuple[int, ...], tasks: int = 1, raters: int = 3) -> Path:
    """Write a case whose rater r marks the first r + number rows for task 1, one more for each further task."""
    folder = root / part / f"case{number:02d}"
    save(folder / "image.nii.gz", np.random.default_rng(number).normal(50, 9, shape).astype(np.float32))
    for task in range(1, tasks + 1):
        for rater in range(1, raters + 1):
            mask = np.zeros(shape if len(shape) == 3 and shape[2] > 4 else shape[:2], dtype=np.uint8)
            mask[: rater + task] = 1
            save(folder / f"task{task:02d}_seg{rater:02d}.nii.gz", mask)
    return folder


def test_slices_with_tasks(tmp_path: Path) -> None:
    for number in range(1, 6):
        write(tmp_path, "Training", number, (16, 12), tasks=2)
    write(tmp_path, "Validation", 6, (16, 12), tasks=2)
    source = QubiqSource(str(tmp_path))
    assert (source.spatial_dims, source.channels) == (2, 1)
    assert (source.raters, source.structures) == (("01", "02", "03"), ("task01", "task02"))
    sample = source.load("Training_case02")
    assert sample.masks.flatten(2).sum(dim=2).tolist() == [[2 * 12, 3 * 12], [3 * 12, 4 * 12], [4 * 12, 5 * 12]]
    assert sample.spacing == pytest.approx((0.5, 0.75))
    assert sample.image.mean().item() == pytest.approx(0, abs=1e-5)
    data = RaterDataModule("qubiq", source)
    assert [record.case_id for record in data.records("test")] == ["Validation_case06"]
    assert len(data.records("val")) == 1
    assert len(data.records("train")) == 4


def test_modalities_are_channels(tmp_path: Path) -> None:
    folder = write(tmp_path, "Training", 1, (16, 12, 4))
    source = QubiqSource(str(tmp_path))
    assert (source.spatial_dims, source.channels) == (2, 4)
    stored = nibabel.load(folder / "image.nii.gz").get_fdata()
    sample = source.load("Training_case01")
    assert sample.image.shape == (4, 16, 12)
    for channel in range(4):
        assert np.corrcoef(sample.image[channel].numpy().ravel(), stored[..., channel].ravel())[0, 1] > 0.9999


def test_volumes(tmp_path: Path) -> None:
    write(tmp_path, "Training", 1, (8, 16, 12), raters=2)
    sample = QubiqSource(str(tmp_path)).load("Training_case01")
    assert sample.image.shape == (1, 8, 16, 12)
    assert sample.masks.shape == (2, 1, 8, 16, 12)
    assert sample.affine is not None


def test_a_missing_rater_is_missing_there_alone(tmp_path: Path) -> None:
    write(tmp_path, "Training", 1, (16, 12), raters=3)
    write(tmp_path, "Training", 2, (16, 12), raters=2)
    source = QubiqSource(str(tmp_path))
    assert source.load("Training_case01").valid.tolist() == [True, True, True]
    assert source.load("Training_case02").valid.tolist() == [True, True, False]


def test_what_is_wrong_is_told_with_file_and_case(tmp_path: Path) -> None:
    folder = write(tmp_path, "Training", 1, (16, 12), tasks=2)
    save(folder / "task01_seg01.nii.gz", np.zeros((12, 16), dtype=np.uint8))
    (folder / "task02_seg03.nii.gz").unlink()
    (write(tmp_path, "Training", 2, (16, 12), tasks=2) / "image.nii.gz").write_bytes(b"no image")
    starts = [
        "Training/case01/task01_seg03.nii.gz: case 'Training_case01': rater '03' has no mask of task02; add it",
        "Training/case01/task01_seg01.nii.gz: case 'Training_case01': is 12x16, but Training/case01/image.nii.gz is ",
        "Training/case02/image.nii.gz: case 'Training_case02': cannot be read (",
    ]
    found = QubiqSource(str(tmp_path)).problems
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True)), found
