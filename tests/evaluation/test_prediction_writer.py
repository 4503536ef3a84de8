"""Predictions in files: on the voxels of the case's own CT, and read back as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from nibabel.affines import apply_affine
from patients import Patient, affine_of, points, tilted
from processes import run_command

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import Grid, HecktorSource, ManifestSource, RaterSample
from edue_lightning.errors import UserError
from edue_lightning.evaluation.prediction_folder import PredictionFolder
from edue_lightning.evaluation.prediction_writer import write_prediction, write_readout
from edue_lightning.evaluation.run import evaluate
from edue_lightning.metrics import case_statistics
from edue_lightning.reporting.caveats import caveats
from edue_lightning.runs.files import find_runs
from edue_lightning.uncertainty import Readout

TINY = [
    "data=hecktor",
    "network.features=[4,6,8]",
    "data.patch.size=[16,16,8]",
    "data.patch.per_case=2",
    "trainer.max_epochs=2",
    "bootstrap_resamples=20",
    "figures=false",
]


def oblique() -> Patient:
    """Return a patient whose CT runs along tilted axes in an order and directions of their own."""
    shape = (20, 26, 9)
    axes = tilted(17.0)[:, [1, 0, 2]] @ np.diag([1, -1, -1])
    return Patient("MDA-002", shape, affine_of((0.9, 1.1, 2.5), (3, -8, 99), shape, axes))


def place_of(affine: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return probabilities that tell each voxel's place in space, `[1, 1, *S]`."""
    places = points(shape, affine.numpy())
    heights = places @ [0.004, -0.007, 0.003] + 0.1
    assert heights.min() > 0
    assert heights.max() < 1
    return torch.from_numpy(heights.astype(np.float32))[None, None]


@pytest.mark.parametrize("patient", [Patient(), oblique()], ids=["scanner axes", "oblique"])
def test_predictions_lie_on_the_voxels_of_the_ct(tmp_path: Path, patient: Patient) -> None:
    patient.write(tmp_path / "data")
    source = HecktorSource(str(tmp_path / "data"))
    sample = source.load(patient.name)
    assert sample.affine is not None
    shape = tuple(sample.image.shape[1:])
    probabilities = place_of(sample.affine, shape).expand(2, 1, *shape) * torch.tensor([1.0, 0.5]).reshape(
        2, 1, 1, 1, 1
    )
    write_prediction(tmp_path / "out", sample, probabilities, source.structures)
    ct = nibabel.load(tmp_path / f"data/imagesTr/{patient.name}__CT.nii.gz")
    for member, factor in enumerate((1.0, 0.5)):
        file = nibabel.load(tmp_path / f"out/{patient.name}__member{member}__GTVn.nii.gz")
        assert file.shape == ct.shape
        np.testing.assert_allclose(file.affine, ct.affine, atol=1e-4)
        expected = place_of(torch.from_numpy(ct.affine), ct.shape)[0, 0] * factor
        np.testing.assert_allclose(file.get_fdata(), expected, atol=1e-5)
    read = PredictionFolder(tmp_path / "out", source.structures).load(sample)
    assert torch.equal(read, probabilities)


def test_outside_of_the_box_a_prediction_is_zero(tmp_path: Path) -> None:
    patient = replace(Patient(), tumour=((5, -8, 100), 2.0))
    patient.write(tmp_path)
    (tmp_path / "bbox.csv").write_text("PatientID,x1,x2,y1,y2,z1,z2\nCHUM-001,-12,4,-2,15,90,111\n")
    source = HecktorSource(str(tmp_path), bounding_boxes="bbox.csv")
    sample = source.load(patient.name)
    ones = torch.ones(1, 1, *sample.image.shape[1:])
    write_prediction(tmp_path / "out", sample, ones, source.structures)
    file = nibabel.load(tmp_path / "out/CHUM-001__member0__GTVn.nii.gz")
    assert file.shape == patient.ct_shape
    inside = points(file.shape, file.affine)[file.get_fdata() > 0]
    assert len(inside) == ones.sum()
    assert (inside.min(axis=0) >= [-5, -16, 88]).all()
    assert (inside.max(axis=0) <= [13, 3, 112]).all()
    predictions = PredictionFolder(tmp_path / "out", source.structures)
    assert torch.equal(predictions.load(sample), ones)
    assert predictions.check(source.cases(), source.cases(), source) == 0


