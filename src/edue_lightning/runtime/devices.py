"""Choice of a run's device, and locks for devices that several runs share."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout

from edue_lightning.errors import UserError
from edue_lightning.text import reason_of

log = logging.getLogger(__name__)

FREE = "free"
"""Value of `trainer.devices` for one GPU that no other run on this machine holds."""


def chosen_device(name: str) -> torch.device:
    """Return the device with a name such as `cpu` or `cuda:1`; for `auto` the accelerator if there is one.

    Raises:
        UserError: if the device does not exist.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # the type of error depends on the kind of device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = reason_of(error)
        raise UserError(f"device={name}: does not exist here ({reason}); choose auto or cpu") from error
    return device


def device_name(device: torch.device) -> str:
    """Return the name of the hardware behind a device, such as `NVIDIA H100 80GB HBM3`, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def on_device(module: pl.LightningModule, device: torch.device) -> Iterator[None]:
    """Keep a module on a device within this block, and move it back to where it was.

    The end of a trainer's loop leaves its module on the CPU, so what follows must move it to the trainer's device
    (`trainer.strategy.root_device`).
    """
    before = module.device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)


@contextmanager
def with_free_device(trainer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Hold a GPU during a run if its trainer asks for a free one; without GPUs, runs share the CPU.

    Args:
        trainer: `trainer` node of the configuration.

    Yields:
        the node, with the device found instead of `free`.
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
    """Hold one of several devices, waiting until one is free; the hold ends with the process, however that ends.

    Args:
        names: names of the devices, the same in all processes.
        folder: folder for the locks; None for one that all processes of this user share.
        poll_seconds: seconds between two attempts.

    Yields:
        the position of the device in `names`.
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
                log.info("takes the free device %s", names[position])
                yield position
            finally:
                lock.release()
            return
        if not waiting:
            log.info("waiting for one of the devices %s", ", ".join(names))
            waiting = True
        time.sleep(poll_seconds)
