"""Comparison of a data set's cases with each other: the same picture twice, one mask for two, inverted masks."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord

LEAST_AREA = 64
"""Smallest number of voxels of a mask that is unlikely to be drawn twice."""

LEAST_CASES = 3
"""Smallest number of cases in which two raters must agree completely to be suspected to be one."""

_INSIDE_OUT = 0.9
"""Share of an image's border, at least, that an inverted mask marks."""

_MOST_NAMED = 3


class MaskTraits(NamedTuple):
    """Traits of one rater's mask of one structure.

    Attributes:
        area: number of marked voxels.
        inside_out: whether it marks most of the image and of the image's border, as an inverted mask does.
        digest: hash of the voxels; empty for an empty mask, and for one that marks everything.
    """

    area: int
    inside_out: bool
    digest: str


class CaseTraits(NamedTuple):
    """Traits by which cases are compared, small enough to keep them of all cases.

    Attributes:
        picture: hash of the voxels of the image; empty if all channels are constant.
        constant: positions of the channels that hold a single value.
        masks: traits of each rater's masks, one per structure; None for a rater who did not outline the case.
    """

    picture: str
    constant: tuple[int, ...]
    masks: tuple[tuple[MaskTraits, ...] | None, ...]

    @classmethod
    def from_plain(cls, stored: Sequence[Any]) -> CaseTraits:
        """Return the traits from nested lists, as JSON stores them."""
        picture, constant, masks = stored
        raters = (None if rater is None else tuple(MaskTraits(*mask) for mask in rater) for rater in masks)
        return cls(str(picture), tuple(constant), tuple(raters))


class ComparedCase(NamedTuple):
    """A case with its traits and the name of its image file."""

    record: CaseRecord
    file: str
    traits: CaseTraits

    def __str__(self) -> str:
        return f"{self.record.case_id!r} ({self.file})"


def traits_of(sample: RaterSample) -> CaseTraits:
    """Return the traits of a case."""
    constant = tuple(channel for channel, values in enumerate(sample.image) if values.amin() == values.amax())
    masks = (
        tuple(_mask_traits(mask.numpy()) for mask in of_rater) if valid else None
        for of_rater, valid in zip(sample.masks, sample.valid.tolist(), strict=True)
    )
    picture = "" if len(constant) == len(sample.image) else _digest(sample.image)
    return CaseTraits(picture, constant, tuple(masks))


def repeated_pictures(cases: Iterable[ComparedCase]) -> tuple[list[tuple[ComparedCase, str]], list[str]]:
    """Find cases that hold the same picture.

    Returns:
        problems, each with its first case, where a training case could be tested on: the cases belong to different
        patients or splits; and warnings for all other repetitions.
    """
    problems, warnings = [], []
    for same in _grouped((case.traits.picture, case) for case in cases):
        first, *others = same
        # a manifest that names one file twice is reported by its own check
        if len({case.file for case in same}) == 1:
            continue
        listed = _listed(others)
        torn = {(case.record.group, case.record.split) for case in same}
        if len(torn) > 1:
            leak = "so a training case may be a test case"
            fix = "remove one, or give them one patient and split"
            problems.append((first, f"holds the same picture as case {listed}, {leak}; {fix}"))
        else:
            warnings.append(f"case {first} holds the same picture as case {listed}")
    return problems, warnings


def suspicions(cases: Sequence[ComparedCase], raters: Sequence[str] | None, structures: Sequence[str]) -> list[str]:
    """Return one line per finding that is most likely a mistake, but may be meant.

    Args:
        cases: cases of a data set.
        raters: names of the raters, or None if a place on the rater axis is nobody in particular.
        structures: names of the structures.
    """
    return [
        *_constant_channels(cases),
        *_inverted_masks(cases, raters, structures),
        *(_equal_raters(cases, raters) if raters is not None else []),
        *_equal_masks(cases, structures),
    ]


def _constant_channels(cases: Sequence[ComparedCase]) -> list[str]:
    constant: defaultdict[int, list[ComparedCase]] = defaultdict(list)
    for case in cases:
        for channel in case.traits.constant:
            constant[channel].append(case)
    return [
        f"channel {channel + 1} holds a single value in {_counted(found, cases)}: {_listed(found)}; check the files "
        "and the windows of the preparation"
        for channel, found in sorted(constant.items())
    ]


