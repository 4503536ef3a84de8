"""Evaluation refuses what would make a number other than it seems: known cases, another preparation or precision."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from processes import TABLES_ALONE, run_command
from untrained import checkpoint

from edue_lightning.config.build import ImageFormat
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import SyntheticFundus
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import _require_same_preparation, evaluate
from edue_lightning.reporting.caveats import caveats
from edue_lightning.runs.checkpoints import load_method, read_checkpoint, write_checkpoint
from edue_lightning.runs.files import find_runs
from edue_lightning.uncertainty.mask_rule import majority_threshold

HASH = "data.fractions.draw=hash"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run in bf16 on cases whose splits are drawn by hashes."""
    folder = tmp_path_factory.mktemp("hashed") / "run"
    overrides = [*TABLES_ALONE, HASH, "method=single", "trainer.precision=bf16-mixed", f"hydra.run.dir={folder}"]
    done = run_command("train", overrides, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    undefined = [line for line in done.stdout.splitlines() if "undefined" in line]
    assert len(undefined) == 1
    assert "single network" in undefined[0]
    return folder


def configuration(run: Path, *overrides: str) -> dict[str, Any]:
    command = [
        f"ckpt={run}/checkpoints/best.ckpt",
        "bootstrap_resamples=0",
        "figures=false",
        "trainer.accelerator=cpu",
        *overrides,
    ]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("evaluate", overrides=command))


def on(*overrides: str) -> list[str]:
    return ["data=synthetic", "data.source.n_cases=24", "data.source.size=32", *overrides]


def test_evaluation_has_the_precision_of_the_training(run: Path, tmp_path: Path) -> None:
    evaluate(configuration(run), tmp_path / "again")
    first, second = (pd.read_csv(folder / "metrics.csv") for folder in (run, tmp_path / "again"))
    pd.testing.assert_series_equal(first["value"], second["value"], check_exact=True)
    recorded = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert recorded["trainer"]["precision"] == "bf16-mixed"
    evaluate(configuration(run, "trainer.precision=32-true"), tmp_path / "full")
    assert not pd.read_csv(tmp_path / "full" / "metrics.csv")["value"].equals(first["value"])


@pytest.mark.parametrize("rule", ["raters", "validation", "half"])
def test_written_predictions_come_with_the_options_that_repeat_their_masks(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, rule: str
) -> None:
    override = {"validation": ["mask.thresholds={disc: 0.13, cup: 0.1}"]}.get(rule, [])
    settings = configuration(run, "split=val", "save_predictions=true", f"mask={rule}", *override)
    with caplog.at_level("WARNING"):
        evaluate(settings, tmp_path / "own")
    said = [line for line in caplog.messages if "holds probabilities, and not the rule for masks" in line]
    options = shlex.split(said[0].split(" with ")[1]) if said else []
    assert bool(said) == (rule != "half")
    measured = [
        f"predictions={tmp_path / 'own' / 'predictions'}",
        "bootstrap_resamples=0",
        "figures=false",
        "split=val",
        *on(HASH),
    ]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        again = resolved(compose("evaluate", overrides=[*measured, *options]))
    evaluate(again, tmp_path / "again")
    first, second = (pd.read_csv(tmp_path / name / "cases.csv") for name in ("own", "again"))
    pd.testing.assert_frame_equal(first[["dice", "predicted_area"]], second[["dice", "predicted_area"]])


@pytest.mark.parametrize(
    "options", [["method=single", "mask=raters", "mask.raters=4"], ["method=edue_levels", "method.levels=4"]]
)
def test_masks_follow_the_majority_that_they_are_measured_against(tmp_path: Path, options: list[str]) -> None:
    model = checkpoint(
        tmp_path / "checkpoints" / "best.ckpt", *options, image_format=ImageFormat.of(SyntheticFundus(1, 32))
    )
    measured = [
        "allow_other_preparation=true",
        "metrics=default",
        "metrics.majority_tie=background",
        "bootstrap_resamples=0",
        "figures=false",
        "split=all",
    ]
    masks = [option for option in options if option.startswith("mask")]
    settings = configuration(tmp_path, *on(*measured, *masks), "save_predictions=true")
    evaluate(settings, tmp_path / "own")
    method = load_method(model).method
    for case, rows in pd.read_csv(tmp_path / "own" / "cases.csv").groupby("case_id"):
        with np.load(tmp_path / "own" / "predictions" / f"{case}.npz") as saved:
            members = saved["members"]
        # of four raters three mark a voxel of the majority: the third level, or a mean of at least 0.614
        inside = (
            members[2] >= 0.5 if method.readout.levels else members.mean(axis=0) >= majority_threshold(4, "background")
        )
        areas = dict(zip(method.structures, inside.sum(axis=(1, 2)), strict=True))
        assert dict(zip(rows["structure"], rows["predicted_area"], strict=True)) == areas


def test_thresholds_belong_to_predictions_in_float32(run: Path, tmp_path: Path) -> None:
    evaluate(configuration(run, "trainer.precision=32-true", "split=val"), tmp_path / "out")
    stored = load_method(run / "checkpoints" / "best.ckpt").triage
    assert stored is not None
    for structure, cases in pd.read_csv(tmp_path / "out" / "cases.csv").groupby("structure"):
        np.testing.assert_allclose(stored["structures"][structure]["dice"].numpy(), cases["dice"], rtol=1e-9)


