"""The data contract: one case with all its raters, and a batch of such cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Places of the voxels of an image file.

    Attributes:
        shape: length of the spatial axes.
        affine: `[4, 4]` float64 from the file's three voxel indices to mm.
    """

    shape: tuple[int, ...]
    affine: Tensor


@dataclass(frozen=True)
class RaterSample:
    """One case as every data set yields it; `*S` is two or three spatial axes.

    Attributes:
        image: `[C, *S]` float32.
        masks: `[R, K, *S]` uint8 in {0, 1}, one mask per rater and structure.
        valid: `[R]` bool; false for a rater who gave no outline for this case. Such a rater's masks are zero and never
            counted.
        case_id: unique within the data set.
        spacing: voxel size in mm along each spatial axis, or None if it is unknown.
        affine: `[4, 4]` float64 of a volume, from voxel indices to mm (RAS), or None if it is unknown. Volumes from
            files have axes to the right, anterior and superior.
        origin: grid of the file that this sample was turned, cut or resampled from, to which predictions belong; None
            if it is the sample's own.
        foreground: `[P, n]` int32, voxels that a rater marked, equally many per connected region; None if they were not
            listed. See `foreground_points`.
        region: `[*S]` bool, the voxels that count in training and in every metric, such as the field of view of a
            camera; None if all do. Masks are zero outside of it.
        content: digests of the image before it was prepared, see `identity.content_digest`; None for those of `image`.

    Raises:
        ValueError: if a type or shape differs from these.
    """

    image: Tensor
    masks: Tensor
    valid: Tensor
    case_id: str
    spacing: tuple[float, ...] | None = None
    affine: Tensor | None = None
    origin: Grid | None = None
    foreground: Tensor | None = None
    region: Tensor | None = None
    content: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        spatial = self.image.shape[1:]
        problems = []
        if self.image.dtype != torch.float32 or len(spatial) not in (2, 3):
            problems.append(f"image must be float32 [C, *S] in 2D or 3D, is {_describe(self.image)}")
        if self.masks.dtype != torch.uint8 or self.masks.shape[2:] != spatial:
            problems.append(f"masks must be uint8 [R, K, *S] on the image's grid, are {_describe(self.masks)}")
        if self.valid.dtype != torch.bool or self.valid.shape != self.masks.shape[:1]:
            problems.append(f"valid must be bool [R], is {_describe(self.valid)}")
        if self.spacing is not None and len(self.spacing) != len(spatial):
            problems.append(f"spacing must have one entry per spatial axis, is {self.spacing}")
        if self.region is not None and (self.region.dtype != torch.bool or self.region.shape != spatial):
            problems.append(f"region must be bool [*S] on the image's grid, is {_describe(self.region)}")
        if isinstance(self.content, str):
            problems.append("content must be a tuple of digests, see content_digest, is one text")
        if problems:
            raise ValueError(f"case {self.case_id!r}: " + "; ".join(problems))

    def of_raters(self, raters: Sequence[int]) -> RaterSample:
        """Return the case as if only these raters had been asked.

        Args:
            raters: positions on the rater axis, not negative; those beyond it, in a case of fewer raters, are ignored.

        Returns:
            the case with the masks `[n, K, *S]` of these raters, in the given order, and without `foreground`, which
            also lists voxels that other raters marked.
        """
        kept = torch.tensor([rater for rater in raters if rater < len(self.valid)], dtype=torch.int64)
        return replace(self, masks=self.masks[kept], valid=self.valid[kept], foreground=None)


@dataclass(frozen=True)
class RaterBatch:
    """Cases stacked along a first axis B; raters are padded to the largest number in the batch.

    Attributes:
        image: `[B, C, *S]` float32.
        masks: `[B, R, K, *S]` uint8.
        valid: `[B, R]` bool; false for a missing rater and for padding.
        spacing: `[B, n]` float32, mm along each spatial axis; 1 if it is unknown.
        case_index: `[B]` int64, position of the case in its split.
        draw_key: `[B]` int64, differs per case, epoch and seed. All random draws for a case are derived from it, so
            that they do not depend on batching, workers or devices.
        region: `[B, *S]` bool, see `RaterSample.region`; None if every voxel of every case counts.
    """

    image: Tensor
    masks: Tensor
    valid: Tensor
    spacing: Tensor
    case_index: Tensor
    draw_key: Tensor
    region: Tensor | None = None

    def __len__(self) -> int:
        return self.image.shape[0]

    def pin_memory(self) -> RaterBatch:
        """Return the batch in page-locked memory (called by the data loader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str) -> RaterBatch:
        """Return the batch on a device (called by the trainer)."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> RaterBatch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {name: None if part is None else function(part) for name, part in tensors.items()}
        return RaterBatch(**mapped)


def collate_samples(samples: Sequence[RaterSample], case_index: Sequence[int], draw_key: Sequence[int]) -> RaterBatch:
    """Stack samples of one image size into a batch, padding the raters.

    Args:
        samples: at least one.
        case_index: position of each sample's case in its split.
        draw_key: key of each sample's random draws, see `RaterBatch`.

    Raises:
        ValueError: if the samples differ in image size, channels or structures.
    """
    shapes = {(tuple(s.image.shape), tuple(s.masks.shape[1:])) for s in samples}
    if len(shapes) > 1:
        described = "; ".join(f"{s.case_id}: {tuple(s.image.shape)}" for s in samples)
        raise ValueError(f"cases of one batch must agree in channels, structures and size: {described}")
    most_raters = max(len(s.valid) for s in samples)
    masks = torch.stack([_pad_first(s.masks, most_raters) for s in samples])
    valid = torch.stack([_pad_first(s.valid, most_raters) for s in samples])
    region = None
    if any(s.region is not None for s in samples):
        everywhere = torch.ones(samples[0].image.shape[1:], dtype=torch.bool)
        region = torch.stack([everywhere if s.region is None else s.region for s in samples])
    spacing = [s.spacing or (1.0,) * (s.image.ndim - 1) for s in samples]
    return RaterBatch(
        image=torch.stack([s.image for s in samples]),
        masks=masks,
        valid=valid,
        spacing=torch.tensor(spacing, dtype=torch.float32),
        case_index=torch.tensor(case_index, dtype=torch.int64),
        draw_key=torch.tensor(draw_key, dtype=torch.int64),
        region=region,
    )


def _pad_first(tensor: Tensor, length: int) -> Tensor:
    padding = tensor.new_zeros((length - tensor.shape[0], *tensor.shape[1:]))
    return torch.cat([tensor, padding])


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
