"""The layout of CURVAS and CURVAS-PDACVI on disk; no image is opened here.

One folder per patient, such as `training_set/UKCHLL001`, with `image.nii.gz` and `annotation_1.nii.gz`, ... for each
expert. CURVAS comes as `training_set`, `validation_set` and `testing_set`.

Sources: zenodo.org/records/13767408 (CURVAS) as read by github.com/constantinpape/torch-em, the page
curvas-pdacvi.grand-challenge.org/dataset, and github.com/SYCAI-Technologies/curvas-challenge (numbers of the labels).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edue_lightning.data.listing import ListingProblems, find_files, stem_of
from edue_lightning.text import is_plain_name

_ANNOTATION = re.compile(r"annotation_(?P<expert>[1-9])", re.IGNORECASE)
_TESTING_SET = "testing_set"


@dataclass(frozen=True)
class CurvasCase:
    """The files of a patient.

    Attributes:
        case_id: name of the patient's folder.
        split: "test" for a patient of `testing_set`, otherwise None.
        image: CT.
        annotations: label map of each expert, by the expert's number.
    """

    case_id: str
    split: Literal["test"] | None
    image: Path
    annotations: Mapping[int, Path]


def list_curvas(root: Path) -> tuple[list[CurvasCase], list[str]]:
    """Find the patients below a folder, sorted by name, and return them with one line per problem."""
    problems = ListingProblems(root.resolve())
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in find_files(problems, lambda _: False):
        folders[path.parent].append(path)
    found: dict[str, CurvasCase] = {}
    for folder, paths in sorted(folders.items()):
        image: Path | None = None
        annotations: dict[int, Path] = {}
        others: list[Path] = []
        for path in paths:
            stem = stem_of(path)
            match = _ANNOTATION.fullmatch(stem)
            if match is not None:
                first = annotations.setdefault(int(match["expert"]), path)
                if first is not path:
                    problems.add_twice(path, first, f"the annotation of expert {match['expert']}", folder.name)
            elif stem.lower() == "image":
                if image is not None:
                    problems.add_twice(path, image, "the image of this case", folder.name)
                image = image or path
            else:
                others.append(path)
        case_id = folder.name
        if image is None and not annotations:
            # such as the masks of vessels of PDACVI
            continue
        if image is None:
            problems.add(
                next(iter(annotations.values())), "is an annotation without its image.nii.gz; add that", case_id
            )
        elif not annotations:
            problems.add(image, "has no annotation_1.nii.gz, ...; add them, or remove the image", case_id)
        elif case_id in found:
            problems.add_twice(image, found[case_id].image, "this patient", case_id)
        elif not is_plain_name(case_id):
            problems.add(image, "is in a folder that cannot be a file's name; rename it", case_id)
        else:
            # folders above the data set mean nothing
            is_test = _TESTING_SET in folder.relative_to(problems.root.parent).parts
            found[case_id] = CurvasCase(case_id, "test" if is_test else None, image, dict(sorted(annotations.items())))
    return [found[name] for name in sorted(found)], problems.lines
