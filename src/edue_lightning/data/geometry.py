"""Transfer of volumes between the grids of different files, by their affines (voxel indices to mm, RAS)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from edue_lightning.data.sample import Grid

LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Change of coordinates between NIfTI's axes to the right, anterior and superior (RAS) and DICOM's and ITK's to the
left, posterior and superior (LPS); its own inverse."""

_WHOLE_VOXELS = 1e-3
"""Share of a voxel: a grid that lies closer than this to whole steps of another is taken to lie on it."""

_AFFINE_TOLERANCE = 1e-3
"""Largest difference of any entry, in mm, between affines that count as equal."""

_SAME_PLACE = 0.1
"""Share of a voxel from which on two voxels count as different ones; small differences of a spacing add up."""


def grid_of(shape: Sequence[int], affine: NDArray[np.float64]) -> Grid:
    """Return a grid from its shape and `[4, 4]` affine."""
    return Grid(tuple(int(length) for length in shape), torch.from_numpy(np.array(affine, dtype=np.float64)))


def grid_spacing(grid: Grid) -> tuple[float, ...]:
    """Return the voxel size along each axis, mm."""
    # a turned grid has the digits of its rotation in them
    return tuple(round(float(size), 6) for size in voxel_sizes(grid.affine.numpy()))


def closest_canonical(grid: Grid) -> Grid:
    """Return the same voxels with axes to the right, anterior and superior (RAS), or as close to these as they are.

    Axes are permuted and flipped only: no voxel moves, and an oblique grid stays oblique.
    """
    affine = grid.affine.numpy()
    orientation = io_orientation(affine)
    turned = affine @ inv_ornt_aff(orientation, grid.shape)
    order = np.argsort(orientation[:, 0]).astype(int)
    return grid_of([grid.shape[axis] for axis in order], turned)


PICTURE = "picture"
"""`slice_storage` of a picture, which does not say how it lies in space."""

DICOM_SLICE = "DICOM slice"
"""Storage of a slice of a DICOM series: rows first, as in a picture."""

DIFFERING_SLICES = "NIfTI slices with different axes"
"""Storage of a data set whose NIfTI slices have axes in several directions."""

# the directions of the axes follow
_NIFTI_SLICE = "NIfTI slice "


def slice_storage(affine: NDArray[np.float64] | None) -> str:
    """Return how a file stores the axes of a 2D image: `picture`, or `NIfTI slice` and the directions of its axes.

    >>> slice_storage(None)
    'picture'
    >>> slice_storage(np.diag([-1.0, -1.0, 1.0, 1.0]))
    'NIfTI slice LP'

    Args:
        affine: affine of the file, `[4, 4]`, or None for a picture.
    """
    return PICTURE if affine is None else f"{_NIFTI_SLICE}{''.join(map(str, aff2axcodes(affine)[:2]))}"


def fits_storage(found: str | None, trained: str | None) -> bool:
    """Return whether the axes of 2D images run like those of a training; what is unknown fits.

    >>> fits_storage("NIfTI slice LP", "picture")
    False
    >>> fits_storage("picture", DICOM_SLICE)
    True

    Args:
        found: how the files of the images store their axes, see `slice_storage`; None if it is unknown.
        trained: the same of the training's images.
    """
    if None in (found, trained) or found == trained:
        return True
    if trained == DIFFERING_SLICES:
        return slice_directions(found) is not None
    return {found, trained} == {PICTURE, DICOM_SLICE}


def slice_directions(storage: str | None) -> str | None:
    """Return the directions of the axes of a NIfTI slice, such as `LP`, from its `slice_storage`; None for others."""
    if storage is None or not storage.startswith(_NIFTI_SLICE):
        return None
    return storage.removeprefix(_NIFTI_SLICE)


