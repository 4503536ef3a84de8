"""The layouts of CHASE_DB1, STARE and DRIVE by the names of their files; no picture is opened here.

- CHASE_DB1: `Image_01L.jpg`, `Image_01L_1stHO.png`, `Image_01L_2ndHO.png`, in one folder; 01 is the child, L its eye.
- STARE: `im0001.ppm` (or `.ppm.gz`) with `im0001.ah.ppm` and `im0001.vk.ppm`, in one folder or one per observer.
- DRIVE: `test/images/01_test.tif`, `test/1st_manual/01_manual1.gif`, `test/2nd_manual/01_manual2.gif`. The part
  `training` (`21_training.tif`) has the first observer alone. `mask/01_test_mask.gif`, the field of view, is not used.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edue_lightning.data.listing import ListingProblems, find_files

ENDINGS = (".jpg", ".png", ".ppm", ".ppm.gz", ".tif", ".gif")
_IMAGE, _FIELD_OF_VIEW = "image", "field of view"


class _Release(NamedTuple):
    """File names of a data set: pattern, and names of the two observers by their marks in file names."""

    pattern: re.Pattern[str]
    raters: Mapping[str, str]


RELEASES = {
    "CHASE_DB1": _Release(
        re.compile(r"image_(?P<case>(?P<group>[0-9]+)[lr])(?:_(?P<rater>1stho|2ndho)\.png|\.jpg)"),
        {"1stho": "1stHO", "2ndho": "2ndHO"},
    ),
    "STARE": _Release(
        re.compile(r"(?P<case>(?P<group>im[0-9]{4}))(?:\.(?P<rater>ah|vk))?\.ppm(?:\.gz)?"), {"ah": "ah", "vk": "vk"}
    ),
    "DRIVE": _Release(
        re.compile(
            r"(?P<case>(?P<group>[0-9]{2}))_"
            r"(?:(?:test|training)\.tif|manual(?P<rater>[12])\.gif|(?:test|training)_(?P<region>mask)\.gif)"
        ),
        {"1": "manual1", "2": "manual2"},
    ),
}


@dataclass(frozen=True)
class VesselCase:
    """The files of a photograph.

    Attributes:
        case_id: name of the photograph, such as 01L, im0001 or 01.
        group: person of the photograph: 01L and 01R are the eyes of one child.
        image: the photograph.
        masks: mask of each observer, by the observer's name.
        field_of_view: mask of the pixels that the camera saw, or None if the data set has none.
    """

    case_id: str
    group: str
    image: Path
    masks: Mapping[str, Path]
    field_of_view: Path | None = None


def list_vessels(root: Path) -> tuple[str | None, list[VesselCase], list[str]]:
    """Find the photographs of one of the data sets below a folder.

    Returns:
        name of the data set, None if there is none; the complete cases, sorted by name; and one line per problem.
    """
    problems = ListingProblems(root.resolve())
    files = find_files(problems, lambda _: False, ENDINGS)
    found = {
        name: [path for path in files if release.pattern.fullmatch(path.name.lower())]
        for name, release in RELEASES.items()
    }
    kinds = [name for name, paths in found.items() if paths]
    if len(kinds) != 1:
        if kinds:
            problems.add(problems.root, f"holds files of {' and '.join(kinds)}; choose the folder of one of them")
        return None, [], problems.lines
    (kind,) = kinds
    named = set(found[kind])
    for path in files:
        if path not in named:
            problems.add(path, f"is named like no file of {kind}; rename it, or move it out of the folder")
    return kind, _cases(kind, found[kind], problems), problems.lines


def _cases(kind: str, files: Sequence[Path], problems: ListingProblems) -> list[VesselCase]:
    release = RELEASES[kind]
    parts: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    groups: dict[str, str] = {}
    for path in files:
        match = release.pattern.fullmatch(path.name.lower())
        assert match is not None, "only files of this data set are given"
        case_id = match["case"].upper() if kind == "CHASE_DB1" else match["case"]
        groups[case_id] = match["group"]
        role = release.raters[match["rater"]] if match["rater"] else _IMAGE
        if match.groupdict().get("region"):
            role = _FIELD_OF_VIEW
        first = parts[case_id].setdefault(role, path)
        if first is not path:
            problems.add_twice(path, first, f"the {role} of this case", case_id)
    cases = []
    for case_id in sorted(parts):
        roles = parts[case_id]
        masks = {rater: roles[rater] for rater in release.raters.values() if rater in roles}
        if _IMAGE not in roles:
            problems.add(next(iter(roles.values())), "is a mask without its photograph; add that", case_id)
        elif not masks:
            problems.add(roles[_IMAGE], "has no mask; add it, or remove the photograph", case_id)
        else:
            cases.append(VesselCase(case_id, groups[case_id], roles[_IMAGE], masks, roles.get(_FIELD_OF_VIEW)))
    if any(case.field_of_view for case in cases):
        for case in cases:
            if case.field_of_view is None:
                problems.add(case.image, "has no mask of its field of view, but other cases have; add it", case.case_id)
    return cases
