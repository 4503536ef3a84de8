"""Trainings in processes of their own that are killed or stopped at chosen moments."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from trainings import Moment, assert_same_runs, configuration, output_of, train_apart

from edue_lightning.runs.checkpoints import read_checkpoint
from edue_lightning.runs.files import write_table
from edue_lightning.runtime.signals import STOPPED_STATUS
from edue_lightning.training import run as command

DROPOUT = ["method=mc_dropout", "data.num_workers=2"]
ENSEMBLE = ["method=deep_ensemble", "method.members=2", "network.dropout=0.2"]
TWO = ["method=single", "method.target=random_rater", "network.dropout=0.3", "trainer=ddp"]
CHECKPOINTS = ["best.ckpt", "last.ckpt"]
JOB = {
    **{"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "edue", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "1"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
}


def reference(tmp_path_factory: pytest.TempPathFactory, *overrides: str, processes: int = 1) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train_apart(configuration(*overrides), run, processes=processes) == 0, output_of(run)
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run that no signal met."""
    return reference(tmp_path_factory, *DROPOUT)


@pytest.fixture(scope="module")
def undisturbed_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ensemble that no signal met."""
    return reference(tmp_path_factory, *ENSEMBLE)


@pytest.fixture(scope="module")
def undisturbed_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of two processes that no signal met."""
    return reference(tmp_path_factory, *TWO, "trainer.devices=2", processes=2)


# the second epoch has the steps 6 to 10; a checkpoint follows each step, that of the epoch's last its validation
@pytest.mark.slow
@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([Moment("data")], marks=pytest.mark.exhaustive),
        pytest.param([Moment("training_step", 1)], marks=pytest.mark.exhaustive),
        pytest.param([Moment("moved", 7)], marks=pytest.mark.exhaustive),
        [Moment("training_step", 9), Moment("training_step", 2), Moment("training_step", 1)],
        pytest.param([Moment("validation_step", 2)], marks=pytest.mark.exhaustive),
        pytest.param([Moment("moved", 2, file="best.ckpt")], marks=pytest.mark.exhaustive),
        pytest.param([Moment("half", 1)], marks=pytest.mark.exhaustive),
        [Moment("half", 8), Moment("unmoved", 1), Moment("half", 2, file="best.ckpt")],
        pytest.param([Moment("moved", 10), Moment("unmoved", 5)], marks=pytest.mark.exhaustive),
        pytest.param([Moment("moved", 15)], marks=pytest.mark.exhaustive),
        [Moment("test_step", 1)],
    ],
    ids=[
        *("before all", "first step", "within an epoch", "within steps", "validation", "best alone written"),
        *("half the first", "half written", "end of an epoch", "end of the training", "measurement"),
    ],
)
def test_a_training_killed_at_any_moment_ends_as_if_it_never_had_been(
    undisturbed: Path, tmp_path: Path, moments: list[Moment]
) -> None:
    run, settings = tmp_path / "run", configuration(*DROPOUT)
    for moment in moments:
        assert train_apart(settings, run, moment) == -signal.SIGKILL, output_of(run)
        assert not (run / "validation.csv").exists()
    assert train_apart(settings, run) == 0, output_of(run)
    assert_same_runs(undisturbed, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == CHECKPOINTS
    assert not list(run.rglob("unfinished-*"))
    curves = [pd.read_csv(folder / "logs" / "metrics.csv") for folder in (undisturbed, run)]
    validated = [curve.loc[curve["val/nll"].notna(), ["epoch", "step", "val/nll", "val/dice"]] for curve in curves]
    pd.testing.assert_frame_equal(*(part.reset_index(drop=True) for part in validated), check_exact=True)


@pytest.mark.slow
@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([Moment("training_step", 18)], marks=pytest.mark.exhaustive),
        [Moment("moved", 15), Moment("moved", 10)],
        pytest.param([Moment("half", 31)], marks=pytest.mark.exhaustive),
        pytest.param([Moment("moved", 31), Moment("test_step", 1)], marks=pytest.mark.exhaustive),
    ],
    ids=["second member", "between members", "half the whole", "after training"],
)
def test_an_ensemble_killed_at_any_moment_ends_as_if_it_never_had_been(
    undisturbed_ensemble: Path, tmp_path: Path, moments: list[Moment]
) -> None:
    run, settings = tmp_path / "run", configuration(*ENSEMBLE)
    for moment in moments:
        assert train_apart(settings, run, moment) == -signal.SIGKILL, output_of(run)
    assert train_apart(settings, run) == 0, output_of(run)
    assert_same_runs(undisturbed_ensemble, run)
    assert not list(run.rglob("unfinished-*"))


@pytest.mark.slow
@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize(
    ("moment", "status", "steps"),
    [
        (Moment("training_step", 5), -signal.SIGKILL, 4),
        pytest.param(Moment("validation_step", 2), -signal.SIGKILL, 5, marks=pytest.mark.exhaustive),
        pytest.param(Moment("training_step", 5, signal.SIGTERM), STOPPED_STATUS, 5, marks=pytest.mark.exhaustive),
        (Moment("training_step", 5, signal.SIGTERM, rank=1), STOPPED_STATUS, 5),
        pytest.param(Moment("validation_step", 1, signal.SIGUSR1), STOPPED_STATUS, 3, marks=pytest.mark.exhaustive),
    ],
    ids=["killed in a step", "killed in validation", "stopped in a step", "one stopped", "stopped in validation"],
)
def test_two_processes_go_on_as_if_they_never_had_been_stopped(
    undisturbed_two: Path, tmp_path: Path, moment: Moment, status: int, steps: int
) -> None:
    run, settings = tmp_path / "run", configuration(*TWO, "trainer.devices=2")
    assert train_apart(settings, run, moment, processes=2) == status, output_of(run)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps
    assert train_apart(settings, run, processes=2) == 0, output_of(run)
    assert_same_runs(undisturbed_two, run)


