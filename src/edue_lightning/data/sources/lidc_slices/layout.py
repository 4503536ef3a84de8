"""The two public layouts of LIDC-IDRI's slices, by the names of the files; no picture is opened here.

- `LIDC-IDRI-slices/LIDC-IDRI-0001/nodule-0/images/slice-0.png` and `mask-0/slice-0.png` to `mask-3/slice-0.png`, as on
  Kaggle ("LIDC-IDRI-slices") and in copies such as github.com/periclesanfe/Pulmoseg: PNG of 128x128, masks 0 and 255.
- `data/training/0/image_1.jpg` and `label0_.jpg` to `label3_.jpg`, the release of CIMD (github.com/aimansnigdha/
  Ambiguous-Medical-Image-Segmentation-using-Diffusion-Models): JPEG, folder n holds slice n + 1, patients are unknown.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edue_lightning.data.file_source import problem_line
from edue_lightning.text import one_line

READERS = 4
ENDINGS = (".png", ".jpg")

_PNG = re.compile(
    r"(?P<patient>LIDC-IDRI-[0-9]{4})/nodule-(?P<nodule>[0-9]{1,6})/(?P<role>images|mask-[0-3])/"
    r"slice-(?P<number>[0-9]{1,6})\.png"
)
_JPEG = re.compile(
    r"(?P<part>training|testing)/(?P<folder>[0-9]{1,9})/(?:image_(?P<number>[0-9]{1,9})|label(?P<reader>[0-3])_)\.jpg"
)
_IMAGE = "image"
_ROLES = (_IMAGE, *map(str, range(READERS)))


class NoduleKey(NamedTuple):
    """A nodule: name of its patient and its number; of CIMD a slice by itself, as its nodule is unknown."""

    patient: str
    number: int


@dataclass(frozen=True)
class SliceFiles:
    """The files of a slice, by their names in the folder or archive.

    Attributes:
        nodule: nodule that it shows.
        number: position among the nodule's slices, from 0.
        image: name of the picture.
        masks: names of the masks of the four readers.
        blurred: whether these are JPEG files, which hold grey levels at the masks' borders.
        split: "test" for the part `testing` of CIMD, else None.
    """

    nodule: NoduleKey
    number: int
    image: str
    masks: tuple[str, ...]
    blurred: bool = False
    split: Literal["test"] | None = None

    @property
    def nodule_id(self) -> str:
        """Name of the nodule."""
        return self.nodule.patient if self.blurred else f"{self.nodule.patient}_nodule-{self.nodule.number}"

    @property
    def case_id(self) -> str:
        """Name of the slice."""
        return self.nodule_id if self.blurred else f"{self.nodule_id}_slice-{self.number}"


class _Place(NamedTuple):
    """Place of a file in its layout, which sorts slices as people count them."""

    prefix: str
    nodule: NoduleKey
    number: int
    blurred: bool


def list_slices(names: Sequence[str]) -> tuple[list[SliceFiles], list[str]]:
    """Find the slices among the names of files, at any depth.

    Returns:
        the complete slices, sorted by nodule and position, and one line per problem; both are empty if no file is named
        like a slice.
    """
    found: defaultdict[_Place, dict[str, str]] = defaultdict(dict)
    problems, unknown = [], []
    for name in names:
        placed = _place_of(name)
        if placed is None:
            unknown.append(name)
            continue
        place, role = placed
        first = found[place].setdefault(role, name)
        if first != name:
            problems.append(one_line(f"{name}: is the same file of a slice as {first}; remove one"))
    if not found:
        return [], []
    problems += [
        one_line(f"{name}: is named like no file of this data set; rename it, or move it out of the folder")
        for name in unknown
    ]
    slices = []
    for place in sorted(found):
        files = found[place]
        lacking = [role for role in _ROLES if role not in files]
        if not lacking:
            slices.append(_slice(place, files))
            continue
        have = next(iter(files.values()))
        what = " and ".join("the picture" if role == _IMAGE else f"the mask of reader {role}" for role in lacking)
        problems.append(
            problem_line(have, _slice_id(place), f"{what} is missing; a reader who marked nothing has an empty mask")
        )
    return slices, [*problems, *_repeated(slices), *_gaps(sorted(found))]


def _place_of(name: str) -> tuple[_Place, str] | None:
    parts = name.split("/")
    match = _PNG.fullmatch("/".join(parts[-4:]))
    if match is not None:
        nodule = NoduleKey(match["patient"], int(match["nodule"]))
        role = _IMAGE if match["role"] == "images" else match["role"][-1]
        return _Place("/".join(parts[:-4]), nodule, int(match["number"]), blurred=False), role
    match = _JPEG.fullmatch("/".join(parts[-3:]))
    if match is None or (match["number"] is not None and int(match["number"]) != int(match["folder"]) + 1):
        return None
    nodule = NoduleKey(f"{match['part']}_{int(match['folder'])}", 0)
    return _Place("/".join(parts[:-3]), nodule, 0, blurred=True), match["reader"] or _IMAGE


def _slice(place: _Place, files: dict[str, str]) -> SliceFiles:
    return SliceFiles(
        nodule=place.nodule,
        number=place.number,
        image=files[_IMAGE],
        masks=tuple(files[role] for role in _ROLES[1:]),
        blurred=place.blurred,
        split="test" if place.blurred and place.nodule.patient.startswith("testing") else None,
    )


def _slice_id(place: _Place) -> str:
    return SliceFiles(place.nodule, place.number, "", (), place.blurred).case_id


def _repeated(slices: Sequence[SliceFiles]) -> list[str]:
    """Report slices that lie in two folders of the layout, as in an archive unpacked twice."""
    first: dict[str, SliceFiles] = {}
    return [
        problem_line(one.image, one.case_id, f"is this slice, and so is {first[one.case_id].image}; remove one")
        for one in slices
        if first.setdefault(one.case_id, one) is not one
    ]


def _gaps(places: Sequence[_Place]) -> list[str]:
    """Report nodules whose slices do not count from 0 on without a gap: a part of the download is missing."""
    numbers: defaultdict[NoduleKey, set[int]] = defaultdict(set)
    for place in places:
        numbers[place.nodule].add(place.number)
    return [
        one_line(
            f"{nodule.patient}/nodule-{nodule.number}: has {len(found)} slices but one with number {max(found)}; "
            "slices are missing: download the nodule again"
        )
        for nodule, found in numbers.items()
        if max(found) != len(found) - 1
    ]
