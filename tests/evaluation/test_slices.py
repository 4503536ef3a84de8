"""A model of 2D images is measured on volumes: slice by slice predicted, and each volume one case."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from untrained import checkpoint

import edue_lightning
from edue_lightning.config.build import ImageFormat, build_data
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import ManifestSource, Slicing
from edue_lightning.data.identity import identities
from edue_lightning.data.preparation import standardised
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import evaluate
from edue_lightning.evaluation.slices import VolumesAsSlices
from edue_lightning.runs.checkpoints import load_method

STRUCTURES = ("tumour", "core")
SLICES = ImageFormat(2, 1, STRUCTURES, "NIfTI slice LP")
SPACING = (0.8, 1.5, 5.0)
# to the left, anterior and inferior
STORED = np.diag([-SPACING[0], SPACING[1], -SPACING[2], 1.0])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two volumes with two structures, outlined by two raters."""
    folder = tmp_path_factory.mktemp("volumes")
    random = np.random.default_rng(0)
    lines = ["case_id,image,mask,rater,structure,split"]
    for case, shape in (("one", (14, 12, 4)), ("two", (12, 10, 5))):
        values = random.normal(size=shape) * random.uniform(1, 9, shape[2]) + random.uniform(-99, 99, shape[2])
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), STORED), folder / f"{case}.nii.gz")
        for number, rater in enumerate("AB"):
            for structure in STRUCTURES:
                mask = np.zeros(shape, np.uint8)
                mask[2 : 8 - number, 3:8, 1 : 3 + (structure == "tumour")] = 1
                name = f"{case}_{rater}_{structure}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(mask, STORED), folder / name)
                lines.append(f"{case},{case}.nii.gz,{name},{rater},{structure},test")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model") / "best.ckpt", image_format=SLICES)


def configuration(*overrides: str) -> dict[str, Any]:
    given = ["bootstrap_resamples=0", "figures=false", "trainer.accelerator=cpu", "data.cache=null", *overrides]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("evaluate", overrides=["data=manifest", *given]))


def test_volumes_are_measured_as_by_a_loop_over_their_slices(model: Path, volumes: Path, tmp_path: Path) -> None:
    settings = [f"data.root={volumes}", "metrics=default", "save_predictions=true"]
    evaluate(configuration(f"ckpt={model}", "slice_axis=axial", "slice_batch=3", *settings), tmp_path / "slices")
    # the same by hand, as the predictions of any other model
    method = load_method(model).method
    (tmp_path / "by_hand").mkdir()
    for case in ("one", "two"):
        values = nibabel.load(volumes / f"{case}.nii.gz").get_fdata(dtype=np.float32)
        slices = []
        for k in range(values.shape[2]):
            # stored to the left and anterior
            shown = torch.from_numpy(standardised(np.ascontiguousarray(values[:, ::-1, k])))[None, None]
            with torch.inference_mode():
                slices.append(torch.sigmoid(method.predict(shown)[0].double()).numpy()[..., ::-1])
        stack = np.stack(slices, axis=-1)
        for m, of_member in enumerate(stack):
            for structure, of_structure in zip(STRUCTURES, of_member, strict=True):
                name = f"{case}__member{m}__{structure}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(of_structure.astype(np.float32), STORED), tmp_path / "by_hand" / name)
                own = nibabel.load(tmp_path / "slices" / "predictions" / name)
                np.testing.assert_allclose(own.get_fdata(), of_structure, atol=1e-6)
                np.testing.assert_allclose(own.affine, STORED)
    again = configuration(f"predictions={tmp_path / 'by_hand'}", f"data.root={volumes}", "metrics=default")
    evaluate(again, tmp_path / "other")
    first, second = (pd.read_csv(tmp_path / name / "cases.csv") for name in ("slices", "other"))
    assert (first["unit"] == "mm³").all()
    assert set(first["case_id"]) == {"one", "two"}
    for name in ("dice", "ged2", "sv", "hd95", "nsd"):
        assert first[name].notna().any(), name
    same = [column for column in second.columns if column not in ("method", "label")]
    pd.testing.assert_frame_equal(first[same], second[same], rtol=1e-4, atol=1e-6)
    # pooled over all voxels, such as the calibration error
    first, second = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("slices", "other"))
    assert {"ece", "d_soft"} <= set(first["metric"])
    pd.testing.assert_series_equal(first["value"], second["value"], rtol=1e-4, atol=1e-6)
    first = pd.read_csv(tmp_path / "slices" / "cases.csv")
    # and the sums of a prediction
    predicted = edue_lightning.load_model(model, "cpu", slice_axis="axial").predict_files(volumes / "one.nii.gz")
    for row in predicted.table.itertuples():
        found = first[(first["case_id"] == "one") & (first["structure"] == row.structure)]
        assert float(found["sv"].iloc[0]) == pytest.approx(row.sv, rel=1e-5)
    recorded = yaml.safe_load((tmp_path / "slices" / "config.yaml").read_text())
    assert recorded["slice_axis"] == "axial"
    assert recorded["data"]["source"]["standardise"] is False


