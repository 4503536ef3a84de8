"""A training with `plan=auto`, from the command line to its evaluation: every record holds plain numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from patients import LPS, Patient, affine_of
from processes import run_command

from edue_lightning.config import plan
from edue_lightning.config.build import preparation_settings
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import evaluate
from edue_lightning.reporting.data_check import check
from edue_lightning.runs.checkpoints import read_checkpoint
from edue_lightning.runs.files import VALIDATION_FILE
from edue_lightning.runs.record import check_same_run, method_settings
from edue_lightning.training.run import train

SHARED = [
    *("data=hecktor", "data.cache=null", "network=dynunet", "data.fractions.draw=permutation"),
    *("data.fractions.val=0.2", "data.fractions.test=0.2"),
]
# the batch is the user's
STATED = ["data.batch_size=3"]
TRAIN = [
    *("method=single", "data.patch.per_case=1", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
    *("bootstrap_resamples=0", "figures=false", "triage_sensitivity=null", "logger.mode=disabled"),
]
PLANNED = ("data.source.spacing", "data.patch.size", "inference.window", "network.features")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return PET/CT of voxels of 1x1x3 mm and of 2x2x3 mm in HECKTOR's layout."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(6):
        size = (24, 22, 10) if number else (12, 11, 10)
        voxel = (1.0, 1.0, 3.0) if number else (2.0, 2.0, 3.0)
        Patient(f"CHUM-{number:03d}", size, affine_of(voxel, (5, -8, 100), size, LPS), is_marked=True).write(root)
    return root


@pytest.fixture(scope="module")
def run(scans: Path) -> Path:
    """Return the folder of a run with `plan=auto`."""
    folder = scans.parent / "run"
    overrides = [*SHARED, *STATED, *TRAIN, "plan=auto", f"data.root={scans}", f"hydra.run.dir={folder}"]
    done = run_command("train", overrides, cwd=scans.parent)
    assert done.returncode == 0, done.stderr
    # what wins over the plan is said
    assert "data.batch_size=3: kept as given" in done.stdout
    return folder


def composed(command: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose(command, list(overrides)))


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def test_the_record_and_the_checkpoint_hold_plain_numbers(run: Path) -> None:
    record = record_of(run)
    values = record["plan"]["values"]
    assert set(values) == {*PLANNED, "network.strides", "network.kernels"}
    assert record["plan"]["keep"] == ["data.batch_size"]
    assert record["data"]["source"]["spacing"] == values["data.source.spacing"] == [1.0, 1.0, 3.0]
    assert record["data"]["patch"]["size"] == record["inference"]["window"] == values["data.patch.size"]
    assert record["data"]["batch_size"] == 3
    assert record["network"]["features"] == values["network.features"]
    stored = read_checkpoint(run / "checkpoints" / "best.ckpt")["edue_configuration"]
    for part in ("data", "network", "inference"):
        assert stored[part] == record[part]
    # so that new images get the same voxels
    assert preparation_settings(stored["data"])["spacing"] == [1.0, 1.0, 3.0]


def test_check_prints_the_plan_that_the_training_took(run: Path, scans: Path, tmp_path: Path) -> None:
    configuration = composed("check", *SHARED, *STATED, f"data.root={scans}", f"output={tmp_path / 'found'}")
    found = check(plan.keeping(configuration, ["data.batch_size"]), tmp_path / "found")
    assert found.plan is not None
    taken = {key: value for key, value in record_of(run)["plan"]["values"].items() if key != "inference.window"}
    assert dict(found.plan.values) == taken
    text = found.text()
    assert f"data.patch.size=[{','.join(map(str, taken['data.patch.size']))}]" in text
    assert "fingerprint of the" in text
    assert text in (tmp_path / "found" / "summary.txt").read_text()


def test_check_measures_the_images_own_voxels_whatever_spacing_is_configured(scans: Path, tmp_path: Path) -> None:
    plain = composed("check", *SHARED, f"data.root={scans}")
    other = composed("check", *SHARED, f"data.root={scans}", "data.source.spacing=[2,2,3]")
    own, configured = check(plain, tmp_path / "one").plan, check(other, tmp_path / "two").plan
    assert own is not None
    assert configured is not None
    assert own.values == configured.values
    assert own.fingerprint == configured.fingerprint


def test_the_fingerprint_is_of_the_raters_that_the_training_sees(tmp_path: Path) -> None:
    overrides = ["data=synthetic", "data.source.n_cases=12", "data.training_raters=[0,3]", "network=unet"]
    found = check(composed("check", *overrides, "plan=auto"), tmp_path).plan
    assert found is not None
    assert found.fingerprint.raters == (2, 2)
    assert found.fingerprint == plan.fingerprint_of(composed("train", *overrides)["data"])
    seen_by_all = plan.fingerprint_of(composed("train", *overrides[:2])["data"])
    assert seen_by_all.raters == (6, 6)
    assert seen_by_all.intensities != found.fingerprint.intensities


def resumed(run: Path, scans: Path, folder: Path) -> dict[str, Any]:
    overrides = [*SHARED, *STATED, *TRAIN, "plan=auto", f"data.root={scans}", f"resume={folder}"]
    return plan.keeping(composed("train", *overrides), ["data.batch_size", "data.root"])


def test_a_resumed_run_takes_its_recorded_plan(run: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(plan, "fingerprint_of", never)
    before = (run / VALIDATION_FILE).read_text()
    # as if it had been interrupted after its last epoch
    (run / VALIDATION_FILE).unlink()
    train(resumed(run, scans, run), run)
    assert (run / VALIDATION_FILE).read_text() == before
    # and a finished one is left as it is
    train(resumed(run, scans, run), run)


def test_a_key_that_an_earlier_version_did_not_record_is_one_that_is_null(run: Path, tmp_path: Path) -> None:
    record = record_of(run)
    configuration = {**record, "network": {**record["network"], "residual": None}, "plan": None}
    recorded = {key: record[key] for key in record if key != "plan"}
    recorded["network"] = {key: value for key, value in record["network"].items() if key != "residual"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recorded))
    check_same_run(configuration, tmp_path)
    configuration["network"]["residual"] = False
    with pytest.raises(UserError, match="holds a run with another network"):
        check_same_run(configuration, tmp_path)


def test_another_setting_of_the_plan_is_another_run(run: Path, scans: Path) -> None:
    configuration = resumed(run, scans, run)
    configuration["plan"]["memory_gb"] = 0.02
    with pytest.raises(UserError, match="holds a run with another data, inference, plan"):
        train(configuration, run)


def test_a_run_with_the_same_numbers_as_options_is_the_same_method(run: Path) -> None:
    record = record_of(run)
    stated = copy.deepcopy(record)
    stated.pop("plan")
    assert method_settings(record) == method_settings(stated)
    stated["data"]["batch_size"] = 4
    assert method_settings(record) != method_settings(stated)


def test_the_run_is_evaluated_with_its_plan(run: Path, tmp_path: Path) -> None:
    configuration = composed(
        "evaluate",
        f"ckpt={run}/checkpoints/best.ckpt",
        "bootstrap_resamples=0",
        "figures=false",
        "trainer.accelerator=cpu",
    )
    evaluate(configuration, tmp_path / "again")
    assert (tmp_path / "again" / "cases.csv").read_text() == (run / "cases.csv").read_text()


def test_a_plan_that_cannot_be_made_ends_before_anything_is_written(scans: Path, tmp_path: Path) -> None:
    overrides = [*SHARED, *TRAIN, "plan=auto", f"data.root={scans}"]
    tiny = composed("train", *overrides, "plan.memory_gb=1e-9")
    with pytest.raises(UserError, match=r"plan\.memory_gb=1e-09: does not hold two patches"):
        train(tiny, tmp_path / "run")
    wrong = composed("train", *overrides, "plan.keep=[data.batches]")
    with pytest.raises(UserError, match=r"plan\.keep=data\.batches: a plan sets no such key"):
        train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
