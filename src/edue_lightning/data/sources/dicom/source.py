"""Patients' folders of DICOM files as a source of multi-rater cases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.dicom_masks import open_masks
from edue_lightning.data.dicom_objects import ImagePlace, MasksHeader
from edue_lightning.data.dicom_series import read_header, read_voxels, series_header
from edue_lightning.data.file_source import CaseReading, FileCase, FileSource, problem_line, relative_name, stack_case
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import ImageError, ImageFile, canonical
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.dicom.layout import DicomCase, list_dicom
from edue_lightning.errors import UserError
from edue_lightning.text import named, natural_key

Rater = Literal["label", "file", "operator"]
Absent = Literal["refuse", "empty"]
_ELEMENTS: Mapping[Rater, str] = {
    "label": "StructureSetLabel or ContentLabel",
    "operator": "OperatorsName or ContentCreatorName",
    "file": "file name",
}


class DicomSource(FileSource):
    """Patients' folders, each with a DICOM series and the RTSTRUCT and SEG objects of several raters.

    Each folder of `root` is a case; below it, files may have any names and lie in any folders. The objects that refer
    to the series are its raters; the structure of a mask is the name of its region or segment. Cases of one PatientID
    stay in one split. What is left out (localizers, other modalities, objects of other series) is named in a warning.

    Args:
        root: folder with one folder per patient.
        rater: where the name of the rater stands: `label`, the label of the object (StructureSetLabel of RTSTRUCT,
            ContentLabel of SEG); `operator`, the person (OperatorsName, ContentCreatorName); or `file`, the file's name
            without its ending. Upper and lower case do not count: ContentLabel has upper case alone.
        structures: names of the structures, in this order; None for all, in order of first appearance. Upper and lower
            case and blanks at the ends do not count.
        name_pattern: regular expression for the names of regions and segments, with a group `structure` and optionally
            one `rater`, which goes before `rater`; names that it does not match whole are left out. None for names that
            are those of the structures.
        absent: `refuse`, or `empty` if a rater whose object lacks a structure outlined nothing of it.
        modalities: modalities of the image series.
        series: UID or description of the series to take, or a list of these, with `*` for any characters; None if each
            folder has one series.
        threshold: for fractional segmentations, the stored value above which a voxel is marked; None to refuse them.
        standardise: whether to bring the image to mean 0 and standard deviation 1.
        cache: see `FileSource`.
        exclusive: whether the structures exclude each other, see `CaseSource`.

    Raises:
        UserError: if the folder does not exist, or a setting is invalid.
    """

    def __init__(
        self,
        root: str | None = None,
        rater: Rater = "label",
        structures: Sequence[str] | None = None,
        name_pattern: str | None = None,
        absent: Absent = "refuse",
        modalities: Sequence[str] = ("CT", "MR"),
        series: str | Sequence[str] | None = None,
        threshold: float | None = None,
        standardise: bool = True,
        cache: str | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(root, cache, exclusive)
        _require_choice("rater", rater, get_args(Rater))
        _require_choice("absent", absent, get_args(Absent))
        if structures is not None and not structures:
            raise UserError("data.source.structures: is empty; name at least one structure, or set it to null")
        repeated = [name for name, count in Counter(_key(name) for name in structures or ()).items() if count > 1]
        if repeated:
            raise UserError(f"data.source.structures: names {repeated[0]!r} twice; name each structure once")
        self._rater: Rater = rater
        self._pattern = None if name_pattern is None else _compiled(name_pattern)
        self._threshold = threshold
        self._stacked = self.preparation({"standardise": standardise})
        # a command line may give a number
        wanted = [] if series is None else list(map(str, series if isinstance(series, list | tuple) else [series]))
        listing = list_dicom(self.root, list(modalities), wanted)
        for line in listing.warnings:
            self.warn(line)
        problems = [*listing.problems]
        found = {case.case_id: _Drawn(self, case, problems) for case in listing.cases}
        self._cases = {case.case_id: case for case in listing.cases}
        self.structures = self._structures(structures, list(found.values()), problems)
        self._drawn: dict[str, dict[tuple[str, str], tuple[Path, int] | None]] = {}
        raters: dict[str, str] = {}
        for drawn in found.values():
            raters = {**drawn.raters, **raters}
        for case_id, drawn in found.items():
            self._drawn[case_id] = drawn.of(raters, self.structures, absent, problems)
        self.raters: tuple[str, ...] = tuple(
            sorted({rater for drawn in self._drawn.values() for rater, _ in drawn}, key=natural_key)
        )
        kinds = Counter(header.kind for case in listing.cases for header in case.masks.values())
        names = {"structures": "RTSTRUCT", "segments": "SEG"}
        self.facts = {"objects": ", ".join(f"{count} {names[kind]}" for kind, count in sorted(kinds.items()))}
        settings = {"standardise": standardise, "raters": list(self.raters), "structures": list(self.structures)}
        if threshold is not None:
            settings["threshold"] = threshold
        # the others are among the problems
        drawn_cases = [case for case in listing.cases if self._drawn[case.case_id]]
        self.check([self._file_case(case) for case in drawn_cases], problems, settings)

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:
        """Return how image files become channels, see `CaseSource.preparation`."""
        return Stacked(standardise=bool(settings.get("standardise", True)))

    def name_of(self, path: Path, header: MasksHeader, label: str) -> tuple[str, str] | None:
        """Return the rater and structure of a region or segment; None if the pattern leaves it out.

        Raises:
            ImageError: if the object does not name its rater.
        """
        structure, rater = label.strip(), ""
        if self._pattern is not None:
            match = self._pattern.fullmatch(structure)
            if match is None:
                return None
            structure, rater = match["structure"].strip(), (match.groupdict().get("rater") or "").strip()
        return rater or self.rater_of(path, header), structure

    @property
    def names_hold_raters(self) -> bool:
        """Whether the names of regions and segments say whose they are, so that an object may be of several raters."""
        return self._pattern is not None and "rater" in self._pattern.groupindex

    def rater_of(self, path: Path, header: MasksHeader) -> str:
        """Return the rater of an object.

        Raises:
            ImageError: if the object does not name its rater.
        """
        rater = {"label": header.label, "operator": header.operator, "file": path.stem}[self._rater]
        if not rater:
            others = ", ".join(name for name in get_args(Rater) if name != self._rater)
            raise ImageError(f"has no {_ELEMENTS[self._rater]}; fill it in, or set data.source.rater to {others}")
        return rater

    def line(self, path: Path, case_id: str, problem: str) -> str:
        """Return a problem of a file in one line."""
        return problem_line(relative_name(path, self.root), case_id, problem)

    def _structures(
        self, chosen: Sequence[str] | None, found: Sequence[_Drawn], problems: list[str]
    ) -> tuple[str, ...]:
        names: dict[str, str] = {}
        for drawn in found:
            for _, structure in drawn.masks:
                names.setdefault(structure, drawn.spelling[structure])
        if chosen is None:
            return tuple(names.values())
        absent = [name for name in chosen if _key(name) not in names]
        if absent and found:
            problems.append(
                f"data.source.structures: no file has {', '.join(absent)}; choose among {', '.join(names.values())}"
            )
        return tuple(name.strip() for name in chosen)

    def mask_name(self, case: FileCase, rater: int, structure: str) -> str:
        """Return the name of the object with a rater's mask of a structure, see `FileSource.mask_name`."""
        drawn = self._drawn[case.record.case_id].get((self.raters[rater], structure))
        return super().mask_name(case, rater, structure) if drawn is None else relative_name(drawn[0], self.root)

    def _file_case(self, case: DicomCase) -> FileCase:
        files = {relative_name(path, self.root): path for path in (*case.slices, *case.masks)}
        drawn = self._drawn[case.case_id]
        details = {
            "masks": [
                [*key, None if of is None else [relative_name(of[0], self.root), of[1]]] for key, of in drawn.items()
            ]
        }
        return FileCase(CaseRecord(case.case_id, case.patient or case.case_id), files, details)

    def _read(self, case: FileCase) -> RaterSample:
        case_id = case.record.case_id
        reading = CaseReading(case_id, self.root)
        image, place = self._image(reading, case_id)
        masks: dict[tuple[str, str], NDArray[np.bool_] | None] = {}
        for path in self._cases[case_id].masks:
            wanted = {key: of[1] for key, of in self._drawn[case_id].items() if of is not None and of[0] == path}
            try:
                opened = open_masks(path)
                for key, number in wanted.items():
                    mask = opened.mask(number, place, self._threshold)
                    masks[key] = canonical(ImageFile(mask, affine=image.affine)).array.astype(bool)
            except ImageError as error:
                reading.report(path, str(error))
        reading.finish()
        turned = canonical(image)
        return stack_case(
            case_id,
            self._stacked.channels([turned]),
            {key: masks.get(key) for key in self._drawn[case_id]},
            self.raters,
            self.structures,
            spacing=turned.spacing,
            affine=turned.affine,
            origin=turned.origin,
            content=content_digest([turned.array]),
        )

    def _image(self, reading: CaseReading, case_id: str) -> tuple[ImageFile, ImagePlace]:
        """Return the image of a case as it is stored.

        Raises:
            CaseError: if it cannot be read.
        """
        try:
            header = series_header([(path, read_header(path)) for path in self._cases[case_id].slices])
            return ImageFile(read_voxels(header), header.spacing, header.affine), ImagePlace.of_series(header)
        except ImageError as error:
            reading.report(self.root / case_id, str(error))
        reading.finish()
        raise AssertionError("a problem was reported")


