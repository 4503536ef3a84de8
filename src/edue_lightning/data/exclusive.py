"""Structures that exclude each other: the check that no rater gives a voxel to two of them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from edue_lightning.data.sample import RaterSample


class Shared(NamedTuple):
    """Voxels that one rater gave to two structures.

    Attributes:
        rater: position on the rater axis.
        structures: positions of the structures.
        voxels: number of these voxels.
    """

    rater: int
    structures: tuple[int, int]
    voxels: int


def shared_voxels(sample: RaterSample) -> list[Shared]:
    """Return the voxels that a rater gave to two structures, one entry per rater and pair; empty if there are none."""
    found = []
    most = sample.masks.sum(dim=1, dtype=torch.uint8).flatten(1).amax(dim=1)
    for rater in torch.nonzero(most > 1).flatten().tolist():
        masks = sample.masks[rater]
        for first, second in itertools.combinations(range(len(masks)), 2):
            voxels = int((masks[first] & masks[second]).sum())
            if voxels:
                found.append(Shared(rater, (first, second), voxels))
    return found
