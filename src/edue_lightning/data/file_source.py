"""Base of the data sets in files: all cases are checked before the first is used, and each is prepared once."""

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
from torch import Tensor

from edue_lightning.data.exclusive import Shared, shared_voxels
from edue_lightning.data.geometry import DIFFERING_SLICES, same_grid, slice_directions, slice_storage
from edue_lightning.data.images import PICTURES, VOLUMES, ImageError, ImageFile, affine_of, canonical, is_oriented
from edue_lightning.data.inventory import CaseTraits, ComparedCase, repeated_pictures, suspicions, traits_of
from edue_lightning.data.patches import foreground_points
from edue_lightning.data.preparation import MIXED_SLICES
from edue_lightning.data.prepared import PreparedCases
from edue_lightning.data.sample import Grid, RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.errors import UserError
from edue_lightning.text import NO_FILE_NAME, ambiguous_names, can_be_in_file_name, counted, one_line, times

log = logging.getLogger(__name__)

MOST_PROBLEMS_LISTED = 50
_MOST_THREADS = 4
_SECONDS_BETWEEN_LINES = 20.0
_SLICE = 2


@dataclass(frozen=True)
class FileCase:
    """A case and its files.

    Attributes:
        record: its name, patient and prescribed split.
        files: at least one file, by role.
        details: plain values of this case that, with the files, determine the prepared case.
    """

    record: CaseRecord
    files: Mapping[str, Path]
    details: Mapping[str, Any] = field(default_factory=dict)


