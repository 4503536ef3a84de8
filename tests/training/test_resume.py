"""A training that was cut off, however it was, ends as if it never had been."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from processes import PATIENCE, TABLES_ALONE, run_command, wait_until
from torch import Tensor

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import CaseRecord, RaterSample, SyntheticFundus
from edue_lightning.errors import UserError
from edue_lightning.methods import NetworkMethod
from edue_lightning.runs import checkpoints
from edue_lightning.runs.checkpoints import read_checkpoint, write_checkpoint
from edue_lightning.runtime.signals import STOPPED_STATUS
from edue_lightning.training import resume as resuming
from edue_lightning.training.loggers import training_loggers
from edue_lightning.training.run import train

QUICK = [
    *("experiment=synthetic", "data.source.n_cases=24", "data.source.size=32", "data.batch_size=3"),
    "data.fractions.draw=permutation",
    *("network.features=[4,6,8]", "trainer.max_epochs=3", "trainer.accelerator=cpu", "bootstrap_resamples=0"),
    *("logger.mode=disabled", "test=false", "checkpoint_every_steps=1", "resume=auto"),
]

PATCHES = [
    "+data.patch._target_=edue_lightning.data.PatchSampling",
    *("+data.patch.size=[16,16]", "+data.patch.per_case=2"),
]


class Killed(BaseException):
    """Stands for the end of the process."""


def configuration(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", overrides=[*QUICK, *overrides]))


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return state


def assert_same_runs(first: Path, second: Path) -> None:
    for name in ("best", "last"):
        expected, found = weights(first, name), weights(second, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert (first / "validation.csv").read_text() == (second / "validation.csv").read_text()


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    # a training in this process listens to them
    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next training die after so many checkpoints; 0 for never."""
    save = resuming.ResumePoint._save_or_end
    left = [0]

    def saving(self: resuming.ResumePoint, trainer: Any, due: bool) -> None:
        save(self, trainer, due)
        left[0] -= due
        if due and left[0] == 0:
            raise Killed

    monkeypatch.setattr(resuming.ResumePoint, "_save_or_end", saving)

    def after(checkpoints: int) -> None:
        left[0] = checkpoints

    return after


