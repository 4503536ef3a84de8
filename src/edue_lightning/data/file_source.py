"""Cases in files: all of them checked before the first is used, each read and prepared once."""

from __future__ import annotations

import logging
import os
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edue_lightning.data.images import ImageError, ImageFile, same_affine
from edue_lightning.data.patches import foreground_points
from edue_lightning.data.prepared import PreparedCases
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.errors import UserError
from edue_lightning.text import counted, one_line, times

log = logging.getLogger(__name__)

MOST_PROBLEMS_LISTED = 50
_MOST_THREADS = 4
_SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class FileCase:
    """A case and the files that it is read from.

    Attributes:
        record: its name, patient and prescribed split.
        files: by their roles, at least one.
        details: plain values of this case alone that decide, with the files, what it becomes.
    """

    record: CaseRecord
    files: Mapping[str, Path]
    details: Mapping[str, Any] = field(default_factory=dict)


class CaseError(Exception):
    """What is wrong with one case: `lines`, each with the file, the case and the mend."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class _Found(NamedTuple):
    """What the check keeps of a healthy case."""

    case: FileCase
    key: str | None
    shape: tuple[int, ...]
    channels: int
    raters: int


class FileSource(CaseSource):
    """A data set in a folder.

    A subclass lists its cases, then calls `check`, and says in `_read` how one is read; the rest exists once: the check
    of every case before the first is used, the preparation on disk, and the report of all problems in one go.

    Args:
        root: the folder.
        cache: folder for the prepared cases; None to read a case's files anew each time it is loaded.

    Raises:
        UserError: if there is no such folder.
    """

    def __init__(self, root: str | None, cache: str | None) -> None:
        if root is None:
            raise UserError("data.root: not set; set data.root=FOLDER, the folder with the data set")
        if not Path(root).is_dir():
            raise UserError(f"data.root={root}: no such folder; set data.root=FOLDER, the folder with the data set")
        self.root = Path(root).resolve()
        self._named_root = root
        self._prepared = None if cache is None else PreparedCases(Path(cache))
        self._found: dict[str, _Found] = {}

    def check(self, cases: Sequence[FileCase], problems: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Read every case once, keep what is wrong with any, and prepare the others.

        Args:
            cases: all that were found.
            problems: what was already found wrong with the list itself.
            settings: plain values that decide, with the files, what a case becomes.
        """
        self._settings = {"source": type(self).__name__, **settings}
        found, lines = self._survey(cases)
        lines = [*problems, *lines, *_odd_ones(found, self.root)]
        if not found and not lines:
            lines = [f"{self._named_root}: holds no case of this data set; docs/data.md tells the layouts it can have"]
        self.problems = tuple(lines)
        self._found = {one.case.record.case_id: one for one in found}
        # an arbitrary format where there is no case: the problems are told before anybody asks
        self.spatial_dims = len(found[0].shape) if found else 2
        self.channels = found[0].channels if found else 1
        self.mixed_sizes = len({one.shape for one in found}) > 1
        single = sum(one.raters < 2 for one in found)
        if single:
            log.warning(
                "%s: %d of %d cases have a single rater, which tells nothing of disagreement: guidance (method=edue) "
                "and the metrics of disagreement need two",
                self._named_root,
                single,
                len(found),
            )

    def cases(self) -> Sequence[CaseRecord]:
        """List the cases in their order.

        Raises:
            UserError: naming all that is wrong.
        """
        if self.problems:
            head = f"data.root={self._named_root}: {counted(self.problems)}:"
            raise UserError("\n".join([head, *_shortened(self.problems)]))
        return self.healthy()

    def healthy(self) -> Sequence[CaseRecord]:
        """List the cases that can be read."""
        return [one.case.record for one in self._found.values()]

    def raters_of(self, case_id: str) -> int:
        """Return the number of valid raters of a case, 0 if it is not healthy."""
        return self._found[case_id].raters if case_id in self._found else 0

    def load(self, case_id: str) -> RaterSample:
        """Return a case as it was prepared; without a cache, read it from its files.

        Raises:
            UserError: if a file was removed or damaged since the check.
        """
        found = self._found[case_id]
        try:
            return self._take(found.case, found.key)
        except CaseError as error:
            raise UserError("\n".join(error.lines)) from error

    @abstractmethod
    def _read(self, case: FileCase) -> RaterSample:
        """Read a case from its files.

        Raises:
            CaseError: with all that is wrong with it.
        """

    def _take(self, case: FileCase, key: str | None) -> RaterSample:
        if self._prepared is None or key is None:
            return self._read(case)
        stored = self._prepared.read(case.record.case_id, key)
        if stored is None:
            sample = self._read(case)
            self._prepared.write(key, replace(sample, foreground=foreground_points(sample.masks)))
            stored = self._prepared.read(case.record.case_id, key)
        if stored is None:
            raise UserError(f"data.cache={self._prepared.folder}: what was just written cannot be read; choose another")
        return stored

    def _examine(self, case: FileCase) -> _Found | CaseError:
        key = self._key(case)
        try:
            sample = self._take(case, key)
        except CaseError as error:
            return error
        raters = int(sample.valid.sum())
        if raters == 0:
            first = relative_name(next(iter(case.files.values())), self.root)
            return CaseError([problem_line(first, case.record.case_id, "has no rater; add a mask, or remove it")])
        return _Found(case, key, tuple(sample.image.shape[1:]), sample.image.shape[0], raters)

    def _key(self, case: FileCase) -> str | None:
        """Return the name of the prepared case, or None where there is none to be."""
        # a pipe would be waited for; reading the case will tell
        if self._prepared is None or not all(path.is_file() for path in case.files.values()):
            return None
        try:
            settings = {**self._settings, "case": case.record.case_id, "details": dict(case.details)}
            return self._prepared.key(case.files, settings)
        except OSError:
            # reading the case will tell which file is missing, and how to mend it
            return None

    def _survey(self, cases: Sequence[FileCase]) -> tuple[list[_Found], list[str]]:
        """Examine the cases, a few at a time: decoding and resampling leave the interpreter to other threads."""
        found: list[_Found] = []
        lines: list[str] = []
        told = time.monotonic()
        threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
        try:
            for number, result in enumerate(threads.map(self._examine, cases), 1):
                if isinstance(result, CaseError):
                    lines += result.lines
                else:
                    found.append(result)
                if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    log.info("%s: checked %d of %d cases", self._named_root, number, len(cases))
        finally:
            # on an interrupt too, without starting on what is left
            threads.shutdown(cancel_futures=True)
            if self._prepared is not None:
                self._prepared.remember()
        return found, lines


