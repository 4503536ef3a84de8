"""Any folder of images and masks with a table that says which is whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edue_lightning.data.file_source import (
    CaseError,
    CaseReading,
    FileCase,
    FileSource,
    NamedImage,
    compare_grids,
    stack_case,
)
from edue_lightning.data.images import ImageError, ImageFile, read_image, read_mask
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.sources.manifest.table import ManifestCase, read_table
from edue_lightning.errors import UserError


class ManifestSource(FileSource):
    """A folder with a table of one row a mask, all of it checked before the first case is used.

    The columns are `case_id, image[, image2...], mask, rater, structure[, split, patient, spacing]`; files are named by
    their paths from the manifest. The images of a case are stacked as channels. An empty mask field says that the rater
    looked and outlined nothing. The rater axis has one slot for each name in the manifest; a rater without rows for a
    case is invalid there. Cases without `split` are drawn, a patient's together.

    Args:
        root: folder with the manifest.
        file: name of the manifest in it, CSV or Parquet.
        structures: the ones to take, in this order; None for all, in order of first appearance. Rows of others are left
            out, with a count in the log.
        standardise: bring each channel to mean 0 and standard deviation 1 over the image; a constant one becomes 0.
        cache: see `FileSource`.

    Raises:
        UserError: if there is no such folder, or the settings name no structure.
    """

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
            raise UserError("data.source.structures: names none; name at least one, or set it to null")
        table = read_table(self.root / file, structures)
        self._stacked = self.preparation({"standardise": standardise})
        self.raters: tuple[str, ...] = table.raters
        self.structures = table.structures
        self._rows = dict(table.cases)
        settings = {"standardise": standardise, "raters": list(table.raters), "structures": list(table.structures)}
        self.check([self._file_case(case, self.root / file) for case in table.cases.values()], table.problems, settings)

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
        files = {}
        for name in (*case.images, *case.masks.values()):
            # what is wrong with the others is told when the case is read
            with suppress(ImageError):
                files[name] = locate(self.root, name)
        return FileCase(case.record, files or {"": manifest}, details)

    def _read(self, case: FileCase) -> RaterSample:
        rows = self._rows[case.record.case_id]
        reading = CaseReading(case.record.case_id, self.root)
        images = [self._file(reading, name, read_image) for name in rows.images if name]
        masks = {key: self._file(reading, name, read_mask) if name else None for key, name in rows.masks.items()}
        named = [*images, *masks.values()]
        compare_grids(reading, list(dict.fromkeys(file for file in named if file is not None)))
        found = [file.image for file in images if file is not None]
        if rows.spacing and found and len(rows.spacing) != len(found[0].shape):
            axes = f"spacing has {len(rows.spacing)} numbers for {len(found[0].shape)} axes"
            reading.report(rows.images[0], f"{axes}; write one an axis")
        reading.finish()
        if not all(rows.images):
            # the check of the table has told so already
            raise CaseError(())
        return stack_case(
            case.record.case_id,
            self._stacked.channels(found),
            {key: None if file is None else file.image.array for key, file in masks.items()},
            self.raters,
            self.structures,
            spacing=rows.spacing or next((file.spacing for file in found if file.spacing), None),
            affine=next((file.affine for file in found if file.affine is not None), None),
        )

    def _file(self, reading: CaseReading, name: str, read: Callable[[Path], ImageFile]) -> NamedImage | None:
        try:
            path = locate(self.root, name)
        except ImageError as error:
            reading.report(name, str(error))
            return None
        image = reading.file(path, read, name)
        return None if image is None else NamedImage(name, image)


def locate(folder: Path, file: str) -> Path:
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
