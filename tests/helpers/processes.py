"""Running the commands in processes of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edue_lightning.data import CaseSource

PATIENCE = 1800.0
"""Seconds after which a process of a test counts as hanging: many times what one needs, for machines that are busy."""

SMALL = [
    "experiment=synthetic",
    "data.source.n_cases=24",
    "data.source.size=32",
    # exact shares of few cases
    "data.fractions.draw=permutation",
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
    return _run([sys.executable, "-m", f"edue_lightning.{command}", *overrides], cwd, environment)


def run_script(
    command: str, overrides: Sequence[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `edue COMMAND OVERRIDES`, the console script of this environment, in a process of its own."""
    return _run([str(Path(sys.executable).with_name("edue")), command, *overrides], cwd, environment)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a condition holds, or a process that should bring it about has ended.

    Raises:
        TimeoutError: if it does not hold after `PATIENCE` seconds.
    """
    end = time.monotonic() + PATIENCE
    while not condition() and (process is None or process.poll() is None):
        if time.monotonic() > end:
            raise TimeoutError("hangs")
        time.sleep(0.05)


def _run(command: list[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def digest(source: CaseSource, step: int = 1) -> str:
    """Return a hash over the tensors of every `step`th case of a source."""
    samples = [source.load(record.case_id) for record in source.cases()[::step]]
    tensors = [tensor for sample in samples for tensor in (sample.image, sample.masks, sample.valid)]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def digest_elsewhere(source: str, step: int = 1) -> str:
    """Return the `digest` of a source, given as an expression, made in a process with another hash seed."""
    script = f"from edue_lightning.data import *\nfrom processes import digest\nprint(digest({source}, {step}))"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return child.stdout.strip()
