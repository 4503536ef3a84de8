"""Writing of files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

_PREFIX, _SUFFIX = "unfinished-", ".tmp"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file in the same folder and move it to its place once it is complete.

    If that fails, nothing is left behind.

    Args:
        path: path of the file; its folder must exist.
        write: called with the temporary path to write to.
    """
    temporary = path.parent / f"{_PREFIX}{uuid4().hex}{_SUFFIX}"
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed `npz` archive of plain arrays, whole or not at all.

    Args:
        path: path of the archive; its folder must exist.
        arrays: arrays by name.
    """

    def write(temporary: Path) -> None:
        # as a file, since to a path NumPy adds an ending
        with temporary.open("wb") as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]

    write_whole(path, write)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder that no other process is writing to."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)
