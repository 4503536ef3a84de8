"""The file `dataset.json` of nnU-Net, of its versions 1 and 2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edue_lightning.data.images import PICTURES, VOLUMES
from edue_lightning.data.label_maps import LabelMap
from edue_lightning.errors import UserError
from edue_lightning.text import natural_key, reason_of

FILE = "dataset.json"
_BACKGROUND, _IGNORE = "background", "ignore"
_MOST_BYTES = 2**24
REORIENTED = "NibabelIOWithReorient"
"""Reader of nnU-Net that turns volumes to the right, anterior and superior, and its probabilities with them."""


@dataclass(frozen=True)
class Description:
    """Content of `dataset.json`.

    Attributes:
        path: path of the file.
        channels: names of the channels, in their order.
        labels: numbers of the structures, without the background, and the number to ignore.
        has_regions: whether nnU-Net trains on regions, which may overlap, and not on labels, which exclude each other.
        ending: ending of all image and label files, in lower case, with its dot.
        reader: `overwrite_image_reader_writer`, or None.
        training_cases: `numTraining`, the number of cases of `imagesTr`; None if the file does not say.
    """

    path: Path
    channels: tuple[str, ...]
    labels: LabelMap
    has_regions: bool
    ending: str
    reader: str | None
    training_cases: int | None


def find_description(root: Path) -> Path:
    """Return the path of the only `dataset.json` in a folder or right below it.

    Raises:
        UserError: if there is none, or several.
    """
    if (root / FILE).is_file():
        return root / FILE
    found = sorted(path for path in root.glob(f"*/{FILE}") if (path.parent / "imagesTr").is_dir())
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise UserError(f"data.root={root}: holds several data sets ({names}); choose the folder of one")
    if not found:
        raise UserError(f"data.root={root}: holds no {FILE}; choose the folder of a data set, such as Dataset001_NAME")
    return found[0]


def read_description(path: Path) -> Description:
    """Read a `dataset.json`.

    In version 2 `labels` maps names to a number or, for regions, to a list of numbers, and `channel_names` maps the
    numbers of the channels to names. In version 1 `labels` maps numbers to names, and the channels are the `modality`.

    Raises:
        UserError: naming the entry that is missing or invalid.
    """
    content = _content(path)
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, Mapping) or not channels:
        raise UserError(f'{path}: has no channel_names (modality in version 1); add them, such as {{"0": "CT"}}')
    numbers = sorted(channels, key=natural_key)
    if numbers != [str(number) for number in range(len(numbers))]:
        raise UserError(f"{path}: channel_names are numbered {', '.join(numbers)}; number them from 0 on")
    labels, ignore = _labels(path, content.get("labels"))
    ending = str(content.get("file_ending", ".nii.gz")).lower()
    if ending not in (*PICTURES, *VOLUMES):
        raise UserError(f"{path}: file_ending {ending} is not read; convert the files to .nii.gz or .png")
    reader = content.get("overwrite_image_reader_writer")
    training_cases = content.get("numTraining")
    return Description(
        path,
        tuple(str(channels[number]) for number in numbers),
        LabelMap.of(labels, ignore, f"{path}: labels"),
        any(isinstance(number, Sequence) and len(number) > 1 for number in labels.values()),
        ending,
        None if reader is None else str(reader),
        training_cases if isinstance(training_cases, int) else None,
    )


def read_fold(path: Path, fold: int) -> tuple[frozenset[str], frozenset[str]]:
    """Return the training and validation cases of a fold in nnU-Net's `splits_final.json`.

    Raises:
        UserError: if the file cannot be read or has no such fold.
    """
    folds = _content(path, list)
    if not 0 <= fold < len(folds):
        raise UserError(f"data.source.fold={fold}: {path.name} has the folds 0 to {len(folds) - 1}; choose one")
    chosen = folds[fold]
    if not isinstance(chosen, Mapping) or not all(isinstance(chosen.get(part), list) for part in ("train", "val")):
        raise UserError(f"{path}: fold {fold} has no lists train and val; correct the file")
    train, val = (frozenset(map(str, chosen[part])) for part in ("train", "val"))
    if train & val:
        raise UserError(f"{path}: fold {fold} has {min(train & val)} in train and in val; correct the file")
    return train, val


def _labels(path: Path, labels: Any) -> tuple[dict[str, int | Sequence[int]], int | None]:
    if not isinstance(labels, Mapping) or not labels:
        raise UserError(f'{path}: has no labels; add them, such as {{"background": 0, "tumour": 1}}')
    if all(isinstance(name, str) for name in labels.values()):
        # version 1
        if not all(number.isdigit() for number in labels):
            raise UserError(f"{path}: labels are names on both sides; write the name and its number")
        twice = [name for name in labels.values() if list(labels.values()).count(name) > 1]
        if twice:
            raise UserError(f"{path}: labels have {twice[0]} twice; give each its own name")
        labels = {name: int(number) for number, name in labels.items()}
    found: dict[str, int | Sequence[int]] = {}
    ignore = None
    for name, number in labels.items():
        if number == 0 or (name.lower() == _BACKGROUND and number in (0, [0])):
            continue
        if name == _IGNORE:
            ignore = number[0] if isinstance(number, list) and len(number) == 1 else number
        else:
            found[name] = number
    return found, ignore


def _content(path: Path, kind: type = dict) -> Any:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: holds more than {_MOST_BYTES} bytes; choose the right file")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); correct it") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: is no JSON {'object' if kind is dict else 'list'}; correct it")
    return content
