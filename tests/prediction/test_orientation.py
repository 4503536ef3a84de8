"""One scan, stored along any axes, gets one prediction, and each prediction lies on the voxels of its own file."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from patients import affine_of, tilted
from untrained import checkpoint

from edue_lightning.prediction.model import Model

CODES = ("RAS", "LPS", "PSR", "SAR", "ILA")


def stored_as(image: nibabel.Nifti1Image, codes: str) -> nibabel.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def test_one_scan_gets_one_prediction_however_it_is_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model(checkpoint(tmp_path / "best.ckpt"), "cpu")
    shape = (12, 10, 8)
    affine = affine_of((0.9, 1.1, 2.5), (3, -8, 99), shape, tilted(17.0))
    scan = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine)
    expected = model.predict(scan.get_fdata(), affine=affine)
    assert expected.probability.std() > 1e-3
    for codes in CODES:
        file = stored_as(scan, codes)
        nibabel.save(file, tmp_path / f"{codes}.nii.gz")
        for found in (
            model.predict_files(tmp_path / f"{codes}.nii.gz"),
            model.predict(file.get_fdata(), affine=file.affine),
        ):
            for name in ("probability", "disagreement"):
                wanted = stored_as(nibabel.Nifti1Image(getattr(expected, name)[0], affine), codes).get_fdata()
                np.testing.assert_allclose(getattr(found, name)[0], wanted, atol=1e-6)
            for name in ("sv", "sv_total", "entropy", "volume"):
                assert found.table[name].tolist() == pytest.approx(expected.table[name].tolist(), rel=1e-5)
    assert "train again" not in caplog.text


def test_a_checkpoint_from_before_volumes_were_turned_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Model(checkpoint(tmp_path / "best.ckpt", earlier=True), "cpu")
    assert "best.ckpt: was trained by an earlier version" in caplog.text
    assert "train again unless the files of the training were stored like that" in caplog.text
