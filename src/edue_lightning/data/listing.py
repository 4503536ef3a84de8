"""Lists of the files in an unpacked data set, and the problems of such lists; no file is opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from edue_lightning.data.file_source import problem_line, relative_name
from edue_lightning.data.images import NIFTI, VOLUMES
from edue_lightning.text import one_line

DEEPEST = 6
"""Number of folder levels below the data set's folder that are searched."""

DEEPEST_OF_DICOM = 100
"""The same of DICOM files, which may lie in any folders."""

PREDICTION_FILE, RECORDS = "prediction.yaml", "records"
"""File and folder by which the output folder of `predict` is known."""

log = logging.getLogger(__name__)


def line_break_problem(line: int, cells: Iterable[tuple[str, object]]) -> str | None:
    """Return the problem of a table's row with a cell of several lines, which a stray quotation mark makes; else None.

    Such a cell may hold rows that would otherwise be missed.

    Args:
        line: first line of the row in its file.
        cells: name of the column and content of each cell.
    """
    for column, cell in cells:
        if isinstance(cell, str) and ("\n" in cell or "\r" in cell):
            named = one_line(column.split("\n")[0].strip()) or "a cell"
            return (
                f"line {line}: {named} contains a line break; write it on one line, or remove the quotation mark "
                '(") in front of it'
            )
    return None


class ListingProblems:
    """Collects one line per problem of the files below a folder.

    Args:
        root: folder of the data set; files are named by their paths from there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []

    def add(self, path: Path, problem: str, case_id: str | None = None) -> None:
        """Note a problem and its fix; without a case if the file's name gives none."""
        name = relative_name(path, self.root)
        self.lines.append(f"{name}: {problem}" if case_id is None else problem_line(name, case_id, problem))

    def add_twice(self, path: Path, first: Path, what: str, case_id: str) -> None:
        """Note that two files or folders claim to be the same thing."""
        self.add(path, f"is {what}, and so is {relative_name(first, self.root)}; remove one", case_id)


def find_files(
    problems: ListingProblems,
    leave_out: Callable[[str], bool],
    endings: tuple[str, ...] = NIFTI,
    deepest: int = DEEPEST,
) -> list[Path]:
    """List the files with certain endings in the data set's folder and `deepest` levels below, sorted by path.

    Hidden files and macOS' `__MACOSX` are skipped. Links to files count as files, wherever they lead. Linked folders
    are searched if they lie outside of the data set's folder; the others are found where they lie. Output folders of
    `predict` are skipped with a warning.

    Args:
        problems: receives one line per broken link, per unreadable folder, per linked folder that shares files with
            another one, and, where the endings are NIfTI's, per volume of another format, which may be a rater's mask.
        leave_out: returns from a folder's name whether to skip it.
        endings: endings in lower case, each with its dot, by default NIfTI's; files may have them in any case.
        deepest: number of folder levels to search.
    """
    root = problems.root
    found = []
    # where each linked folder leads
    entered: dict[Path, Path] = {}

    def unreadable(error: OSError) -> None:
        problems.add(Path(error.filename), f"cannot be searched ({error.strerror}); make it readable")

    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = Path(folder)
        kept = []
        for name in sorted(subfolders):
            if _is_hidden(name) or leave_out(name):
                continue
            if is_prediction(here / name):
                log.warning("%s: contains predictions, not images, and is skipped", here / name)
                continue
            if (here / name).is_symlink():
                target = _target(here / name, problems)
                # a folder of the data set's own is found where it lies, unless it is hidden there
                if target is None or (_overlap(target, root) and not _is_hidden_in(target, root)):
                    continue
                other = next((link for link, known in entered.items() if _overlap(target, known)), None)
                if other is not None:
                    # a link within the linked folder that leads back into it
                    if not here.is_relative_to(other):
                        shared = f"leads to a folder that shares files with that of {relative_name(other, root)}"
                        problems.add(here / name, f"{shared}; link each folder once")
                    continue
                entered[here / name] = target
            kept.append(name)
        subfolders[:] = kept if len(here.relative_to(root).parts) < deepest else []
        for name in files:
            # most likely a folder, as files have endings
            if "." not in name and (here / name).is_symlink():
                _target(here / name, problems)
        shown = [here / name for name in files if not _is_hidden(name)]
        wanted = [path for path in shown if path.name.lower().endswith(endings)]
        if endings == NIFTI:
            for path in sorted(set(shown) - set(wanted)):
                if path.name.lower().endswith(VOLUMES):
                    problems.add(path, "is no NIfTI file (.nii, .nii.gz); convert it, or move it out of the data set")
        found += [path for path in wanted if not path.is_symlink() or _target(path, problems) is not None]
    return sorted(found, key=lambda path: path.parts)


def is_prediction(folder: Path) -> bool:
    """Return whether a folder is an output folder of `predict`."""
    return (folder / PREDICTION_FILE).is_file() and (folder / RECORDS).is_dir()


def stem_of(path: Path, endings: tuple[str, ...] = NIFTI) -> str:
    """Return a file's name without its ending, which must be one of `endings`, by default NIfTI's.

    >>> stem_of(Path("imagesTr/CHUM-001__CT.nii.gz"))
    'CHUM-001__CT'
    """
    ending = next(ending for ending in sorted(endings, key=len, reverse=True) if path.name.lower().endswith(ending))
    return path.name[: -len(ending)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_hidden_in(folder: Path, root: Path) -> bool:
    return folder.is_relative_to(root) and any(map(_is_hidden, folder.relative_to(root).parts))


def _overlap(first: Path, second: Path) -> bool:
    return first.is_relative_to(second) or second.is_relative_to(first)


def _target(link: Path, problems: ListingProblems) -> Path | None:
    """Return where a link leads, or None if nowhere, which is noted."""
    try:
        return link.resolve(strict=True)
    # RuntimeError is a circle of links
    except (OSError, RuntimeError):
        problems.add(link, "is a link that leads nowhere; fetch what it points to, or remove it")
        return None
