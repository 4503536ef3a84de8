"""Trainings in processes of their own, which start at once and end where a test wants them to."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from processes import FORKS, PATIENCE

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.errors import UserError
from edue_lightning.methods import Measuring, SegmentationMethod
from edue_lightning.runs import checkpoints
from edue_lightning.runs.checkpoints import read_checkpoint
from edue_lightning.runtime.processes import _distributed_work
from edue_lightning.runtime.startup import quiet_libraries
from edue_lightning.training import fit as fitting
from edue_lightning.training.run import train

QUICK = [
    *("experiment=synthetic", "data.source.n_cases=24", "data.source.size=32", "data.batch_size=3"),
    "data.fractions.draw=permutation",
    *("network.features=[4,6,8]", "trainer.max_epochs=3", "trainer.accelerator=cpu", "bootstrap_resamples=0"),
    *("logger.mode=disabled", "test=false", "checkpoint_every_steps=1", "resume=auto"),
]
"""Five steps an epoch, three epochs, a checkpoint after every step."""


@dataclass(frozen=True)
class Moment:
    """Where a process gets a signal.

    Attributes:
        place: `training_step`, `validation_step` or `test_step`: before that step; `data`: before the data is read; of
            a checkpoint, `half`: when half of it is written, `unmoved`: before it is moved to its place, `moved`: then.
        count: the n-th time that the process is there.
        number: of the signal.
        file: name of the checkpoint.
        to_all: the processes of its loaders get it too, as from a scheduler.
        rank: of the one process of a distributed run that gets it, None for all.
    """

    place: str
    count: int = 1
    number: int = signal.SIGKILL
    file: str = "last.ckpt"
    to_all: bool = False
    rank: int | None = None

    def arm(self) -> None:
        """Let this process get the signal."""
        times = itertools.count(1)

        def send() -> None:
            if self.to_all:
                # by another process than the training
                command = ["sh", "-c", f"kill -{int(self.number)} -{os.getpgid(0)}"]
                subprocess.run(command, check=True, start_new_session=True)
            else:
                os.kill(os.getpid(), self.number)

        def before(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*arguments: Any, **named: Any) -> Any:
                if next(times) == self.count:
                    send()
                return function(*arguments, **named)

            return called

        def write_whole(path: Path, write: Callable[[Path], object]) -> None:
            now = path.name == self.file and next(times) == self.count

            def partly(temporary: Path) -> None:
                write(temporary)
                if now and self.place == "half":
                    os.truncate(temporary, temporary.stat().st_size // 2)
                if now and self.place in ("half", "unmoved"):
                    send()

            whole(path, partly)
            if now and self.place == "moved":
                send()

        if self.place == "data":
            fitting.build_data = before(fitting.build_data)
        elif self.place.endswith("_step"):
            owner = Measuring if self.place == "test_step" else SegmentationMethod
            setattr(owner, self.place, before(getattr(owner, self.place)))
        else:
            whole, checkpoints.write_whole = checkpoints.write_whole, write_whole


def configuration(*overrides: str) -> dict[str, Any]:
    """Return the configuration of a quick training."""
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", overrides=[*QUICK, *overrides]))


def train_apart(
    settings: dict[str, Any],
    run: Path,
    moment: Moment | None = None,
    processes: int = 1,
    largest_file: int | None = None,
    **environment: str,
) -> int:
    """Train in processes of their own, as the command does; their output is added to `RUN.txt`.

    Args:
        settings: see `configuration`.
        run: the run's folder.
        moment: where each process gets a signal.
        processes: of a distributed run.
        largest_file: bytes that a file may have, as where the disk is full.
        environment: variables to set.

    Returns:
        the exit status of the first process; if a signal ended it, that one's negative number.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        work: Callable[..., Any] = train
        arguments: tuple[Any, ...] = (settings, run)
        if processes > 1:
            work, arguments = _distributed_work, (rank, train, processes, port, settings, run)
        own = moment if moment is not None and moment.rank in (None, rank) else None
        one = FORKS.Process(target=_apart, args=(work, arguments, run, own, largest_file, environment))
        one.start()
        started.append(one)
    deadline = time.monotonic() + PATIENCE
    for one in started:
        one.join(max(0, deadline - time.monotonic()))
        if one.is_alive():
            one.kill()
            one.join()
    assert started[0].exitcode is not None
    return started[0].exitcode


def output_of(run: Path) -> str:
    """Return what the trainings of a run wrote."""
    return run.with_name(f"{run.name}.txt").read_text()


def assert_same_runs(first: Path, second: Path) -> None:
    """Check that all checkpoints of two runs have the same weights, and that the validation found the same."""
    for path in first.glob("checkpoints/**/*.ckpt"):
        expected, found = (read_checkpoint(run / path.relative_to(first))["state_dict"] for run in (first, second))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), path.name
    assert (first / "validation.csv").read_text() == (second / "validation.csv").read_text()


def _apart(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    run: Path,
    moment: Moment | None,
    largest_file: int | None,
    environment: dict[str, str],
) -> None:
    os.setpgid(0, 0)
    # as in a command of its own; the default is inherited
    multiprocessing.set_start_method("fork", force=True)
    output = os.open(run.with_name(f"{run.name}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    quiet_libraries()
    os.environ.update(environment)
    if moment is not None:
        moment.arm()
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        work(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
