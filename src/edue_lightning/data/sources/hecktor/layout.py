"""File layouts of the HECKTOR releases (Andrearczyk, Oreiller et al., 2020-2026); no image is opened here.

Known layouts, at the data set's folder or below it:

- 2020 (`hecktor_nii/CHGJ007/CHGJ007_ct.nii.gz`, `_pt`, `_ct_gtvt`) and 2021 (`hecktor_nii/CHGJ007_ct.nii.gz`, `_pt`,
  `_gtvt`), only the primary tumour, with a table of bounding boxes;
- 2022 (`imagesTr/CHUM-001__CT.nii.gz`, `__PT`, `labelsTr/CHUM-001.nii.gz`);
- 2025 and 2026 (one folder per case, `CHUM-001/CHUM-001__CT.nii.gz`, `CHUM-001__PT.nii.gz`, `CHUM-001.nii.gz`, in one
  release of 2025 below `Task 1` with copies of the images below `Task 2` and `Task 3`; in 2026 below
  `HECKTOR 2026 Training Data`).

Sources: the organisers' repositories github.com/voreille/hecktor (2020-2022) and
github.com/BioMedIA-MBZUAI/HECKTOR2025, the pages hecktor.grand-challenge.org/Data and
hecktor25.grand-challenge.org/dataset, and for 2020 github.com/iantsen/hecktor (src/data/make_dataset.py).

Labels of further raters lie beside the release's, as `CASE__raterNAME.nii.gz`, or in a folder per rater beside
`labelsTr`, as `labelsTr_NAME/CASE.nii.gz`.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edue_lightning.data.file_source import relative_name
from edue_lightning.data.listing import ListingProblems, find_files, line_break_problem, stem_of
from edue_lightning.errors import UserError

log = logging.getLogger(__name__)

RELEASE = "release"
"""Name of the rater of the labels that the organisers distribute."""

_CASE = r"(?P<case>(?P<centre>[A-Za-z]+)-?[0-9]+)"
_IMAGE = re.compile(_CASE + r"(?:__(?P<upper>CT|PT)|_(?P<lower>ct|pt))")
_LABEL = re.compile(_CASE + r"(?:_(?:ct_)?(?P<structure>gtvt|gtvn))?(?:__rater(?P<rater>.+))?")
_OF_OTHER_TASKS = re.compile(_CASE + r"__(?:CTPlanning|RTDOSE|dosimetry_CT|radiotherapy_dosemaps)")
_LABEL_FOLDER = re.compile(r"labelsTr(?:_(?P<name>.+))?")
_FOLDER_WITHOUT_LABELS = re.compile(
    r"(?:images|labels)Ts(?:_.*)?|.*(?<![a-z])test(?:ing)?(?![a-z]).*|task[ _-]?[23]", re.IGNORECASE
)
_STRUCTURES = {"gtvt": "GTVp", "gtvn": "GTVn"}
_CORNERS = ("x1", "x2", "y1", "y2", "z1", "z2")


@dataclass(frozen=True)
class LabelFiles:
    """Label files of one rater in a case: one for all structures, or one per structure.

    Attributes:
        combined: file of integer labels, 0 background, 1 GTVp (primary tumour), 2 GTVn (lymph nodes), or None.
        structures: file per structure (GTVp, GTVn), 0 background and 1 inside; empty where `combined` is given. The
            releases of 2020 and 2021 have no file of GTVn: nobody looked for it.
    """

    combined: Path | None = None
    structures: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class HecktorCase:
    """Files of a case, with absolute paths.

    Attributes:
        case_id: the organisers' name, such as CHUM-001.
        centre: the hospital, the letters at the start of the name.
        ct: file of the CT, in Hounsfield units.
        pet: file of the PET, in standardised uptake values, on another grid than the CT.
        labels: label files per rater, the organisers' under `RELEASE`.
    """

    case_id: str
    centre: str
    ct: Path
    pet: Path
    labels: Mapping[str, LabelFiles]


@dataclass(frozen=True)
class BoundingBox:
    """Box in space to which a case of 2020 or 2021 is cropped.

    The organisers' first voxel has its centre at the corner with the smallest coordinates in LPS, which is `first`.

    Attributes:
        low: smallest x, y and z in mm, in the RAS world coordinates of NIfTI affines.
        high: largest x, y and z.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def first(self) -> tuple[float, float, float]:
        """Corner to the right, anterior and inferior: the organisers' (x1, y1, z1)."""
        return self.high[0], self.high[1], self.low[2]

    @property
    def last(self) -> tuple[float, float, float]:
        """The opposite corner."""
        return self.low[0], self.low[1], self.high[2]


