"""Volumes whose headers do not say which way their axes run are reported once, in training, check and prediction."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from untrained import checkpoint

from edue_lightning.data.images import is_oriented
from edue_lightning.data.new_images import find_images, warn_of_unoriented
from edue_lightning.data.sources.manifest.source import ManifestSource
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.run import predict

SHAPE = (8, 10, 6)


def save(path: Path, values: np.ndarray, oriented: bool) -> None:
    """Write a volume; without orientation, both codes are 0, and the voxel sizes stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]) if oriented else None)
    image.header.set_zooms((2.0, 2.0, 3.0))
    nibabel.save(image, path)
    header = nibabel.load(path).header
    assert bool(header["qform_code"] or header["sform_code"]) is oriented


def save_manifest(folder: Path, oriented: list[bool]) -> Path:
    rows = ["case_id,image,mask,rater,structure"]
    for number, is_known in enumerate(oriented):
        values = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        save(folder / "i" / f"{number}.nii.gz", values, is_known)
        for rater in "AB":
            save(folder / "m" / f"{number}{rater}.nii.gz", (values > 0.5).astype(np.uint8), is_known)
            rows.append(f"c{number},i/{number}.nii.gz,m/{number}{rater}.nii.gz,{rater},ball")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("cached", [False, True])
def test_a_data_set_warns_once_and_names_the_first_case(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cached: bool
) -> None:
    folder = save_manifest(tmp_path / "data", [True, False, False])
    cache = str(tmp_path / "cache") if cached else None
    for _ in range(2):
        caplog.clear()
        assert not ManifestSource(str(folder), cache=cache).problems
        (line,) = [message for message in caplog.messages if "without orientation" in message]
        assert line.startswith(
            f"{folder}: 2 of 3 cases have volumes without orientation, the first is 'c1' (i/1.nii.gz)"
        )
    caplog.clear()
    ManifestSource(str(save_manifest(tmp_path / "known", [True])))
    assert "orientation" not in caplog.text


def test_a_prediction_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoint(tmp_path / "best.ckpt")
    for number in range(2):
        save(tmp_path / "new" / f"s{number}.nii.gz", np.zeros(SHAPE, np.float32) + np.arange(6), False)
    settings = {"ckpt": str(path), "input": str(tmp_path / "new"), "output": "x", "sensitivity": None}
    with caplog.at_level(logging.WARNING):
        predict({**settings, "overwrite": False, "device": "cpu"}, tmp_path / "out")
    (line,) = [message for message in caplog.messages if "without orientation" in message]
    assert "2 of 2 cases have volumes without orientation, the first is 's0' (s0.nii.gz)" in line
    caplog.clear()
    Model(path, "cpu").predict_files(tmp_path / "new" / "s0.nii.gz")
    assert caplog.text.count("without orientation") == 1


def test_a_metaimage_without_a_matrix_is_not_oriented(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE, np.int16)), str(tmp_path / "a.mha"))
    assert is_oriented(tmp_path / "a.mha")
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content.replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""))
    assert not is_oriented(tmp_path / "a.mha")
    warn_of_unoriented(find_images(tmp_path, 1).cases, "new")
    assert "new: 1 of 1 cases have volumes without orientation, the first is 'a' (a.mha)" in caplog.text
    # reading it reports what is wrong
    (tmp_path / "b.nii").write_bytes(b"no header")
    assert is_oriented(tmp_path / "b.nii")