@pytest.fixture
def kill_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next training die in a step, counted from 1."""
    training_step = NetworkMethod.training_step
    left = [0]

    def counted(method: NetworkMethod, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return training_step(method, *arguments)

    monkeypatch.setattr(NetworkMethod, "training_step", counted)

    def in_step(step: int) -> None:
        left[0] = step

    return in_step


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["method=edue", "method.guidance.ramp_up_epochs=2", "data.num_workers=2", "augmentation=nnunet"],
        ["method=mc_dropout", "optimizer.schedule=cosine_warmup"],
        ["method=stochastic_segmentation"],
        ["method=probabilistic_unet"],
        ["method=single", "network.dropout=0.3", "trainer.accumulate_grad_batches=2", "optimizer.schedule=constant"],
        ["method=single", "optimizer=sgd_poly", "trainer.max_epochs=2"],
        ["method=edue_moments", "trainer.precision=bf16-mixed", *PATCHES],
        ["method=deep_ensemble", "method.members=2", "network.dropout=0.2", "trainer.max_epochs=2"],
        # stops after the second of three epochs, where the second kill is
        [
            *("method=single", "callbacks=[early_stopping,weight_averaging]", "callbacks.weight_averaging.decay=0.5"),
            *("callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=1000"),
        ],
    ],
    ids=lambda overrides: " ".join(overrides[:2]).replace("method=", ""),
)
def test_a_killed_training_ends_with_the_weights_of_one_never_killed(
    tmp_path: Path, kill_after: Callable[[int], None], overrides: list[str]
) -> None:
    settings = configuration(*overrides)
    train(settings, tmp_path / "undisturbed")
    # within the first epoch, at the end of one, and in the second member of an ensemble
    for kills, name in (([2], "within"), ([5], "end"), ([7, 2], "twice")):
        for number in kills:
            kill_after(number)
            with pytest.raises(Killed):
                train(settings, tmp_path / name)
            assert not (tmp_path / name / "validation.csv").exists()
        kill_after(0)
        train(settings, tmp_path / name)
        assert_same_runs(tmp_path / "undisturbed", tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        # five batches per epoch
        (["optimizer.schedule=constant", "+trainer.max_steps=1000", "checkpoint_every_steps=null"], 6),
        (["+trainer.max_steps=12", "trainer.max_epochs=-1", "optimizer.schedule=constant"], 6),
        (["+trainer.limit_train_batches=2", "checkpoint_every_steps=null"], 3),
        # right after a validation within an epoch
        (["+trainer.val_check_interval=2", "checkpoint_every_steps=2", "optimizer.learning_rate=0.03"], 13),
        (["+trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=3"], 13),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_killed_training_of_any_length_and_validation_ends_as_one_never_killed(
    tmp_path: Path, kill_in_step: Callable[[int], None], overrides: list[str], step: int
) -> None:
    settings = configuration("method=single", "network.dropout=0.2", *overrides)
    train(settings, tmp_path / "undisturbed")
    kill_in_step(step)
    with pytest.raises(Killed):
        train(settings, tmp_path / "killed")
    train(settings, tmp_path / "killed")
    assert_same_runs(tmp_path / "undisturbed", tmp_path / "killed")
    validated = [
        pd.read_csv(tmp_path / run / "logs" / "metrics.csv").dropna(subset="val/nll")[["epoch", "step"]]
        for run in ("undisturbed", "killed")
    ]
    pd.testing.assert_frame_equal(*[one.reset_index(drop=True) for one in validated])


def test_curves_hold_every_epoch_once_after_going_on(tmp_path: Path, kill_after: Callable[[int], None]) -> None:
    settings = configuration()
    train(settings, tmp_path / "undisturbed")
    for number in (3, 4):
        kill_after(number)
        with pytest.raises(Killed):
            train(settings, tmp_path / "killed")
    kill_after(0)
    train(settings, tmp_path / "killed")
    expected, found = (pd.read_csv(tmp_path / name / "logs" / "metrics.csv") for name in ("undisturbed", "killed"))
    validated = [frame[frame["val/nll"].notna()].reset_index(drop=True) for frame in (expected, found)]
    pd.testing.assert_frame_equal(*validated)
    assert found["epoch"].max() == 2


@pytest.mark.parametrize("crash", ["none", "moved away", "written again", "cut off in a line"])
def test_curves_survive_a_crash_while_they_are_taken_up(tmp_path: Path, crash: str) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    content = "epoch,step,loss\n0,3,1.5\n1,7,1.25\n2,11,1.0\n"
    (logs / "metrics.csv").write_text(content + ("3,1" if crash == "cut off in a line" else ""))
    if crash == "moved away":
        (logs / "metrics.csv").rename(logs / "metrics.earlier.csv")
    elif crash == "written again":
        (logs / "metrics.earlier.csv").write_text(content)
    training_loggers(tmp_path, None, None, steps=8)
    assert (logs / "metrics.csv").read_text().split() == ["epoch,loss,step", "0,1.5,3", "1,1.25,7"]
    assert [path.name for path in logs.iterdir()] == ["metrics.csv"]


def test_random_states_are_taken_up_where_they_were() -> None:
    def draw() -> list[float]:
        return [float(torch.randn(())), float(np.random.normal()), random.random()]  # noqa: NPY002

    random.gauss(0, 1)
    state = resuming._random_state()
    expected = [draw(), draw()]
    resuming._restore_random_state(state)
    assert [draw(), draw()] == expected


def test_a_kill_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: Callable[[int], None]
) -> None:
    settings = configuration()
    train(settings, tmp_path / "undisturbed")
    kill_after(4)
    with pytest.raises(Killed):
        train(settings, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    before = (folder / "last.ckpt").read_bytes()
    # what a kill in the middle of the next one leaves
    (folder / "unfinished-abc.tmp").write_bytes(before[: len(before) // 2])
    kill_after(0)
    train(settings, tmp_path / "run")
    assert_same_runs(tmp_path / "undisturbed", tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_full_disk_is_told_and_spares_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": {"weight": torch.ones(2)}}, path)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be written \(.*No space left.*resume=auto"):
        write_checkpoint({"state_dict": {"weight": torch.zeros(2)}}, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.ones(2))
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_changed_byte_in_the_weights_is_noticed(tmp_path: Path, place: float) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": {"weight": torch.randn(10_000)}}, path)
    content = bytearray(path.read_bytes())
    content[int(place * 40_000)] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be read as a checkpoint"):
        read_checkpoint(path)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    settings = configuration("trainer.max_epochs=1")
    value = train(settings, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert train(settings, tmp_path) == pytest.approx(value, abs=1e-12)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_path_tells_which_run_goes_on(tmp_path: Path, kill_after: Callable[[int], None]) -> None:
    run = tmp_path / "run"
    kill_after(2)
    with pytest.raises(Killed):
        train(configuration(), run)
    kill_after(0)
    with pytest.raises(UserError, match=r"another seed.*its own command"):
        train(configuration("seed=1", f"resume={run}"), run)
    with pytest.raises(UserError, match="no such run, or another folder"):
        train(configuration(f"resume={run}"), tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds no run"):
        train(configuration(f"resume={tmp_path / 'nothing'}"), tmp_path / "nothing")
    with pytest.raises(UserError, match="already holds a run"):
        train(configuration("resume=null"), run)
    train(configuration(f"resume={run}/checkpoints/last.ckpt"), run)
    assert (run / "validation.csv").is_file()


def test_another_number_of_processes_cannot_take_up_a_training(
    tmp_path: Path, kill_after: Callable[[int], None]
) -> None:
    kill_after(2)
    with pytest.raises(Killed):
        train(configuration(), tmp_path)
    kill_after(0)
    path = tmp_path / "checkpoints" / "last.ckpt"
    stored = read_checkpoint(path)
    stored["callbacks"]["ResumePoint"]["random"] *= 2
    write_checkpoint(stored, path)
    with pytest.raises(UserError, match=r"was written by 2 processes and cannot be resumed by 1"):
        train(configuration(), tmp_path)


def started(run: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Start a long training, and wait for its first checkpoint within an epoch."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edue_lightning.train",
            *QUICK,
            "trainer.max_epochs=3000",
            f"hydra.run.dir={run}",
            *overrides,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=run.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: list(run.glob("checkpoints/**/last.ckpt")), process)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state", "array"),
    [
        (signal.SIGUSR1, "RUNNING", {}),
        (signal.SIGTERM, "RUNNING", {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}),
        (signal.SIGTERM, "CANCELLED", {}),
    ],
    ids=["time is up", "preempted task of an array", "cancelled"],
)
def test_a_scheduler_can_stop_a_training_and_its_job_comes_back(
    tmp_path: Path, number: signal.Signals, state: str, array: dict[str, str]
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "JobState={state}"; echo "$@" >> "{tmp_path}/called"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    path = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    process = started(tmp_path / "run", SLURM_JOB_NAME="edue", SLURM_JOB_NODELIST="n1", PATH=path, **job, **array)
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == STOPPED_STATUS, output
    assert "received a signal to stop" in output
    assert "Traceback" not in output
    name = "77_3" if array else "77"
    expected = [f"show job {name}", *([f"requeue {name}"] if state == "RUNNING" else [])]
    assert (tmp_path / "called").read_text().splitlines() == expected
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] > 0


@pytest.mark.slow
def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    process = started(tmp_path / "run")
    try:
        second = run_command("train", [*QUICK, "trainer.max_epochs=3000", "hydra.run.dir=run"], cwd=tmp_path)
        assert second.returncode == 2
        assert "is in use by another process" in second.stderr
    finally:
        process.kill()
        process.communicate()


def contents(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in (".lock", "train.log"))
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_auto_finds_the_run_of_the_same_command(tmp_path: Path) -> None:
    command = [*TABLES_ALONE, "test=false", "trainer.max_epochs=1"]
    assert run_command("train", command, cwd=tmp_path).returncode == 0
    (run,) = tmp_path.glob("outputs/*/*/*_0")
    (run / "validation.csv").unlink()
    before = contents(run)
    for refused in (f"resume={run}", f"hydra.run.dir={run}"):
        assert run_command("train", [*command, "optimizer.learning_rate=0.1", refused], cwd=tmp_path).returncode == 2
    assert contents(run) == before
    again = run_command("train", [*command, "resume=auto"], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumes after" in again.stdout + again.stderr
    assert (run / "validation.csv").is_file()
    assert [path for path in tmp_path.glob("outputs/*/*/*") if path != run] == []


def test_a_training_does_not_resume_on_changed_cases(
    tmp_path: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configuration("method=single", "trainer.max_epochs=1")
    kill_after(2)
    with pytest.raises(Killed):
        train(settings, tmp_path / "run")
    changed = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["edue_training_cases"]["train"][0][0]
    load = SyntheticFundus.load

    def other(source: SyntheticFundus, case_id: str) -> RaterSample:
        sample = load(source, case_id)
        return replace(sample, masks=1 - sample.masks) if case_id == changed else sample

    monkeypatch.setattr(SyntheticFundus, "load", other)
    kill_after(0)
    message = rf"last\.ckpt: the train cases have changed since the training began \({changed}\)"
    with pytest.raises(UserError, match=message):
        train(settings, tmp_path / "run")
    monkeypatch.setattr(SyntheticFundus, "load", load)
    train(settings, tmp_path / "run")


def listed_otherwise(source: SyntheticFundus) -> list[CaseRecord]:
    return list(reversed(CASES(source)))


def of_other_images(source: SyntheticFundus, case_id: str) -> RaterSample:
    sample = LOAD(source, case_id)
    return replace(sample, image=sample.image + 1, content=None)


CASES, LOAD = SyntheticFundus.cases, SyntheticFundus.load


def test_a_training_does_not_resume_on_cases_in_another_order(
    tmp_path: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configuration("method=single", "trainer.max_epochs=1", "data.fractions.draw=hash")
    kill_after(2)
    with pytest.raises(Killed):
        train(settings, tmp_path / "run")
    kill_after(0)
    monkeypatch.setattr(SyntheticFundus, "cases", listed_otherwise)
    with pytest.raises(UserError, match=r"last\.ckpt: the train cases are listed in another order .*; restore it"):
        train(settings, tmp_path / "run")


def test_before_its_first_checkpoint_a_training_does_not_resume_on_other_images_either(
    tmp_path: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configuration("method=single", "trainer.max_epochs=1")
    kill_after(1)
    with pytest.raises(Killed):
        train(settings, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    kill_after(0)
    monkeypatch.setattr(SyntheticFundus, "load", of_other_images)
    with pytest.raises(UserError, match=r"config\.yaml: the training cases, their images or masks have changed"):
        train(settings, tmp_path / "run")
    monkeypatch.setattr(SyntheticFundus, "load", LOAD)
    train(settings, tmp_path / "run")
    kept = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["edue_configuration"]
    assert (kept["training_cases"], kept["training_content"]) == (
        recorded["training_cases"],
        recorded["training_content"],
    )