def _inverted_masks(
    cases: Sequence[ComparedCase], raters: Sequence[str] | None, structures: Sequence[str]
) -> list[str]:
    found: defaultdict[tuple[int, str, bool], list[ComparedCase]] = defaultdict(list)
    for case in cases:
        outlined = {place: masks for place, masks in enumerate(case.traits.masks) if masks is not None}
        for number, structure in enumerate(structures):
            suspects = [place for place, masks in outlined.items() if masks[number].inside_out]
            for place in suspects:
                found[place if raters is not None else 0, structure, len(suspects) < len(outlined)].append(case)
    lines = []
    for (place, structure, differ), of_rater in sorted(found.items()):
        who = "raters" if raters is None else f"rater {raters[place]!r}"
        unique = list(dict.fromkeys(of_rater))
        lines.append(
            f"masks of {structure} by {who} mark most of the image and its border in {_counted(unique, cases)}: "
            f"{_listed(unique)}{', where other raters do not' * differ}; if they are inverted, save them with 0 outside"
        )
    return lines


def _equal_raters(cases: Sequence[ComparedCase], raters: Sequence[str]) -> list[str]:
    """Report pairs of raters with the same masks in all of several cases."""
    shared: defaultdict[tuple[int, int], int] = defaultdict(int)
    differing: set[tuple[int, int]] = set()
    for case in cases:
        marked = [
            (place, tuple(mask.digest for mask in masks))
            for place, masks in enumerate(case.traits.masks)
            if masks is not None and any(mask.area for mask in masks)
        ]
        for (first, masks), (second, others) in combinations(marked, 2):
            if masks == others:
                shared[first, second] += 1
            else:
                differing.add((first, second))
    return [
        f"raters {raters[first]!r} and {raters[second]!r} have the same masks in all {count} cases that both outlined; "
        "check that these are two people"
        for (first, second), count in sorted(shared.items())
        if count >= LEAST_CASES and (first, second) not in differing
    ]


def _equal_masks(cases: Sequence[ComparedCase], structures: Sequence[str]) -> list[str]:
    """Report masks that are the same in cases of different patients."""
    lines = []
    for number, structure in enumerate(structures):
        marked = (
            (mask.digest, case)
            for case in cases
            for masks in case.traits.masks
            if masks is not None and (mask := masks[number]).area >= LEAST_AREA
        )
        for same in _grouped(marked):
            if len({case.record.group for case in same}) > 1 and len({case.traits.picture for case in same}) > 1:
                lines.append(f"cases {_listed(same)} share a mask of {structure}; check that each has its own")
    return lines


def _grouped(items: Iterable[tuple[str, ComparedCase]]) -> list[list[ComparedCase]]:
    """Return the cases of each key that several cases have; the empty key does not count."""
    groups: defaultdict[str, dict[str, ComparedCase]] = defaultdict(dict)
    for key, case in items:
        groups[key][case.record.case_id] = case
    return [list(group.values()) for key, group in groups.items() if key and len(group) > 1]


def _mask_traits(mask: NDArray[np.uint8]) -> MaskTraits:
    area = int(np.count_nonzero(mask))
    if area in (0, mask.size):
        return MaskTraits(area, area > 0, "")
    inside_out = 2 * area > mask.size and _border_share(mask) >= _INSIDE_OUT
    return MaskTraits(area, inside_out, _digest(torch.from_numpy(np.packbits(mask)), mask.shape))


def _border_share(mask: NDArray[np.uint8]) -> float:
    """Return the share of marked voxels on the outer faces of a mask `[*S]`; edges count on each of their faces."""
    faces = [np.take(mask, side, axis) for axis in range(mask.ndim) for side in (0, -1)]
    return float(sum(np.count_nonzero(face) for face in faces) / sum(face.size for face in faces))


def _digest(values: Tensor, shape: Sequence[int] = ()) -> str:
    """Return a hash of the numbers and their arrangement."""
    array = np.ascontiguousarray(values.numpy())
    found = hashlib.sha256(repr((array.shape, tuple(shape))).encode())
    found.update(array.data.cast("B"))
    return found.hexdigest()[:24]


def _counted(found: Sequence[ComparedCase], cases: Sequence[ComparedCase]) -> str:
    return f"{len(found)} of {len(cases)} cases"


def _listed(cases: Sequence[ComparedCase]) -> str:
    return ", ".join(map(str, cases[:_MOST_NAMED])) + ", ..." * (len(cases) > _MOST_NAMED)
