"""The raw data format of nnU-Net on disk; no image is opened here.

`imagesTr/CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... are the channels of a case, `labelsTr/CASE.nii.gz` is its label
map, and `labelsTr_NAME/CASE.nii.gz` that of a further rater. `imagesTs`, `labelsTs` and `labelsTs_NAME` hold test
cases.

Source: github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md, region_based_training.md and ignore_label.md; the
folders of further raters are ours.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edue_lightning.data.images import PICTURES, VOLUMES
from edue_lightning.data.listing import ListingProblems
from edue_lightning.text import NO_FILE_NAME, is_plain_name

FIRST_RATER = "labels"
"""Name of the rater of `labelsTr` and `labelsTs`."""

_PARTS: Mapping[str, Literal["test"] | None] = {"Tr": None, "Ts": "test"}
_FOLDER = re.compile(r"labels(?P<part>Tr|Ts)(?:_(?P<rater>.+))?")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")


@dataclass(frozen=True)
class NnunetCase:
    """The files of a case.

    Attributes:
        case_id: name of the case.
        split: "test" for a case of `imagesTs`, otherwise None.
        images: files of the channels, in their order.
        labels: label map of each rater, by the rater's name.
    """

    case_id: str
    split: Literal["test"] | None
    images: tuple[Path, ...]
    labels: Mapping[str, Path]


def list_nnunet(root: Path, ending: str, channels: int) -> tuple[list[NnunetCase], int, list[str]]:
    """Find the cases of a data set.

    Args:
        root: folder of the data set.
        ending: ending of all files, with its dot.
        channels: number of channels; a picture may hold several in its colours.

    Returns:
        the complete cases, training first, sorted by name; the number of test images without labels, which are left
        out; and one line per problem.
    """
    problems = ListingProblems(root)
    cases: list[NnunetCase] = []
    known: set[str] = set()
    unlabelled = 0
    for part, split in _PARTS.items():
        images = _images(root / f"images{part}", ending, problems)
        labels: defaultdict[str, dict[str, Path]] = defaultdict(dict)
        for folder in sorted(root.iterdir()):
            match = _FOLDER.fullmatch(folder.name)
            if match is not None and match["part"] == part and folder.is_dir():
                if match["rater"] == FIRST_RATER:
                    problems.add(folder, f"names a rater {FIRST_RATER!r}, as labels{part} does; rename the folder")
                for path in _files(folder, ending, problems):
                    case_id = path.name[: -len(ending)]
                    first = labels[case_id].setdefault(match["rater"] or FIRST_RATER, path)
                    if first.parent == folder and first is not path:
                        problems.add_twice(path, first, "the label map of this case", case_id)
        for case_id in sorted(labels.keys() - images.keys()):
            problems.add(next(iter(labels[case_id].values())), f"has no image in images{part}; add it", case_id)
        for case_id, files in sorted(images.items()):
            first = next(iter(files.values()))
            if case_id not in labels:
                if split is None:
                    problems.add(first, "has no label map; add it, or remove the image", case_id)
                unlabelled += split is not None
            elif case_id in known:
                problems.add(first, "is a case of imagesTr too; rename one", case_id)
            elif not is_plain_name(case_id):
                problems.add(first, NO_FILE_NAME, case_id)
            elif sorted(files) != list(range(len(files))) or len(files) > channels:
                listed = ", ".join(f"{number:04d}" for number in sorted(files))
                problems.add(first, f"has the channels {listed} of {channels}; add or remove files", case_id)
            else:
                ordered = tuple(files[number] for number in sorted(files))
                known.add(case_id)
                cases.append(NnunetCase(case_id, split, ordered, dict(sorted(labels[case_id].items()))))
    return cases, unlabelled, problems.lines


def _images(folder: Path, ending: str, problems: ListingProblems) -> dict[str, dict[int, Path]]:
    found: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for path in _files(folder, ending, problems):
        match = _CHANNEL.fullmatch(path.name[: -len(ending)])
        if match is None:
            problems.add(path, f"has no number of its channel in its name; call it CASE_0000{ending}")
        else:
            first = found[match["case"]].setdefault(int(match["channel"]), path)
            if first is not path:
                problems.add_twice(path, first, f"channel {match['channel']} of this case", match["case"])
    return found


def _files(folder: Path, ending: str, problems: ListingProblems) -> list[Path]:
    """Return the files of a folder; images and label maps with another ending are noted."""
    if not folder.is_dir():
        return []
    shown = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in shown if path.name.lower().endswith(ending)]
    for path in shown:
        if path not in found and path.name.lower().endswith((*PICTURES, *VOLUMES)):
            problems.add(path, f"is no {ending} file, as dataset.json says; convert it, or move it out of the data set")
    return found
