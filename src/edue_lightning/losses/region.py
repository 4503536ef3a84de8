"""Restriction of losses to the region of each case, outside of which no voxel counts."""

from __future__ import annotations

from torch import Tensor


def within(values: Tensor, region: Tensor | None) -> Tensor:
    """Return maps that are zero outside of the region.

    Args:
        values: `[B, ..., *S]`.
        region: `[B, *S]` bool, or None for the whole image.
    """
    return values if region is None else values * _aligned(region, values)


def voxel_mean(values: Tensor, region: Tensor | None) -> Tensor:
    """Return the mean of maps over the voxels of the region (and over all axes between), `[B]`.

    Args:
        values: `[B, ..., *S]`.
        region: `[B, *S]` bool, or None for the whole image. A case without a voxel inside, as a patch may be, gives 0.
    """
    if region is None:
        return values.flatten(1).mean(dim=1)
    inside = _aligned(region, values)
    maps = values[0].numel() // region[0].numel()
    return (values * inside).flatten(1).sum(dim=1) / (maps * inside.flatten(1).sum(dim=1)).clamp_min(1)


def _aligned(region: Tensor, values: Tensor) -> Tensor:
    """Return a region `[B, *S]` as numbers that broadcast to values `[B, ..., *S]`."""
    between = values.ndim - region.ndim
    return region[(slice(None), *[None] * between)].to(values.dtype)
