"""Running the commands in processes of their own."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import command_server

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

TABLES_ALONE = [*SMALL, "figures=false", "logger.mode=disabled"]
"""The same without figures and W&B, where these are not what is tested."""

FORKS = multiprocessing.get_context("forkserver")
"""Starts processes from one that has imported everything and trained nothing (autograd does not survive a fork)."""
FORKS.set_forkserver_preload(["edue_lightning.train"])


def run_command(
    command: str, overrides: Sequence[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m edue_lightning.COMMAND OVERRIDES` in a process of its own.

    It is a child of a process that has imported the libraries, see `command_server`; `run_fresh` imports them anew.
    """
    return _served(f"edue_lightning.{command}", overrides, cwd, environment)


def run_fresh(
    command: str, overrides: Sequence[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m edue_lightning.COMMAND OVERRIDES` in a process that imports all by itself."""
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


def _served(
    module: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    server = _command_server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
        request = {
            **{"module": module, "arguments": list(arguments), "folder": str(cwd.resolve())},
            **{"stdout": stdout.name, "stderr": stderr.name, "seconds": int(PATIENCE)},
            "environment": {**os.environ, **_ENVIRONMENT, **environment},
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            [module, *arguments], status, Path(stdout.name).read_text(), Path(stderr.name).read_text()
        )


@functools.cache
def _command_server() -> subprocess.Popen[str]:
    """Start the server of this process of tests; it ends when its input does, which is when this process ends."""
    # -P: commands must not import from its own folder
    command = [sys.executable, "-P", command_server.__file__]
    environment = {**os.environ, **_ENVIRONMENT}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def _run(command: list[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **_ENVIRONMENT, **environment},
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
