"""Real processes and short trainings that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SMALL = [
    "experiment=synthetic",
    "data.source.n_cases=24",
    "data.source.size=32",
    "data.batch_size=4",
    "network.features=[4,6,8,8]",
    "trainer.max_epochs=2",
    "bootstrap_resamples=50",
]
"""Overrides that make a training take seconds."""


def run_command(
    command: str, overrides: Sequence[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m edue_lightning.COMMAND OVERRIDES` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"edue_lightning.{command}", *overrides],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small EDUE run that all tests only read."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run_command("train", [*SMALL, f"hydra.run.dir={folder}"], cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder
