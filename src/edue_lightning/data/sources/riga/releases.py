"""File layouts of RIGA's three releases (Almazroa et al. 2018); no picture is opened here.

- Drawn, the raw release (Deep Blue Data, doi 10.7302/Z23R0R29): in `BinRushed/BinRushed1-Corrected`, `BinRushed2` to
  `BinRushed4`, `Magrabia/MagrabiaMale`, `Magrabia/MagrabiFemale` (so spelt) and `MESSIDOR`, a photograph
  `image1prime.jpg` and `image1-1.jpg` to `image1-6.jpg`, copies on which the six drew. Endings (jpg, tif) differ within
  a folder, `Image` and `image` within a case. `BinRushed1`, which the corrected folder replaces, has no photographs.
- DiscRegion, the crops of MRNet (Ji et al., CVPR 2021): `Glaucoma_multirater_BinRushed.csv`, `..._MESSIDOR.csv` and
  `..._Magrabia.csv`, in GBK, with columns imgName, maskName and rater; rater 0 is a consensus, in `FinalLabel` beside
  `Rater1` to `Rater6`.
- RIGA+ (Hu et al., MICCAI 2022): `RIGA/BinRushed/BinRushed1/image1.tif`, `RIGA-mask/BinRushed/BinRushed1/image1-1.tif`
  to `-6`, and for MESSIDOR `MESSIDOR_Base1/Labeled` to `Base3`; crops of 800x800.

Sources: github.com/jiwei0921/MRNet (utils/dataset_loader_cvpr.py) for the second, and public loaders of the others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from edue_lightning.data.images import PICTURES
from edue_lightning.data.listing import ListingProblems, find_files, line_break_problem
from edue_lightning.text import reason_of

Origin = Literal["BinRushed", "Magrabia", "MESSIDOR"]
RATERS = ("1", "2", "3", "4", "5", "6")

_ORIGINS: Mapping[str, Origin] = {"binrushed": "BinRushed", "magrabi": "Magrabia", "messidor": "MESSIDOR"}
_DRAWN = re.compile(r"image[ _-]*0*(?P<number>\d+)(?:[ _-]*(?P<prime>prime)|[ _-]+0*(?P<rater>\d+))", re.IGNORECASE)
_MASKED = re.compile(r"(?P<stem>.+)-(?P<rater>\d+)")
_CORRECTED = "-Corrected"
_TABLE = "Glaucoma_multirater_"
_TABLE_COLUMNS = ("imgName", "maskName", "rater")
_CONSENSUS = "0"
_CONSENSUS_FOLDER = "FinalLabel"
_MASK_FOLDER = "RIGA-mask"


@dataclass(frozen=True)
class RigaCase:
    """Files of a case, with absolute paths.

    Attributes:
        case_id: folder and number, such as BinRushed1_image12.
        origin: hospital or collection of the photograph.
        photograph: file of the untouched photograph.
        raters: file per rater (of `RATERS`) who outlined the case: a copy of the photograph with lines if `drawn`,
            otherwise a mask of the disc's rim and the cup.
        drawn: whether the masks must be recovered from drawn outlines.
    """

    case_id: str
    origin: Origin
    photograph: Path
    raters: Mapping[str, Path]
    drawn: bool


def list_riga(root: Path, leave_out_unusable: bool = False) -> tuple[list[RigaCase], list[str], list[str]]:
    """Find the cases of the release in a folder.

    Args:
        root: folder with a release in it, or at most `DEEPEST` levels below.
        leave_out_unusable: whether to leave out cases without a photograph or without any outline; otherwise they are a
            problem.

    Returns:
        the complete cases by origin and number, one line per problem, and one line per case that was left out. All are
        empty for an empty folder.
    """
    problems = ListingProblems(root.resolve())
    files = find_files(problems, lambda name: name.lower() == "unlabeled", (*PICTURES, ".csv"))
    tables = [path for path in files if path.name.startswith(_TABLE) and path.suffix.lower() == ".csv"]
    pictures = [path for path in files if path.suffix.lower() != ".csv"]
    if tables:
        return _from_tables(tables, problems), problems.lines, []
    if any(_MASK_FOLDER in path.relative_to(problems.root).parts for path in pictures):
        return _beside_masks(pictures, problems), problems.lines, []
    incomplete = ListingProblems(problems.root)
    cases = _with_drawings(pictures, problems, incomplete)
    if leave_out_unusable:
        return cases, problems.lines, incomplete.lines
    return cases, [*problems.lines, *incomplete.lines], []


def _origin(path: Path, problems: ListingProblems, case_id: str) -> Origin | None:
    """Return the origin named by a file's folders, the innermost one first."""
    for part in reversed(path.relative_to(problems.root.parent).parts[:-1]):
        for start, origin in _ORIGINS.items():
            if part.lower().startswith(start):
                return origin
    folders = "BinRushed, Magrabia (or MagrabiFemale) or MESSIDOR"
    problems.add(path, f"lies in no folder whose name begins with {folders}; put it there", case_id)
    return None


def _with_drawings(pictures: Sequence[Path], problems: ListingProblems, incomplete: ListingProblems) -> list[RigaCase]:
    folders = {path.parent for path in pictures}
    replaced = {folder for folder in folders if folder.with_name(folder.name + _CORRECTED) in folders}
    photographs: dict[str, Path] = {}
    drawings: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    numbers: dict[str, tuple[str, int]] = {}
    doubles: list[tuple[Path, Path, str, str]] = []
    for path in pictures:
        if path.parent in replaced:
            continue
        match = _DRAWN.fullmatch(path.stem.strip())
        if match is None:
            problems.add(path, "is named neither imageNprime nor imageN-R; rename it, or move it out of the data set")
            continue
        folder = _file_name(path.parent.name.removesuffix(_CORRECTED))
        number = int(match["number"])
        case_id = f"{folder}_image{number}"
        numbers[case_id] = (folder.lower(), number)
        found = photographs if match["prime"] else drawings[case_id]
        key = case_id if match["prime"] else str(int(match["rater"]))
        if not match["prime"] and key not in RATERS:
            problems.add(path, f"belongs to rater {key}, but raters are 1 to 6; correct its name", case_id)
        elif key in found:
            what = "the photograph" if match["prime"] else f"the drawing of rater {key}"
            doubles.append((path, found[key], what, case_id))
        else:
            found[key] = path
    for path, same, what, case_id in doubles:
        # the release itself has one such case, which also lacks its photograph
        (problems if case_id in photographs else incomplete).add_twice(path, same, what, case_id)
    cases = []
    for case_id in sorted(numbers, key=numbers.__getitem__):
        photograph, raters = photographs.get(case_id), drawings[case_id]
        if photograph is None:
            first = min(raters.values(), default=None)
            if first is not None:
                fix = "add it, or set data.source.leave_out_unusable=true"
                incomplete.add(first, f"is a drawing without its photograph imageNprime; {fix}", case_id)
        elif not raters:
            fix = "add some, or set data.source.leave_out_unusable=true"
            incomplete.add(photograph, f"is a photograph without drawings imageN-R; {fix}", case_id)
        elif origin := _origin(photograph, problems, case_id):
            cases.append(RigaCase(case_id, origin, photograph, dict(sorted(raters.items())), drawn=True))
    return cases


def _beside_masks(pictures: Sequence[Path], problems: ListingProblems) -> list[RigaCase]:
    """Return the cases of RIGA+."""

    def place(path: Path) -> tuple[str, ...]:
        """Return the folders below `RIGA` or `RIGA-mask`."""
        parts = path.relative_to(problems.root.parent).parts[:-1]
        at = next((i for i, part in enumerate(parts) if part in ("RIGA", _MASK_FOLDER)), -1)
        return parts[at + 1 :]

    masks: defaultdict[tuple[tuple[str, ...], str], dict[str, Path]] = defaultdict(dict)
    photographs: dict[tuple[tuple[str, ...], str], Path] = {}
    for path in pictures:
        if _MASK_FOLDER in path.relative_to(problems.root).parts:
            match = _MASKED.fullmatch(path.stem)
            if match is None or match["rater"] not in RATERS:
                problems.add(path, "is not named imageN-R with a rater R from 1 to 6; correct its name")
                continue
            first = masks[place(path), match["stem"]].setdefault(match["rater"], path)
            what = f"the mask of rater {match['rater']}"
        else:
            first, what = photographs.setdefault((place(path), path.stem), path), "the photograph"
        if first is not path:
            problems.add_twice(path, first, what, path.stem)
    cases = []
    for key in sorted({*masks, *photographs}, key=lambda key: (key[0], _natural(key[1]))):
        folders, stem = key
        named = [folder for folder in folders if folder != "Labeled"]
        case_id = _file_name(f"{named[-1] if named else 'RIGA'}_{stem}")
        if key not in photographs:
            first = min(masks[key].values())
            problems.add(first, "is a mask without its photograph in RIGA/...; add it, or remove the mask", case_id)
        elif key not in masks:
            problems.add(photographs[key], f"has no masks in {_MASK_FOLDER}/...; add them, or remove it", case_id)
        elif origin := _origin(photographs[key], problems, case_id):
            raters = dict(sorted(masks[key].items()))
            cases.append(RigaCase(case_id, origin, photographs[key], raters, drawn=False))
    return cases


def _from_tables(tables: Sequence[Path], problems: ListingProblems) -> list[RigaCase]:
    """Return the cases of DiscRegion."""
    cases = []
    for table in tables:
        name = table.stem.removeprefix(_TABLE)
        origin = next((origin for start, origin in _ORIGINS.items() if name.lower().startswith(start)), None)
        try:
            frame = _read_table(table)
        except (OSError, ValueError) as error:
            problems.add(table, f"cannot be read as a table ({reason_of(error)}); download it again")
            continue
        missing = [column for column in _TABLE_COLUMNS if column not in frame.columns]
        if origin is None or missing:
            lacks = f"has no column {', '.join(missing)}" if missing else f"names no origin of RIGA ({name})"
            problems.add(table, f"{lacks}; download it again")
            continue
        if frame["imgName"].isna().any():
            problems.add(table, "has an empty imgName; fill it in, or download it again")
        for image, rows in frame.groupby("imgName", sort=False):
            case_id = _file_name(f"{name}_{_relative(str(image)).with_suffix('').name}")
            masks = _masks_of(rows, table, problems, case_id)
            photograph = _named(table, str(image), problems, case_id)
            raters = {rater: _named(table, mask, problems, case_id) for rater, mask in sorted(masks.items())}
            found = {rater: path for rater, path in raters.items() if path is not None}
            if photograph is not None and len(found) == len(raters):
                cases.append(RigaCase(case_id, origin, photograph, found, drawn=False))
    twice = [case.case_id for case in cases]
    for case_id in sorted({name for name in twice if twice.count(name) > 1}):
        problems.add(tables[0], "occurs twice; give the pictures different names", case_id)
    return sorted(cases, key=lambda case: (case.origin, _natural(case.case_id)))


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table of DiscRegion.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no table, or a cell has several lines.
    """
    try:
        frame = pd.read_csv(path, encoding="utf-8")
    except UnicodeDecodeError:
        # as it was given out
        frame = pd.read_csv(path, encoding="gbk")
    for line, cells in enumerate([tuple(frame.columns), *frame.itertuples(index=False, name=None)], 1):
        problem = line_break_problem(line, zip(map(str, frame.columns), cells, strict=True))
        if problem is not None:
            raise ValueError(problem)
    return frame


def _masks_of(rows: pd.DataFrame, table: Path, problems: ListingProblems, case_id: str) -> dict[str, str]:
    """Return the mask's name per rater; a table with only the consensus is completed from its name, as MRNet does."""
    masks: dict[str, str] = {}
    for number, mask in zip(rows["rater"], rows["maskName"], strict=True):
        # a program that saves the table again may write 1.0 for 1
        rater = str(number).removesuffix(".0")
        if rater == _CONSENSUS:
            continue
        if rater not in RATERS or rater in masks:
            problems.add(table, f"rater {rater} occurs twice or is not one of 1 to 6; correct it", case_id)
        else:
            masks[rater] = str(mask)
    consensus = str(rows["maskName"].iloc[0])
    if not masks and _CONSENSUS_FOLDER in consensus:
        return {rater: consensus.replace(_CONSENSUS_FOLDER, f"Rater{rater}") for rater in RATERS}
    return masks


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def _relative(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _named(table: Path, name: str, problems: ListingProblems, case_id: str) -> Path | None:
    """Return the path of a file that a table names, or None if it is not within the data set, which is noted."""
    relative = _relative(name)
    path = table.parent / relative
    inside = not relative.is_absolute() and ".." not in relative.parts and path.resolve().is_relative_to(problems.root)
    if not inside or not path.is_file():
        reason = "not found; add it" if inside else "leaves the data set's folder; put it there"
        problems.add(path if inside else table, f"{'' if inside else name + ' '}{reason}", case_id)
        return None
    return path


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts image2 before image10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
