"""Set-up of a process: reuse of memory, and silence for libraries."""

from __future__ import annotations

import ctypes
import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# constants of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@contextmanager
def imports_of_command(module: str) -> Iterator[None]:
    """Import the libraries of a command without garbage collection, if the command runs in this process.

    Python's collector visits the objects of PyTorch, Lightning and MONAI many times while they are made, and again
    when the process ends: 40 % of the CPU time of `edue train --help`. They are kept until the end in any case.

    Args:
        module: `__name__` of the command's module, which is `__main__` only in a process of its own.
    """
    if module not in _OWN_PROCESS or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


# the second in processes that the command starts
_OWN_PROCESS = ("__main__", "__mp_main__")


def start_process() -> None:
    """Prepare this process for the work of a command."""
    keep_freed_memory()
    quiet_libraries()


def keep_freed_memory() -> None:
    """Let this process keep large blocks of memory that it has freed, for reuse.

    By default glibc returns each block to the system and requests it again, filled with zeros page by page, which on a
    CPU takes a third of a training step (`experiments/benchmarks/allocator.py`). No effect with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(threshold, 2**31 - 1)


def quiet_libraries() -> None:
    """Silence messages that libraries print on every start and users cannot act on."""
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric", "highdicom"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # cases are loaded once and kept in memory, so more workers would not help
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
