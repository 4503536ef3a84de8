"""A run that is resumed for more epochs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from trainings import configuration

from edue_lightning.data import RaterSample, SyntheticFundus
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import load_method, read_checkpoint
from edue_lightning.runs.files import find_runs
from edue_lightning.runs.record import finished_value, method_settings
from edue_lightning.training import extension
from edue_lightning.training import run as training_run
from edue_lightning.training.run import train

PLAN = ["method=mc_dropout", "optimizer.schedule=constant", "checkpoint_every_steps=null"]


def settings_for(epochs: int, run: Path | None = None, *overrides: str) -> dict[str, Any]:
    resume = [] if run is None else [f"resume={run}"]
    return configuration(*PLAN, f"trainer.max_epochs={epochs}", *resume, *overrides)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direct")
    train(settings_for(3), folder)
    return folder


def assert_same_results(found: Path, expected: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (read_checkpoint(run / "checkpoints" / name) for run in (found, expected))
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        assert all(torch.equal(ours["state_dict"][key], theirs["state_dict"][key]) for key in theirs["state_dict"])
    assert (found / "validation.csv").read_text() == (expected / "validation.csv").read_text()
    ours, theirs = (load_method(run / "checkpoints" / "best.ckpt") for run in (found, expected))
    assert str(ours.triage) == str(theirs.triage)
    assert ours.configuration["trainer"] == theirs.configuration["trainer"]


def test_a_run_that_is_resumed_for_more_epochs_ends_as_one_planned_for_that_long(
    direct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(settings_for(2), run)
    before = (run / "validation.csv").read_text()
    # killed after the results were moved, and before the record was written
    with monkeypatch.context() as patched:
        patched.setattr(extension, "extend_record", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(3, run), run)
    train(settings_for(3, run), run)
    assert_same_results(run, direct)
    record = yaml.safe_load((run / "config.yaml").read_text())
    assert record["extended_from"] == [2]
    assert method_settings(record) == method_settings(yaml.safe_load((direct / "config.yaml").read_text()))
    aside = run / "earlier" / "2_epochs"
    assert (aside / "validation.csv").read_text() == before
    assert load_method(aside / "best.ckpt").configuration["trainer"]["max_epochs"] == 2
    assert pd.read_csv(run / "logs" / "metrics.csv")["epoch"].max() == 2
    # the earlier results are no run of their own
    assert len(find_runs(tmp_path)) == 1
    # finished, and left alone
    written = (run / "validation.csv").stat().st_mtime_ns
    train(settings_for(3, run), run)
    assert (run / "validation.csv").stat().st_mtime_ns == written


def test_what_cannot_be_resumed_for_more_epochs_is_refused_and_left_as_it_is(direct: Path) -> None:
    files = sorted(path.relative_to(direct) for path in direct.rglob("*"))
    for overrides, message in (
        (["optimizer.learning_rate=0.1"], r"holds a run with another optimizer"),
        (["trainer.gradient_clip_val=2.0"], r"holds a run with another trainer"),
    ):
        with pytest.raises(UserError, match=message):
            train(settings_for(5, direct, *overrides), direct)
    with pytest.raises(UserError, match=r"holds a run with another trainer"):
        train(settings_for(2, direct), direct)
    assert sorted(path.relative_to(direct) for path in direct.rglob("*")) == files


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_inverted_masks(source: SyntheticFundus, case_id: str) -> RaterSample:
    sample = LOAD(source, case_id)
    return replace(sample, masks=1 - sample.masks)


LOAD = SyntheticFundus.load


def test_a_run_whose_cases_or_checkpoints_changed_is_refused_and_left_as_it_is(
    direct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(direct, run)
    before = contents(run)
    with monkeypatch.context() as patched:
        patched.setattr(SyntheticFundus, "load", with_inverted_masks)
        with pytest.raises(UserError, match=r"last\.ckpt: the train cases have changed since the training began"):
            train(settings_for(5, run), run)
    assert contents(run) == before
    for name in ("last.ckpt", "best.ckpt"):
        path = run / "checkpoints" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=rf"{name}: cannot be read as a checkpoint"):
            train(settings_for(5, run), run)
        path.write_bytes(whole)
    assert contents(run) == before


def test_a_run_that_cannot_be_resumed_here_is_refused_and_left_as_it_is(direct: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(direct, run)
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    checkpoint["callbacks"]["ResumePoint"]["random"] *= 2
    torch.save(checkpoint, last)
    before = contents(run)
    with pytest.raises(UserError, match=r"last\.ckpt: was written by 2 processes and cannot be resumed by 1"):
        train(settings_for(5, run), run)
    assert contents(run) == before


def killed(*arguments: object) -> None:
    raise KeyboardInterrupt


def planned_in(run: Path) -> list[int]:
    """Return the number of epochs that the record and the checkpoints of a run name."""
    checkpoints = [read_checkpoint(run / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt")]
    configurations = [yaml.safe_load((run / "config.yaml").read_text())]
    configurations += [checkpoint["edue_configuration"] for checkpoint in checkpoints]
    return [configuration["trainer"]["max_epochs"] for configuration in configurations]


def test_checkpoints_and_record_name_one_number_of_epochs_whenever_a_process_was_killed(
    direct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(direct, run)
    best = run / "checkpoints" / "best.ckpt"
    # before the record was written; then the first command ends the run
    with monkeypatch.context() as patched:
        patched.setattr(extension, "extend_record", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(4, run), run)
    # an earlier version had written the checkpoint by then
    checkpoint = read_checkpoint(best)
    checkpoint["edue_configuration"]["trainer"]["max_epochs"] = 4
    torch.save({name: entry for name, entry in checkpoint.items() if name != "edue_triage"}, best)
    train(settings_for(3, run), run)
    assert planned_in(run) == [3, 3, 3]
    assert_same_results(run, direct)
    # after the record was written, and before the checkpoints
    with monkeypatch.context() as patched:
        patched.setattr(extension, "write_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(4, run), run)
    assert planned_in(run) == [4, 3, 3]
    # a training whose further epochs are no better keeps the best checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(training_run, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(4, run), run)
    assert planned_in(run) == [4, 4, 4]
    assert "edue_triage" not in read_checkpoint(best)
    train(settings_for(4, run), run)
    assert planned_in(run) == [4, 4, 4]
    assert load_method(best).triage is not None


def with_large_voxels(source: SyntheticFundus, case_id: str) -> RaterSample:
    return replace(LOAD(source, case_id), spacing=(5.0, 8.0))


def test_a_run_whose_voxel_sizes_changed_is_refused(
    direct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(direct, run)
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    for cases in checkpoint["edue_training_cases"].values():
        for case in cases:
            case[-1] = [0.5, 0.8]
    torch.save(checkpoint, last)
    before = contents(run)
    monkeypatch.setattr(SyntheticFundus, "load", with_large_voxels)
    with pytest.raises(UserError, match=r"last\.ckpt: the train cases have changed since the training began"):
        train(settings_for(5, run), run)
    assert contents(run) == before
    # before the first checkpoint, by the record
    last.unlink()
    record = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**record, "training_spacing": "other"}))
    with pytest.raises(UserError, match=r"config\.yaml: the voxel sizes of the training cases have changed"):
        train(settings_for(5, run), run)


def test_a_run_whose_results_are_partly_moved_is_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.yaml", "metrics.csv", "validation.csv", "cases.csv"):
        (tmp_path / name).write_text("trainer: {max_epochs: 2}")
    moves, move = [], Path.replace

    def killed(path: Path, target: Path) -> Path:
        if moves:
            raise KeyboardInterrupt
        moves.append(path.name)
        return move(path, target)

    longer = {"trainer": {"max_epochs": 3}}
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            extension.set_results_aside(longer, tmp_path, 2)
    assert moves == ["validation.csv"]
    assert finished_value(tmp_path, "nll") is None
    extension.set_results_aside(longer, tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "earlier" / "2_epochs").iterdir()) == [
        *("cases.csv", "metrics.csv", "validation.csv")
    ]


def test_a_warm_up_of_half_the_planned_epochs_is_not_resumed_for_more(tmp_path: Path) -> None:
    def planned(epochs: int, warm_up: str) -> dict[str, Any]:
        overrides = (
            "method=stochastic_segmentation",
            "optimizer.schedule=constant",
            f"method.warm_up_epochs={warm_up}",
        )
        return configuration(*overrides, f"trainer.max_epochs={epochs}", f"resume={tmp_path}")

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(planned(3, "null")))
    with pytest.raises(UserError, match=r"planned for 3 epochs with method.warm_up_epochs=null, which is half of them"):
        train(planned(5, "null"), tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(planned(3, "1")))
    assert extension.planned_epochs(planned(5, "1"), tmp_path) == 3


def test_a_schedule_that_ends_with_the_planned_epochs_is_not_resumed_for_more(tmp_path: Path) -> None:
    ending = settings_for(3, tmp_path, "optimizer.schedule=one_cycle")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ending))
    longer = {**ending, "trainer": {**ending["trainer"], "max_epochs": 5}}
    with pytest.raises(
        UserError, match=r"planned for 3 epochs with optimizer.schedule=one_cycle, which ends with them"
    ):
        train(longer, tmp_path)
