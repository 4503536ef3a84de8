"""Trainings that write tables alone, as a study of many runs wants them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from processes import PATIENCE
from trainings import QUICK

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.errors import UserError
from edue_lightning.reporting.report import write_report
from edue_lightning.runs.checkpoints import read_checkpoint
from edue_lightning.training.run import check_training

# as on a machine without Weights & Biases
TRAIN = """
import runpy, sys
sys.modules["wandb"] = None
runpy.run_module("edue_lightning.train", run_name="__main__")
"""


def test_a_run_without_figures_triage_or_wandb_has_all_tables_and_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = [*QUICK, "test=true", "figures=false", "triage_sensitivity=null", f"hydra.run.dir={folder}"]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *overrides], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in folder.iterdir() if path.is_file() and path.name != ".lock"} == {
        *("config.yaml", "train.log", "model.json", "metrics.csv", "validation.csv", "cases.csv", "bootstrap.npz"),
        *("reliability.csv", "quality_control.csv", "case_arrays.npz"),
    }
    assert not (folder / "panels").exists()
    assert "triage" not in read_checkpoint(folder / "checkpoints" / "best.ckpt")
    report = write_report(tmp_path, tmp_path / "report", "edue")
    assert (report.figures / "calibration_synthetic_test_disc.png").is_file()
    assert not list(report.figures.glob("heatmaps*"))


def test_a_share_to_flag_is_a_share_or_null(tmp_path: Path) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        configuration = resolved(compose("train", overrides=[*QUICK, f"hydra.run.dir={tmp_path}"]))
    check_training({**configuration, "triage_sensitivity": None})
    with pytest.raises(UserError, match=r"triage_sensitivity must be above 0 and at most 1, or null, not 0"):
        check_training({**configuration, "triage_sensitivity": 0.0})
