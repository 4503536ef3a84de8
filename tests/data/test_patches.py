"""Patches: where they lie, what they hold, and that small regions are met as often as large ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edue_lightning.data import CaseRecord, CaseSource, PatchSampling, RaterDataModule, RaterSample
from edue_lightning.data.patches import POINTS_PER_REGION, default_patch_size, foreground_points
from edue_lightning.errors import UserError


def numbered(*shape: int, marked: tuple[slice, ...] = ()) -> RaterSample:
    """Return a case of two raters whose voxels hold their own number, the second rater marking a box."""
    image = torch.arange(1.0, 1 + np.prod(shape)).reshape(1, *shape)
    masks = torch.zeros(2, 1, *shape, dtype=torch.uint8)
    if marked:
        masks[1, 0][marked] = 1
    return RaterSample(image, masks, torch.ones(2, dtype=torch.bool), "numbered")


def test_points_are_marked_voxels_as_many_of_each_region() -> None:
    masks = torch.zeros(2, 2, 9, 20, 20, dtype=torch.uint8)
    masks[0, 0, 1:8, 1:12, 1:12] = 1
    masks[1, 0, 8, 19, 19] = 1
    masks[1, 1, 4, 15:17, 3] = 1
    points = foreground_points(masks).long()
    assert len(points) == 3 * POINTS_PER_REGION
    union = masks.amax(dim=(0, 1))
    assert union[tuple(points.T)].all()
    assert (points == torch.tensor([8, 19, 19])).all(dim=1).sum() == POINTS_PER_REGION
    assert ((points[:, 0] == 4) & (points[:, 1] >= 15)).sum() == POINTS_PER_REGION
    assert torch.equal(points, foreground_points(masks).long())


def test_without_anything_marked_there_are_no_points() -> None:
    points = foreground_points(torch.zeros(2, 3, 5, 6, dtype=torch.uint8))
    assert points.shape == (0, 2)
    sample = numbered(5, 6)
    assert PatchSampling([3, 3], foreground=1.0).draw(sample, 0).image.shape == (1, 3, 3)


@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    data=st.data(),
    key=st.integers(0, 2**63 - 1),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_patch_is_a_part_of_the_case_with_zeros_where_it_reaches_beyond(
    shape: list[int], data: st.DataObject, key: int, share: float
) -> None:
    size = data.draw(st.lists(st.integers(1, 15), min_size=len(shape), max_size=len(shape)))
    sample = numbered(*shape, marked=tuple(slice(n // 2, n) for n in shape))
    sampling = PatchSampling(size, foreground=share)
    patch = sampling.draw(sample, key)
    assert patch.image.shape == (1, *size)
    assert patch.masks.shape == (2, 1, *size)
    shown = patch.image[patch.image > 0]
    # as much of the image as fits, each voxel once and with its own masks
    assert len(shown) == np.prod(np.minimum(shape, size))
    positions = shown.long() - 1
    assert torch.equal(sample.image.flatten()[positions], shown)
    assert torch.equal(sample.masks.flatten(2)[:, :, positions], patch.masks[:, :, patch.image[0] > 0])
    assert not patch.masks[:, :, patch.image[0] == 0].any()
    # one box: along each axis the numbers run on
    box = torch.stack(torch.unravel_index(positions, tuple(shape)))
    extent = box.amax(dim=1) - box.amin(dim=1) + 1
    assert extent.tolist() == np.minimum(shape, size).tolist()
    assert torch.equal(patch.image, sampling.draw(sample, key).image)


def test_padding_lies_as_monai_pads_for_its_sliding_window() -> None:
    patch = PatchSampling([4, 5]).draw(numbered(1, 2), 0)
    assert torch.nonzero(patch.image[0]).tolist() == [[1, 1], [1, 2]]


def test_a_small_region_is_met_as_often_as_a_large_one() -> None:
    sample = numbered(64, 64, marked=(slice(0, 30), slice(0, 30)))
    sample.masks[0, 0, 46, 46] = 1
    sampling = PatchSampling([16, 16], foreground=1.0)
    met = [bool(sampling.draw(sample, key).masks[0].any()) for key in range(300)]
    assert 0.4 < np.mean(met) < 0.6
    places = {tuple(torch.nonzero(sampling.draw(sample, key).masks[0, 0]).flatten().tolist()) for key in range(300)}
    assert len(places) > 20  # not always at the same place of the patch
    never = PatchSampling([4, 4], foreground=0.0)
    anywhere = np.mean([bool(never.draw(sample, key).masks.any()) for key in range(300)])
    assert anywhere == pytest.approx(30**2 / 61**2, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": [0, 3]}, "size must be two or three positive numbers"),
        ({"size": [3]}, "size must be two or three positive numbers"),
        ({"foreground": 1.5}, "foreground is a share between 0 and 1"),
        ({"per_case": 0}, "per_case must be at least 1"),
    ],
)
def test_settings_that_are_none(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchSampling(**settings)  # type: ignore[arg-type]


class CasesOfManySizes(CaseSource):
    spatial_dims = 2
    channels = 1
    structures = ("a",)
    mixed_sizes = True

    def cases(self) -> list[CaseRecord]:
        return [CaseRecord(f"case{i}", f"case{i}") for i in range(12)]

    def load(self, case_id: str) -> RaterSample:
        edge = 8 + int(case_id.removeprefix("case"))
        return numbered(edge, edge + 1, marked=(slice(2, 4), slice(3, 5)))


def test_cases_of_many_sizes_train_on_patches_and_are_evaluated_whole() -> None:
    data = RaterDataModule("sizes", CasesOfManySizes(), patch=PatchSampling([10, 9], per_case=3), batch_size=4)
    data.require("train", "val", "test")
    batches = list(data.train_dataloader())
    index = torch.cat([batch.case_index for batch in batches])
    assert index.bincount().tolist() == [3] * len(data.records("train"))
    assert all(batch.image.shape[1:] == (1, 10, 9) for batch in batches)
    keys = torch.cat([batch.draw_key for batch in batches])
    assert len(keys.unique()) == len(keys)
    shapes = {tuple(batch.image.shape) for batch in data.test_dataloader()}
    assert len(shapes) == len(data.records("test"))
    assert all(batch == 1 and columns == rows + 1 for batch, _, rows, columns in shapes)


def test_cases_of_many_sizes_get_patches_that_fit_them_all(caplog: pytest.LogCaptureFixture) -> None:
    source = CasesOfManySizes()
    source.smallest_shape = (40, 100)
    data = RaterDataModule("sizes", source, patch=PatchSampling(per_case=2), batch_size=4)
    assert data.patch == PatchSampling((32, 96), per_case=2)
    assert "training uses patches of 32x96" in caplog.text
    assert RaterDataModule("sizes", source, batch_size=1).patch is None
    assert "per_case" not in caplog.text
    assert RaterDataModule("sizes", source, patch=PatchSampling(per_case=2), batch_size=1).patch is None
    assert "data.patch.per_case=2 has no effect" in caplog.text
    assert RaterDataModule("sizes", source, patch=PatchSampling([10, 9]), batch_size=4).patch == PatchSampling([10, 9])


@pytest.mark.parametrize(
    ("smallest", "expected"),
    [((192, 975), (192, 256)), ((31, 64), (32, 64)), ((15, 16, 500), (16, 16, 96)), ((47, 33, 32), (32, 32, 32))],
)
def test_the_default_patch_is_the_largest_multiple_that_fits(
    smallest: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert default_patch_size(smallest) == expected


def test_cases_of_many_sizes_need_patches_to_train() -> None:
    data = RaterDataModule("sizes", CasesOfManySizes(), patch=PatchSampling(), batch_size=4)
    data.require("val", "test")
    with pytest.raises(UserError, match=r"the images differ in size .*data\.patch\.size="):
        data.require("train")
    RaterDataModule("sizes", CasesOfManySizes(), batch_size=1).require("train")
    with pytest.raises(UserError, match=r"data\.patch\.size=\[3, 3, 3\]: the images are 2D"):
        RaterDataModule("sizes", CasesOfManySizes(), patch=PatchSampling([3, 3, 3]))