@dataclass(frozen=True)
class _Part:
    """Meaning of a file, by its name and folder.

    Attributes:
        rater: rater of a label.
        structure: the only structure that a label outlines; empty where it outlines all.
        old: whether an image is named as in 2020 and 2021.
    """

    path: Path
    case_id: str
    centre: str
    kind: Literal["CT", "PET", "label"]
    rater: str = ""
    structure: str = ""
    old: bool | None = None

    @property
    def role(self) -> tuple[str, str, str]:
        """Key that occurs at most once per case."""
        return (self.kind, self.rater, self.structure)

    def __str__(self) -> str:
        if self.kind != "label":
            return f"the {self.kind}"
        return f"the label of rater {self.rater!r}" + (f" for {self.structure}" if self.structure else "")


def list_cases(root: Path, leave_out_unlabelled: bool = False) -> tuple[list[HecktorCase], list[str]]:
    """Find the cases that have labels.

    Folders of test images and, in 2025, those of the tasks without labels are skipped.

    Args:
        root: folder with any of the layouts in it, or at most `DEEPEST` levels below.
        leave_out_unlabelled: whether to leave out cases without any label (2025 has such cases for its other tasks),
            with a line in the log; otherwise they are a problem.

    Returns:
        the complete cases, sorted by name, and one line per problem: file from `root`, case, problem and fix. Both are
        empty for an empty folder.
    """
    problems = ListingProblems(root.resolve())
    parts = _parts(find_files(problems, lambda name: bool(_FOLDER_WITHOUT_LABELS.fullmatch(name))), problems)
    _check_editions(parts, problems)
    parts_of_case: defaultdict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        parts_of_case[part.case_id].append(part)
    if leave_out_unlabelled:
        left_out = [name for name, parts in parts_of_case.items() if all(part.kind != "label" for part in parts)]
        log.info("%d cases without a label are left out: %s", len(left_out), ", ".join(sorted(left_out)))
        for name in left_out:
            del parts_of_case[name]
    cases = [_case(parts_of_case[case_id], problems) for case_id in sorted(parts_of_case)]
    return [case for case in cases if case is not None], problems.lines


def read_bounding_boxes(path: Path) -> dict[str, BoundingBox]:
    """Read the table `bbox.csv` (2020) or `hecktor2021_bbox_training.csv`: PatientID, x1, x2, y1, y2, z1, z2 in mm.

    The file's coordinates are LPS and are turned into RAS: the organisers' src/data/bounding_box.py adds indices times
    spacing to SimpleITK's `GetOrigin()`, and src/resampling/resample_with_boundingbox.py takes (x1, y1, z1) for the
    origin, which is the centre of the first voxel, of a SimpleITK image whose direction is the identity
    (github.com/voreille/hecktor; SimpleITK's physical coordinates are LPS).

    Returns:
        the box per case.

    Raises:
        UserError: if anything is wrong, with one line per problem.
    """
    boxes: dict[str, BoundingBox] = {}
    lines = []
    for number, row in _rows(path):
        case_id = row["PatientID"]
        try:
            if not case_id:
                raise ValueError("PatientID is empty; fill it in")
            if case_id in boxes:
                raise ValueError("has two boxes; remove one")
            boxes[case_id] = _box(row)
        except ValueError as error:
            lines.append(f"{path.name}: line {number}: case {case_id!r}: {error}")
    if lines:
        raise UserError("\n".join(lines))
    return boxes


