"""The layout of DRISHTI-GS1 by the names of its files; no picture is opened here.

`Training/Images/GLAUCOMA/drishtiGS_002.png` (also in `NORMAL`, `ALL`, or in `Images` itself) belongs to
`Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png` and `..._cupsegSoftmap.png`. The part `Test` has its
soft maps in `GT` or `Test_GT`. Boundaries and other text files are not used.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edue_lightning.data.listing import ListingProblems, find_files

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif")
STRUCTURES = ("disc", "cup")
DEEPEST = 8

_NAME = re.compile(r"(?P<case>drishtigs_[0-9]{3})(?:_(?P<map>od|cup)segsoftmap)?\.[a-z]+")
_MAPS = {"od": "disc", "cup": "cup"}
_IMAGE = "photograph"


@dataclass(frozen=True)
class DrishtiCase:
    """The files of a photograph.

    Attributes:
        case_id: name of the photograph, such as drishtiGS_002.
        photograph: the photograph.
        maps: soft map of each structure.
        split: "test" for the part `Test`, else None.
    """

    case_id: str
    photograph: Path
    maps: Mapping[str, Path]
    split: Literal["test"] | None


def list_drishti(root: Path) -> tuple[list[DrishtiCase], list[str], list[str]]:
    """Find the photographs below a folder.

    Returns:
        the complete cases, sorted by name; one line per problem; and names of photographs left out because no
        photograph of their part has soft maps, as in a download without `Test_GT`.
    """
    problems = ListingProblems(root.resolve())
    found: defaultdict[tuple[bool, str], dict[str, Path]] = defaultdict(dict)
    for path in find_files(problems, lambda _: False, ENDINGS, DEEPEST):
        match = _NAME.fullmatch(path.name.lower())
        if match is None:
            problems.add(path, "is named like no file of DRISHTI-GS1; rename it, or move it out of the folder")
            continue
        role = _MAPS[match["map"]] if match["map"] else _IMAGE
        case_id = match["case"].replace("drishtigs", "drishtiGS")
        first = found[_is_test(path, problems.root), case_id].setdefault(role, path)
        if first is not path:
            problems.add_twice(path, first, f"the {role} of this case", case_id)
    cases, left_out = [], []
    rated = {is_test for (is_test, _), files in found.items() if len(files) > 1}
    for (is_test, case_id), files in sorted(found.items(), key=lambda item: item[0][1]):
        if _IMAGE in files and is_test not in rated and rated:
            left_out.append(case_id)
            continue
        lacking = [role for role in (_IMAGE, *STRUCTURES) if role not in files]
        if lacking:
            what = " and ".join(role if role == _IMAGE else f"soft map of the {role}" for role in lacking)
            problems.add(next(iter(files.values())), f"{what} is missing; add it, or remove the case", case_id)
            continue
        maps = {name: files[name] for name in STRUCTURES}
        cases.append(DrishtiCase(case_id, files[_IMAGE], maps, "test" if is_test else None))
    seen: dict[str, Path] = {}
    for case in cases:
        if seen.setdefault(case.case_id, case.photograph) is not case.photograph:
            problems.add_twice(case.photograph, seen[case.case_id], "this photograph", case.case_id)
    return cases, problems.lines, left_out


def _is_test(path: Path, root: Path) -> bool:
    """Return whether a file lies in the part `Test`: the innermost folder of that name, or `Training`, decides."""
    for part in reversed(path.relative_to(root).parts[:-1]):
        if part.lower() in ("test", "test_gt", "testing"):
            return True
        if part.lower() in ("training", "train"):
            return False
    return root.name.lower() in ("test", "testing")