class CaseReading:
    """Reads the files of one case and collects all that is wrong with them.

    Args:
        case_id: for the lines.
        root: the data set's folder, from which files are named.
    """

    def __init__(self, case_id: str, root: Path) -> None:
        self.case_id = case_id
        self.root = root
        self._lines: list[str] = []
        self._read: dict[tuple[Path, Callable[[Path], ImageFile]], ImageFile | None] = {}

    def report(self, file: Path | str, problem: str) -> None:
        """Note a problem and its mend."""
        name = relative_name(file, self.root) if isinstance(file, Path) else file
        line = problem_line(name, self.case_id, problem)
        if line not in self._lines:
            self._lines.append(line)

    def file(self, path: Path, read: Callable[[Path], ImageFile], name: str | None = None) -> ImageFile | None:
        """Read a file, once however often it is asked for; None if something is wrong with it, which is noted."""
        if (path, read) not in self._read:
            self._read[path, read] = None
            try:
                self._read[path, read] = read(path)
            except ImageError as error:
                self.report(name or path, str(error))
        return self._read[path, read]

    def finish(self) -> None:
        """Raise `CaseError` if anything was noted."""
        if self._lines:
            raise CaseError(self._lines)


class NamedImage(NamedTuple):
    """An image or mask with the name that problems are told by."""

    name: str
    image: ImageFile


def compare_grids(reading: CaseReading, files: Sequence[NamedImage]) -> None:
    """Note every file that lies on another grid than the first (and than the first that has an affine)."""
    placed = [file for file in files if file.image.affine is not None]
    for file in files[1:]:
        if file.image.shape != files[0].image.shape:
            shapes = [times(part.image.shape) for part in (file, files[0])]
            reading.report(file.name, f"is {shapes[0]}, but {files[0].name} is {shapes[1]}; resample to one grid")
        elif file in placed[1:] and not same_affine(file.image.affine, placed[0].image.affine):  # type: ignore[arg-type]
            differs = f"has another affine than {placed[0].name}; resample to one grid, or correct the affine"
            reading.report(file.name, differs)


def stack_case(
    case_id: str,
    image: NDArray[np.float32],
    masks: Mapping[tuple[str, str], NDArray | None],
    raters: Sequence[str],
    structures: Sequence[str],
    spacing: tuple[float, ...] | None = None,
    affine: NDArray[np.float64] | None = None,
) -> RaterSample:
    """Put a case together from its parts, all on one grid.

    Args:
        case_id: of the case.
        image: `[C, *S]`.
        masks: `[*S]` of each rater and structure; None for an empty one. A rater without any is invalid.
        raters: names of the R raters.
        structures: names of the K structures.
        spacing: mm along each axis, or None.
        affine: `[4, 4]` of a volume, or None.
    """
    stacked = torch.zeros(len(raters), len(structures), *image.shape[1:], dtype=torch.uint8)
    valid = torch.zeros(len(raters), dtype=torch.bool)
    for (rater, structure), mask in masks.items():
        slot = raters.index(rater)
        valid[slot] = True
        if mask is not None:
            stacked[slot, structures.index(structure)] = torch.from_numpy(np.ascontiguousarray(mask))
    return RaterSample(
        image=torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)),
        masks=stacked,
        valid=valid,
        case_id=case_id,
        spacing=spacing,
        # one cannot place a slice in space
        affine=None if affine is None or image.ndim == 3 else torch.from_numpy(np.array(affine, dtype=np.float64)),
    )


def problem_line(file: str, case_id: str, problem: str) -> str:
    """Return the one line that tells of a problem."""
    return one_line(f"{file}: case {case_id!r}: {problem}")


def relative_name(path: Path, root: Path) -> str:
    """Return a file's path as problems tell it: from the data set's folder where it lies there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _odd_ones(found: Sequence[_Found], root: Path) -> list[str]:
    """Return a line for each case whose kind differs from most: a network is made for one kind."""
    lines = []
    for traits in ([f"is {len(one.shape)}D" for one in found], [f"has {one.channels} channels" for one in found]):
        for one, trait in zip(found, traits, strict=True):
            usual = Counter(traits).most_common(1)[0][0]
            if trait != usual:
                first = relative_name(next(iter(one.case.files.values())), root)
                problem = f"{trait}, but most cases: {usual}; keep one kind in a data set"
                lines.append(problem_line(first, one.case.record.case_id, problem))
    return lines


def _shortened(problems: Sequence[str]) -> list[str]:
    more = len(problems) - MOST_PROBLEMS_LISTED
    return [*problems[:MOST_PROBLEMS_LISTED], *([f"... and {more} more; `check` lists all"] if more > 0 else [])]
