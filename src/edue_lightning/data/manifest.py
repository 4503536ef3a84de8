"""Any folder of images and masks with a table that says which is whose."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from numpy.typing import NDArray

from edue_lightning.data.images import ImageError, ImageFile, ImageHeader, read_image, read_mask, same_affine
from edue_lightning.data.manifest_table import ManifestCase, read_table
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.errors import UserError, counted

log = logging.getLogger(__name__)

MOST_PROBLEMS_LISTED = 50


class ManifestSource(CaseSource):
    """A folder with a CSV file of one row a mask, all of it checked before the first case is loaded.

    The columns are `case_id, image[, image2...], mask, rater, structure[, split, patient, spacing]`; files are named by
    their paths from the manifest. The images of a case are stacked as channels. An empty mask field says that the rater
    looked and outlined nothing. The rater axis has one slot for each name in the manifest; a rater without rows for a
    case is invalid there. Cases without `split` are drawn, a patient's together.

    Args:
        root: folder with the manifest.
        file: name of the manifest in it.
        structures: the ones to take, in this order; None for all, in order of first appearance. Rows of others are left
            out, with a count in the log.
        standardise: bring each channel to mean 0 and standard deviation 1 over the image; a constant one becomes 0.

    Attributes:
        raters: names of the R raters, in the order of the masks' axis.

    Raises:
        UserError: with one line for each problem in the manifest and its files.
    """

    def __init__(
        self,
        root: str | None = None,
        file: str = "manifest.csv",
        structures: Sequence[str] | None = None,
        standardise: bool = True,
    ) -> None:
        if root is None:
            raise UserError(f"data.root: not set; set data.root=FOLDER, the folder with {file}")
        if structures is not None and not structures:
            raise UserError("data.source.structures: names none; name at least one, or set it to null")
        manifest = Path(root) / file
        table = read_table(manifest, structures)
        self.standardise = standardise
        self.raters = table.raters
        self.structures = table.structures
        self._folder = manifest.parent.resolve()
        self._cases = dict(table.cases)
        check = _FileCheck(self._folder)
        grids = check.cases(self._cases.values())
        problems = [*table.problems, *check.problems]
        if problems:
            raise UserError("\n".join([f"data.root={root}: {counted(problems)} in {file}:", *_shortened(problems)]))
        self.spatial_dims = len(grids[0].shape)
        self.channels = grids[0].channels
        self._log_what_may_surprise(file, grids)

    def cases(self) -> Sequence[CaseRecord]:
        """List the cases in the order of the manifest."""
        return [case.record for case in self._cases.values()]

    def load(self, case_id: str) -> RaterSample:
        """Read a case's files; a 2D case has no affine, as one cannot place a slice in space.

        Raises:
            UserError: if a file was removed or damaged since the check.
        """
        case = self._cases[case_id]
        images = [self._read(file, case_id, read_image) for file in case.images]
        image = np.concatenate([image.array for image in images])
        if self.standardise:
            image = np.stack([_standardised(channel) for channel in image])
        masks = np.zeros((len(self.raters), len(self.structures), *image.shape[1:]), dtype=np.uint8)
        valid = np.zeros(len(self.raters), dtype=bool)
        for (rater, structure), file in case.masks.items():
            slot = self.raters.index(rater)
            valid[slot] = True
            if file:
                masks[slot, self.structures.index(structure)] = self._read(file, case_id, read_mask).array
        affine = next((image.affine for image in images if image.affine is not None), None)
        return RaterSample(
            image=torch.from_numpy(np.ascontiguousarray(image)),
            masks=torch.from_numpy(masks),
            valid=torch.from_numpy(valid),
            case_id=case_id,
            spacing=case.spacing or next((image.spacing for image in images if image.spacing), None),
            affine=None if affine is None or self.spatial_dims == 2 else torch.from_numpy(affine),
        )

    def _read(self, file: str, case_id: str, read: Callable[[Path], ImageFile]) -> ImageFile:
        try:
            return read(_locate(self._folder, file))
        except ImageError as error:
            raise UserError(_line(file, case_id, str(error))) from error

    def _log_what_may_surprise(self, file: str, grids: Sequence[ImageHeader]) -> None:
        single = sum(len({rater for rater, _ in case.masks}) == 1 for case in self._cases.values())
        if single:
            log.warning("%s: %d of %d cases have a single rater; guidance needs two", file, single, len(self._cases))
        sizes = Counter(grid.shape for grid in grids)
        if len(sizes) > 1:
            log.warning("%s: the cases have %d sizes; a batch holds one size alone", file, len(sizes))


class _FileCheck:
    """Reads each file once, one at a time, and collects what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self._grids: dict[tuple[str, Callable[[Path], ImageFile]], ImageHeader | None] = {}

    def cases(self, cases: Iterable[ManifestCase]) -> list[ImageHeader]:
        """Return the grids of the cases whose images can be read."""
        found = [(case, grid) for case in cases if (grid := self._case(case)) is not None]
        self._report_the_odd([(case, f"is {len(grid.shape)}D") for case, grid in found])
        self._report_the_odd([(case, f"has {grid.channels} channels") for case, grid in found])
        return [grid for _, grid in found]

    def _case(self, case: ManifestCase) -> ImageHeader | None:
        case_id = case.record.case_id
        images = {file: self._grid(file, case_id, read_image) for file in case.images if file}
        masks = {file: self._grid(file, case_id, read_mask) for file in case.masks.values() if file}
        grids = {file: grid for file, grid in (*images.items(), *masks.items()) if grid is not None}
        self._compare(grids, case_id)
        readable = [grid for file in case.images if (grid := images.get(file)) is not None]
        if len(readable) < len(case.images):
            return None
        shape = readable[0].shape
        if case.spacing is not None and len(case.spacing) != len(shape):
            found = f"spacing has {len(case.spacing)} numbers for {len(shape)} axes"
            self.problems.append(_line(case.images[0], case_id, f"{found}; write one an axis"))
        return ImageHeader(shape, sum(grid.channels for grid in readable))

    def _grid(self, file: str, case_id: str, read: Callable[[Path], ImageFile]) -> ImageHeader | None:
        if (file, read) not in self._grids:
            self._grids[file, read] = None
            try:
                found = read(_locate(self.folder, file))
            except ImageError as error:
                self.problems.append(_line(file, case_id, str(error)))
            else:
                channels, *shape = found.array.shape if read is read_image else (1, *found.array.shape)
                self._grids[file, read] = ImageHeader(tuple(shape), channels, found.spacing, found.affine)
        return self._grids[file, read]

    def _compare(self, grids: dict[str, ImageHeader], case_id: str) -> None:
        files = list(grids)
        placed = [file for file in files if grids[file].affine is not None]
        for file in files[1:]:
            if grids[file].shape != grids[files[0]].shape:
                shapes = [_times(grids[name].shape) for name in (file, files[0])]
                differs = f"is {shapes[0]}, but {files[0]} is {shapes[1]}; resample to one grid"
                self.problems.append(_line(file, case_id, differs))
            elif file in placed[1:] and not _same_place(grids[file], grids[placed[0]]):
                differs = f"has another affine than {placed[0]}; resample to one grid, or correct the affine"
                self.problems.append(_line(file, case_id, differs))

    def _report_the_odd(self, traits: Sequence[tuple[ManifestCase, str]]) -> None:
        """Report the cases that differ from most."""
        counts = Counter(trait for _, trait in traits)
        for case, trait in traits:
            usual = counts.most_common(1)[0][0]
            if trait != usual:
                problem = f"{trait}, but most cases: {usual}; keep one kind in a manifest"
                self.problems.append(_line(case.images[0], case.record.case_id, problem))


