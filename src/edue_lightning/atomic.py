"""Writing of files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

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


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder that no other process is writing to."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)