@pytest.fixture
def scheduler(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a SLURM job whose `scontrol` notes its arguments in `called`."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho JobState=RUNNING; echo "$@" >> "{tmp_path}/called"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    return {**JOB, "PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize(
    ("moment", "steps"),
    [
        pytest.param(Moment("data", 1, signal.SIGUSR1), None, marks=pytest.mark.exhaustive),
        pytest.param(Moment("training_step", 7, signal.SIGTERM), 7, marks=pytest.mark.exhaustive),
        (Moment("training_step", 7, signal.SIGUSR1), 7),
        pytest.param(Moment("training_step", 10, signal.SIGTERM), 10, marks=pytest.mark.exhaustive),
        (Moment("validation_step", 2, signal.SIGUSR1), 10),
        pytest.param(Moment("moved", 2, signal.SIGTERM, file="best.ckpt"), 10, marks=pytest.mark.exhaustive),
        (Moment("test_step", 1, signal.SIGUSR1), 15),
    ],
    ids=["start", "step, TERM", "step, USR1", "last step of an epoch", "validation", "best written", "measurement"],
)
def test_a_training_told_to_stop_saves_and_goes_on_as_if_it_never_had_been(
    undisturbed: Path, tmp_path: Path, scheduler: dict[str, str], moment: Moment, steps: int | None
) -> None:
    run = tmp_path / "run"
    settings = configuration(*DROPOUT, "checkpoint_every_steps=null")
    # a scheduler signals all processes of a job, those of the loaders too
    status = train_apart(settings, run, replace(moment, to_all=True), **scheduler)
    assert status == STOPPED_STATUS, output_of(run)
    assert "Traceback" not in output_of(run)
    last = run / "checkpoints" / "last.ckpt"
    assert (read_checkpoint(last)["global_step"] if last.exists() else None) == steps
    assert (tmp_path / "called").read_text().splitlines() == ["show job 77", "requeue 77"]
    assert train_apart(settings, run, **scheduler) == 0, output_of(run)
    assert_same_runs(undisturbed, run)


def test_a_stopped_training_finishes_the_step_that_it_accumulates(tmp_path: Path) -> None:
    settings = configuration("trainer.accumulate_grad_batches=2", "checkpoint_every_steps=null", "network.dropout=0.2")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_apart(settings, whole) == 0, output_of(whole)
    # an epoch has the steps of the batches 1 and 2, 3 and 4, and 5 alone
    assert train_apart(settings, run, Moment("training_step", 6, signal.SIGTERM)) == STOPPED_STATUS, output_of(run)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert train_apart(settings, run) == 0, output_of(run)
    assert_same_runs(whole, run)


@pytest.mark.xdist_group("kills")
def test_a_full_disk_ends_a_training_in_one_line_and_with_space_it_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", configuration(*DROPOUT)
    assert train_apart(settings, run, Moment("moved", 7)) == -signal.SIGKILL, output_of(run)
    last = run / "checkpoints" / "last.ckpt"
    before, earlier = last.read_bytes(), output_of(run)
    assert train_apart(settings, run, largest_file=len(before) // 2) == 2, output_of(run)
    told = output_of(run).removeprefix(earlier)
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "last.ckpt: cannot be written (" in line
    assert line.endswith("free some space, then resume with resume=auto")
    assert last.read_bytes() == before
    assert not list(run.rglob("unfinished-*"))
    assert train_apart(settings, run) == 0, output_of(run)
    assert_same_runs(undisturbed, run)


@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize("damage", ["changed", "cut short"])
def test_a_damaged_checkpoint_is_named_and_not_gone_on_with(undisturbed: Path, tmp_path: Path, damage: str) -> None:
    run, settings = tmp_path / "run", configuration(*DROPOUT)
    shutil.copytree(undisturbed, run)
    (run / "validation.csv").unlink()
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 4
    else:
        del content[-len(content) // 4 :]
    last.write_bytes(content)
    assert train_apart(settings, run) == 2
    assert f"error: {last}: cannot be read as a checkpoint" in output_of(run)
    assert "Traceback" not in output_of(run)
    assert last.read_bytes() == content


def test_a_run_killed_while_it_writes_its_last_table_is_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configuration("trainer.max_epochs=1")

    def half_a_text(frame: pd.DataFrame, path: Path, **options: object) -> None:
        Path(path).write_text(",".join(frame.columns)[:20])
        raise KeyboardInterrupt

    def killed_in_the_middle(frame: pd.DataFrame, columns: tuple[str, ...], path: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(pd.DataFrame, "to_csv", half_a_text)
            write_table(frame, columns, path)

    with monkeypatch.context() as patched:
        patched.setattr(command, "write_table", killed_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            command.train(settings, tmp_path)
    assert not (tmp_path / "validation.csv").exists()
    command.train(settings, tmp_path)
    assert len(pd.read_csv(tmp_path / "validation.csv")) > 10
