"""Files in a folder as somebody unpacked it, and what is wrong with their list; none of them is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edue_lightning.data.file_source import problem_line, relative_name
from edue_lightning.data.images import VOLUMES

DEEPEST = 6
"""Levels of folders below the data set's that are looked into."""


class ListingProblems:
    """Collects a line for each thing that is wrong with the files below a folder.

    Args:
        root: the data set's folder, from which files are named.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []

    def add(self, path: Path, problem: str, case_id: str | None = None) -> None:
        """Note a problem and its mend; without a case where the file's name tells none."""
        name = relative_name(path, self.root)
        self.lines.append(f"{name}: {problem}" if case_id is None else problem_line(name, case_id, problem))

    def add_twice(self, path: Path, first: Path, what: str, case_id: str) -> None:
        """Note that two files (or folders) claim to be the same thing."""
        self.add(path, f"is {what}, and so is {relative_name(first, self.root)}; remove one", case_id)


def find_files(
    problems: ListingProblems, leave_out: Callable[[str], bool], endings: tuple[str, ...] = VOLUMES
) -> list[Path]:
    """List the files with some endings in the data set's folder and below it, `DEEPEST` levels down, sorted by path.

    Hidden files and macOS' `__MACOSX` are passed over. Links to files count as files if they stay within the folder;
    linked folders are not entered, as what lies within is found where it lies.

    Args:
        problems: takes a line for each link that leads out of the folder or nowhere, and for each unreadable folder.
        leave_out: tells from a folder's name that nothing below it is of interest.
        endings: in lower case, each with its dot; files may have them in any case. By default NIfTI's.
    """
    root = problems.root
    found = []

    def unreadable(error: OSError) -> None:
        problems.add(Path(error.filename), f"cannot be looked into ({error.strerror}); make it readable")

    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        kept = [name for name in sorted(subfolders) if not _is_hidden(name) and not leave_out(name)]
        for name in kept:
            if (here / name).is_symlink():
                _follow(here / name, problems)
        deepest = len(here.relative_to(root).parts) >= DEEPEST
        subfolders[:] = [] if deepest else kept
        wanted = [here / name for name in files if name.lower().endswith(endings) and not _is_hidden(name)]
        found += [path for path in wanted if not path.is_symlink() or _follow(path, problems)]
    return sorted(found, key=lambda path: path.parts)


def stem_of(path: Path, endings: tuple[str, ...] = VOLUMES) -> str:
    """Return a file's name without its ending, which must be one of those given, by default NIfTI's.

    >>> stem_of(Path("imagesTr/CHUM-001__CT.nii.gz"))
    'CHUM-001__CT'
    """
    ending = next(ending for ending in sorted(endings, key=len, reverse=True) if path.name.lower().endswith(ending))
    return path.name[: -len(ending)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _follow(link: Path, problems: ListingProblems) -> bool:
    """Tell whether a link leads to something within the folder; note it if not."""
    try:
        target = link.resolve(strict=True)
    # RuntimeError is a circle of links
    except (OSError, RuntimeError):
        problems.add(link, "is a link that leads nowhere; fetch what it points to, or remove it")
        return False
    if not target.is_relative_to(problems.root):
        problems.add(link, "is a link that leads out of the data set's folder; put the files themselves there")
        return False
    return True
