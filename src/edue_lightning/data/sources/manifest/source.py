"""A user's own folder of images and masks, with a table of their cases, raters and structures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edue_lightning.data.file_source import (
    CaseError,
    CaseReading,
    FileCase,
    FileSource,
    NamedImage,
    compare_grids,
    problem_line,
    stack_case,
)
from edue_lightning.data.images import ImageError, ImageFile, read_image, read_mask
from edue_lightning.data.preparation import Stacked, agreed_spacing
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.sources.manifest.files import NamedFiles
from edue_lightning.data.sources.manifest.table import ManifestCase, read_table
from edue_lightning.errors import UserError

_MOST_NAMED = 3


class ManifestSource(FileSource):
    """A folder with a table of one row per mask; all of it is checked before the first case is used.

    The columns are `case_id, image[, image2...], mask, rater, structure[, split, patient, spacing, region]`; files are
    named by their paths from the manifest, see `NamedFiles`. The images of a case are stacked as channels. An empty
    mask field means that the rater looked and outlined nothing. `region` names a mask of the voxels that count, such as
    the field of view; an empty field means all. The rater axis has one place per name in the manifest, in natural order
    (`rater 2` before `rater 10`); a rater without rows for a case is invalid there. Cases without `split` are drawn
    for all three splits, those of one patient together.

    Args:
        root: folder with the manifest.
        file: name of the manifest in the folder, CSV or Parquet.
        structures: structures to take, in this order; None for all, in order of first appearance. Rows of others are
            left out, with a count in the log.
        standardise: whether to bring each channel to mean 0 and standard deviation 1 over the image; a constant one
            becomes 0.
        cache: see `FileSource`.

    Raises:
        UserError: if the folder does not exist, or `structures` is empty.
    """

    # a table may prescribe some cases and leave others to the draw
    official_splits = False

    def __init__(
        self,
        root: str | None = None,
        file: str = "manifest.csv",
        structures: Sequence[str] | None = None,
        standardise: bool = True,
        cache: str | None = None,
    ) -> None:
        super().__init__(root, cache)
        if structures is not None and not structures:
            raise UserError("data.source.structures: is empty; name at least one structure, or set it to null")
        table = read_table(self.root / file, structures)
        self._files = NamedFiles(self.root)
        self._stacked = self.preparation({"standardise": standardise})
        self.raters: tuple[str, ...] = table.raters
        self.structures = table.structures
        self._rows = dict(table.cases)
        settings = {"standardise": standardise, "raters": list(table.raters), "structures": list(table.structures)}
        self.check([self._file_case(case, self.root / file) for case in table.cases.values()], table.problems, settings)
        self._compare_mask_files()

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:
        """Return how image files become channels, see `CaseSource.preparation`."""
        return Stacked(standardise=bool(settings.get("standardise", True)))

    def _file_case(self, case: ManifestCase, manifest: Path) -> FileCase:
        details = {
            "images": list(case.images),
            "masks": [[*key, file] for key, file in case.masks.items()],
            "spacing": case.spacing,
        }
        if case.region:
            details["region"] = case.region
        files = {}
        for name in (*case.images, *case.masks.values(), case.region):
            # problems of the others are reported when the case is read
            with suppress(ImageError):
                files[name] = self._files.locate(name)
        return FileCase(case.record, files or {"": manifest}, details)

    def _read(self, case: FileCase) -> RaterSample:
        rows = self._rows[case.record.case_id]
        reading = CaseReading(case.record.case_id, self.root)
        images = [self._file(reading, name, read_image) for name in rows.images if name]
        masks = {key: self._file(reading, name, read_mask) if name else None for key, name in rows.masks.items()}
        region = self._file(reading, rows.region, read_mask) if rows.region else None
        named = [*images, *masks.values(), region]
        compare_grids(reading, list(dict.fromkeys(file for file in named if file is not None)))
        found = [file.image for file in images if file is not None]
        spacing = None
        if found:
            try:
                spacing = agreed_spacing(found, rows.spacing)
            except ImageError as error:
                reading.report(rows.images[0], str(error))
        reading.finish()
        if not all(rows.images):
            # reported by the check of the table
            raise CaseError(())
        return stack_case(
            case.record.case_id,
            self._stacked.channels(found),
            {key: None if file is None else file.image.array for key, file in masks.items()},
            self.raters,
            self.structures,
            spacing=spacing,
            affine=found[0].affine,
            origin=found[0].origin,
            region=None if region is None else region.image.array,
        )

    def _compare_mask_files(self) -> None:
        """Report files that are several masks and not empty: of several cases as a problem, of one with a warning."""
        rows: defaultdict[Path, list[tuple[str, str, str, str]]] = defaultdict(list)
        for case_id, case in self._rows.items():
            for (rater, structure), name in case.masks.items():
                with suppress(ImageError):
                    rows[self._files.locate(name).resolve()].append((case_id, rater, structure, name))
        problems: list[str] = []
        warnings: list[str] = []
        for users in rows.values():
            if len(users) > 1 and self._has_area(*users[0][:3]):
                (case_id, rater, structure, name), *others = users
                shown = [f"case {other[0]!r}, rater {other[1]!r}, {other[2]}" for other in others[:_MOST_NAMED]]
                listed = "; ".join(shown) + "; ..." * (len(others) > _MOST_NAMED)
                line = f"is the mask of rater {rater!r}, {structure}, and of: {listed}"
                several_cases = any(other[0] != case_id for other in others)
                (problems if several_cases else warnings).append(problem_line(name, case_id, line))
        self.problems = (*self.problems, *(f"{line}; name the mask of each case" for line in problems))
        if warnings:
            self.warn(
                f"{len(warnings)} mask files stand in several rows, such as {warnings[0]}; check that each has its own"
            )

    def _has_area(self, case_id: str, rater: str, structure: str) -> bool:
        traits = self.traits_of(case_id)
        masks = None if traits is None else traits.masks[self.raters.index(rater)]
        return masks is not None and masks[self.structures.index(structure)].area > 0

    def _file(self, reading: CaseReading, name: str, read: Callable[[Path], ImageFile]) -> NamedImage | None:
        try:
            path = self._files.locate(name)
        except ImageError as error:
            reading.report(name, str(error))
            return None
        image = reading.file(path, read, name)
        return None if image is None else NamedImage(name, image)