def test_what_does_not_fit_is_refused(
    model: Path, volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = checkpoint(
        tmp_path / "pictures.ckpt",
        "data.source.standardise=false",
        image_format=ImageFormat(2, 1, STRUCTURES, "picture"),
    )
    whole = checkpoint(tmp_path / "whole.ckpt", image_format=ImageFormat(3, 1, STRUCTURES))
    other = checkpoint(tmp_path / "other.ckpt", image_format=ImageFormat(2, 1, ("liver",), "picture"))
    base = configuration(f"data.root={volumes}")
    axial = {"slice_axis": "axial"}
    distortions = {"_target_": "edue_lightning.distortions.Distortions"}
    for path, options, message in (
        (model, {}, "has 3D images of 1 channels with tumour, core; for a volume, set slice_axis=axial, coronal or"),
        (whole, axial, r"whole.ckpt was trained on volumes, not on slices; remove slice_axis"),
        (other, axial, "was trained for 2D images of 1 channels with liver, but data=manifest has 3D"),
        (model, {"slice_axis": "sagittal"}, "the slices of the training have the axes LP"),
        (pictures, axial, "data=manifest: case 'one': has values from -.* set slice_window"),
        (model, {**axial, "distortions": distortions}, "distortions: not supported with slice_axis"),
        (model, {"slice_directions": "PL"}, "slice_directions: has no effect without slice_axis"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate({**base, "ckpt": str(path), **options}, tmp_path / "out")
    with pytest.raises(UserError, match=r"slice_axis: predictions=DIR are predicted already; use ckpt=PATH"):
        evaluate({**base, "predictions": str(volumes), **axial}, tmp_path / "out")
    assert not (tmp_path / "out" / "cases.csv").exists()
    coronal = {"slice_axis": "coronal", "slice_window": [-100, 100]}
    with caplog.at_level(logging.WARNING):
        evaluate({**base, "ckpt": str(pictures), **coronal}, tmp_path / "out")
    assert "slices are taken as radiologists see them, rows from S to I" in caplog.text
    assert (tmp_path / "out" / "cases.csv").exists()


def test_volumes_whose_values_were_changed_are_refused(model: Path, volumes: Path) -> None:
    data = build_data(configuration(f"data.root={volumes}"))
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        changed = resolved(compose("evaluate", overrides=["data=hecktor", f"data.root={volumes}"]))["data"]
    arguments = Slicing("axial"), load_method(model), model, data, changed
    with pytest.raises(UserError, match=r"data=manifest changes them \(PetCt\) before; .*allow_other_preparation=true"):
        VolumesAsSlices(*arguments, allow_other_preparation=False)
    VolumesAsSlices(*arguments, allow_other_preparation=True)


def test_a_volume_that_holds_a_slice_of_the_training_is_refused(volumes: Path, tmp_path: Path) -> None:
    values = nibabel.load(volumes / "two.nii.gz").get_fdata(dtype=np.float32)
    folder = tmp_path / "slices"
    folder.mkdir()
    # with the training's axes, to the left and posterior
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    nibabel.save(nibabel.Nifti1Image(values[:, ::-1, 2], affine), folder / "anything.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones(values.shape[:2], np.uint8), affine), folder / "mask.nii.gz")
    rows = [f"s1,anything.nii.gz,mask.nii.gz,A,{structure}" for structure in STRUCTURES]
    (folder / "manifest.csv").write_text("\n".join(["case_id,image,mask,rater,structure", *rows]) + "\n")
    source = ManifestSource(str(folder))
    assert source.storage == "NIfTI slice LP"
    known = {"train": identities(source, source.cases()), "val": []}
    path = checkpoint(tmp_path / "best.ckpt", image_format=SLICES, cases=known)
    for directions in ([], ["slice_directions=RA"]):
        settings = configuration(f"ckpt={path}", f"data.root={volumes}", "slice_axis=axial", *directions)
        found = r"1 of the 2 cases of split=test.* were in its training .*two \(there s1\)"
        with pytest.raises(UserError, match=found):
            evaluate(settings, tmp_path / "out")
