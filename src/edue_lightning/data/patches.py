"""Patches for training on images that are large or differ in size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from edue_lightning.data.sample import RaterSample

POINTS_PER_REGION = 64
_OWN_STREAM = 1


def foreground_points(masks: Tensor) -> Tensor:
    """Return voxels that a rater marked, equally many per connected region, so that a draw finds small ones too.

    Args:
        masks: `[R, K, *S]` in {0, 1}; those of invalid raters are zero.

    Returns:
        `[P, n]` int32: `POINTS_PER_REGION` voxels per region of each structure's union over raters, drawn with
        repetition from a fixed seed; P = 0 where nothing is marked.
    """
    rng = np.random.default_rng(0)
    points = [_region_points(union, rng) for union in masks.amax(dim=0).numpy().astype(bool)]
    return torch.from_numpy(np.concatenate(points).astype(np.int32))


def _region_points(union: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    # label only the box around what is marked, not the whole volume
    (box,) = ndimage.find_objects(union.astype(np.uint8)) or [None]
    if box is None:
        return np.empty((0, union.ndim), dtype=np.int64)
    corner = np.array([part.start for part in box])
    labels, _ = ndimage.label(union[box], np.ones((3,) * union.ndim))
    found = []
    for number, region in enumerate(ndimage.find_objects(labels), 1):
        voxels = np.argwhere(labels[region] == number) + [part.start for part in region] + corner
        found.append(voxels[rng.integers(len(voxels), size=POINTS_PER_REGION)])
    return np.concatenate(found)


_PATCH_STEP = {2: 32, 3: 16}
_LARGEST_PATCH = {2: 256, 3: 96}


def default_patch_size(smallest_size: Sequence[int]) -> tuple[int, ...]:
    """Return the size of the patches of a data set whose images differ in size, where none is configured.

    It is the largest multiple of 32 pixels (16 voxels) along each axis that fits the images, at most 256 pixels (96
    voxels), and at least 32 (16): smaller images are padded.

    Args:
        smallest_size: smallest length of the images along each axis, two or three.

    >>> default_patch_size((192, 975))
    (192, 256)
    """
    step, largest = _PATCH_STEP[len(smallest_size)], _LARGEST_PATCH[len(smallest_size)]
    return tuple(min(max(length // step, 1) * step, largest) for length in smallest_size)


@dataclass(frozen=True)
class PatchSampling:
    """Choice of the part of a case that a training step sees.

    Attributes:
        size: voxels along each axis; None for the whole image. A smaller image is padded with zeros, as in MONAI's
            sliding window.
        foreground: share of the patches placed over a marked voxel, all connected regions equally often; the others
            are placed anywhere.
        per_case: patches per case and epoch.

    Raises:
        ValueError: if the size, share or number is invalid.
    """

    size: Sequence[int] | None = None
    foreground: float = 0.67
    per_case: int = 1

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) not in (2, 3) or min(self.size) < 1):
            raise ValueError(f"data.patch.size must be two or three positive numbers, not {list(self.size)}")
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"data.patch.foreground is a share between 0 and 1, not {self.foreground}")
        if self.per_case < 1:
            raise ValueError(f"data.patch.per_case must be at least 1, not {self.per_case}")

    def draw(self, sample: RaterSample, key: int) -> RaterSample:
        """Cut a patch out of a case; its place depends only on `key` and the case."""
        if self.size is None:
            return sample
        rng = np.random.default_rng([key, _OWN_STREAM])
        size, shape = np.array(self.size), np.array(sample.image.shape[1:])
        start = rng.integers(np.maximum(shape - size, 0) + 1)
        if rng.random() < self.foreground:
            points = foreground_points(sample.masks) if sample.foreground is None else sample.foreground
            if len(points):
                # anywhere in the middle half of the patch, so that the network cannot learn the place
                place = rng.integers(size // 4, size - size // 4)
                start = np.clip(points[rng.integers(len(points))].numpy() - place, 0, np.maximum(shape - size, 0))
        box = tuple(slice(int(first), int(first + length)) for first, length in zip(start, size, strict=True))
        return replace(
            sample,
            image=_padded(sample.image[:, *box], self.size),
            masks=_padded(sample.masks[:, :, *box], self.size),
            region=None if sample.region is None else _padded(sample.region[box], self.size),
            affine=None,  # that of the whole image no longer holds
            origin=None,
            foreground=None,
        )


def cut_square(picture: NDArray, start: Sequence[int], edge: int) -> NDArray:
    """Return a square of a picture `[H, W, ...]`, zero beyond it."""
    square = np.zeros((edge, edge, *picture.shape[2:]), dtype=picture.dtype)
    source = [slice(max(first, 0), first + edge) for first in start]
    target = [slice(max(-first, 0), None) for first in start]
    part = picture[tuple(source)]
    rows, columns = (slice(side.start, side.start + length) for side, length in zip(target, part.shape, strict=False))
    square[rows, columns] = part
    return square


def _padded(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Pad `[..., *S]` with zeros to a size, equally on both sides."""
    missing = [wanted - found for wanted, found in zip(size, tensor.shape[-len(size) :], strict=True)]
    if not any(missing):
        return tensor.contiguous()
    # torch counts the axes from the last
    sides = [side for short in reversed(missing) for side in (short // 2, short - short // 2)]
    return F.pad(tensor, sides)