def _parts(files: Iterable[Path], problems: ListingProblems) -> list[_Part]:
    """Return the meaning of the files; those that belong to no layout are noted."""
    images, others = [], []
    for path in files:
        image = _image(path)
        if image is not None:
            images.append(image)
        elif not _OF_OTHER_TASKS.fullmatch(stem_of(path)):
            others.append(path)
    places = {(image.path.parent, image.case_id) for image in images}
    labels = [_label(path, places, problems) for path in others]
    return [*images, *(label for label in labels if label is not None)]


def _image(path: Path) -> _Part | None:
    match = _IMAGE.fullmatch(stem_of(path))
    if match is None:
        return None
    is_ct = (match["upper"] or match["lower"]).upper() == "CT"
    return _Part(path, match["case"], match["centre"], "CT" if is_ct else "PET", old=match["upper"] is None)


def _label(path: Path, places: Collection[tuple[Path, str]], problems: ListingProblems) -> _Part | None:
    """Return the meaning of a label file, or None if it is unknown, which is noted.

    Args:
        path: path of the file.
        places: folder and name of each case with an image.
        problems: list to which the problem is added.
    """
    match = _LABEL.fullmatch(stem_of(path))
    if match is None:
        names = "CASE__CT, CASE__PT, CASE or CASE__raterNAME"
        problems.add(path, f"has no name of a known release; name it {names}, or move it out of the data set")
        return None
    case_id, of_file = match["case"], match["rater"]
    if not _LABEL_FOLDER.fullmatch(path.parent.name) and (path.parent, case_id) not in places:
        problems.add(path, "is neither in labelsTr nor beside its images; move it there, or remove it", case_id)
        return None
    of_folder = _rater_of_folder(path.parent)
    if of_file and of_folder != RELEASE:
        problems.add(
            path, f"belongs to rater {of_file!r} in the folder of {of_folder!r}; keep one of the names", case_id
        )
        return None
    return _Part(
        path,
        case_id,
        match["centre"],
        "label",
        rater=of_file or of_folder,
        structure=_STRUCTURES.get(match["structure"], ""),
    )


def _rater_of_folder(folder: Path) -> str:
    match = _LABEL_FOLDER.fullmatch(folder.name)
    name = match["name"] if match else None
    # a resampled or cropped copy of the release, as the organisers' scripts write it, is no further rater
    if name is None or (folder.parent / f"imagesTr_{name}").is_dir():
        return RELEASE
    return name


def _check_editions(parts: Sequence[_Part], problems: ListingProblems) -> None:
    """Note two editions in one folder: they share patients, which would be in training and test."""
    old = next((part.path for part in parts if part.old is True), None)
    new = next((part.path for part in parts if part.old is False), None)
    if old and new:
        other = relative_name(new, problems.root)
        editions = f"is named as in 2020 and 2021, but {other} as in 2022 and later"
        problems.add(old, f"{editions}: they share patients under different names; set data.root to one edition")


def _case(parts: Sequence[_Part], problems: ListingProblems) -> HecktorCase | None:
    """Put a case together; None if something is wrong with it, which is noted."""
    before = len(problems.lines)
    by_role: dict[tuple[str, str, str], _Part] = {}
    for part in parts:
        first = by_role.setdefault(part.role, part)
        if first is not part:
            problems.add_twice(part.path, first.path, str(part), part.case_id)
    ct, pet = by_role.get(("CT", "", "")), by_role.get(("PET", "", ""))
    labels = [part for part in by_role.values() if part.kind == "label"]
    _check_complete(ct, pet, labels, problems)
    files = _label_files(labels, problems)
    if ct is None or pet is None or len(problems.lines) > before:
        return None
    return HecktorCase(ct.case_id, ct.centre, ct.path, pet.path, files)