def cropped(grid: Grid, first: Sequence[float], last: Sequence[float]) -> Grid | None:
    """Return the part of a grid within a box, or None if the two do not overlap.

    The first voxel is the one with its centre nearest to the first corner of the box; the others lie on the side of the
    last corner, wherever the grid's axes point. Their number is the length of the box, rounded. On an oblique grid the
    box is replaced by the smallest box along the grid's axes around it.

    Args:
        grid: grid of three axes.
        first: first corner of the box, mm.
        last: last corner of the box, mm; its coordinates may be smaller.
    """
    inverse = np.linalg.inv(grid.affine.numpy())
    corners = np.stack(np.meshgrid(*zip(first, last, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    indices = apply_affine(inverse, corners)
    count = np.round(np.ptp(indices, axis=0)).astype(int)
    ends = np.round([indices.min(axis=0), indices.max(axis=0)]).astype(int)
    forward = apply_affine(inverse, last) >= apply_affine(inverse, first)
    start = np.where(forward, ends[0], ends[1] + 1 - count)
    stop = start + count
    start, stop = np.maximum(start, 0), np.minimum(stop, grid.shape)
    if (stop <= start).any():
        return None
    affine = grid.affine.numpy().copy()
    affine[:3, 3] = apply_affine(affine, start)
    return grid_of(stop - start, affine)


def respaced(grid: Grid, spacing: Sequence[float]) -> Grid:
    """Return a grid over the same box, centred on it, with other voxel sizes.

    The new voxels cover the whole box, and reach beyond it by less than half a new voxel on each side. So the centre of
    each new voxel lies within the box, and the centre of each old voxel within the new grid.

    Args:
        grid: grid of three axes.
        spacing: mm along each axis.
    """
    affine = grid.affine.numpy()
    factors = np.array(spacing) / voxel_sizes(affine)
    # an excess within the rounding of a header is not worth a voxel
    shape = np.maximum(np.ceil(np.array(grid.shape) / factors - _WHOLE_VOXELS), 1).astype(int)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * factors
    first = (np.array(grid.shape) - 1 - (shape - 1) * factors) / 2
    new[:3, 3] = apply_affine(affine, first)
    return grid_of(shape, new)


def resample(volume: NDArray, affine: NDArray[np.float64], target: Grid, fill: float) -> NDArray[np.float32]:
    """Return a volume's values on another grid, float32.

    Voxels that lie on whole steps of the volume's own grid, its axes in any order and direction, are copied; otherwise
    values are interpolated linearly. Voxels reach half a voxel beyond their centres: there, up to the outer face of the
    volume, the value is that at the nearest place between centres. Beyond the face it is `fill`.

    Args:
        volume: values, `[I, J, K]`.
        affine: affine of the volume, `[4, 4]`.
        target: grid of the result.
        fill: value outside of the volume.
    """
    whole = whole_steps(affine, target)
    if whole is not None:
        return _copied(volume, whole, target.shape, fill)
    step = np.linalg.inv(affine) @ target.affine.numpy()
    values = volume.astype(np.float32, copy=False)
    result: NDArray[np.float32] = affine_transform(
        values, step[:3, :3], step[:3, 3], target.shape, np.float32, order=1, mode="nearest"
    )
    for own, length in enumerate(volume.shape):
        result[np.broadcast_to(_is_outside(step[own], length, target.shape), target.shape)] = fill
    return result


def whole_steps(affine: NDArray[np.float64], target: Grid) -> NDArray[np.float64] | None:
    """Return the transform from the voxels of a grid to those of a volume if it takes whole steps, else None.

    Args:
        affine: affine of the volume, `[4, 4]`.
        target: grid of three axes.

    Returns:
        whole numbers, `[4, 4]`, one step along one axis of the volume for each axis of the grid.
    """
    step = np.linalg.inv(affine) @ target.affine.numpy()
    whole = np.round(step)
    # largest distance of a corner of the grid from its place by whole steps
    corners = _corners(target)
    deviation = np.abs(apply_affine(step, corners) - apply_affine(whole, corners)).max()
    takes_whole = deviation < _WHOLE_VOXELS and (np.abs(whole[:3, :3]).sum(axis=0) == 1).all()
    return whole if takes_whole else None


def within(mask: NDArray, affine: NDArray[np.float64], grid: Grid) -> NDArray[np.bool_] | None:
    """Return a mask of a part of a grid on the whole grid, or None if it marks voxels elsewhere.

    Args:
        mask: boolean, `[I, J, K]`, its voxels on those of the grid, its axes in the same order and direction.
        affine: affine of the mask, `[4, 4]`.
        grid: grid of three axes.
    """
    step = np.linalg.inv(grid.affine.numpy()) @ affine
    corners = _corners(grid_of(mask.shape, affine))
    shift = np.round(step[:3, 3])
    if np.abs(apply_affine(step, corners) - (corners + shift)).max() >= _SAME_PLACE:
        return None
    marked = np.argwhere(mask) + shift.astype(int)
    if (marked < 0).any() or (marked >= grid.shape).any():
        return None
    result = np.zeros(grid.shape, dtype=bool)
    result[tuple(marked.T)] = True
    return result


def _is_outside(step: NDArray[np.float64], length: int, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return which voxels of a target lie beyond the outer faces of a volume along one of the volume's axes.

    Args:
        step: row `[4]` of the affine from the target's indices to the volume's.
        length: number of voxels of the volume along this axis.
        shape: shape of the target.

    Returns:
        array that broadcasts to `shape`: an axis along which the place does not change has length 1.
    """
    place = np.full((1, 1, 1), step[3], dtype=np.float32)
    for coefficient, indices in zip(step[:3], np.ogrid[tuple(slice(n) for n in shape)], strict=True):
        if abs(coefficient) * indices.size > _WHOLE_VOXELS / 10:
            place = place + np.float32(coefficient) * indices.astype(np.float32)
    outside: NDArray[np.bool_] = (place < -0.5 - _WHOLE_VOXELS) | (place > length - 0.5 + _WHOLE_VOXELS)
    return outside


def _copied(volume: NDArray, step: NDArray[np.float64], shape: Sequence[int], fill: float) -> NDArray[np.float32]:
    """Return the voxels at whole steps; `step`, from target to volume, is a permutation with signs and a shift."""
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
    """Return the share of a mask's voxels with their centres within a grid; 1 for an empty mask.

    Args:
        mask: mask, `[I, J, K]`.
        affine: affine of the mask, `[4, 4]`.
        grid: grid that may contain the mask.
    """
    voxels = np.argwhere(mask)
    if not len(voxels):
        return 1.0
    places = apply_affine(np.linalg.inv(grid.affine.numpy()) @ affine, voxels)
    return float(((places > -0.5) & (places < np.array(grid.shape) - 0.5)).all(axis=1).mean())


def overlap_share(grid: Grid, other: Grid) -> float:
    """Return the approximate share of a grid within another one, from a lattice of points."""
    axes = [np.linspace(0, length - 1, num=min(length, 9)) for length in grid.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    places = apply_affine(np.linalg.inv(other.affine.numpy()) @ grid.affine.numpy(), points)
    return float(((places >= -0.5) & (places <= np.array(other.shape) - 0.5)).all(axis=1).mean())


def largest_shift(grid: Grid, other: Grid) -> float:
    """Return the largest distance between the places of a voxel in two grids of one shape, in voxels of `other`."""
    corners = _corners(grid)
    places = apply_affine(np.linalg.inv(other.affine.numpy()) @ grid.affine.numpy(), corners)
    return float(np.abs(places - corners).max())


def largest_distance(grid: Grid, other: Grid) -> float:
    """Return the largest distance between the places of a voxel in two grids of one shape, in mm."""
    places = [apply_affine(one.affine.numpy(), _corners(grid)) for one in (grid, other)]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def _corners(grid: Grid) -> NDArray[np.int64]:
    ends = [(0, length - 1) for length in (*grid.shape, 1)[:3]]
    return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)


def same_grid(first: Grid, second: Grid) -> bool:
    """Return whether two grids have the same voxels in the same order.

    Their affines are equal in each entry, to 1e-3 mm or a hundredth of the smallest voxel length, and no voxel of one
    lies a tenth of its length from its place in the other.

    Args:
        first: grid of two or three axes; the place of a 2D grid counts like that of a volume of one slice.
        second: grid to compare with.
    """
    if first.shape != second.shape:
        return False
    affines = first.affine.numpy(), second.affine.numpy()
    smallest = float(voxel_sizes(affines[0])[: len(first.shape)].min())
    tolerance = min(_AFFINE_TOLERANCE, smallest / 100)
    return np.allclose(*affines, rtol=0, atol=tolerance) and largest_distance(first, second) < _SAME_PLACE * smallest
