"""Raters who are held out of training and validation, and met at test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from edue_lightning.data import (
    CaseRecord,
    CaseSource,
    LidcContours,
    PatchSampling,
    RaterBatch,
    RaterDataModule,
    RaterSample,
    SyntheticFundus,
)
from edue_lightning.data.loading import SampleKey
from edue_lightning.data.patches import foreground_points
from edue_lightning.data.source import Subset
from edue_lightning.errors import UserError
from edue_lightning.methods.targets import member_target

SPLITS: tuple[Subset, ...] = ("train", "val", "test", "all")


class Apart(CaseSource):
    """Cases of two to four raters, each of whom marks a column of the image that nobody else marks."""

    spatial_dims = 2
    channels = 1
    structures = ("a",)

    def __init__(self, n_cases: int = 24, invalid: int | None = None) -> None:
        self.n_cases = n_cases
        self.invalid = invalid

    def cases(self) -> Sequence[CaseRecord]:
        splits = ("train", "train", "val", "test")
        return [CaseRecord(f"case{i}", f"case{i}", splits[i // 3 % 4]) for i in range(self.n_cases)]

    def load(self, case_id: str) -> RaterSample:
        raters = 2 + int(case_id.removeprefix("case")) % 3
        masks = torch.zeros(raters, 1, 8, 8, dtype=torch.uint8)
        for rater in range(raters):
            masks[rater, 0, :, 2 * rater] = 1
        valid = torch.ones(raters, dtype=torch.bool)
        if self.invalid is not None:
            valid[self.invalid], masks[self.invalid] = False, 0
        # as prepared cases come: with the voxels of all raters listed
        return RaterSample(torch.rand(1, 8, 8), masks, valid, case_id, foreground=foreground_points(masks))


def columns(sample: RaterSample) -> list[list[int]]:
    """Return the columns that each rater of a case marked."""
    return [torch.nonzero(mask[0].any(dim=0)).flatten().tolist() for mask in sample.masks]


def evaluated(data: RaterDataModule, split: Subset) -> RaterBatch:
    """Return a split's first batch as an evaluation sees it."""
    return cast(RaterBatch, next(iter(data.evaluation_dataloader(split))))


@pytest.mark.parametrize("chosen", [[0], [1, 3], [5, 0, 2], [0, 1, 2, 3, 4, 5]])
def test_training_and_validation_see_the_chosen_raters_alone(chosen: list[int]) -> None:
    source = SyntheticFundus(24, 24, missing_rater_rate=0.0)
    data = RaterDataModule("synthetic", source, eval_batch_size=100, training_raters=chosen)
    everyone = RaterDataModule("synthetic", source, eval_batch_size=100)
    assert data.splits == everyone.splits
    data.require("train", "val", "test")
    for split in SPLITS:
        batch, whole = evaluated(data, split), evaluated(everyone, split)
        raters = sorted(chosen) if split in ("train", "val") else list(range(6))
        assert torch.equal(batch.image, whole.image)
        assert torch.equal(batch.masks, whole.masks[:, raters])
        assert torch.equal(batch.valid, whole.valid[:, raters])
    seen = next(iter(data.train_dataloader()))
    assert seen.masks.shape[1] == len(chosen)


def test_a_single_batch_agrees_with_the_data_set() -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(24, 24), eval_batch_size=100, training_raters=[1, 4])
    for split in SPLITS:
        batch = evaluated(data, split)
        for index in range(len(data.records(split))):
            one = data.single_batch(split, index)
            assert torch.equal(one.masks[0], batch.masks[index])
            assert torch.equal(one.valid[0], batch.valid[index])
            assert torch.equal(one.image[0], batch.image[index])
            assert torch.equal(data.sample(split, index).masks, batch.masks[index])


def test_members_follow_the_raters_that_are_left() -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(24, 24, missing_rater_rate=0.0), training_raters=[2, 5])
    batch, whole = data.single_batch("train", 0), data.source.load(data.records("train")[0].case_id)
    for member, rater in enumerate([2, 5, 2, 5, 2]):
        target: Tensor = member_target(batch, "rater_per_member", member)[0, 0]
        assert torch.equal(target, whole.masks[rater].float())