def test_a_new_case_leaves_the_test_cases_unseen(run: Path, tmp_path: Path) -> None:
    evaluate(configuration(run, *on("data.source.n_cases=25")), tmp_path / "more")
    before, after = (set(pd.read_csv(folder / "cases.csv")["case_id"]) for folder in (run, tmp_path / "more"))
    assert before <= after


@pytest.mark.parametrize("more", [["data.fractions.seed=1"], ["data.fractions.draw=permutation"], ["split=all"]])
def test_cases_of_the_training_are_refused_by_name(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, more: list[str]
) -> None:
    with pytest.raises(UserError, match=r"were in its training or validation: .*allow_overlap=true") as refused:
        evaluate(configuration(run, *on(*more)), tmp_path / "out")
    known = {
        case.case_id
        for of_split in (load_method(run / "checkpoints" / "best.ckpt").cases or {}).values()
        for case in of_split
    }
    assert any(case in str(refused.value) for case in known)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "metrics.csv").exists()
    evaluate(configuration(run, *on(*more), "allow_overlap=true"), tmp_path / "out")
    assert (tmp_path / "out" / "metrics.csv").exists()
    said = str(refused.value).partition(";")[0]
    assert said in caplog.text
    assert any(said in line for line in caveats(find_runs(tmp_path)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_of_the_training_may_be_measured_as_what_they_are(run: Path, tmp_path: Path, split: str) -> None:
    evaluate(configuration(run, f"split={split}"), tmp_path / "out")
    assert set(pd.read_csv(tmp_path / "out" / "metrics.csv")["split"]) == {split}


def test_training_cases_are_refused_as_validation_cases(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split=val, or their patients, were in its training: "):
        evaluate(configuration(run, *on("data.fractions.seed=1"), "split=val"), tmp_path / "out")


def test_other_cases_of_the_same_names_are_measured_with_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(configuration(run, *on("data.source.seed=9"), "split=all"), tmp_path / "out")
    assert caplog.text.count("have the names of cases of its training or validation") == 1
    assert len(pd.read_csv(tmp_path / "out" / "cases.csv")) == 2 * 24


def test_an_earlier_checkpoint_keeps_its_splits_and_a_warning_says_what_is_unknown(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    del checkpoint["edue_training_cases"]
    # as earlier versions wrote it
    del checkpoint["edue_configuration"]["data"]["fractions"]["draw"]
    write_checkpoint(checkpoint, tmp_path / "checkpoints" / "best.ckpt")
    loaded = load_method(tmp_path / "checkpoints" / "best.ckpt")
    assert loaded.cases is None
    assert loaded.configuration["data"]["fractions"]["draw"] == "permutation"
    with caplog.at_level(logging.WARNING):
        evaluate(configuration(tmp_path), tmp_path / "out")
    assert caplog.text.count("does not record its training cases") == 1


def test_another_size_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepared with size=32, but data=synthetic has size=40; .*allow_other"):
        evaluate(configuration(run, *on("data.source.size=40", "data.source.seed=9")), tmp_path / "out")
    more = ["data.source.size=40", "data.source.seed=9", "allow_other_preparation=true"]
    evaluate(configuration(run, *on(*more)), tmp_path / "out")


def manifest(**settings: Any) -> dict[str, Any]:
    return {"name": "mine", "source": {"_target_": "edue_lightning.data.ManifestSource", "root": "x", **settings}}


def hecktor(**settings: Any) -> dict[str, Any]:
    return {"name": "scans", "source": {"_target_": "edue_lightning.data.HecktorSource", "root": "x", **settings}}


def riga(**settings: Any) -> dict[str, Any]:
    return {"name": "riga", "source": {"_target_": "edue_lightning.data.RigaSource", "root": "x", **settings}}


@pytest.mark.parametrize(
    ("trained", "measured", "message"),
    [
        (
            manifest(standardise=True),
            manifest(standardise=False),
            "standardise=True, but data=mine has",
        ),
        (manifest(), manifest(standardise=False), "standardise=True"),
        (
            hecktor(spacing=[1, 1, 3]),
            hecktor(spacing=None),
            r"spacing=\[1.0, 1.0, 3.0\], but data=scans has spacing",
        ),
        (hecktor(ct_window=[-250, 250]), hecktor(ct_window=[-100, 250]), "ct_window"),
        (hecktor(), manifest(standardise=False), "preparation=PetCt"),
        (
            hecktor(bounding_boxes="boxes.csv"),
            hecktor(),
            "bounding_boxes=True, but data=scans has bounding_boxes=False",
        ),
        (hecktor(), hecktor(bounding_boxes="boxes.csv"), "bounding_boxes=False"),
        (riga(crop=0.4), riga(), "crop=0.4, but data=riga has crop=0.5"),
    ],
)
def test_another_preparation_is_refused(trained: dict[str, Any], measured: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _require_same_preparation(measured, trained, Path("best.ckpt"))


def test_the_same_preparation_passes_however_it_is_written() -> None:
    path = Path("best.ckpt")
    _require_same_preparation(hecktor(ct_window=(-250, 250)), hecktor(ct_window=[-250.0, 250.0]), path)
    _require_same_preparation(manifest(root="other"), manifest(), path)
    _require_same_preparation(hecktor(leave_out_unlabelled=True), hecktor(), path)
    _require_same_preparation(hecktor(bounding_boxes="a.csv"), hecktor(bounding_boxes="b.csv"), path)
