"""Running the commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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
