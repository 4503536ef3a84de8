"""The layout of QUBIQ (Menze et al., 2020 and 2021) on disk; no image is opened here.

`brain-growth/Training/case01/image.nii.gz`, `task01_seg01.nii.gz`, ...: one folder per case, one file
per rater and task. The parts Training, Validation and Testing come in archives of their own (`training_data_v3_QC`,
`validation_data_qubiq2021_QC`, `QUBIQ21_test`). The two data sets of the pancreas have their cases right below the data
set's folder, such as `training_data_v3_QC/pancreas/case1-1`: there the archive's name gives the part.

Sources: the challenge's pages qubiq.grand-challenge.org/participation and qubiq21.grand-challenge.org, and what
participants published: github.com/Jimut123/MICCAI_QUBIQ_21 (lists of files, shapes) and
github.com/dewenzeng/qubiq2021_uncertainty (the pancreas' folders).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edue_lightning.data.listing import ListingProblems, find_files, stem_of

_MASK = re.compile(r"(?:task(?P<task>[0-9]+)|case[0-9]+(?:-[0-9]+)?)_seg(?P<rater>[0-9]+)", re.IGNORECASE)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PARTS = ("Training", "Validation", "Testing")
_ARCHIVES = {
    "Training": re.compile(r"training_data.*", re.IGNORECASE),
    "Validation": re.compile(r"validation_data.*", re.IGNORECASE),
    "Testing": re.compile(r"qubiq[0-9]*_test|test_qubiq[0-9]*", re.IGNORECASE),
}


@dataclass(frozen=True)
class QubiqCase:
    """The files of a case, their paths absolute.

    Attributes:
        case_id: part and folder, such as Training_case01; the folder alone if the part is unknown.
        patient: name of the patient, whose cases stay in one split: case1-1 and case1-2 of the pancreas are one.
        split_hint: "test" for Validation, the only part besides Training that is public with masks, and for Testing if
            its masks are there; None for Training, from which validation cases must still be drawn.
        image: image file; in brain-tumor `[240, 240, 4]`, a slice with its modalities along the third axis; in the
            pancreas' data sets a volume; in all others a slice.
        masks: mask file of each rater ("01", ...) and task ("task01", ...); some cases lack a rater.
    """

    case_id: str
    patient: str
    split_hint: Literal["train", "val", "test"] | None
    image: Path
    masks: Mapping[tuple[str, str], Path]


@dataclass(frozen=True)
class _Folder:
    """A case's folder with its NIfTI files, sorted by their names into images and masks."""

    path: Path
    images: Sequence[Path]
    masks: Sequence[tuple[tuple[str, str], Path]]

    @property
    def data_set(self) -> str:
        parent = self.path.parent
        return parent.parent.name if _part_of_name(parent.name) else parent.name

    @property
    def part(self) -> str:
        """Part of the release that the folder belongs to; empty if no folder above names one."""
        parent = self.path.parent
        if part := _part_of_name(parent.name):
            return part
        return next((part for folder in parent.parents if (part := _part_of_archive(folder.name))), "")

    @property
    def case_id(self) -> str:
        return "_".join(filter(None, (self.part, self.path.name)))


def list_qubiq(root: Path, data_set: str | None = None) -> tuple[list[QubiqCase], list[str]]:
    """Find the cases of one data set that have masks.

    Args:
        root: folder of one data set, such as `brain-growth`, or any folder above or below it; at most `DEEPEST` levels
            are searched.
        data_set: name of the data set to take if there are several below `root`, as in the unpacked archives, or None.

    Returns:
        the complete cases, sorted by name, and one line per problem: file from `root`, case, problem and fix. Both are
        empty for an empty folder, and for one of test images without masks.
    """
    problems = ListingProblems(root.resolve())
    files = find_files(problems, lambda _: False)
    folders = _case_folders(files)
    names = sorted({folder.data_set for folder in folders})
    if data_set is None and len(names) > 1:
        several = ListingProblems(problems.root)
        several.add(
            several.root,
            f"holds the data sets {', '.join(names)}; set data.source.data_set to one of them, or choose its folder",
        )
        return [], several.lines
    if data_set is not None and data_set not in names:
        others = ", ".join(names) or "none"
        problems.add(
            problems.root, f"holds no data set {data_set!r}, but {others}; correct data.source.data_set or the folder"
        )
    chosen = [folder for folder in folders if data_set in (None, folder.data_set)]
    _check_names([path for path in files if data_set is None or data_set in path.parts], problems)
    found: dict[str, _Folder] = {}
    cases = []
    for folder in chosen:
        first = found.setdefault(folder.case_id, folder)
        if first is not folder:
            problems.add_twice(folder.path, first.path, "this case", folder.case_id)
        elif case := _case(folder, problems):
            cases.append(case)
    return sorted(cases, key=lambda case: case.case_id), problems.lines


def _case_folders(files: Sequence[Path]) -> list[_Folder]:
    images: defaultdict[Path, list[Path]] = defaultdict(list)
    masks: defaultdict[Path, list[tuple[tuple[str, str], Path]]] = defaultdict(list)
    for path in files:
        if _is_image(path):
            images[path.parent].append(path)
        elif key := _mask_key(path):
            masks[path.parent].append((key, path))
    return [_Folder(path, images[path], masks[path]) for path in sorted({*images, *masks})]


def _check_names(files: Sequence[Path], problems: ListingProblems) -> None:
    for path in files:
        if not _is_image(path) and not _mask_key(path):
            problems.add(path, "is named neither image nor taskNN_segNN; rename it, or move it out of the data set")


def _case(folder: _Folder, problems: ListingProblems) -> QubiqCase | None:
    """Return the case of a folder; None if it has a problem, which is noted, or no masks."""
    case_id = folder.case_id
    before = len(problems.lines)
    if not _FILE_NAME.fullmatch(folder.path.name):
        problems.add(folder.path, "cannot be a file name; use letters, digits, '.', '_' and '-'", case_id)
    if not folder.images:
        problems.add(folder.masks[0][1], "is a mask without image.nii.gz beside it; add that", case_id)
    for path in folder.images[1:]:
        problems.add_twice(path, folder.images[0], "the image", case_id)
    masks: dict[tuple[str, str], Path] = {}
    for key, path in sorted(folder.masks):
        first = masks.setdefault(key, path)
        if first is not path:
            problems.add_twice(path, first, f"the mask of rater {key[0]!r} for {key[1]}", case_id)
    if not masks and folder.part != "Testing":
        problems.add(folder.images[0], "has no mask beside it; add taskNN_segNN.nii.gz, or remove the case", case_id)
    if not masks or len(problems.lines) > before:
        return None
    return QubiqCase(
        case_id=case_id,
        patient=re.sub(r"-[0-9]+$", "", case_id),
        split_hint="test" if folder.part in ("Validation", "Testing") else None,
        image=folder.images[0],
        masks=masks,
    )


def _is_image(path: Path) -> bool:
    return stem_of(path).lower() == "image"


def _mask_key(path: Path) -> tuple[str, str] | None:
    """Return rater and task of a mask, or None; some copies of data sets with one task name masks after the case."""
    match = _MASK.fullmatch(stem_of(path))
    return (f"{int(match['rater']):02d}", f"task{int(match['task'] or 1):02d}") if match else None


def _part_of_name(name: str) -> str:
    return next((part for part in _PARTS if name.lower() == part.lower()), "")


def _part_of_archive(name: str) -> str:
    return next((part for part, archive in _ARCHIVES.items() if archive.fullmatch(name)), "")