def test_coarser_voxels_are_brought_back_to_those_of_the_ct(tmp_path: Path) -> None:
    patient = Patient()
    patient.write(tmp_path)
    source = HecktorSource(str(tmp_path), spacing=[1.6, 1.4, 3.5])
    sample = source.load(patient.name)
    assert sample.affine is not None
    probabilities = place_of(sample.affine, tuple(sample.image.shape[1:]))
    write_prediction(tmp_path / "out", sample, probabilities, source.structures)
    file = nibabel.load(tmp_path / "out/CHUM-001__member0__GTVn.nii.gz")
    assert file.shape == patient.ct_shape
    # beyond the outermost centres of the coarse voxels the value is that of the nearest place between centres
    coarse = sample.affine.numpy()
    indices = apply_affine(np.linalg.inv(coarse), points(file.shape, file.affine))
    nearest = apply_affine(coarse, np.clip(indices, 0, np.array(sample.image.shape[1:]) - 1))
    np.testing.assert_allclose(file.get_fdata(), nearest @ [0.004, -0.007, 0.003] + 0.1, atol=1e-5)


def test_a_report_warns_of_predictions_that_were_interpolated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    patient = Patient()
    patient.write(tmp_path / "data")
    source = HecktorSource(str(tmp_path / "data"), spacing=[1.6, 1.4, 3.5])
    sample = source.load(patient.name)
    ones = torch.ones(1, 1, *sample.image.shape[1:])
    write_prediction(tmp_path / "out", sample, ones, source.structures)
    data = ["data=hecktor", f"data.root={tmp_path / 'data'}", "data.source.spacing=[1.6,1.4,3.5]", "data.cache=null"]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = [f"predictions={tmp_path / 'out'}", "split=all", "bootstrap_resamples=0", *data]
        evaluate(resolved(compose("evaluate", overrides=overrides)), tmp_path / "measured")
    assert "1 of the 1 cases are predicted on the grids of their files and interpolated" in caplog.text
    assert any("interpolated" in line for line in caveats(find_runs(tmp_path / "measured")))


def test_predictions_of_a_turned_volume_lie_on_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    affine = affine_of((0.9, 1.1, 2.5), (3, -8, 99), (6, 5, 4), tilted(17.0)[:, [2, 0, 1]] @ np.diag([-1, 1, -1]))
    stored = nibabel.Nifti1Image(rng.random((6, 5, 4)).astype(np.float32), affine)
    nibabel.save(stored, tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 5, 4), dtype=np.uint8), affine), tmp_path / "mask.nii.gz")
    (tmp_path / "manifest.csv").write_text("case_id,image,mask,rater,structure\na,image.nii.gz,mask.nii.gz,r,s\n")
    source = ManifestSource(str(tmp_path), standardise=False)
    sample = source.load("a")
    assert sample.image.shape[1:] == (5, 4, 6)
    # the image itself, taken for a prediction, comes back as the file has it
    write_prediction(tmp_path / "out", sample, sample.image[None], source.structures)
    written = nibabel.load(tmp_path / "out/a__member0__s.nii.gz")
    np.testing.assert_allclose(written.affine, stored.affine, atol=1e-5)
    np.testing.assert_array_equal(written.get_fdata(), stored.get_fdata())
    predictions = PredictionFolder(tmp_path / "out", source.structures)
    assert torch.equal(predictions.load(sample), sample.image[None])
    assert predictions.check(source.cases(), source.cases(), source) == 0
    (tmp_path / "archive").mkdir()
    np.savez(tmp_path / "archive/a.npz", members=stored.get_fdata()[None, None])
    with pytest.raises(UserError, match=r"a\.npz: the axes .* were turned .* a__member0__s\.nii\.gz"):
        PredictionFolder(tmp_path / "archive", source.structures).load(sample)
    # from another program, along yet other axes
    nibabel.save(nibabel.as_closest_canonical(written), tmp_path / "out/a__member0__s.nii.gz")
    assert torch.equal(predictions.load(sample), sample.image[None])


def test_slices_become_archives(tmp_path: Path) -> None:
    sample = RaterSample(torch.zeros(1, 4, 5), torch.zeros(2, 2, 4, 5, dtype=torch.uint8), torch.ones(2) > 0, "flat")
    probabilities = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    write_prediction(tmp_path, sample, probabilities, ("disc", "cup"))
    assert torch.equal(PredictionFolder(tmp_path, ("disc", "cup")).load(sample), probabilities)


