"""The rows of a manifest, checked and grouped into cases; the files that it names are not opened here."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pandas as pd

from edue_lightning.data.label_maps import MOST_LABEL
from edue_lightning.data.listing import line_break_problem
from edue_lightning.data.source import CaseRecord, Split
from edue_lightning.data.votes import MOST_RATERS
from edue_lightning.text import (
    NO_FILE_NAME,
    can_be_in_file_name,
    is_plain_name,
    natural_key,
    one_line,
    reason_of,
    spelling_problems,
    times,
)

log = logging.getLogger(__name__)

REQUIRED = ("case_id", "image", "mask", "rater", "structure")
VOTES = ("case_id", "image", "votes", "n_raters", "structure")
"""Required columns of a table of votes, which has no masks of single raters."""
OPTIONAL = ("split", "patient", "spacing", "region", "label", "segment", "rater_position")
PARQUET = ".parquet"
TABLES = (".csv", PARQUET)
_LABEL_BREAK = re.compile(r"\s*[,;]\s*|\s+")
_SPACING_BREAK = re.compile(r"\s*x\s*|\s+")


@dataclass(frozen=True)
class ManifestCase:
    """One case of a manifest, its files as the manifest names them.

    Attributes:
        record: name, patient and prescribed split of the case.
        images: image files, whose channels are stacked in this order.
        masks: mask file of each rater and structure; the empty string if the rater outlined nothing.
        spacing: voxel size in mm along each spatial axis, or None if the manifest has none.
        region: mask file of the voxels that count, the empty string if all do.
        labels: for each mask file that is a label map, the numbers of the structure in it.
        segments: for mask files that name their structures, the name or number of the segment, if it is not the
            structure's name.
    """

    record: CaseRecord
    images: tuple[str, ...]
    masks: Mapping[tuple[str, str], str]
    spacing: tuple[float, ...] | None
    region: str = ""
    labels: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    segments: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class ManifestTable:
    """A whole manifest.

    Attributes:
        cases: cases by their names, in order of first appearance; incomplete if there are problems.
        raters: names of all raters, by the column `rater_position`, or in natural order without it.
        structures: names of the chosen structures.
        problems: one line per problem, with the file, the case and the fix.
        labels: numbers of all structures in the table's label maps, chosen or not; None if no mask is a label map.
        votes: whether files hold the raters' votes; the masks of `level k` then name the file of votes.
    """

    cases: Mapping[str, ManifestCase]
    raters: tuple[str, ...]
    structures: tuple[str, ...]
    problems: Sequence[str]
    labels: Mapping[str, tuple[int, ...]] | None = None
    votes: bool = False


@dataclass(frozen=True)
class _Row:
    line: int
    fields: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.fields.get(column, "")


def read_table(
    path: Path, structures: Sequence[str] | None, labels: Mapping[str, tuple[int, ...]] | None = None
) -> ManifestTable:
    """Read a manifest and check everything that can be checked without opening another file.

    Args:
        path: CSV file, or Parquet file with the same columns.
        structures: structures to keep, in this order; None for all, in order of first appearance.
        labels: numbers of each structure if every mask file is a label map of all of them; the table then has one row
            per case and rater, without a structure.
    """
    try:
        columns, all_rows = _read_rows(path, REQUIRED if labels is None else REQUIRED[:-1])
    except ValueError as error:
        return ManifestTable({}, (), (), [one_line(f"{path.name}: {error}")])
    image_columns = _image_columns(columns)
    problems = _Problems(path.name)
    _check_columns(columns, image_columns, problems)
    votes = "votes" in columns
    if votes:
        all_rows = _row_per_level(all_rows, problems)

    if labels is not None:
        all_rows = _row_per_structure(all_rows, labels, problems)
    rows = _complete_rows(all_rows, problems)
    numbers = _numbers(rows, problems)
    found = dict.fromkeys(row["structure"] for row in rows)
    chosen = tuple(found if structures is None else structures)
    _check_structures(chosen, found, problems)
    for column in ("rater", "structure", "patient"):
        for line in spelling_problems(column, (row[column] for row in rows)):
            problems.add(line)
    rows_of_case: defaultdict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        members = rows_of_case[row["case_id"]]
        if row["structure"] in chosen:
            members.append(row)
    left_out = len(rows) - sum(map(len, rows_of_case.values()))
    if left_out:
        log.info("%s: %d rows of structures other than %s are left out", path.name, left_out, ", ".join(chosen))

    cases = {}
    for case_id, members in rows_of_case.items():
        is_named = is_plain_name(case_id)
        if not is_named:
            problems.add(NO_FILE_NAME, case_id)
        if members:
            case = _case(case_id, members, image_columns, chosen, problems)
            if is_named:
                cases[case_id] = case
        else:
            problems.add(f"no rater has a row of {', '.join(chosen)}; add one, or remove the case", case_id)
    _check_splits(list(cases.values()), problems)
    raters = sorted({rater for case in cases.values() for rater, _ in case.masks}, key=natural_key)
    position_of = _rater_positions(rows, problems)
    if position_of:
        raters.sort(key=lambda rater: position_of[rater])
    return ManifestTable(cases, tuple(raters), chosen, problems.lines, numbers or None, votes)


def _row_per_level(rows: Sequence[_Row], problems: _Problems) -> list[_Row]:
    """Return one row per level for each row of votes, as if level k were the mask of a rater."""
    found = []
    for row in rows:
        number = int(row["n_raters"]) if row["n_raters"].isascii() and row["n_raters"].isdigit() else 0
        wrong = [column for column in ("mask", "rater", "label") if row[column]]
        if wrong:
            problems.add(f"line {row.line}: {wrong[0]} must be empty beside votes; remove one", row["case_id"] or None)
        elif not 1 <= number <= MOST_RATERS:
            problems.add(
                f"line {row.line}: n_raters {row['n_raters']!r} is no whole number from 1 to {MOST_RATERS}; write how "
                "many raters voted",
                row["case_id"] or None,
            )
        elif not row["votes"]:
            problems.add(f"line {row.line}: votes is empty; name its file", row["case_id"] or None)
        else:
            levels = ({"mask": row["votes"], "rater": f"level {level}"} for level in range(1, number + 1))
            found += [_Row(row.line, {**row.fields, **level}) for level in levels]
    return found


def _row_per_structure(rows: Sequence[_Row], labels: Mapping[str, tuple[int, ...]], problems: _Problems) -> list[_Row]:
    """Return one row per structure for each row of a label map."""
    found = []
    for row in rows:
        named = [column for column in ("structure", "label") if row[column]]
        if named:
            problems.add(f"line {row.line}: {named[0]} must be empty, as data.source.labels names all", row["case_id"])
            continue
        for structure, numbers in labels.items():
            written = " ".join(map(str, numbers))
            found.append(_Row(row.line, {**row.fields, "structure": structure, "label": written}))
    return found


def _numbers(rows: Sequence[_Row], problems: _Problems) -> dict[str, tuple[int, ...]]:
    """Return the numbers of each structure in label maps, which must be the same in all rows that give them."""
    found: dict[str, tuple[int, ...]] = {}
    for row in rows:
        if not row["label"]:
            continue
        numbers = parse_label(row["label"])
        if row["segment"]:
            problems.add(f"line {row.line}: has a label and a segment; remove one", row["case_id"])
        elif numbers is None:
            problems.add(
                f"line {row.line}: label {row['label']!r} is no list of whole numbers from 1 to 255, such as 2 or 1 2; "
                "correct it",
                row["case_id"],
            )
        elif found.setdefault(row["structure"], numbers) != numbers:
            first = " ".join(map(str, found[row["structure"]]))
            problems.add(
                f"line {row.line}: structure {row['structure']!r} has the label {row['label']!r}, but {first!r} in an "
                "earlier row; write the same in all rows",
                row["case_id"],
            )
    return found


def parse_label(text: str) -> tuple[int, ...] | None:
    """Read numbers such as `2`, `1 2`, `1,2` or `[1, 2]`; None if it is no list of numbers from 1 to 255.

    >>> parse_label("[1, 2]"), parse_label("0"), parse_label("one")
    ((1, 2), None, None)
    """
    parts = _LABEL_BREAK.split(text.strip().strip("[]()").strip())
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MOST_LABEL for part in parts):
        return None
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class ImageRows:
    """The image columns of a table.

    Attributes:
        cases: image files of each case, as the table names them, and its spacing or None.
        problems: pairs of a case or line and its problem.
    """

    cases: Mapping[str, tuple[tuple[str, ...], tuple[float, ...] | None]]
    problems: Sequence[tuple[str, str]]


def read_images(path: Path) -> ImageRows:
    """Read the columns `case_id, image[, image2...]` and `spacing` of a table; others are ignored.

    All rows of a case, such as a manifest's one row per mask, must agree.

    Args:
        path: CSV or Parquet file.

    Raises:
        ValueError: with the reason, if the table cannot be read.
    """
    columns, rows = _read_rows(path, ("case_id", "image"))
    image_columns = _image_columns(columns)
    cases: dict[str, tuple[tuple[str, ...], tuple[float, ...] | None]] = {}
    problems: dict[str, str] = {}
    for row in rows:
        name = row["case_id"] or f"line {row.line}"
        images = tuple(row[column] for column in image_columns)
        if not is_plain_name(row["case_id"]):
            problems[name] = f"its case_id {NO_FILE_NAME}"
        elif not all(images):
            problems[name] = f"{image_columns[images.index('')]} is empty; name its file"
        else:
            try:
                found = images, parse_spacing(row["spacing"])
            except ValueError as error:
                problems[name] = f"spacing is {error}"
                continue
            if cases.setdefault(name, found) != found:
                problems[name] = "its rows differ in image or spacing; write the same in all"
    return ImageRows(
        {name: case for name, case in cases.items() if name not in problems},
        [(one_line(name), one_line(problem)) for name, problem in problems.items()],
    )


def parse_spacing(text: str) -> tuple[float, ...] | None:
    """Read a spacing in mm, such as `0.7x0.7` or `0.7 0.7 3`; an empty text gives None.

    >>> parse_spacing("0.7x0.7")
    (0.7, 0.7)

    Raises:
        ValueError: if the text is not two or three positive numbers.
    """
    if not text:
        return None
    spacing = tuple(float(part) for part in _SPACING_BREAK.split(text.strip().lower()))
    if len(spacing) not in (2, 3) or not all(0 < size < math.inf for size in spacing):
        raise ValueError(f"not two or three positive numbers: {text!r}")
    return spacing


class _Problems:
    def __init__(self, manifest: str) -> None:
        self.manifest = manifest
        self.lines: list[str] = []

    def add(self, problem: str, case_id: str | None = None) -> None:
        case = f"case {case_id!r}: " if case_id is not None else ""
        self.lines.append(one_line(f"{self.manifest}: {case}{problem}"))


def _image_columns(columns: Sequence[str]) -> list[str]:
    found = ["image"]
    while (column := f"image{len(found) + 1}") in columns:
        found.append(column)
    return found


def _read_rows(path: Path, required: Sequence[str]) -> tuple[list[str], list[_Row]]:
    """Return the columns and the rows, their fields stripped, without blank rows.

    Raises:
        ValueError: with the reason, if there are no rows to check.
    """
    # reading a pipe would block, and a device may have no end
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("is no regular file; put the table itself there")
    try:
        fields_of_line = _read_parquet(path) if path.suffix == PARQUET else _read_csv(path)
    except FileNotFoundError as error:
        raise ValueError("not found; set data.root to the folder with this file") from error
    # until then, each row is one line
    for line, fields in enumerate(fields_of_line, 1):
        broken = line_break_problem(line, zip(fields_of_line[0], fields, strict=True))
        if broken is not None:
            raise ValueError(broken)
    header, *lines = ([field.strip() for field in fields] for fields in fields_of_line)
    if "votes" in header and "mask" in required:
        required = VOTES
    missing = [column for column in required if column not in header]
    if missing:
        raise ValueError(f"has no column {', '.join(missing)} among {', '.join(header)}; add it, with commas")
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        raise ValueError(f"has two columns {', '.join(twice)}; remove one")
    rows = [
        _Row(number, dict(zip(header, fields, strict=True))) for number, fields in enumerate(lines, 2) if any(fields)
    ]
    if not rows:
        raise ValueError(f"has no rows; write one per {'mask' if 'mask' in required else 'case'}")
    return header, rows


def _read_csv(path: Path) -> list[list[str]]:
    """Return the fields of all lines, the header's first.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: with the reason, if the file cannot be read.
    """
    try:
        # the header is read as a row: pandas would rename columns of one name, and cut rows that are too long
        frame = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            # blank lines count, so that the line numbers are right
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"is empty; its first line must be {','.join(REQUIRED)}") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8; save it as CSV UTF-8") from error
    except (OSError, pd.errors.ParserError) as error:
        raise ValueError(f"cannot be read as CSV ({reason_of(error)}); correct it") from error
    return [[str(field) for field in fields] for fields in frame.to_numpy()]


def _read_parquet(path: Path) -> list[list[str]]:
    """Return the names of the columns and the fields of all rows as a CSV file would hold them.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: with the reason, if the file cannot be read.
    """
    try:
        # whole numbers must stay whole beside missing ones
        frame = pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise ValueError(
            'needs the package pyarrow; pip install "edue-lightning[parquet]", or save it as CSV'
        ) from error
    # pyarrow raises several unrelated kinds of errors
    except Exception as error:
        raise ValueError(f"cannot be read as Parquet ({reason_of(error)}); save it again") from error
    return [[str(name) for name in frame.columns], *([_text(field) for field in row] for row in frame.to_numpy(object))]


def _text(field: object) -> str:
    if isinstance(field, (list, tuple, np.ndarray)):
        # a spacing
        return times(field)
    return "" if pd.isna(field) else str(field)  # type: ignore[call-overload]


def _check_columns(columns: Sequence[str], image_columns: Sequence[str], problems: _Problems) -> None:
    unknown = [column for column in columns if column and column not in (*REQUIRED, *VOTES, *OPTIONAL, *image_columns)]
    strays = [column for column in unknown if re.fullmatch(r"image\d+", column)]
    if strays:
        problems.add(f"column {', '.join(strays)} does not follow {image_columns[-1]}; number images 2, 3, ...")
    ignored = [column for column in unknown if column not in strays]
    if ignored:
        log.warning("%s: unknown columns are ignored: %s", problems.manifest, ", ".join(ignored))


def _complete_rows(rows: Sequence[_Row], problems: _Problems) -> list[_Row]:
    """Return the rows that name a case, rater and structure."""
    complete = []
    for row in rows:
        empty = [column for column in ("case_id", "rater", "structure") if not row[column]]
        if empty:
            problems.add(f"line {row.line}: {', '.join(empty)} is empty; fill it in", row["case_id"] or None)
        else:
            complete.append(row)
    return complete


def _rater_positions(rows: Sequence[_Row], problems: _Problems) -> dict[str, int]:
    """Return the number of each rater in the column `rater_position`; empty if the column is missing or invalid."""
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        texts[row["rater"]].add(row["rater_position"])
    if not any(text for given in texts.values() for text in given):
        return {}
    for rater, given in texts.items():
        if len(given) > 1 or not all(re.fullmatch(r"[0-9]{1,9}", text) for text in given):
            listed = ", ".join(map(repr, sorted(given)))
            fix = "write one whole number in all rows of a rater, or leave the whole column empty"
            problems.add(f"rater {rater!r} has the rater_position {listed}; {fix}")
            return {}
    position_of = {rater: int(next(iter(given))) for rater, given in texts.items()}
    for position, count in Counter(position_of.values()).items():
        if count > 1:
            same = ", ".join(repr(rater) for rater, other in position_of.items() if other == position)
            problems.add(f"raters {same} have one rater_position, {position}; give each its own")
    return position_of


def _check_structures(chosen: Sequence[str], found: Mapping[str, None], problems: _Problems) -> None:
    absent = [name for name in chosen if name not in found]
    if absent:
        problems.add(f"has no row of data.source.structures {', '.join(absent)}; choose among {', '.join(found)}")
    odd = [name for name in chosen if not can_be_in_file_name(name)]
    if odd:
        listed = ", ".join(map(repr, odd))
        problems.add(f"structure {listed} cannot be part of a file name; use letters, digits, '_', '-' and blanks")
    if len(set(chosen)) != len(chosen):
        problems.add("data.source.structures names one twice; name each once")


def _case(
    case_id: str, rows: Sequence[_Row], image_columns: Sequence[str], structures: Sequence[str], problems: _Problems
) -> ManifestCase:
    def shared(column: str) -> str:
        values = list(dict.fromkeys(row[column] for row in rows))
        if len(values) > 1:
            listed = ", ".join(map(repr, values))
            problems.add(f"its rows differ in {column} ({listed}); write the same in all", case_id)
        elif column in image_columns and not values[0]:
            problems.add(f"{column} is empty; name its file", case_id)
        return values[0]

    split = shared("split")
    if split not in ("", *get_args(Split)):
        problems.add(
            f"split {split!r} is not one of {', '.join(get_args(Split))}; correct it or leave it empty", case_id
        )
    spacing = None
    try:
        spacing = parse_spacing(text := shared("spacing"))
    except ValueError:
        problems.add(f"spacing {text!r} is not in mm like 0.7x0.7; correct it or leave it empty", case_id)
    return ManifestCase(
        record=CaseRecord(case_id, shared("patient") or case_id, cast(Split, split) if split else None),
        images=tuple(shared(column) for column in image_columns),
        masks=_masks(case_id, rows, structures, problems),
        spacing=spacing,
        region=shared("region"),
        labels={
            (row["rater"], row["structure"]): numbers
            for row in rows
            if row["label"] and (numbers := parse_label(row["label"])) is not None
        },
        segments={(row["rater"], row["structure"]): row["segment"] for row in rows if row["segment"]},
    )


def _masks(
    case_id: str, rows: Sequence[_Row], structures: Sequence[str], problems: _Problems
) -> dict[tuple[str, str], str]:
    masks: dict[tuple[str, str], str] = {}
    lines: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row["rater"], row["structure"])
        if key in masks:
            whose = f"rater {key[0]!r}, structure {key[1]!r}"
            problems.add(f"lines {lines[key]} and {row.line} are both {whose}; remove one", case_id)
            continue
        masks[key], lines[key] = row["mask"], row.line
    for rater in sorted({rater for rater, _ in masks}, key=natural_key):
        absent = [structure for structure in structures if (rater, structure) not in masks]
        if absent:
            fix = "add it, with an empty mask field if the rater outlined nothing, or remove the rater from the case"
            problems.add(f"rater {rater!r} has no row of {', '.join(absent)}; {fix}", case_id)
    return masks


def _check_splits(cases: Sequence[ManifestCase], problems: _Problems) -> None:
    """Report patients with several splits."""
    splits_of_group: defaultdict[str, set[str]] = defaultdict(set)
    for case in cases:
        splits_of_group[case.record.group].add(case.record.split or "none")
    for group, splits in splits_of_group.items():
        if len(splits) > 1:
            listed = ", ".join(sorted(splits))
            problems.add(f"cases of patient {group!r} differ in split ({listed}); write the same in all")
