"""The layout of PAPILA on disk, and its contour files; no image is opened here.

`FundusImages/RET002OD.jpg` is the right eye (OS: left) of patient 002, and
`ExpertsSegmentations/Contours/RET002OD_disc_exp1.txt` the disc by expert 1: one point per line, x (column) and y (row).
The archive holds eleven contours twice, such as `RET062OD_cup_exp2 2.txt`, the copies with other line endings.

Sources: the archive of figshare 14798004, as read by github.com/constantinpape/torch-em
(torch_em/data/datasets/medical/papila.py), and lists of its files that users published.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon

from edue_lightning.data.images import ImageError
from edue_lightning.data.listing import ListingProblems, find_files

STRUCTURES = ("disc", "cup")
EXPERTS = ("exp1", "exp2")
_PHOTOGRAPHS, _CONTOURS = (".jpg", ".jpeg"), (".txt",)
_PHOTOGRAPH = re.compile(r"(?P<case>RET(?P<patient>\d+)O[DS])\.jpe?g", re.IGNORECASE)
_CONTOUR = re.compile(r"(?P<case>RET\d+O[DS])_(?P<structure>disc|cup)_(?P<expert>exp[12])\.txt", re.IGNORECASE)
_COPY = re.compile(r"(?P<name>RET\d+O[DS]_(?:disc|cup)_exp[12]) (?:\d+|\(\d+\)|copy)\.txt", re.IGNORECASE)
_MOST_BYTES = 2**20
_FEWEST_POINTS = 3


@dataclass(frozen=True)
class PapilaCase:
    """The files of an eye.

    Attributes:
        case_id: name of the photograph, such as RET002OD.
        patient: number of the patient, whose two eyes are one group.
        image: the photograph.
        contours: contour file by expert and structure; at least those of one expert, each with both structures.
    """

    case_id: str
    patient: str
    image: Path
    contours: Mapping[tuple[str, str], Path]


def list_papila(root: Path) -> tuple[list[PapilaCase], list[str], list[str]]:
    """Find the photographs and contours below a folder.

    Returns:
        the complete cases, sorted by name; one line per problem; and the names of copies of contours that are skipped.
    """
    problems = ListingProblems(root.resolve())
    images: dict[str, Path] = {}
    patients: dict[str, str] = {}
    contours: defaultdict[str, dict[tuple[str, str], Path]] = defaultdict(dict)
    copies: list[Path] = []
    for path in find_files(problems, lambda _: False, (*_PHOTOGRAPHS, *_CONTOURS)):
        photograph, contour = _PHOTOGRAPH.fullmatch(path.name), _CONTOUR.fullmatch(path.name)
        if photograph is not None:
            case_id = photograph["case"].upper()
            patients[case_id] = photograph["patient"]
            first = images.setdefault(case_id, path)
            if first is not path:
                problems.add_twice(path, first, "the photograph of this case", case_id)
        elif contour is not None:
            case_id, key = contour["case"].upper(), (contour["expert"].lower(), contour["structure"].lower())
            first = contours[case_id].setdefault(key, path)
            if first is not path:
                problems.add_twice(path, first, f"the {key[1]} of {key[0]}", case_id)
        elif _COPY.fullmatch(path.name) is not None:
            copies.append(path)
        elif path.name.upper().startswith("RET"):
            problems.add(path, "is named like no file of PAPILA, such as RET002OD_disc_exp1.txt; rename or remove it")
    for path in copies:
        match = _COPY.fullmatch(path.name)
        assert match is not None, "only copies were kept"
        original = path.with_name(f"{match['name']}.txt")
        if not original.is_file():
            problems.add(path, f"is a copy without its original; rename it to {original.name}")
        elif original.read_bytes().split() != path.read_bytes().split():
            problems.add(path, f"differs from {original.name}, of which it should be a copy; remove one")
    cases = []
    for case_id in sorted(images.keys() | contours.keys()):
        if case_id not in images:
            first = next(iter(contours[case_id].values()))
            problems.add(first, "is a contour without its photograph; add that", case_id)
            continue
        if case_id not in contours:
            problems.add(images[case_id], "has no contour; add it, or remove the photograph", case_id)
            continue
        lacking = [
            f"{structure} of {expert}"
            for expert in sorted({expert for expert, _ in contours[case_id]})
            for structure in STRUCTURES
            if (expert, structure) not in contours[case_id]
        ]
        if lacking:
            problems.add(images[case_id], f"has no contour of the {', '.join(lacking)}; add it", case_id)
            continue
        cases.append(PapilaCase(case_id, patients[case_id], images[case_id], contours[case_id]))
    return cases, problems.lines, [path.name for path in copies]


def read_contour(path: Path) -> NDArray[np.float64]:
    """Read the points of a contour, `[n, 2]` of x (column) and y (row), in pixels.

    Raises:
        ImageError: if the file holds anything but three or more pairs of finite numbers.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ImageError("holds more than 1 MiB, too much for a contour; choose the right file")
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        points = np.array([[float(number) for number in line] for line in lines], dtype=np.float64)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("cannot be read as one point per line, x and y; correct it") from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < _FEWEST_POINTS or not np.isfinite(points).all():
        raise ImageError("must hold at least three points, one per line, x and y; correct it")
    return points


def fill_contour(points: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return the mask of a closed contour, `[H, W]`: pixels whose centres lie inside or on it (`skimage.draw.polygon`).

    A pixel's centre has whole coordinates: that of the first column is x = 0.

    Args:
        points: see `read_contour`.
        shape: H and W.

    Raises:
        ImageError: if a point lies more than a pixel outside of the picture.
    """
    if (points < -1).any() or (points > np.array([shape[1], shape[0]])).any():
        raise ImageError(f"has points outside of the photograph of {shape[0]}x{shape[1]} pixels; correct it")
    mask = np.zeros(tuple(shape), dtype=bool)
    mask[polygon(points[:, 1], points[:, 0], tuple(shape))] = True
    return mask
