"""Work in several processes: one per device of a distributed run, or one per ensemble member trained at once."""

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
from edue_lightning.errors import UserError, memory_as_user_error
from edue_lightning.runtime.devices import FREE
from edue_lightning.runtime.startup import start_process

Result = TypeVar("Result")

_LOCAL_RANK, _WORLD_SIZE = "LOCAL_RANK", "WORLD_SIZE"


def launch(
    work: Callable[[Mapping[str, Any], Path], Result], configuration: Mapping[str, Any], folder: Path
) -> Result | None:
    """Do work in one process per device of `configuration["trainer"]`, and return the result of the first.

    Processes started by `torchrun` or `srun` are used, and none are added. Lightning's own launcher is not used: it
    repeats the command line, which for one run of a sweep is that of all runs.

    Args:
        work: function importable by name; called with the configuration and the folder.
        configuration: resolved and plain.
        folder: the run's folder.

    Raises:
        UserError: the first that any process raises; or if several machines are requested from one of them.
        SystemExit: with the status of the first process that fails.
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
    """Call `work(index, *arguments)` in new processes, which end when this one does.

    They receive the SIGTERM and SIGUSR1 sent to this process, and log as it does.

    Args:
        work: function importable by name that returns a plain value.
        count: number of processes, with indices from 0; they share the cores unless OMP_NUM_THREADS is set.
        arguments: further arguments, picklable.

    Returns:
        the result of each call.

    Raises:
        UserError: the first that any process raises; the others are stopped.
        SystemExit: with the status of the first process that fails.
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
            errors = sorted(Path(mailbox).glob("error_*"))
            if errors:
                raise UserError(errors[0].read_text()) from None
            sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)
        finally:
            for process in context.processes:
                process.kill()
        return [json.loads((Path(mailbox) / f"result_{index}").read_text()) for index in range(count)]


# for the others to end by themselves after one has failed
_GRACE_SECONDS = 5.0


def is_first_process() -> bool:
    """Whether this process is the one that writes files in a distributed run."""
    return process_number() == 0


def process_number() -> int:
    """Return the rank of this process in a distributed run, 0 otherwise."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]


def own_share(count: int) -> range:
    """Return the positions of this process in a distributed run among `count` tasks; all positions otherwise."""
    if not _is_distributed():
        return range(count)
    return range(distributed.get_rank(), count, distributed.get_world_size())


def merged(results: Mapping[int, Result]) -> dict[int, Result]:
    """Return the results of all processes of a distributed run by position; every process must call this."""
    if not _is_distributed():
        return dict(results)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, dict(results))
    return {position: result for part in gathered for position, result in part.items()}


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def quiet_unless_first() -> None:
    """Leave log file and progress lines to the first process of a distributed run."""
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
            "trainer.num_nodes: start one process on each machine with srun or torchrun; see experiments/cluster"
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
    """Call work with the logging of the parent process, and leave its result or error in a mailbox."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    # torch sends SIGINT when the parent has ended; background jobs of a shell ignore it by default
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_process()
    if hydra is not None:
        HydraConfig.instance().cfg = hydra  # type: ignore[assignment]
        configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    try:
        with memory_as_user_error():
            result = work(index, *arguments)
    except UserError as error:
        (mailbox / f"error_{index}").write_text(str(error))
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