def _locate(folder: Path, file: str) -> Path:
    """Return the path of a file that the manifest names, which must not lead out of the manifest's folder.

    Raises:
        ImageError: if it does, or there is no such file.
    """
    relative = PurePosixPath(file.replace("\\", "/"))
    outside = relative.is_absolute() or bool(PureWindowsPath(file).drive) or ".." in relative.parts
    path = folder / relative
    try:
        outside = outside or not path.resolve().is_relative_to(folder)
        found = not outside and path.is_file()
    # a circle of links, a name too long or with characters that no name has
    except (OSError, RuntimeError, ValueError):
        found = False
    if outside:
        raise ImageError("leaves the manifest's folder; put it there and name it by its path from there")
    if not found:
        raise ImageError("not found; add it, or correct its path in the manifest")
    return path


def _same_place(grid: ImageHeader, other: ImageHeader) -> bool:
    if grid.affine is None or other.affine is None:
        return True
    return same_affine(grid.affine, other.affine)


def _standardised(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    # a deviation that is rounding alone must not be blown up
    if channel.min() == channel.max():
        return np.zeros_like(channel)
    values = channel.astype(np.float64)
    return ((values - values.mean()) / values.std()).astype(np.float32)


def _line(file: str, case_id: str, problem: str) -> str:
    return f"{file}: case {case_id!r}: {problem}"


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _shortened(problems: Sequence[str]) -> list[str]:
    more = len(problems) - MOST_PROBLEMS_LISTED
    return [*problems[:MOST_PROBLEMS_LISTED], *([f"... and {more} more"] if more > 0 else [])]