def _check_complete(ct: _Part | None, pet: _Part | None, labels: Sequence[_Part], problems: ListingProblems) -> None:
    if ct and not pet:
        problems.add(ct.path, "is a CT without a PET; add the PET, or remove the case", ct.case_id)
    if pet and not ct:
        problems.add(pet.path, "is a PET without a CT; add the CT, or remove the case", pet.case_id)
    if ct and pet and not labels:
        fix = "add it to labelsTr or beside the CT, or set data.source.leave_out_unlabelled=true"
        problems.add(ct.path, f"has no label; {fix}", ct.case_id)
    if not ct and not pet:
        for label in labels:
            problems.add(label.path, "labels a case without images; add its CT and PET, or remove it", label.case_id)


def _label_files(labels: Sequence[_Part], problems: ListingProblems) -> dict[str, LabelFiles]:
    """Return the files per rater; a rater with both kinds is noted."""
    files = {}
    for rater in sorted({label.rater for label in labels}):
        of_structure = {label.structure: label for label in labels if label.rater == rater}
        combined = of_structure.pop("", None)
        single = next(iter(of_structure.values()), None)
        if combined and single:
            other = relative_name(single.path, problems.root)
            both = f"outlines all structures for rater {rater!r}, and {other} only {single.structure}"
            problems.add(combined.path, f"{both}; keep one kind", combined.case_id)
        structures = {name: of_structure[name].path for name in _STRUCTURES.values() if name in of_structure}
        files[rater] = LabelFiles(combined.path if combined else None, structures)
    return files


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table of boxes with their line numbers.

    Raises:
        UserError: if it cannot be read or has no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            first = next(reader, [])
            _require_single_lines(path, reader.line_num, first, first)
            header, lines = [name.strip() for name in first], []
            for texts in reader:
                _require_single_lines(path, reader.line_num, header, texts)
                if any(texts):
                    lines.append((reader.line_num, [text.strip() for text in texts]))
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: is not UTF-8; save it as CSV UTF-8") from error
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path.name}: cannot be read as CSV ({reason}); correct it, or its name") from error
    missing = [name for name in ("PatientID", *_CORNERS) if name not in header]
    if missing:
        first_line = ",".join(("PatientID", *_CORNERS))
        raise UserError(f"{path.name}: has no column {', '.join(missing)}; its first line must be {first_line}")
    if not lines:
        raise UserError(f"{path.name}: has no rows; write one row per case")
    # a truncated row lacks numbers, which is reported with its line
    return [(number, defaultdict(str, zip(header, texts, strict=False))) for number, texts in lines]


def _require_single_lines(path: Path, last: int, header: Sequence[str], texts: Sequence[str]) -> None:
    """Check that a row ends on the line on which it begins.

    Args:
        path: table of boxes.
        last: last line of the row.
        header: names of the columns.
        texts: cells of the row.

    Raises:
        UserError: if it does not.
    """
    breaks = sum(text.count("\n") for text in texts)
    problem = line_break_problem(last - breaks, zip(header, texts, strict=False))
    if problem is not None:
        raise UserError(f"{path.name}: {problem}")


def _box(row: Mapping[str, str]) -> BoundingBox:
    """Return a row's box in RAS.

    Raises:
        ValueError: if it is invalid, with the reason and the fix.
    """
    corners = {name: _number(name, row[name]) for name in _CORNERS}
    for axis in "xyz":
        low, high = corners[f"{axis}1"], corners[f"{axis}2"]
        if high <= low:
            raise ValueError(f"{axis}2 is {high:g}, not above {axis}1, which is {low:g}; correct them")
    # x and y point in opposite directions in LPS and RAS, so the largest becomes the smallest
    return BoundingBox(
        low=(-corners["x2"], -corners["y2"], corners["z1"]),
        high=(-corners["x1"], -corners["y1"], corners["z2"]),
    )


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {text!r}, not a number; correct it")
    return number
