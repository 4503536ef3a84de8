"""Functions of a test file that run in two processes of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from processes import FORKS
from scripts import load_script
from torch import multiprocessing


def in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a test file in two processes, with the number of the process before the arguments.

    The file is loaded by its path: its module `tests...` cannot be imported by name where an installed package has
    files below `tests`, as MONAI 1.5.0.
    """
    call = (inspect.getfile(function), function.__name__, arguments)
    multiprocessing.start_processes(_call, call, nprocs=2, start_method=FORKS.get_start_method())


def _call(number: int, file: str, name: str, arguments: tuple[Any, ...]) -> None:
    getattr(load_script(file), name)(number, *arguments)
