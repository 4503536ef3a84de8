"""Pairwise overlap of the masks of one case, from one pass over the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# float32 sums of ones are exact below 2**24; a chunk also bounds the memory of the masks as numbers
_CHUNK = 2**20
_BYTES_OF_WORD = 8


def dice_of_counts(both: Tensor, total: Tensor) -> Tensor:
    """Return the Dice of two masks from their common size and the sum of their sizes; 1 if both are empty."""
    return torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)


@dataclass(frozen=True)
class PairOverlap:
    """Pairwise overlap of n masks.

    Attributes:
        intersection: number of voxels that both masks hold, `[..., n, n]` float64; the diagonal holds each mask's
            own size.
    """

    intersection: Tensor

    @property
    def size(self) -> Tensor:
        """Number of voxels of each mask, `[..., n]`."""
        return self.intersection.diagonal(dim1=-2, dim2=-1)

    def select(self, masks: slice | Sequence[int]) -> PairOverlap:
        """Return the overlap of some of the masks."""
        return PairOverlap(self.intersection[..., masks, :][..., masks])

    def dice(self) -> Tensor:
        """Return the Dice of every pair, `[..., n, n]` in [0, 1]; 1 where both masks are empty, 0 where one is."""
        return dice_of_counts(self.intersection, self.size[..., :, None] + self.size[..., None, :])

    def intersection_over_union(self) -> Tensor:
        """Return the IoU of every pair, `[..., n, n]` in [0, 1]; 1 where both masks are empty, 0 where one is."""
        union = self.size[..., :, None] + self.size[..., None, :] - self.intersection
        return torch.where(union > 0, self.intersection / union.clamp_min(1), 1.0)


def pair_overlap(masks: Tensor) -> PairOverlap:
    """Count the voxels that each pair of masks shares.

    Args:
        masks: `[..., n, V]` bool (or 0 and 1).
    """
    return _overlap_of_bits(masks) if masks.device.type == "cpu" else overlap_by_product(masks)


def overlap_by_product(masks: Tensor) -> PairOverlap:
    """Count as `pair_overlap` does, with operations of PyTorch alone, as a graph or another device needs."""
    intersection = torch.zeros(*masks.shape[:-1], masks.shape[-2], dtype=torch.float64, device=masks.device)
    for part in masks.split(_CHUNK, dim=-1):
        ones = part.to(torch.float32)
        intersection += (ones @ ones.transpose(-1, -2)).double()
    return PairOverlap(intersection)


def _overlap_of_bits(masks: Tensor) -> PairOverlap:
    """Count in words of 64 voxels, in about a fifth of the time of a product."""
    packed = np.packbits(masks.bool().contiguous().numpy(), axis=-1)
    missing = -packed.shape[-1] % _BYTES_OF_WORD
    words = np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, missing)]).view(np.uint64)
    shared = np.empty((*masks.shape[:-1], masks.shape[-2]))
    for number in range(masks.shape[-2]):
        common = np.bitwise_count(words[..., number : number + 1, :] & words)
        shared[..., number, :] = common.sum(axis=-1, dtype=np.int64)
    return PairOverlap(torch.from_numpy(shared))
