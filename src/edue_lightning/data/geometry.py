"""Moving volumes between the grids of different files, by their affines (voxel indices to mm, RAS)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from edue_lightning.data.images import same_affine
from edue_lightning.data.sample import Grid

_WHOLE_VOXELS = 1e-3
"""Of a voxel: a grid that lies closer to whole steps of another is taken to lie on it."""


def grid_of(shape: Sequence[int], affine: NDArray[np.float64]) -> Grid:
    """Return a grid from its shape and `[4, 4]` affine."""
    return Grid(tuple(int(length) for length in shape), torch.from_numpy(np.array(affine, dtype=np.float64)))


def grid_spacing(grid: Grid) -> tuple[float, ...]:
    """Return the voxel size along each axis, mm."""
    # a turned grid has the digits of its rotation in them
    return tuple(round(float(size), 6) for size in voxel_sizes(grid.affine.numpy()))


def closest_canonical(grid: Grid) -> Grid:
    """Return the same voxels with their axes ordered and turned such that they run to the right, anterior and superior.

    Oblique grids stay oblique: no voxel moves.
    """
    affine = grid.affine.numpy()
    orientation = io_orientation(affine)
    turned = affine @ inv_ornt_aff(orientation, grid.shape)
    order = np.argsort(orientation[:, 0]).astype(int)
    return grid_of([grid.shape[axis] for axis in order], turned)


def cropped(grid: Grid, low: Sequence[float], high: Sequence[float]) -> Grid | None:
    """Return the part of a grid within a box, or None where the two do not meet.

    The first voxel is the one whose centre lies nearest to the box's first corner, and there are as many as the box is
    long, rounded. On an oblique grid it is the smallest box along the grid's axes around the given one.

    Args:
        grid: of three axes.
        low: first corner of the box, mm.
        high: last corner, mm.
    """
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    indices = apply_affine(np.linalg.inv(grid.affine.numpy()), corners)
    first, length = indices.min(axis=0), np.ptp(indices, axis=0)
    start = np.round(first).astype(int)
    stop = start + np.round(length).astype(int)
    start, stop = np.maximum(start, 0), np.minimum(stop, grid.shape)
    if (stop <= start).any():
        return None
    affine = grid.affine.numpy().copy()
    affine[:3, 3] = apply_affine(affine, start)
    return grid_of(stop - start, affine)


def respaced(grid: Grid, spacing: Sequence[float]) -> Grid:
    """Return a grid over the same box with other voxel sizes.

    The outer faces of the first voxels stay where they are; those of the last ones move by less than a voxel.

    Args:
        grid: of three axes.
        spacing: mm along each axis.
    """
    affine = grid.affine.numpy()
    factors = np.array(spacing) / voxel_sizes(affine)
    shape = np.maximum(np.round(np.array(grid.shape) / factors), 1).astype(int)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * factors
    # voxel centres: half a new voxel in from the same face
    new[:3, 3] = apply_affine(affine, (factors - 1) / 2)
    return grid_of(shape, new)


def resample(volume: NDArray, affine: NDArray[np.float64], target: Grid, fill: float) -> NDArray[np.float32]:
    """Return a volume's values on another grid, float32.

    Voxels that lie on whole steps of the volume's own grid, its axes in any order and direction, are copied; else
    values are interpolated linearly. What lies outside of the volume takes the value `fill`.

    Args:
        volume: `[I, J, K]`.
        affine: of the volume, `[4, 4]`.
        target: where the values are wanted.
        fill: value outside.
    """
    step = np.linalg.inv(affine) @ target.affine.numpy()
    whole = np.round(step)
    # how far the farthest corner of the target is from where whole steps would place it
    corners = _corners(target)
    deviation = np.abs(apply_affine(step, corners) - apply_affine(whole, corners)).max()
    if deviation < _WHOLE_VOXELS and (np.abs(whole[:3, :3]).sum(axis=0) == 1).all():
        return _copied(volume, whole, target.shape, fill)
    values = volume.astype(np.float32, copy=False)
    result: NDArray[np.float32] = affine_transform(
        values, step[:3, :3], step[:3, 3], target.shape, np.float32, order=1, mode="constant", cval=fill
    )
    return result


def _copied(volume: NDArray, step: NDArray[np.float64], shape: Sequence[int], fill: float) -> NDArray[np.float32]:
    """Return the voxels at whole steps: `step` is a permutation with signs and a shift, target to volume."""
    result = np.full(shape, fill, dtype=np.float32)
    wanted: list[slice] = [slice(None)] * 3
    taken: list[slice] = [slice(None)] * 3
    order = [0, 0, 0]
    for axis in range(3):
        own = int(np.abs(step[:3, axis]).argmax())
        sign, shift = int(step[own, axis]), int(step[own, 3])
        order[axis] = own
        # of the target's voxels t, those with 0 <= sign * t + shift < length
        ends = sorted(((0 - shift) * sign, (volume.shape[own] - 1 - shift) * sign))
        first, last = max(ends[0], 0), min(ends[1], shape[axis] - 1)
        if last < first:
            return result
        wanted[axis] = slice(first, last + 1)
        from_, to = sign * first + shift, sign * last + shift
        # a slice that runs down to the first voxel has no end
        taken[own] = slice(from_, (to + sign) if to + sign >= 0 else None, sign)
    result[tuple(wanted)] = volume[tuple(taken)].transpose(order)
    return result


def share_inside(mask: NDArray[np.bool_], affine: NDArray[np.float64], grid: Grid) -> float:
    """Return which share of a mask's voxels has its centre within a grid; 1 for an empty mask.

    Args:
        mask: `[I, J, K]`.
        affine: of the mask, `[4, 4]`.
        grid: that may hold it.
    """
    voxels = np.argwhere(mask)
    if not len(voxels):
        return 1.0
    places = apply_affine(np.linalg.inv(grid.affine.numpy()) @ affine, voxels)
    return float(((places > -0.5) & (places < np.array(grid.shape) - 0.5)).all(axis=1).mean())


def overlap_share(grid: Grid, other: Grid) -> float:
    """Return roughly which share of a grid lies within another one, from a lattice of points."""
    axes = [np.linspace(0, length - 1, num=min(length, 9)) for length in grid.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    places = apply_affine(np.linalg.inv(other.affine.numpy()) @ grid.affine.numpy(), points)
    return float(((places >= -0.5) & (places <= np.array(other.shape) - 0.5)).all(axis=1).mean())


def largest_shift(grid: Grid, other: Grid) -> float:
    """Return how far apart two grids of one shape place any of their voxels, in voxels of the other one."""
    corners = _corners(grid)
    places = apply_affine(np.linalg.inv(other.affine.numpy()) @ grid.affine.numpy(), corners)
    return float(np.abs(places - corners).max())


def _corners(grid: Grid) -> NDArray[np.int64]:
    ends = [(0, length - 1) for length in grid.shape]
    return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)


def same_grid(first: Grid, second: Grid) -> bool:
    """Tell whether two grids hold the same voxels in the same order."""
    return first.shape == second.shape and same_affine(first.affine, second.affine)