class _Drawn:
    """Structures that raters drew, in the objects of a case.

    Attributes:
        masks: file and number of each rater's structures, both names in lower case.
        spelling: name of each structure as it was written first.
        raters: name of each rater as it was written first, by its name in lower case.
    """

    def __init__(self, source: DicomSource, case: DicomCase, problems: list[str]) -> None:
        self.source = source
        self.case_id = case.case_id
        self.masks: dict[tuple[str, str], tuple[Path, int]] = {}
        self.spelling: dict[str, str] = {}
        self.raters: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        before = len(problems)
        for path, header in case.masks.items():
            try:
                added = [self._add(path, header, number, label) for number, label in header.labels.items()]
                if not source.names_hold_raters:
                    # whatever it holds
                    self._add_rater(source.rater_of(path, header), path)
                elif not any(added):
                    source.warn(source.line(path, self.case_id, "no name matches data.source.name_pattern, no rater"))
            except ImageError as error:
                problems.append(source.line(path, self.case_id, str(error)))
        if not self.masks and len(problems) == before:
            names = [label.strip() for header in case.masks.values() for label in header.labels.values()]
            problem = "has RTSTRUCT or SEG objects without a region or segment; add one, or move the folder away"
            if names:
                problem = f"data.source.name_pattern matches none of its structures ({named(names)}); correct it"
            problems.append(source.line(source.root / case.case_id, case.case_id, problem))

    def _add(self, path: Path, header: MasksHeader, number: int, label: str) -> bool:
        """Add a region or segment, and return whether its name is one that is wanted."""
        found = self.source.name_of(path, header, label)
        if found is None:
            return False
        rater, structure = found
        key = (rater.casefold(), structure.casefold())
        if key in self.masks:
            first = relative_name(self.masks[key][0], self.source.root)
            raise ImageError(
                f"holds {structure!r} of rater {rater!r}, and so does {first}; name the raters apart "
                "(data.source.rater, data.source.name_pattern), or remove one"
            )
        self.masks[key] = path, number
        self.spelling.setdefault(key[1], structure)
        self._add_rater(rater, path)
        return True

    def _add_rater(self, rater: str, path: Path) -> None:
        self.raters.setdefault(rater.casefold(), rater)
        self.files.setdefault(rater.casefold(), path)

    def of(
        self, raters: Mapping[str, str], structures: Sequence[str], absent: Absent, problems: list[str]
    ) -> dict[tuple[str, str], tuple[Path, int] | None]:
        """Return the file and number of each rater's structures; None for an empty one.

        Args:
            raters: name of each rater in all cases, by the name in lower case.
            structures: names of the structures.
            absent: see `DicomSource`.
            problems: list to which a line per missing structure is added.
        """
        found: dict[tuple[str, str], tuple[Path, int] | None] = {}
        for rater, path in self.files.items():
            missing = [name for name in structures if (rater, name.casefold()) not in self.masks]
            if missing and absent == "refuse":
                problem = (
                    f"rater {raters[rater]!r} has no {named(missing)}; add it, choose others with "
                    "data.source.structures, or set data.source.absent=empty if that means that the rater outlined "
                    "nothing"
                )
                problems.append(self.source.line(path, self.case_id, problem))
            for name in structures:
                found[raters[rater], name] = self.masks.get((rater, name.casefold()))
        return found


def _key(name: str) -> str:
    """Return a name as it is compared, without blanks around it and in lower case."""
    return name.strip().casefold()


def _require_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"data.source.{name}={value}: choose among {', '.join(known)}")


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise UserError(
            f"data.source.name_pattern={pattern}: is no regular expression ({error}); correct it"
        ) from error
    if "structure" not in compiled.groupindex:
        raise UserError(f"data.source.name_pattern={pattern}: has no group (?P<structure>...); add it")
    return compiled
