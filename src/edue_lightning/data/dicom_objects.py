"""Common parts of RTSTRUCT and SEG objects of DICOM: named structures that refer to the series of an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.multival import MultiValue

from edue_lightning.data.dicom_series import SeriesHeader
from edue_lightning.data.geometry import grid_of
from edue_lightning.data.image_limits import ImageError
from edue_lightning.data.sample import Grid


@dataclass(frozen=True, eq=False)
class ImagePlace:
    """Place of the image to which masks belong.

    Attributes:
        grid: grid of the image as it is stored, its slices along the third axis.
        frame: UID of its frame of reference, or None if it is unknown.
        series: UID of its series, or None for an image that is no DICOM series.
        slices: UIDs of its slices, k = 0, 1, ...; empty if `series` is None.
    """

    grid: Grid
    frame: str | None = None
    series: str | None = None
    slices: tuple[str, ...] = ()

    @classmethod
    def of_series(cls, header: SeriesHeader) -> ImagePlace:
        """Return the place of a series."""
        slices = tuple(str(each.get("SOPInstanceUID")) for each in header.headers)
        return cls(grid_of(header.shape, header.affine), header.frame, header.uid, slices)


@dataclass(frozen=True)
class MasksHeader:
    """Content of a DICOM object with masks, without the masks.

    Attributes:
        kind: word for its structures.
        labels: name of each structure by its number in the object.
        series: UIDs of the series to which the object refers; empty if it names none.
        frames: UIDs of the frames of reference in which it was drawn.
        label: label of the whole object, empty if it has none.
        operator: name of the person who made it, empty if it is not given.
    """

    kind: str
    labels: Mapping[int, str]
    series: frozenset[str]
    frames: frozenset[str]
    label: str
    operator: str

    def number_of(self, wanted: str) -> int:
        """Return the number of a structure.

        Args:
            wanted: its name, of which upper and lower case and blanks at the ends do not count; or its number, if no
                structure has this name.

        Raises:
            ImageError: if there is not one such structure.
        """
        plain = wanted.strip().casefold()
        found = [number for number, label in self.labels.items() if label.strip().casefold() == plain]
        if not found and plain.isascii() and plain.isdigit() and int(plain) in self.labels:
            return int(plain)
        if len(found) != 1:
            listed = ", ".join(map(repr, self.labels.values()))
            raise ImageError(
                f"has {len(found)} {self.kind} {wanted!r}, its {self.kind}: {listed}; give one of them this name"
            )
        return found[0]


class DicomMasks(ABC):
    """Structures of a DICOM object as masks.

    Attributes:
        header: the structures and what they refer to.
    """

    header: MasksHeader

    @abstractmethod
    def mask(self, number: int, place: ImagePlace, threshold: float | None = None) -> NDArray[np.bool_]:
        """Return a structure as a mask `[I, J, K]` on the voxels of an image.

        Args:
            number: number of the structure.
            place: place of the image.
            threshold: for fractions, the stored value above which a voxel is marked; None to refuse them.

        Raises:
            ImageError: if the object does not belong to the image, or does not lie on its voxels.
        """


def names_of(value: Any) -> str:
    """Return one or several names of people, as an element of DICOM holds them, as one text."""
    people = [] if value is None else value if isinstance(value, MultiValue) else [value]
    return ", ".join(str(person).strip() for person in people if str(person).strip())