def test_a_case_of_fewer_raters_shows_those_it_has() -> None:
    data = RaterDataModule("apart", Apart(), eval_batch_size=100, training_raters=[1, 3])
    data.require("train", "val", "test")
    shown = [columns(data.sample("val", index)) for index in range(3)]
    assert shown == [[[2]], [[2]], [[2], [6]]]
    batch = evaluated(data, "val")
    assert batch.valid.tolist() == 2 * [[True, False], [True, False], [True, True]]
    assert not batch.masks[~batch.valid].any()
    assert [len(columns(data.sample("test", index))) for index in range(3)] == [2, 3, 4]


def test_patches_are_laid_over_what_the_chosen_raters_marked() -> None:
    patch = PatchSampling(size=(8, 8), foreground=1.0)
    data = RaterDataModule("apart", Apart(), patch=patch, training_raters=[0])
    for sample in data.dataset("train").samples:
        assert set(sample.foreground[:, 1].tolist()) == {0}
        assert torch.equal(sample.foreground, foreground_points(sample.masks))
    keyed = data.dataset("train")[SampleKey(0, 0)]
    assert columns(keyed.sample) == [[0]]


def test_no_list_tells_of_the_raters_that_are_held_out() -> None:
    sample = Apart().load("case2")
    some = sample.of_raters([2, 0])
    assert some.foreground is None
    assert columns(some) == [[4], [0]]
    assert torch.equal(some.image, sample.image)


@pytest.mark.parametrize("chosen", [[], [0, 0], [-1], [1, -2]])
def test_senseless_positions_are_refused(chosen: list[int]) -> None:
    with pytest.raises(UserError, match=r"data\.training_raters.*at least one position"):
        RaterDataModule("apart", Apart(), training_raters=chosen)


def test_positions_that_no_case_has_are_refused() -> None:
    data = RaterDataModule("apart", Apart(), training_raters=[0, 4])
    data.require("test")
    with pytest.raises(UserError, match=r"data\.training_raters=\[0, 4\]: rater 4 does not exist, positions: 0 to 3"):
        data.require("train")


def test_cases_that_are_left_without_a_rater_are_counted_before_any_training() -> None:
    data = RaterDataModule("apart", Apart(invalid=1), training_raters=[1])
    message = r"data\.training_raters=\[1\]: none of these raters outlined 12 of 12 cases for train, such as case0"
    with pytest.raises(UserError, match=message):
        data.require("train", "val", "test")
    with pytest.raises(UserError, match="12 of 12"):
        data.train_dataloader()
    data.require("test")
    # position 2 is there in two of three cases
    with pytest.raises(UserError, match=r"4 of 12 cases for train"):
        RaterDataModule("apart", Apart(), training_raters=[2]).require("train")


@pytest.mark.parametrize("chosen", [[0, 1], [3, 1, 0]])
def test_readers_of_lidc_are_held_out_by_their_place(chosen: list[int]) -> None:
    source = LidcContours(readers=(4,))
    data = RaterDataModule("lidc", source, training_raters=chosen)
    for split in SPLITS:
        raters = sorted(chosen) if split in ("train", "val") else [0, 1, 2, 3]
        for index in (0, 1, 2):
            batch, whole = data.single_batch(split, index), source.load(data.splits[split][index].case_id)
            assert torch.equal(batch.masks[0], whole.masks[raters])
            assert batch.valid[0].tolist() == [True] * len(raters)
            assert torch.equal(batch.image[0], whole.image)


def test_nodules_of_few_readers_cannot_do_without_some_places() -> None:
    source = LidcContours(readers=(1,))
    data = RaterDataModule("lidc", source, training_raters=[0, 1])
    blind = sum(not source.load(record.case_id).valid[:2].any() for record in data.splits["val"])
    with pytest.raises(UserError, match=rf"none of these raters outlined {blind} of {len(data.splits['val'])} cases"):
        data.require("val")
