"""A user's own folder of images and masks, with a table of their cases, raters and structures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.channel_names import channel_of
from edue_lightning.data.dicom_masks import open_masks
from edue_lightning.data.dicom_objects import ImagePlace
from edue_lightning.data.dicom_series import is_dicom, read_series_header
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
from edue_lightning.data.geometry import grid_spacing, within
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import ImageError, ImageFile, canonical, parts_of, read_image, read_mask, read_segment
from edue_lightning.data.itk_volumes import SEGMENTATION
from edue_lightning.data.label_maps import LabelMap
from edue_lightning.data.preparation import Stacked, agreed_spacing
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import ProbabilityChannels
from edue_lightning.data.sources.manifest.files import NamedFiles
from edue_lightning.data.sources.manifest.table import ManifestCase, read_table
from edue_lightning.data.votes import level_mask, read_votes
from edue_lightning.errors import UserError
from edue_lightning.text import counted, named, one_line

_MOST_NAMED = 3
_VOLUME = 3


class ManifestSource(FileSource):
    """A folder with a table of one row per mask; all of it is checked before the first case is used.

    The columns are `case_id, image[, image2...], mask, rater, structure` and, as far as needed, `split`, `patient`,
    `spacing`, `region`, `label`, `segment`, `rater_position`; files are named by their paths from the manifest, see
    `NamedFiles`. The images of a case are stacked as channels. An empty mask field means that the rater looked and
    outlined nothing. A mask file of 3D Slicer (`.seg.nrrd`) or DICOM (RTSTRUCT, SEG) holds the segment with the
    structure's name, or with the name or number in `segment`. `region` names a mask of the voxels that count, such as
    the field of view; an empty field means all. `label` gives the numbers of the structure in its mask file, if that is
    a label map. A table of votes has the columns `votes`, a file with the number or share of raters who marked each
    voxel, and `n_raters` in place of `mask` and `rater`, see `data.votes`. The rater axis has one place per name in the
    manifest, ordered by `rater_position`, or without it in natural order (`rater 2` before `rater 10`); a rater without
    rows for a case is invalid there. Cases without `split` are drawn for all three splits, those of one patient
    together.

    Args:
        root: folder with the manifest.
        file: name of the manifest, CSV or Parquet, from the folder; files are named from the manifest's own folder.
        structures: structures to take, in this order; None for all, in order of first appearance. Rows of others are
            left out, with a count in the log.
        standardise: whether to bring each channel to mean 0 and standard deviation 1 over the image; a constant one
            becomes 0.
        labels: number or numbers of each structure, such as `{disc: [1, 2], cup: 2}`, if every mask file is a label map
            of all structures. The table then has one row per case and rater, without `structure`. None if a mask file
            holds one structure, or if the column `label` gives the numbers of a row's structure in its mask file.
        ignore: number of voxels in label maps that count nowhere: the region of a case is where no rater has it. None
            if there is none.
        threshold: value as the files store it, above which a voxel is marked, for masks with grey levels, such as 127
            for anti-aliased pictures and fractional segmentations of DICOM; None to refuse such masks. Label maps have
            no threshold.
        cache: see `FileSource`.
        exclusive: whether the structures exclude each other, see `CaseSource`.

    Raises:
        UserError: if the folder does not exist, `structures` is empty, or `labels` and `ignore` are invalid.
    """

    # a table may prescribe some cases and leave others to the draw
    official_splits = False

    def __init__(
        self,
        root: str | None = None,
        file: str = "manifest.csv",
        structures: Sequence[str] | None = None,
        standardise: bool = True,
        labels: Mapping[str, int | Sequence[int]] | None = None,
        ignore: int | None = None,
        threshold: float | None = None,
        cache: str | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(root, cache, exclusive)
        if structures is not None and not structures:
            raise UserError("data.source.structures: is empty; name at least one structure, or set it to null")
        given = None if labels is None else LabelMap.of(labels, ignore, "data.source.labels").structures
        table = read_table(self.root / file, structures, given)
        if ignore is not None and table.labels is None and table.cases:
            raise UserError(
                f"data.source.ignore={ignore}: the masks are no label maps; set data.source.labels or the column label"
            )
        self._label_map = LabelMap.of(table.labels or {"": 1}, ignore, "column label")
        self._numbers = table.labels
        self._threshold = threshold
        self._read_mask = partial(read_mask, threshold=threshold)
        self._files = NamedFiles((self.root / file).parent)
        self._stacked = self.preparation({"standardise": standardise})
        if table.votes and (labels is not None or threshold is not None):
            raise UserError("data.source.labels and threshold have no effect on votes; set both to null")
        if exclusive and table.votes:
            raise UserError(
                "data.source.exclusive=true: votes do not say which rater gave a voxel to which structure; set "
                "data.source.exclusive=false, or list each rater's own masks"
            )
        if exclusive:
            self._label_map.require_exclusive(table.structures, "data.source.labels" if labels else "column label")
        self.votes = table.votes
        self._names = table.raters
        self.raters = None if table.votes else table.raters
        self._readers: dict[int, Callable[[Path], ImageFile]] = {}
        self.structures = table.structures
        self._rows = dict(table.cases)
        settings = {"standardise": standardise, "raters": list(self._names), "structures": list(table.structures)}
        if table.labels is not None:
            settings |= {"labels": {name: list(numbers) for name, numbers in table.labels.items()}, "ignore": ignore}
        if threshold is not None:
            settings["threshold"] = threshold
        if table.votes:
            settings["votes"] = True
            most = {len({rater for rater, _ in case.masks}) for case in table.cases.values()}
            voters = " or ".join(map(str, sorted(most)))
            self.facts = {"votes": f"of {voters} raters, read as nested level masks; who gave them is unknown"}
        self.check([self._file_case(case, self.root / file) for case in table.cases.values()], table.problems, settings)
        self._compare_image_files(Path(file).name)
        self._check_channel_names(Path(file).name)
        self._compare_mask_files()

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:
        """Return how image files become channels, see `CaseSource.preparation`."""
        return Stacked(standardise=bool(settings.get("standardise", True)))

    def probability_channels(self, channels: int) -> ProbabilityChannels | None:
        """Return the channels of each structure in nnU-Net's probabilities, see `CaseSource.probability_channels`."""
        numbers = self._numbers
        if numbers is None or not set(self.structures) <= set(numbers):
            return super().probability_channels(channels)
        if channels == 1 + max(number for of_one in numbers.values() for number in of_one):
            return ProbabilityChannels([numbers[name] for name in self.structures], exclusive=True)
        if channels == len(numbers):
            return ProbabilityChannels([[list(numbers).index(name)] for name in self.structures], exclusive=False)
        return None

    def mask_name(self, case: FileCase, rater: int, structure: str) -> str:
        """Return the name of a mask file in the table, see `FileSource.mask_name`."""
        return self._rows[case.record.case_id].masks[self._names[rater], structure]

    def _file_case(self, case: ManifestCase, manifest: Path) -> FileCase:
        details = {
            "images": list(case.images),
            "masks": [[*key, file] for key, file in case.masks.items()],
            "spacing": case.spacing,
        }
        if case.region:
            details["region"] = case.region
        if case.segments:
            details["segments"] = [[*key, name] for key, name in case.segments.items()]
        if case.labels:
            details["labels"] = [[*key, *numbers] for key, numbers in case.labels.items()]
        files = {}
        for name in (*case.images, *case.masks.values(), case.region):
            # problems of the others are reported when the case is read
            with suppress(ImageError):
                first, *others = parts_of(self._files.locate(name))
                files[name] = first
                files |= {f"{name}, {other.name}": other for other in others}
        return FileCase(case.record, files or {"": manifest}, details)

    def _read(self, case: FileCase) -> RaterSample:
        rows = self._rows[case.record.case_id]
        reading = CaseReading(case.record.case_id, self.root)
        images = [self._file(reading, name, read_image) for name in rows.images if name]
        maps = {
            name: self._file(reading, name, self._label_map.read)
            for name in dict.fromkeys(name for key, name in rows.masks.items() if name and key in rows.labels)
        }
        masks = {
            key: self._mask(reading, name, rows, key, images) if name and key not in rows.labels else maps.get(name)
            for key, name in rows.masks.items()
        }
        view = self._file(reading, rows.region, read_mask) if rows.region else None
        named = [*images, *masks.values(), view]
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
        region = self._label_map.region(file.image.array for file in maps.values() if file is not None)
        if view is not None:
            region = np.logical_and(view.image.array, True if region is None else region)
        return stack_case(
            case.record.case_id,
            self._stacked.channels(found),
            {key: self._mask_of(file.image.array, key, rows) for key, file in masks.items() if file is not None}
            | {key: None for key, file in masks.items() if file is None},
            self._names,
            self.structures,
            spacing=spacing,
            affine=found[0].affine,
            origin=found[0].origin,
            region=region,
            content=content_digest([image.array for image in found]),
        )

    def _reader(self, rows: ManifestCase, structure: str) -> Callable[[Path], ImageFile]:
        """Return the reader of the mask files of a case and structure; the same one for each number of raters."""
        if not self.votes:
            return self._read_mask
        raters = sum(of == structure for _, of in rows.masks)
        return self._readers.setdefault(raters, partial(read_votes, raters=raters))

    def _mask_of(self, stored: NDArray, key: tuple[str, str], rows: ManifestCase) -> NDArray:
        """Return the mask of a rater and structure in what its file holds."""
        if self.votes:
            return level_mask(stored, int(key[0].removeprefix("level ")))
        return self._label_map.mask(stored, key[1]) if key in rows.labels else stored

    def _compare_image_files(self, manifest: str) -> None:
        """Report images of several cases as a problem, and files that are several channels of one with a warning.

        A further channel that all cases share may be meant, such as a map of positions.

        Args:
            manifest: name of the table.
        """
        users: defaultdict[Path, list[tuple[str, int, str]]] = defaultdict(list)
        for case_id, case in self._rows.items():
            for channel, name in enumerate(case.images):
                with suppress(ImageError):
                    users[self._files.locate(name).resolve()].append((case_id, channel, name))
        repeated = []
        for found in users.values():
            cases = list(dict.fromkeys(case_id for case_id, _, _ in found))
            channels = {channel for _, channel, _ in found}
            is_shared_map = len(channels) == 1 and 0 not in channels and len(cases) == len(self._rows)
            if len(cases) > 1 and not is_shared_map:
                fix = "give its rows one case_id" if channels == {0} else "name each case's own file"
                line = f"cases {', '.join(map(repr, cases))} share the image {found[0][2]}; {fix}"
                self.problems = (*self.problems, one_line(f"{manifest}: {line}"))
            elif len(found) > len(cases):
                repeated.append(f"{found[0][2]} of case {cases[0]!r}")
        if repeated:
            self.warn(f"files that are several channels of one case: {named(repeated)}; check that each has its own")

    def _check_channel_names(self, manifest: str) -> None:
        """Report images whose names say another order of the channels than the table, as a problem.

        `predict` takes the images of a folder in the order of their names, so it would exchange the channels.

        Args:
            manifest: name of the table.
        """
        turned = []
        for case in self._rows.values():
            found = [one for name in case.images if name and (one := channel_of(Path(name))) is not None]
            numbers = [number for _, number in found]
            if numbers != [*range(len(case.images))] == sorted(numbers) and len({name for name, _ in found}) == 1:
                turned.append(case)
        if turned:
            case_id, images = turned[0].record.case_id, ", ".join(turned[0].images)
            line = (
                f"{counted(len(turned), 'case')}, such as {case_id!r}, with the images in the order {images}, where "
                "the names say another; order the columns image, image2, ... by the names, since `predict` takes a "
                "folder's images in that order"
            )
            self.problems = (*self.problems, one_line(f"{manifest}: {line}"))

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
            # a label map is the mask of all structures of one rater
            unlike = len({user[:2] for user in users}) > 1 or not self._is_label_map(*users[0][:3])
            if self.votes:
                # all levels are in one file
                unlike = len({(user[0], user[2]) for user in users}) > 1
            elif self._has_structures(users[0][3]) and len({user[0] for user in users}) == 1:
                unlike = len({self._segment(*user[:3]) for user in users}) < len(users)
            if len(users) > 1 and unlike and self._has_area(*users[0][:3]):
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

    def _is_label_map(self, case_id: str, rater: str, structure: str) -> bool:
        case = self._rows[case_id]
        return (rater, structure) in case.labels or self._has_structures(case.masks[rater, structure])

    def _segment(self, case_id: str, rater: str, structure: str) -> str:
        """Return the name or number of a row's segment in a mask file that names its structures."""
        return self._rows[case_id].segments.get((rater, structure), structure).strip().casefold()

    def _has_area(self, case_id: str, rater: str, structure: str) -> bool:
        traits = self.traits_of(case_id)
        masks = None if traits is None else traits.masks[self._names.index(rater)]
        return masks is not None and masks[self.structures.index(structure)].area > 0

    def _mask(
        self,
        reading: CaseReading,
        name: str,
        rows: ManifestCase,
        key: tuple[str, str],
        images: Sequence[NamedImage | None],
    ) -> NamedImage | None:
        reader = self._reader(rows, key[1])
        segment = rows.segments.get(key, key[1])
        if reader is self._read_mask and self._is_dicom(name):
            return self._in_dicom(reading, name, rows, segment, images)
        if reader is not self._read_mask or not name.lower().endswith(SEGMENTATION):
            if key in rows.segments:
                reading.report(name, f"names no segments, so there is no {segment!r}; leave the column segment empty")
            return self._file(reading, name, reader)
        found = self._file(reading, name, partial(read_segment, name=segment))
        first = images[0].image.grid if images and images[0] is not None else None
        if found is None or first is None or found.image.affine is None or len(first.shape) != _VOLUME:
            return found
        # 3D Slicer may store the part of the image around the segments alone, which may be one slice
        volume = found.image.array[..., None] if len(found.image.shape) == 2 else None
        stored = found.image if volume is None else canonical(ImageFile(volume, affine=found.image.affine))
        assert stored.affine is not None, "as found"
        # nothing but a single voxel: all segments are empty, and the place means nothing
        is_empty = stored.array.size == 1 and not stored.array.any()
        placed = np.zeros(first.shape, bool) if is_empty else within(stored.array, stored.affine, first)
        if placed is None:
            return found
        return NamedImage(name, ImageFile(placed, grid_spacing(first), first.affine.numpy()))

    def _in_dicom(
        self,
        reading: CaseReading,
        name: str,
        rows: ManifestCase,
        segment: str,
        images: Sequence[NamedImage | None],
    ) -> NamedImage | None:
        """Return a structure of an RTSTRUCT or SEG file on the voxels of the case's first image."""
        first = images[0].image if images and images[0] is not None else None
        if first is None:
            return None
        stored = first.origin or first.grid
        if stored is None or len(stored.shape) != _VOLUME:
            reading.report(name, "holds masks in space, but the image is no volume; save a mask file")
            return None
        series = self._files.locate(rows.images[0])

        def read(path: Path) -> ImageFile:
            place = ImagePlace.of_series(read_series_header(series)) if series.is_dir() else ImagePlace(stored)
            masks = open_masks(path)
            mask = masks.mask(masks.header.number_of(segment), place, self._threshold)
            return ImageFile(mask, grid_spacing(stored), stored.affine.numpy())

        return self._file(reading, name, read)

    def _is_dicom(self, name: str) -> bool:
        try:
            return is_dicom(self._files.locate(name))
        except ImageError:
            return False

    def _has_structures(self, name: str) -> bool:
        """Return whether a mask file names its structures, so that several may be taken from it."""
        return name.lower().endswith(SEGMENTATION) or self._is_dicom(name)

    def _file(self, reading: CaseReading, name: str, read: Callable[[Path], ImageFile]) -> NamedImage | None:
        try:
            path = self._files.locate(name)
        except ImageError as error:
            reading.report(name, str(error))
            return None
        image = reading.file(path, read, name)
        return None if image is None else NamedImage(name, image)
