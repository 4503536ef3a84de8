"""The start of a process: how it keeps memory, and which messages of libraries it hides."""

from __future__ import annotations

import ctypes
import logging
import warnings

# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def start_process() -> None:
    """Prepare this process for the work of a command."""
    keep_freed_memory()
    quiet_libraries()


def keep_freed_memory() -> None:
    """Let this process keep large blocks of memory that it has freed, as it soon needs their like again.

    Otherwise glibc gives each back to the system and gets it anew, page by page filled with zeros, which on a CPU takes
    a third of a training step (`experiments/benchmarks/allocator.py`). Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(threshold, 2**31 - 1)


def quiet_libraries() -> None:
    """Silence what libraries print on every start and no user can act on."""
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # loading happens once, from memory; more workers would not help
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