class CaseError(Exception):
    """Problems of one case: `lines`, each with the file, the case and the fix."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class _Found(NamedTuple):
    """Result of the check for a healthy case."""

    case: FileCase
    key: str | None
    shape: tuple[int, ...]
    channels: int
    raters: int
    spaced: bool
    storage: str | None
    traits: CaseTraits
    unoriented: Path | None


class FileSource(CaseSource):
    """A data set in a folder.

    A subclass lists its cases, calls `check`, and defines in `_read` how a case is read. The base checks every case
    before the first is used, keeps prepared cases on disk, and reports all problems at once.

    The voxel size of a data set is known for all cases or counts as unknown for all, so that sizes and distances of a
    data set are in one unit.

    Args:
        root: folder with the data set.
        cache: folder for the prepared cases; None to read a case's files each time it is loaded.
        exclusive: whether the structures exclude each other, see `CaseSource`; a rater who gives a voxel to two of them
            is a problem of the case.

    Raises:
        UserError: if the folder does not exist.
    """

    def __init__(self, root: str | None, cache: str | None, exclusive: bool = False) -> None:
        if root is None:
            raise UserError("data.root: not set; set data.root=FOLDER, the folder with the data set")
        if not Path(root).is_dir():
            raise UserError(f"data.root={root}: no such folder; set data.root=FOLDER, the folder with the data set")
        self.root = Path(root).resolve()
        self.exclusive = exclusive
        self._named_root = root
        self._prepared = None if cache is None else PreparedCases(Path(cache))
        self._found: dict[str, _Found] = {}
        self._spaced = True

    def check(self, cases: Sequence[FileCase], problems: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Read every case once, keep all problems, and prepare the healthy cases.

        A case whose name cannot be that of a file is a problem and is not read.

        Args:
            cases: all cases that were found.
            problems: problems of the list of cases itself.
            settings: plain values that, with the files, determine a prepared case.
        """
        self._settings = {"source": type(self).__name__, **settings}
        unnamed = [case for case in cases if not can_be_in_file_name(case.record.case_id)]
        found, lines = self._survey([case for case in cases if can_be_in_file_name(case.record.case_id)])
        for case in unnamed:
            first = relative_name(next(iter(case.files.values())), self.root)
            lines.append(problem_line(first, case.record.case_id, NO_FILE_NAME))
        for names in ambiguous_names(case.record.case_id for case in cases):
            listed = ", ".join(map(repr, names))
            lines.append(
                f"{self.root.name}: cases {listed} have names that some file systems take for one, so their results "
                "would share files; rename one, by more than upper and lower case"
            )
        lines = [*problems, *lines, *_odd_ones(found, self.root), *self._compare(found)]
        if not found and not lines:
            lines = [f"{self._named_root}: holds no case of this data set; see docs/data.md for its layouts"]
        self.problems = tuple(lines)
        self._found = {one.case.record.case_id: one for one in found}
        # an arbitrary format without cases: the problems are reported before it is used
        self.spatial_dims = len(found[0].shape) if found else 2
        self.channels = found[0].channels if found else 1
        self.mixed_sizes = len({one.shape for one in found}) > 1
        shapes = np.array([one.shape for one in found if len(one.shape) == self.spatial_dims])
        self.smallest_shape = tuple(int(length) for length in shapes.min(axis=0)) if found else None
        single = sum(one.raters < 2 for one in found)
        if single:
            log.warning(
                "%s: %d of %d cases have a single rater; guidance (method=edue) and metrics of disagreement need two",
                self._named_root,
                single,
                len(found),
            )
        stored = Counter(one.storage for one in found)
        self.storage = next(iter(stored)) if len(stored) == 1 else None
        if len(stored) > 1 and all(map(slice_directions, stored)):
            self.storage = DIFFERING_SLICES
            log.warning(
                "%s: the headers of the NIfTI slices give their axes different directions (%s), and slices are used as "
                "they are stored; check with the contact sheet that none is turned",
                self._named_root,
                ", ".join(f"{count} {storage}" for storage, count in stored.items()),
            )
        unoriented = [(one.case.record.case_id, one.unoriented) for one in found if one.unoriented is not None]
        if unoriented:
            case_id, file = unoriented[0]
            log.warning(
                "%s: %s",
                self._named_root,
                unoriented_text(len(unoriented), len(found), case_id, relative_name(file, self.root)),
            )
        spaced = sum(one.spaced for one in found)
        self._spaced = spaced == len(found)
        if 0 < spaced < len(found):
            log.warning(
                "%s: the voxel size is known for %d of %d cases only, so sizes and distances of all cases are in "
                "pixels; add the spacing of the other cases for millimetres",
                self._named_root,
                spaced,
                len(found),
            )

    def cases(self) -> Sequence[CaseRecord]:
        """List the cases in their order.

        Raises:
            UserError: if anything is wrong, with all problems.
        """
        if self.problems:
            raise UserError(problems_text(self._named_root, self.problems))
        return self.healthy()

    def healthy(self) -> Sequence[CaseRecord]:
        """List the cases that can be read."""
        return [one.case.record for one in self._found.values()]

    def raters_of(self, case_id: str) -> int:
        """Return the number of valid raters of a case, 0 if it is not healthy."""
        return self._found[case_id].raters if case_id in self._found else 0

    def warn(self, line: str) -> None:
        """Log what is suspicious about the data set, in one line."""
        log.warning("%s: %s", self._named_root, one_line(line))

    def traits_of(self, case_id: str) -> CaseTraits | None:
        """Return the traits by which a case is compared with others, or None if it is not healthy."""
        return self._found[case_id].traits if case_id in self._found else None

    def storage_of(self, case_id: str) -> str | None:
        """Return how the file of a 2D image stores its axes, see `CaseSource.storage_of`."""
        return self._found[case_id].storage if case_id in self._found else None

    def load(self, case_id: str) -> RaterSample:
        """Return a prepared case; without a cache, read it from its files.

        Raises:
            UserError: if a file was removed or damaged since the check.
        """
        found = self._found[case_id]
        try:
            sample = self._take(found.case, found.key)
        except CaseError as error:
            raise UserError("\n".join(error.lines)) from error
        return sample if self._spaced else replace(sample, spacing=None)

    @abstractmethod
    def _read(self, case: FileCase) -> RaterSample:
        """Read a case from its files.

        Raises:
            CaseError: if anything is wrong, with all problems.
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
            raise UserError(
                f"data.cache={self._prepared.folder}: a file just written cannot be read; choose another folder"
            )
        return stored

    def _examine(self, case: FileCase) -> _Found | CaseError:
        key = self._key(case)
        try:
            sample = self._take(case, key)
        except CaseError as error:
            return error
        if self.exclusive and (shared := shared_voxels(sample)):
            return CaseError([self._shared_line(case, one) for one in shared])
        raters = int(sample.valid.sum())
        if raters == 0:
            first = relative_name(next(iter(case.files.values())), self.root)
            return CaseError([problem_line(first, case.record.case_id, "has no rater; add a mask, or remove it")])
        if sample.region is not None and not sample.region.any():
            line = "its region is empty, so nothing would count; correct it, or remove the case"
            first = relative_name(next(iter(case.files.values())), self.root)
            return CaseError([problem_line(first, case.record.case_id, line)])
        shape, channels = tuple(sample.image.shape[1:]), sample.image.shape[0]
        traits = traits_of(sample) if key is None or self._prepared is None else self._noted_traits(key, sample)
        spaced, storage = sample.spacing is not None, _storage(case, shape)
        unoriented = (
            None
            if len(shape) == _SLICE
            else next((file for file in case.files.values() if not is_oriented(file)), None)
        )
        return _Found(case, key, shape, channels, raters, spaced, storage, traits, unoriented)

    def _shared_line(self, case: FileCase, shared: Shared) -> str:
        """Return the problem that a rater gave voxels to two structures, in one line."""
        first, second = (self.structures[position] for position in shared.structures)
        rater = f"rater {shared.rater + 1}" if self.raters is None else f"rater {self.raters[shared.rater]!r}"
        problem = (
            f"{rater} gave {shared.voxels} voxels both to {first} and to {second}, but data.source.exclusive=true says "
            "that structures exclude each other; correct the mask, or set data.source.exclusive=false"
        )
        return problem_line(self.mask_name(case, shared.rater, second), case.record.case_id, problem)

    def mask_name(self, case: FileCase, rater: int, structure: str) -> str:
        """Return the name of the file with a rater's mask of a structure, for problems.

        The default is the file whose role names the rater, and maybe the structure; else the case's first file.

        Args:
            case: case of the mask.
            rater: position on the rater axis.
            structure: name of the structure.
        """
        name = str(rater) if self.raters is None else self.raters[rater]
        roles = [f"label {name} {structure}", f"label {name}", f"{structure} {name}", name]
        chosen = next((role for role in roles if role in case.files), next(iter(case.files)))
        return relative_name(case.files[chosen], self.root)

    def _noted_traits(self, key: str, sample: RaterSample) -> CaseTraits:
        """Return the traits of a prepared case, whose image need not be read again for them."""
        assert self._prepared is not None
        try:
            return CaseTraits.from_plain(self._prepared.note(key, lambda: traits_of(sample)))
        # whatever a damaged file holds
        except (TypeError, ValueError):
            return traits_of(sample)

    def _compare(self, found: Sequence[_Found]) -> list[str]:
        """Compare the cases with each other; return the problems, and log what is only suspicious."""
        cases = [
            ComparedCase(one.case.record, relative_name(next(iter(one.case.files.values())), self.root), one.traits)
            for one in found
        ]
        problems, warnings = repeated_pictures(cases)
        for line in (*warnings, *suspicions(cases, self.raters, self.structures)):
            self.warn(line)
        return [problem_line(case.file, case.record.case_id, problem) for case, problem in problems]

    def _key(self, case: FileCase) -> str | None:
        """Return the name of the prepared case, or None if it cannot be prepared."""
        # opening a pipe would block; reading the case will report it
        if self._prepared is None or not all(path.is_file() for path in case.files.values()):
            return None
        try:
            settings = {**self._settings, "case": case.record.case_id, "details": dict(case.details)}
            return self._prepared.key(case.files, settings)
        except OSError:
            # reading the case will report which file is missing
            return None

    def _survey(self, cases: Sequence[FileCase]) -> tuple[list[_Found], list[str]]:
        """Examine the cases, a few at a time: decoding and resampling release the interpreter to other threads."""
        found: list[_Found] = []
        lines: list[str] = []
        reported = time.monotonic()
        threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
        try:
            for number, result in enumerate(threads.map(self._examine, cases), 1):
                if isinstance(result, CaseError):
                    lines += result.lines
                else:
                    found.append(result)
                if time.monotonic() - reported > _SECONDS_BETWEEN_LINES:
                    reported = time.monotonic()
                    log.info("%s: checked %d of %d cases", self._named_root, number, len(cases))
        finally:
            # also on an interrupt, without starting the remaining cases
            threads.shutdown(cancel_futures=True)
            if self._prepared is not None:
                self._prepared.remember()
        return found, lines


class CaseReading:
    """Reader of the files of one case, which collects all their problems.

    Args:
        case_id: name of the case, for the lines.
        root: folder of the data set; files are named by their paths from it.
    """

    def __init__(self, case_id: str, root: Path) -> None:
        self.case_id = case_id
        self.root = root
        self._lines: list[str] = []
        self._read: dict[tuple[Path, Callable[[Path], ImageFile]], ImageFile | None] = {}

    def report(self, file: Path | str, problem: str) -> None:
        """Note a problem and its fix."""
        name = relative_name(file, self.root) if isinstance(file, Path) else file
        line = problem_line(name, self.case_id, problem)
        if line not in self._lines:
            self._lines.append(line)

    def file(
        self, path: Path, read: Callable[[Path], ImageFile], name: str | None = None, as_stored: bool = False
    ) -> ImageFile | None:
        """Read a file, at most once; a problem is noted.

        Args:
            path: path of the file.
            read: reader, such as `read_image` or `read_mask`.
            name: name of the file in problems; None for its path from the folder of the data set.
            as_stored: whether to keep the axes of a volume as they are stored; otherwise they run to the right,
                anterior and superior, see `images.canonical`.

        Returns:
            the file's content, or None if there is a problem.
        """
        if (path, read) not in self._read:
            self._read[path, read] = None
            try:
                self._read[path, read] = read(path)
            except ImageError as error:
                self.report(name or path, str(error))
        found = self._read[path, read]
        return found if found is None or as_stored else canonical(found)

    def finish(self) -> None:
        """Raise `CaseError` if anything was noted."""
        if self._lines:
            raise CaseError(self._lines)


class NamedImage(NamedTuple):
    """An image or mask with its name in problems."""

    name: str
    image: ImageFile


def compare_grids(reading: CaseReading, files: Sequence[NamedImage]) -> None:
    """Note every file that lies on another grid than the first (and than the first that has an affine).

    Volumes are compared with their axes turned to one orientation, as `CaseReading.file` returns them: a file with the
    same voxels in another order of the axes is on the same grid.
    """
    placed = next((file for file in files if file.image.grid is not None), None)
    for file in files[1:]:
        is_slice = len(file.image.shape) == len(files[0].image.shape) == _SLICE
        if is_slice and (file.image.affine is None) != (files[0].image.affine is None):
            kinds = ["a picture" if part.image.affine is None else "a NIfTI slice" for part in (file, files[0])]
            reading.report(file.name, f"is {kinds[0]}, but {files[0].name} is {kinds[1]}: {MIXED_SLICES}")
        elif file.image.shape != files[0].image.shape:
            shapes = [times(_stored_shape(part.image)) for part in (file, files[0])]
            reading.report(file.name, f"is {shapes[0]}, but {files[0].name} is {shapes[1]}; resample to one grid")
        elif placed is not None and not _same_place(file.image.grid, placed.image.grid):
            differs = f"has another affine than {placed.name}; resample to one grid, or correct the affine"
            reading.report(file.name, differs)


def _same_place(first: Grid | None, second: Grid | None) -> bool:
    return first is None or second is None or same_grid(first, second)


def stack_case(
    case_id: str,
    image: NDArray[np.float32],
    masks: Mapping[tuple[str, str], NDArray | None],
    raters: Sequence[str],
    structures: Sequence[str],
    spacing: tuple[float, ...] | None = None,
    affine: NDArray[np.float64] | None = None,
    origin: Grid | None = None,
    region: NDArray | None = None,
    content: tuple[str, ...] | None = None,
) -> RaterSample:
    """Put a case together from its parts, all on one grid; masks become zero outside of the region.

    Args:
        case_id: name of the case.
        image: `[C, *S]` float32; the axes of a volume with an affine are turned, see `images.canonical`.
        masks: `[*S]` bool per rater and structure; None for an empty one. A rater without any is invalid.
        raters: names of the R raters.
        structures: names of the K structures.
        spacing: mm along each axis, or None.
        affine: `[4, 4]` of a volume, or None.
        origin: grid of the image's file, if it is another one.
        region: `[*S]` bool, the voxels that count, see `RaterSample.region`; None if all do.
        content: digests of the images before they were prepared, see `identity.content_digest`.
    """
    turned = canonical(ImageFile(image, spacing, affine, origin))
    stacked = torch.zeros(len(raters), len(structures), *turned.shape, dtype=torch.uint8)
    valid = torch.zeros(len(raters), dtype=torch.bool)
    for (rater, structure), mask in masks.items():
        slot = raters.index(rater)
        valid[slot] = True
        if mask is not None:
            stacked[slot, structures.index(structure)] = _turned(mask, affine)
    inside = None if region is None else _turned(region, affine)
    if inside is not None:
        stacked *= inside
    return RaterSample(
        image=torch.from_numpy(np.ascontiguousarray(turned.array, dtype=np.float32)),
        masks=stacked,
        valid=valid,
        case_id=case_id,
        spacing=turned.spacing,
        # a slice has no place in space
        affine=None if turned.affine is None or image.ndim == 3 else torch.from_numpy(np.array(turned.affine)).double(),
        origin=turned.origin,
        region=inside,
        content=content,
    )


def _turned(mask: NDArray, affine: NDArray[np.float64] | None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(canonical(ImageFile(mask, affine=affine)).array))


def unoriented_text(count: int, cases: int, first: str, file: str) -> str:
    """Return the warning on volumes whose headers do not say which way their axes run, see `images.is_oriented`.

    Args:
        count: number of such cases.
        cases: number of all cases.
        first: name of the first such case.
        file: name of its file.
    """
    return (
        f"{count} of {cases} cases have volumes without orientation, the first is {first!r} ({file}): the header says "
        "nothing of it (NIfTI: qform and sform code 0), so it is assumed from the voxel sizes (pixdim) alone, and left "
        "and right may be exchanged; check one case, and correct the headers"
    )


def problem_line(file: str, case_id: str, problem: str) -> str:
    """Return a problem in one line."""
    return one_line(f"{file}: case {case_id!r}: {problem}")


def problems_text(root: str, problems: Sequence[str]) -> str:
    """Return the number of a data set's problems and one line per problem, as far as they fit on a screen."""
    more = len(problems) - MOST_PROBLEMS_LISTED
    rest = [f"... and {more} more; `check` lists all"] if more > 0 else []
    number = counted(len(problems), "problem")
    return "\n".join([f"data.root={root}: {number}:", *problems[:MOST_PROBLEMS_LISTED], *rest])


