"""Which device of a machine a run takes, where several runs share it."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from edue_lightning.errors import UserError
from edue_lightning.text import reason_of

log = logging.getLogger(__name__)

FREE = "free"
"""Value of `trainer.devices` for one GPU that no other run of this machine holds."""


def chosen_device(name: str) -> torch.device:
    """Return the device of a name such as `cpu` or `cuda:1`; for `auto` the accelerator if there is one.

    Raises:
        UserError: if there is no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # torch says differently of each kind what is missing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = reason_of(error)
        raise UserError(f"device={name}: is not there ({reason}); take auto or cpu") from error
    return device


@contextmanager
def with_free_device(trainer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Hold a GPU for the time of a run if its trainer asks for a free one; on a machine without, the CPU is shared.

    Args:
        trainer: node of the configuration.

    Yields:
        the node with the device that was found in place of `free`.
    """
    if trainer.get("devices") != FREE:
        yield trainer
        return
    on_gpu = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not on_gpu:
        yield {**trainer, "devices": 1}
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    with held(visible.split(",")) as position:
        yield {**trainer, "devices": [position]}


@contextmanager
def held(names: list[str], folder: Path | None = None, poll_seconds: float = 1.0) -> Iterator[int]:
    """Hold one of some devices, waiting until one is free; a process that ends, however it does, gives it back.

    Args:
        names: of the devices, the same for all processes.
        folder: for the locks; None for one that all processes of this user share.
        poll_seconds: between two looks.

    Yields:
        the position of the device among the names.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"edue_lightning_devices_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = [FileLock(folder / f"{name}.lock", timeout=0) for name in names]
    waiting = False
    while True:
        for position, lock in enumerate(locks):
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                log.info("device %s is free, and is taken", names[position])
                yield position
            finally:
                lock.release()
            return
        if not waiting:
            log.info("waiting for one of the devices %s", ", ".join(names))
            waiting = True
        time.sleep(poll_seconds)
