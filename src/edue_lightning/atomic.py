"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

_PREFIX, _SUFFIX = "unfinished-", ".tmp"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there once it is complete; nothing is left behind if that fails.

    Args:
        path: of the file; its folder must be there.
        write: gets the path to write to.
    """
    temporary = path.parent / f"{_PREFIX}{uuid4().hex}{_SUFFIX}"
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left behind in a folder, where no other process is writing."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        path.unlink(missing_ok=True)
