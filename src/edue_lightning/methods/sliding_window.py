"""Prediction of whole images, at once or window by window, for networks that were trained on patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor
from torch.nn import functional as F

# least weight of a voxel in a window, so that no voxel is divided by zero
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Inference:
    """Member logits of a whole image, at once or window by window.

    Attributes:
        window: voxels along each axis of the network's input, as in training; None for the whole image. A smaller
            image is padded with zeros, and the result is cropped.
        overlap: share of a window that overlaps with its neighbour; the logits are averaged with Gaussian weights
            (Isensee et al., Nature Methods 2021), member by member.
        batch_size: windows per forward pass.

    Raises:
        ValueError: if the window, overlap or batch size is invalid.
    """

    window: Sequence[int] | None = None
    overlap: float = 0.25
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and (len(self.window) not in (2, 3) or min(self.window) < 1):
            raise ValueError(f"inference.window must be two or three positive integers, not {list(self.window)}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap must be at least 0 and below 1, not {self.overlap}")
        if self.batch_size < 1:
            raise ValueError(f"inference.batch_size must be at least 1, not {self.batch_size}")

    def __call__(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Return member logits `[B, M, K, *S]` for images `[B, C, *S]` of any size, see `slabs`."""
        return torch.cat(list(self.slabs(network, image)), dim=3)

    def slabs(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Iterator[Tensor]:
        """Yield the logits as slabs `[B, M, K, s, ...]` along the first spatial axis, as soon as each is complete.

        Their memory does not grow with the length of that axis.

        Args:
            network: `[N, C, *window]` to logits `[N, M, K, *window]`.
            image: `[B, C, *S]`.

        Raises:
            ValueError: if the window and the image have different numbers of axes.
        """
        if self.window is None:
            yield network(image)
            return
        padded, missing, window = self._padded(image, self.window)
        kept = [slice(gap // 2, gap // 2 + length) for gap, length in zip(missing, image.shape[2:], strict=True)]
        yield from (slab[:, :, :, *kept] for slab in self._padded_slabs(network, padded, window))

    def tiles(self, image: Tensor) -> Iterator[tuple[Tensor, tuple[slice, ...]]]:
        """Yield windows `[B, C, *window]` side by side that cover the images; without `window`, the images themselves.

        The last window along an axis overlaps with the one before where the axis is no multiple of the window. With
        each window comes its own box: slices of the window's voxels that are not padding and lie in no earlier window.
        So the boxes hold each voxel of the image once.

        Args:
            image: `[B, C, *S]`.

        Raises:
            ValueError: if the window and the image have different numbers of axes.
        """
        if self.window is None:
            yield image, tuple(slice(0, length) for length in image.shape[2:])
            return
        padded, missing, window = self._padded(image, self.window)
        for place in dense_patch_slices(padded.shape[2:], window, window):
            box = []
            for part, edge, gap, length in zip(place, window, missing, image.shape[2:], strict=True):
                # only the last window does not start at a multiple of its length
                start = max(-(-part.start // edge) * edge, gap // 2)
                box.append(slice(start - part.start, min(part.stop, gap // 2 + length) - part.start))
            yield padded[:, :, *place], tuple(box)

    @staticmethod
    def _padded(image: Tensor, wanted: Sequence[int]) -> tuple[Tensor, list[int], tuple[int, ...]]:
        """Return an image padded to the window where it is smaller, the padding of each axis, and the window."""
        window = tuple(wanted)
        if len(window) != image.ndim - 2:
            raise ValueError(f"inference.window={list(window)}: the images are {image.ndim - 2}D")
        missing = [max(length - there, 0) for length, there in zip(window, image.shape[2:], strict=True)]
        padded = F.pad(image, [width for gap in reversed(missing) for width in (gap // 2, gap - gap // 2)])
        return padded, missing, window

    def _padded_slabs(
        self, network: Callable[[Tensor], Tensor], image: Tensor, window: tuple[int, ...]
    ) -> Iterator[Tensor]:
        step = [
            edge if edge == length else max(int(edge * (1 - self.overlap)), 1)
            for edge, length in zip(window, image.shape[2:], strict=True)
        ]
        weight = compute_importance_map(window, mode="gaussian", device=image.device).clamp_min(_LEAST_WEIGHT)
        places = dense_patch_slices(image.shape[2:], window, step)
        total = counted = None
        done = 0
        for start, group in groupby(places, key=lambda place: place[0].start):
            if total is not None and counted is not None:
                # no later window overlaps with these
                ready = start - done
                yield total[:, :, :, :ready] / counted[:ready]
                total = torch.cat([total[:, :, :, ready:], torch.zeros_like(total[:, :, :, :ready])], dim=3)
                counted = torch.cat([counted[ready:], torch.zeros_like(counted[:ready])])
                done = start
            for part in _batches(list(group), self.batch_size):
                logits = network(torch.cat([image[:, :, *place] for place in part])) * weight
                if total is None or counted is None:
                    shape = (len(image), *logits.shape[1:3], window[0], *image.shape[3:])
                    total, counted = logits.new_zeros(shape), weight.new_zeros(shape[3:])
                for place, found in zip(part, logits.split(len(image)), strict=True):
                    # along the first axis, the sums begin at the start of this group's windows
                    total[:, :, :, :, *place[1:]] += found
                    counted[:, *place[1:]] += weight
        assert total is not None
        assert counted is not None
        yield total / counted


@dataclass(frozen=True)
class InferenceChanges:
    """Settings of a prediction of whole images that differ from those of the training, see `Inference`.

    Attributes:
        window: voxels along each axis; empty for the whole image at once; None for the window of the training.
        overlap: share of a window that overlaps with its neighbour; None for that of the training.
        batch_size: windows per forward pass; None for those of the training.
    """

    window: Sequence[int] | None = None
    overlap: float | None = None
    batch_size: int | None = None

    def of(self, trained: Inference) -> Inference:
        """Return the inference of a training with these changes.

        Raises:
            ValueError: if the window, overlap or batch size is invalid.
        """
        return Inference(
            trained.window if self.window is None else (tuple(self.window) or None),
            trained.overlap if self.overlap is None else self.overlap,
            trained.batch_size if self.batch_size is None else self.batch_size,
        )


def _batches(places: list[tuple[slice, ...]], size: int) -> Iterator[list[tuple[slice, ...]]]:
    return (places[first : first + size] for first in range(0, len(places), size))
