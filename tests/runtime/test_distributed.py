"""Several processes give what one gives: the same figures, weights and files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from processes import PATIENCE, run_command, run_script, wait_until

from edue_lightning.config.build import build_data
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import load_method, read_checkpoint
from edue_lightning.runs.trainer import build_test_trainer
from edue_lightning.runtime.processes import run_processes
from edue_lightning.training.temperature import fit_temperature

# 32 training cases, which batches of 4 divide; 7 test cases, which 2 processes do not
SETTINGS = [
    *("experiment=synthetic", "data.source.n_cases=47", "data.source.size=32", "network.features=[4,6,8]"),
    "data.fractions.draw=permutation",
    *("data.fractions.val=0.17", "data.fractions.test=0.15", "trainer.max_epochs=2", "bootstrap_resamples=50"),
    *("logger.mode=disabled", "figures=false", "trainer.accelerator=cpu"),
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
CPU = {"_target_": "pytorch_lightning.Trainer", "_partial_": True, "accelerator": "cpu", "devices": 1}
TABLES = ["metrics.csv", "cases.csv", "reliability.csv", "quality_control.csv"]


def trained(folder: Path, *overrides: str) -> Path:
    done = run_command("train", [*SETTINGS, *overrides, f"hydra.run.dir={folder}"], cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_tables(first: Path, second: Path, tolerance: float, names: list[str]) -> None:
    for name in names:
        expected, found = (pd.read_csv(folder / name) for folder in (first, second))
        pd.testing.assert_frame_equal(expected, found, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one process, which all tests only read."""
    return trained(tmp_path_factory.mktemp("one") / "run", "data.batch_size=4")


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize(
    "data",
    [[], ["data=synthetic", "data.source.size=32", "data.source.n_cases=1", "split=all", "allow_overlap=true"]],
    ids=["7 cases", "1 case"],
)
def test_two_processes_measure_what_one_does(one: Path, tmp_path: Path, data: list[str]) -> None:
    command = [
        f"ckpt={one}/checkpoints/best.ckpt",
        *data,
        "bootstrap_resamples=50",
        "figures=false",
        "save_predictions=true",
    ]
    command += ["distortions=default", "distortions.severities=[2]"]
    for output, more in (("single", []), ("double", TWO)):
        done = run_command("evaluate", [*command, f"output={output}", *more], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("on synthetic") == 1
    names = [*TABLES, "distorted_cases.csv", "detection.csv"]
    assert_same_tables(tmp_path / "single", tmp_path / "double", 1e-6, names)
    replicates = [np.load(tmp_path / output / "bootstrap.npz") for output in ("single", "double")]
    for name in replicates[0].files:
        np.testing.assert_array_equal(replicates[0][name].shape, replicates[1][name].shape)
    files = [sorted((tmp_path / output / "predictions").iterdir()) for output in ("single", "double")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    for first, second in zip(*files, strict=True):
        np.testing.assert_allclose(np.load(first)["members"], np.load(second)["members"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
def test_two_processes_with_half_the_batch_train_as_one_does(one: Path, tmp_path: Path) -> None:
    two = trained(tmp_path / "run", "data.batch_size=2", *TWO)
    curves = [pd.read_csv(run / "logs" / "metrics.csv") for run in (one, two)]
    for name in ("train/loss", "val/nll", "val/dice", "val/pixel_pearson"):
        first, second = (curve[name].dropna().to_numpy() for curve in curves)
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4, err_msg=name)
    # not the weights: Adam takes whole steps even where a gradient is zero but for rounding, as it is for biases before
    # a normalisation
    predictions = []
    for run in (one, two):
        loaded = load_method(run / "checkpoints" / "best.ckpt")
        data = build_data(loaded.configuration)
        with torch.inference_mode():
            predictions.append(loaded.method.predict(data.single_batch("test", 0).image).sigmoid())
    torch.testing.assert_close(*predictions, rtol=0, atol=1e-3)
    lines = (two / "train.log").read_text().splitlines()
    assert sum("] - epoch " in line for line in lines) == 2
    assert sorted(path.name for path in two.glob("checkpoints/*")) == ["best.ckpt", "last.ckpt"]
    assert len(read_checkpoint(two / "checkpoints" / "last.ckpt")["callbacks"]["ResumePoint"]["random"]) == 2


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
def test_two_processes_fit_the_temperature_of_an_ensemble_once_and_share_it(tmp_path: Path) -> None:
    ensemble = ["method=deep_ensemble", "method.members=2", "trainer.max_epochs=1", "temperature=validation"]
    # 7 validation cases, which 2 processes do not divide
    two = trained(tmp_path / "run", "data.batch_size=2", *ensemble, *TWO)
    done = run_command(
        "evaluate",
        [f"ckpt={two}/checkpoints/best.ckpt", "split=val", "bootstrap_resamples=0", "figures=false", "output=one"],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found, expected = (
        pd.read_csv(path).query("metric == 'nll'")["value"].to_numpy()
        for path in (two / "validation.csv", tmp_path / "one" / "metrics.csv")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    loaded = load_method(two / "checkpoints" / "best.ckpt")
    stored = loaded.method.temperature_by_structure
    assert stored is not None
    loaded.method.set_temperature(None)
    alone = fit_temperature(loaded.method, build_data(loaded.configuration), build_test_trainer(CPU))
    assert alone == pytest.approx(list(stored.values()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
def test_a_multirun_starts_the_processes_of_each_job_anew(tmp_path: Path) -> None:
    command = ["-m", *SETTINGS, *TWO, "trainer.max_epochs=1", "test=false", "seed=0,1", "hydra.sweep.dir=runs"]
    done = run_command("train", command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted(tmp_path.glob("runs/*/validation.csv"))
    assert len(runs) == 2
    for run in runs:
        random_states = read_checkpoint(run.parent / "checkpoints" / "last.ckpt")["callbacks"]["ResumePoint"]["random"]
        assert len(random_states) == 2


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
def test_members_trained_at_once_are_those_trained_in_turn(tmp_path: Path) -> None:
    ensemble = ["method=deep_ensemble", "method.members=3", "trainer.max_epochs=1", "test=false", "logger.mode=offline"]
    turn, at_once = (trained(tmp_path / f"run{n}", *ensemble, f"members_at_once={n}") for n in (1, 2))
    for path in turn.glob("checkpoints/**/*.ckpt"):
        expected, found = (read_checkpoint(run / path.relative_to(turn))["state_dict"] for run in (turn, at_once))
        assert all(torch.equal(expected[name], found[name]) for name in expected), path
    log = (at_once / "train.log").read_text()
    assert log.count("] - epoch 1/1") == 3
    summary = json.loads((at_once / "model.json").read_text())
    assert summary["train_seconds"] > 0


def beyond_the_memory(index: int) -> None:
    if index == 1:
        torch.empty(10**15)


def test_too_little_memory_in_one_process_ends_all() -> None:
    with pytest.raises(UserError, match=r"^not enough memory \("):
        run_processes(beyond_the_memory, 2)


@pytest.mark.parametrize("run", [run_command, pytest.param(run_script, marks=pytest.mark.exhaustive)])
def test_a_refusal_in_one_process_ends_all_with_one_line(
    tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    command = [*SETTINGS, *TWO, "select_by=image_pearson", "method=single", "trainer.max_epochs=1"]
    done = run("train", [*command, f"hydra.run.dir={tmp_path}/run"], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "select_by=image_pearson: undefined" in done.stderr


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.xdist_group("distributed")
def test_the_console_script_starts_the_processes_too(tmp_path: Path) -> None:
    command = [*SETTINGS, *TWO, "trainer.max_epochs=1", "test=false"]
    done = run_script("train", [*command, "hydra.run.dir=run"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (random_states,) = [
        read_checkpoint(path)["callbacks"]["ResumePoint"]["random"] for path in tmp_path.glob("run/**/last.ckpt")
    ]
    assert len(random_states) == 2
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["command"]
    assert shlex.split(recorded) == ["python", "-m", "edue_lightning.train", *command, "hydra.run.dir=run"]


@pytest.mark.slow
def test_no_process_outlives_a_command_that_is_killed(tmp_path: Path) -> None:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-m", "edue_lightning.train", *SETTINGS, *TWO, "trainer.max_epochs=3000", "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until((tmp_path / "run" / "checkpoints" / "last.ckpt").exists, process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children))


@pytest.mark.slow
def test_processes_that_torchrun_started_share_one_run(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*SETTINGS, *TWO, "trainer.max_epochs=1", "test=false"]
    done = subprocess.run(
        [*torchrun, "-m", "edue_lightning.train", *command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("outputs/*/*/*")
    assert run.name.startswith("torchrun-")
    assert (run / "validation.csv").is_file()
    assert (run / "train.log").read_text().count("] - epoch 1/1") == 1
