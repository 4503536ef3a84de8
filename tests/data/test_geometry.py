"""Grids of files: every value stays at its place in space."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from edue_lightning.data import Grid
from edue_lightning.data.geometry import (
    closest_canonical,
    cropped,
    grid_of,
    grid_spacing,
    largest_shift,
    overlap_share,
    resample,
    respaced,
    same_grid,
    share_inside,
)
from edue_lightning.data.images import ImageFile, canonical


def world(grid: Grid) -> NDArray[np.float64]:
    """Return the place of every voxel, `[*S, 3]` mm."""
    indices = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return apply_affine(grid.affine.numpy(), indices)


def height(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a function of space that linear interpolation reproduces, and that no flip or shift leaves alone."""
    return points @ [1.0, -2.0, 0.5] + 7.0


def rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    orthogonal, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return orthogonal


def random_grid(seed: int) -> Grid:
    """Return an oblique grid whose axes run in any order and direction."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = rotation(rng) * rng.uniform(0.5, 4.0, size=3)
    affine[:3, 3] = rng.uniform(-200, 200, size=3)
    return grid_of(rng.integers(4, 12, size=3), affine)


@given(st.integers(0, 2**32))
def test_canonical_axes_hold_the_same_voxels(seed: int) -> None:
    grid = random_grid(seed)
    turned = closest_canonical(grid)
    assert aff2axcodes(turned.affine.numpy()) == ("R", "A", "S")
    image = nibabel.Nifti1Image(np.random.default_rng(seed).normal(size=grid.shape), grid.affine.numpy())
    expected = nibabel.as_closest_canonical(image)
    np.testing.assert_allclose(turned.affine, expected.affine, atol=1e-9)
    moved = resample(image.get_fdata(), grid.affine.numpy(), turned, fill=np.nan)
    # copied, not interpolated
    np.testing.assert_array_equal(moved, expected.get_fdata().astype(np.float32))
    back = resample(moved, turned.affine.numpy(), grid, fill=np.nan)
    np.testing.assert_array_equal(back, image.get_fdata().astype(np.float32))


@given(st.integers(0, 2**32), st.lists(st.integers(-5, 5), min_size=3, max_size=3), st.permutations([0, 1, 2]))
def test_whole_steps_are_copied_with_what_lies_outside_filled(seed: int, shift: list[int], order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    grid = random_grid(seed)
    volume = rng.normal(size=grid.shape).astype(np.float32)
    step = np.eye(4)
    step[:3, :3] = np.eye(3)[:, order] * rng.choice([-1, 1], size=3)
    step[:3, 3] = shift
    target = grid_of(rng.integers(1, 9, size=3), grid.affine.numpy() @ step)
    moved = resample(volume, grid.affine.numpy(), target, fill=-99.0)
    for index in np.ndindex(target.shape):
        place = apply_affine(step, index).astype(int)
        inside = (place >= 0).all() and (place < grid.shape).all()
        assert moved[index] == (volume[tuple(place)] if inside else -99.0)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_values_stay_at_their_place_in_space(seed: int, other: int) -> None:
    source = random_grid(seed)
    rng = np.random.default_rng([seed, other])
    target = random_grid(other)
    affine = target.affine.numpy().copy()
    # bring the two together
    middle = apply_affine(source.affine.numpy(), (np.array(source.shape) - 1) / 2 + rng.uniform(-1, 1, 3))
    affine[:3, 3] += middle - apply_affine(affine, (np.array(target.shape) - 1) / 2)
    target = grid_of(target.shape, affine)
    moved = resample(height(world(source)), source.affine.numpy(), target, fill=np.nan)
    indices = apply_affine(np.linalg.inv(source.affine.numpy()), world(target))
    inside = ((indices > 1e-3) & (indices < np.array(source.shape) - 1 - 1e-3)).all(axis=-1)
    np.testing.assert_allclose(moved[inside], height(world(target))[inside], rtol=1e-4, atol=1e-3)
    # a voxel reaches half a voxel beyond its centre, with the value of the nearest place between centres
    last = np.array(source.shape) - 1
    edge = ((indices > -0.499) & (indices < last + 0.499)).all(axis=-1)
    nearest = height(apply_affine(source.affine.numpy(), np.clip(indices, 0, last)))
    np.testing.assert_allclose(moved[edge], nearest[edge], rtol=1e-4, atol=1e-3)
    far = ((indices < -0.502) | (indices > last + 0.502)).any(axis=-1)
    assert np.isnan(moved[far]).all()


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.lists(st.floats(0.4, 9.0), min_size=3, max_size=3))
def test_other_voxels_and_the_way_back_lose_no_border(seed: int, spacing: list[float]) -> None:
    grid = random_grid(seed)
    other = respaced(grid, spacing)
    ones = np.ones(grid.shape, dtype=np.float32)
    there = resample(ones, grid.affine.numpy(), other, fill=-1000.0)
    assert (there == 1).all()
    assert (resample(there, other.affine.numpy(), grid, fill=0.0) == 1).all()


def test_a_coarse_map_of_ones_fills_the_file() -> None:
    file = grid_of((20, 30, 20), np.diag([1.0, 1.0, 1.0, 1.0]))
    coarse = respaced(file, (2.0, 2.0, 2.0))
    back = resample(np.ones(coarse.shape), coarse.affine.numpy(), file, fill=0.0)
    assert int((back == 1).sum()) == 12000


def test_interpolation_with_a_border_is_a_loop_over_nearest_places() -> None:
    rng = np.random.default_rng(5)
    volume = rng.normal(size=(3, 4, 2)).astype(np.float32)
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    target = grid_of((9, 9, 9), np.diag([1.1, 0.7, 0.9, 1.0]) + np.array([[0, 0, 0, -2.0]] * 3 + [[0, 0, 0, 0]]))
    moved = resample(volume, affine, target, fill=-9.0)
    for index in np.ndindex(target.shape):
        place = apply_affine(np.linalg.inv(affine) @ target.affine.numpy(), index)
        if (place < -0.5).any() or (place > np.array(volume.shape) - 0.5).any():
            assert moved[index] == -9
            continue
        place = np.clip(place, 0, np.array(volume.shape) - 1)
        low = np.minimum(place.astype(int), np.array(volume.shape) - 2)
        value = 0.0
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, place - low, 1 - (place - low)))
            value += weight * volume[tuple(low + corner)]
        assert moved[index] == pytest.approx(value, abs=1e-5)


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 3]))
def test_a_volume_is_turned_as_nibabel_does_and_back(seed: int, channels: int) -> None:
    grid, rng = random_grid(seed), np.random.default_rng(seed)
    values = rng.normal(size=(*grid.shape, max(channels, 1))).astype(np.float32)
    array = np.moveaxis(values, -1, 0) if channels else values[..., 0] > 0
    spacing = grid_spacing(grid)
    turned = canonical(ImageFile(array, spacing, grid.affine.numpy()))
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, grid.affine.numpy()))
    found = np.moveaxis(turned.array, 0, -1) if channels else turned.array
    wanted = expected.get_fdata().astype(np.float32)
    np.testing.assert_array_equal(found, wanted if channels else wanted[..., 0] > 0)
    assert turned.affine is not None
    np.testing.assert_allclose(turned.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(turned.spacing, expected.header.get_zooms()[:3], rtol=1e-5)
    assert same_grid(turned.origin or grid, grid)
    again = canonical(turned)
    assert again is turned
    # pictures and slices have no third axis to turn
    flat = ImageFile(np.zeros((1, 3, 4), dtype=np.float32), (1.0, 1.0), np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert canonical(flat) is flat


def test_interpolation_is_that_of_monai() -> None:
    source, rng = random_grid(3), np.random.default_rng(0)
    volume = rng.normal(size=source.shape).astype(np.float32)
    target = respaced(source, np.array(grid_spacing(source)) * [0.7, 1.3, 0.9])
    reference = SpatialResample(mode="bilinear", padding_mode="border", align_corners=True, dtype=torch.float64)(
        MetaTensor(torch.from_numpy(volume)[None], affine=source.affine), target.affine, target.shape
    )
    moved = resample(volume, source.affine.numpy(), target, fill=np.nan)
    known = ~np.isnan(moved)
    assert known.mean() > 0.5
    np.testing.assert_allclose(moved[known], reference[0].numpy()[known], atol=1e-4)


@given(st.integers(0, 2**32), st.lists(st.floats(0.4, 5.0), min_size=3, max_size=3))
def test_other_voxels_fill_the_same_box(seed: int, spacing: list[float]) -> None:
    grid = random_grid(seed)
    new = respaced(grid, spacing)
    np.testing.assert_allclose(voxel_sizes(new.affine.numpy()), spacing)
    middles = [apply_affine(each.affine.numpy(), (np.array(each.shape) - 1) / 2) for each in (grid, new)]
    np.testing.assert_allclose(middles[0], middles[1], atol=1e-6)
    lengths = [np.array(each.shape) * voxel_sizes(each.affine.numpy()) for each in (grid, new)]
    excess = (lengths[1] - lengths[0]) / spacing
    # the whole box is covered, but for rounding, by no more voxels than that takes
    assert (excess >= -1e-3 - 1e-9).all()
    assert (excess < 1).all()
    assert largest_shift(grid, respaced(grid, grid_spacing(grid))) < 1e-4


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_a_box_keeps_the_voxels_whose_centres_it_holds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.5, 3, 3)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    grid = grid_of(rng.integers(6, 15, 3), affine)
    first, count = rng.integers(-3, 5, 3), rng.integers(2, 12, 3)
    corner = apply_affine(affine, first + rng.uniform(-0.4, 0.4, 3))
    # along some axes the box lies on the side of the smaller coordinates
    sides = rng.choice([-1, 1], 3)
    box = cropped(grid, corner, corner + sides * count * spacing)
    start = np.where(sides > 0, first, first - count + 1)
    start, stop = np.maximum(start, 0), np.minimum(start + count, grid.shape)
    if (stop <= start).any():
        assert box is None
        return
    assert box is not None
    assert box.shape == tuple(stop - start)
    np.testing.assert_allclose(apply_affine(box.affine.numpy(), [0, 0, 0]), apply_affine(affine, start))
    volume = rng.normal(size=grid.shape)
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    np.testing.assert_array_equal(resample(volume, affine, box, fill=np.nan), volume[inside].astype(np.float32))


def test_shares_inside() -> None:
    grid = grid_of((4, 4, 4), np.eye(4))
    mask = np.zeros((4, 4, 4), dtype=bool)
    assert share_inside(mask, np.eye(4), grid) == 1
    mask[:, 0, 0] = True
    shifted = np.eye(4)
    shifted[0, 3] = 3
    assert share_inside(mask, np.eye(4), grid) == 1
    assert share_inside(mask, shifted, grid) == 0.25
    assert overlap_share(grid, grid) == 1
    shifted[0, 3] = 100
    assert overlap_share(grid, grid_of((4, 4, 4), shifted)) == 0
    assert not same_grid(grid, grid_of((4, 4, 4), shifted))
    assert same_grid(grid, grid_of((4, 4, 4), np.eye(4)))
    assert largest_shift(grid, grid_of((4, 4, 4), shifted)) == pytest.approx(100)


def test_grids_of_small_voxels_are_compared_by_the_voxel() -> None:
    small = np.diag([1e-4, 1e-4, 1e-4, 1.0])
    shifted = small.copy()
    shifted[0, 3] = 5e-4
    first, *others = (
        grid_of((4, 4, 4), affine) for affine in (small, small, shifted, np.diag([-1e-4, -1e-4, 1e-4, 1.0]))
    )
    assert [same_grid(first, other) for other in others] == [True, False, False]
    assert same_grid(
        grid_of((8, 8, 8), np.diag([1.0, 1.0, 3.0, 1.0])), grid_of((8, 8, 8), np.diag([1.0005, 1.0, 3.0, 1.0]))
    )


@pytest.mark.parametrize("shape", [(512, 512, 4), (512, 512)])
def test_small_differences_of_a_spacing_add_up_to_another_place(shape: tuple[int, ...]) -> None:
    grid, other = (grid_of(shape, np.diag([size, 0.7, 3.0, 1.0])) for size in (0.7, 0.7005))
    assert not same_grid(grid, other)
    assert same_grid(grid, grid_of(shape, np.diag([0.70001, 0.7, 3.0, 1.0])))