@pytest.mark.parametrize("has_grid", [False, True])
def test_levels_and_a_map_of_their_own_come_back_with_the_same_figures(tmp_path: Path, has_grid: bool) -> None:
    size = (4, 6, 5)
    affine = torch.eye(4, dtype=torch.float64) if has_grid else None
    masks = torch.randint(0, 2, (3, 2, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sample = RaterSample(torch.zeros(1, *size), masks, torch.ones(3) > 0, "flat", affine=affine)
    probabilities = torch.rand(4, 2, *size, generator=torch.Generator().manual_seed(0))
    probabilities[:3] = probabilities[:3].sort(dim=0, descending=True)[0]
    readout = Readout(levels=True, own_maps=("decision",), majority_tie="background")
    write_readout(tmp_path, readout)
    write_prediction(tmp_path, sample, probabilities, ("disc", "cup"), readout)
    files = sorted(path.name for path in tmp_path.iterdir())
    parts = ("decision", "member0", "member1", "member2")
    expected = [f"flat__{part}__{name}.nii.gz" for part in parts for name in ("cup", "disc")]
    assert files == [*(expected if has_grid else ["flat.npz"]), "readout.json"]
    folder = PredictionFolder(tmp_path, ("disc", "cup"))
    assert folder.readout == readout
    read = folder.load(sample)
    assert torch.equal(read, probabilities)
    statistics = [
        case_statistics(part[None], masks[None], sample.valid[None], contents="probabilities", readout=one)
        for part, one in ((read, folder.readout), (probabilities, readout), (probabilities[:3], Readout()))
    ]
    for name in ("dice", "sv", "d_soft", "nll"):
        assert torch.equal(statistics[0][name], statistics[1][name])
    assert not torch.equal(statistics[0]["sv"], statistics[2]["sv"])


def test_opinions_need_no_read_out(tmp_path: Path) -> None:
    write_readout(tmp_path / "out", Readout(majority_tie="background"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_cohort_is_checked_trained_on_evaluated_and_its_predictions_measured(tmp_path: Path) -> None:
    for number in range(1, 9):
        patient = Patient(f"CHUM-{number:03d}") if number % 2 else replace(oblique(), name=f"MDA-{number:03d}")
        patient.write(tmp_path / "data", texture=10.0)
    data = ["data.root=data", "data.cache=cache"]
    checked = run_command("check", ["data=hecktor", *data, "output=checked"], cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "4 raters" not in checked.stdout
    assert "A 8, B 8, release 8" in checked.stdout
    trained = run_command("train", [*TINY, *data, "hydra.run.dir=run"], cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "waiting for data" in (tmp_path / "run/train.log").read_text()
    evaluated = run_command(
        "evaluate", ["ckpt=run/checkpoints/best.ckpt", "output=evaluated", "save_predictions=true"], cwd=tmp_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    again = run_command(
        "evaluate",
        ["predictions=evaluated/predictions", "data=hecktor", *data, "output=again", "label=edue"],
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    first, second, third = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("run", "evaluated", "again"))
    pd.testing.assert_frame_equal(first, second, rtol=1e-6)
    # the intervals come from resamples of their own number
    columns = ["structure", "metric", "value", "n_cases"]
    pd.testing.assert_frame_equal(second[columns], third[columns], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 6, 6), (3, 3, 3)])
def test_an_archive_of_a_turned_case_is_refused_also_if_the_case_was_resampled(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    turned, upright = (
        Grid((6, 6, 6), torch.from_numpy(np.diag([*signs, 1.0]))) for signs in ([-1.0, -1.0, 1.0], [1.0, 1.0, 1.0])
    )
    np.savez(tmp_path / "a.npz", members=np.random.default_rng(0).random((1, 1, *shape)))
    spacing = 6 / shape[0]
    for origin, is_refused in ((turned, True), (upright, False)):
        sample = RaterSample(
            torch.zeros(1, *shape),
            torch.zeros(1, 1, *shape, dtype=torch.uint8),
            torch.ones(1, dtype=torch.bool),
            "a",
            affine=torch.from_numpy(np.diag([spacing, spacing, spacing, 1.0])),
            origin=origin,
        )
        folder = PredictionFolder(tmp_path, ("s",))
        if is_refused:
            with pytest.raises(UserError, match=r"a\.npz: the axes .* were turned"):
                folder.load(sample)
        else:
            assert folder.load(sample).shape == (1, 1, *shape)
