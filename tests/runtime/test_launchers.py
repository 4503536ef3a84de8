"""Sweeps by each launcher of `conf/hydra/launcher`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from processes import TABLES_ALONE, run_fresh, run_script

from edue_lightning.config.schema import configuration_folder

NAMES = sorted(path.stem for path in (Path(configuration_folder()) / "hydra" / "launcher").glob("*.yaml"))
# needs an environment of its own, see pyproject.toml
RAY = "hydra_plugins.hydra_ray_launcher"


def launcher(name: str, *overrides: str) -> DictConfig:
    if name == "ray_local":
        pytest.importorskip(RAY)
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        whole = compose("train", overrides=[f"hydra/launcher={name}", *overrides], return_hydra_config=True)
    return whole.hydra.launcher


def assert_sweeps(folder: Path, *overrides: str, run: Callable[..., CompletedProcess[str]] = run_fresh) -> None:
    sweep = ["-m", *TABLES_ALONE, "trainer.max_epochs=1", "data.source.n_cases=16", "test=false", "seed=0,1"]
    done = run("train", [*sweep, "hydra.sweep.dir=runs", *overrides], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    finished = sorted(path.parent.name for path in folder.glob("runs/*/validation.csv"))
    assert finished == ["0_synthetic_edue_0", "1_synthetic_edue_1"]


@pytest.mark.parametrize("name", NAMES)
def test_every_launcher_composes(name: str) -> None:
    assert launcher(name)["_target_"].startswith("hydra_plugins.")


def test_slurm_warns_a_run_before_its_time_is_up_and_requeues_it() -> None:
    slurm = launcher("slurm", "hydra.launcher.signal_delay_s=77", "hydra.sweep.dir=runs")
    assert slurm.additional_parameters == {"signal": "USR1@77", "requeue": True}
    assert "export SUBMITIT_PREEMPT_SIGNAL=USR1" in slurm.setup
    assert slurm.submitit_folder == "runs/.submitit/%j"
    assert (slurm.nodes, slurm.tasks_per_node, slurm.gpus_per_node) == (1, 1, 1)
    assert slurm.max_num_timeout > 0
    assert slurm.signal_delay_s < 60 * slurm.timeout_min


def test_ray_gives_each_run_a_gpu_of_its_own() -> None:
    assert launcher("ray_local").ray.remote.num_gpus == 1
    assert launcher("ray_local", "hydra.launcher.ray.remote.num_gpus=0").ray.remote.num_gpus == 0


@pytest.mark.parametrize("run", [run_fresh, pytest.param(run_script, marks=pytest.mark.exhaustive)])
def test_a_sweep_of_several_runs_at_a_time(tmp_path: Path, run: Callable[..., CompletedProcess[str]]) -> None:
    assert_sweeps(tmp_path, "hydra/launcher=local", "hydra.launcher.n_jobs=2", run=run)
    records = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("runs/*/config.yaml")]
    assert all(record["command"].startswith("python -m edue_lightning.train experiment=") for record in records)


def test_a_sweep_by_submitit(tmp_path: Path) -> None:
    # as for a cluster, with processes instead of jobs
    assert_sweeps(tmp_path, "hydra/launcher=submitit_local")
    assert list(tmp_path.glob("runs/.submitit/*/*_result.pkl"))


def test_a_sweep_by_ray(tmp_path: Path) -> None:
    pytest.importorskip(RAY)
    remote = ("hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.remote.num_cpus=1")
    assert_sweeps(tmp_path, "hydra/launcher=ray_local", *remote, "+hydra.launcher.ray.init.num_cpus=2")
