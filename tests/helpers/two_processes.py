"""Functions of a test file that run in two processes of their own."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from torch import multiprocessing


def in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a test file in two processes, with the number of the process before the arguments.

    The file is loaded by its path: its module `tests...` cannot be imported by name where an installed package has
    files below `tests`, as MONAI 1.5.0.
    """
    multiprocessing.spawn(_call, (inspect.getfile(function), function.__name__, arguments), nprocs=2)


def _call(number: int, file: str, name: str, arguments: tuple[Any, ...]) -> None:
    spec = importlib.util.spec_from_file_location("test_file", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(number, *arguments)
