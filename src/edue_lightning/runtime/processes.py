"""Work in several processes: one a device of a distributed run, or one a member of an ensemble."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import distributed
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from edue_lightning.config.build import build
from edue_lightning.errors import UserError
from edue_lightning.runtime.devices import FREE
from edue_lightning.runtime.startup import start_process

Result = TypeVar("Result")

_LOCAL_RANK, _WORLD_SIZE = "LOCAL_RANK", "WORLD_SIZE"


def launch(
    work: Callable[[Mapping[str, Any], Path], Result], configuration: Mapping[str, Any], folder: Path
) -> Result | None:
    """Do work in one process a device of `configuration["trainer"]`, and return what the first of them returns.

    Processes that `torchrun` or `srun` started are found, and none are added. Lightning's own launcher, which starts
    the command line again, is not used: it cannot do so for one run of many.

    Args:
        work: importable by its name; gets the configuration and the folder.
        configuration: resolved and plain.
        folder: of the run.

    Raises:
        UserError: of whichever process raises one first; or if several machines are asked for from one of them.
        SystemExit: with the status of the first process that ends with another one than 0.
    """
    count = _processes_to_start(configuration["trainer"])
    if count == 1:
        return work(configuration, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results: list[Result | None] = run_processes(_distributed_work, count, work, count, port, configuration, folder)
    return results[0]


def run_processes(work: Callable[..., Result], count: int, *arguments: Any) -> list[Result]:
    """Call `work(index, *arguments)` in processes of their own, which end when this one does.

    SIGTERM and SIGUSR1 are passed on to them. Each logs as this process does.

    Args:
        work: importable by its name; returns a plain value.
        count: of the processes; they get the indices from 0, and share the cores unless OMP_NUM_THREADS says otherwise.
        arguments: can be pickled.

    Returns:
        what each call returned.

    Raises:
        UserError: of whichever process raises one first; the others are ended.
        SystemExit: with the status of the first process that ends with another one than 0.
    """
    hydra = HydraConfig.instance().cfg if HydraConfig.initialized() else None
    with tempfile.TemporaryDirectory() as mailbox:
        context = start_processes(
            _guarded, (work, count, Path(mailbox), hydra, arguments), nprocs=count, join=False, start_method="spawn"
        )
        assert context is not None
        try:
            with _signals_passed_on(context):
                while not context.join(grace_period=_GRACE_SECONDS):
                    pass
        except ProcessExitedException as error:
            refusals = sorted(Path(mailbox).glob("refused_*"))
            if refusals:
                raise UserError(refusals[0].read_text()) from None
            sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)
        finally:
            for process in context.processes:
                process.kill()
        return [json.loads((Path(mailbox) / f"result_{index}").read_text()) for index in range(count)]


# for the others to end by themselves, after one has failed
_GRACE_SECONDS = 5.0


def is_first_process() -> bool:
    """Whether this process is the one of a distributed run that writes files."""
    return process_number() == 0


def process_number() -> int:
    """Return the rank of this process in a distributed run, 0 otherwise."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]


def quiet_unless_first() -> None:
    """Leave the log's file and progress lines to the first process of a distributed run."""
    if is_first_process():
        return
    root = logging.getLogger()
    root.setLevel(logging.ERROR)
    for handler in [one for one in root.handlers if isinstance(one, logging.FileHandler)]:
        root.removeHandler(handler)


def _processes_to_start(trainer: Mapping[str, Any]) -> int:
    if trainer.get("devices") == FREE:
        return 1
    strategy = build(trainer, "trainer", logger=False, enable_checkpointing=False, enable_model_summary=False).strategy
    if not isinstance(strategy, ParallelStrategy) or strategy.cluster_environment is None:
        return 1
    if strategy.cluster_environment.creates_processes_externally:
        return 1
    if trainer.get("num_nodes", 1) > 1:
        raise UserError(
            "trainer.num_nodes: a process on each machine must be started by srun or torchrun; see experiments/cluster"
        )
    return len(strategy.parallel_devices or [None])


def _distributed_work(
    rank: int,
    work: Callable[[Mapping[str, Any], Path], Result],
    count: int,
    port: int,
    configuration: Mapping[str, Any],
    folder: Path,
) -> Result:
    os.environ.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "NODE_RANK": "0",
            _LOCAL_RANK: str(rank),
            _WORLD_SIZE: str(count),
        }
    )
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    quiet_unless_first()
    result = work(configuration, folder)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return result


def _guarded(
    index: int,
    work: Callable[..., Any],
    count: int,
    mailbox: Path,
    hydra: DictConfig | None,
    arguments: tuple[Any, ...],
) -> None:
    """Call work with the logging of the process that started this one, and leave its result or refusal in a mailbox."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    # torch tells these processes by SIGINT that the one that started them is gone; background jobs of a shell ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_process()
    if hydra is not None:
        HydraConfig.instance().cfg = hydra  # type: ignore[assignment]
        configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    try:
        result = work(index, *arguments)
    except UserError as error:
        (mailbox / f"refused_{index}").write_text(str(error))
        sys.exit(2)
    (mailbox / f"result_{index}").write_text(json.dumps(result))


@contextmanager
def _signals_passed_on(context: ProcessContext) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for process in context.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    earlier = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