def relative_name(path: Path, root: Path) -> str:
    """Return a file's path for problems: from the data set's folder if the file is in it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _odd_ones(found: Sequence[_Found], root: Path) -> list[str]:
    """Return one line per case whose kind differs from that of most: a network is made for one kind."""
    lines = []
    kinds = [
        [f"is {len(one.shape)}D" for one in found],
        [f"has {one.channels} channels" for one in found],
    ]
    if all(len(one.shape) == _SLICE for one in found):
        kinds.append(["is a NIfTI slice" if str(one.storage).startswith("NIfTI") else "is a picture" for one in found])
    for traits in kinds:
        for one, trait in zip(found, traits, strict=True):
            usual = Counter(traits).most_common(1)[0][0]
            if trait != usual:
                first = relative_name(next(iter(one.case.files.values())), root)
                problem = f"{trait}, but most cases: {usual}; keep one kind per data set"
                lines.append(problem_line(first, one.case.record.case_id, problem))
    return lines


def _storage(case: FileCase, shape: tuple[int, ...]) -> str | None:
    """Return how the file of a 2D image stores its axes, or None for other files."""
    first = next(iter(case.files.values()))
    name = first.name.lower()
    if len(shape) != _SLICE or not name.endswith((*PICTURES, *VOLUMES)):
        return None
    return slice_storage(affine_of(first))


def _stored_shape(image: ImageFile) -> tuple[int, ...]:
    return image.shape if image.origin is None else image.origin.shape
