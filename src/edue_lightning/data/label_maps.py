"""Label maps: mask files with one number per structure, for nested structures too, and one for ignored voxels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.images import ImageFile, read_label_map
from edue_lightning.errors import UserError

MOST_LABEL = 255
"""Largest number in a label map."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Meaning of the numbers in a label map, in which 0 is the background.

    Attributes:
        structures: numbers that belong to each structure; a number may belong to several, as that of a cup to the disc.
        ignore: number of the voxels that count nowhere, or None.
    """

    structures: Mapping[str, tuple[int, ...]]
    ignore: int | None = None

    @classmethod
    def of(cls, labels: Mapping[str, int | Sequence[int]], ignore: int | None, setting: str) -> LabelMap:
        """Return the meaning of labels as a user writes them, such as `{"disc": [1, 2], "cup": 2}`.

        Args:
            labels: number or numbers of each structure.
            ignore: see `LabelMap`.
            setting: name of the setting, for the error.

        Raises:
            UserError: if a structure has no number, a number is not whole or not from 1 to 255, or belongs to a
                structure and to `ignore`.
        """
        structures = {
            str(name): tuple(dict.fromkeys(numbers)) if isinstance(numbers, list | tuple) else (numbers,)
            for name, numbers in labels.items()
        }
        for name, numbers in structures.items():
            if not numbers or not all(_is_label(number) for number in numbers):
                raise UserError(f"{setting}: {name} has {list(numbers)}; give whole numbers from 1 to {MOST_LABEL}")
        if not structures:
            raise UserError(f"{setting}: is empty; name at least one structure")
        if ignore is not None and (not _is_label(ignore) or any(ignore in numbers for numbers in structures.values())):
            raise UserError(
                f"{setting}: the number of ignored voxels is {ignore}; give one from 1 to {MOST_LABEL} that belongs to "
                "no structure"
            )
        return cls(structures, ignore)

    def require_exclusive(self, structures: Sequence[str], setting: str) -> None:
        """Check that no number belongs to two of the structures.

        Args:
            structures: names of structures that exclude each other.
            setting: name of the setting or file with the numbers, for the error.

        Raises:
            UserError: if one does, naming it.
        """
        owners: dict[int, str] = {}
        for name in structures:
            for number in self.structures.get(name, ()):
                if number in owners:
                    raise UserError(
                        f"{setting}: number {number} belongs both to {owners[number]} and to {name}, so they overlap "
                        "or nest; set data.source.exclusive=false, or give each number to one structure"
                    )
                owners[number] = name

    @property
    def names(self) -> Mapping[int, str]:
        """Names of all numbers, for messages."""
        names: dict[int, str] = {}
        for structure, numbers in self.structures.items():
            for number in numbers:
                names[number] = f"{names[number]} and {structure}" if number in names else structure
        if self.ignore is not None:
            names[self.ignore] = "ignored"
        return dict(sorted(names.items()))

    def read(self, path: Path) -> ImageFile:
        """Read a label map, see `read_label_map`.

        Raises:
            ImageError: if the file cannot be read or holds another number.
        """
        return read_label_map(path, self.names)

    def mask(self, labels: NDArray, structure: str) -> NDArray[np.bool_]:
        """Return the mask of a structure, `[*S]`."""
        return np.isin(labels, self.structures[structure])

    def region(self, label_maps: Iterable[NDArray]) -> NDArray[np.bool_] | None:
        """Return the voxels that no rater's label map ignores, `[*S]`; None if that is all.

        Args:
            label_maps: label maps of all raters of a case, `[*S]` each.
        """
        if self.ignore is None:
            return None
        ignored = [labels == self.ignore for labels in label_maps]
        if not any(part.any() for part in ignored):
            return None
        found: NDArray[np.bool_] = ~np.logical_or.reduce(ignored)
        return found


def _is_label(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST_LABEL
