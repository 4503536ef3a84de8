"""Splitting, caching, augmenting and batching, on a source made for the test."""

import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from multiprocessing.synchronize import Event

import pytest
import torch
from processes import PATIENCE
from torch.utils.data import DataLoader

from edue_lightning.data import (
    Augmentation,
    CaseRecord,
    CaseSource,
    PatchSampling,
    RaterBatch,
    RaterDataModule,
    RaterSample,
    SplitFractions,
    collate_samples,
    split_cases,
)
from edue_lightning.data.augmentation import augment
from edue_lightning.data.loading import CaseSampler, ResumableLoader, ignore_stop_signals
from edue_lightning.errors import UserError


class NumberedCases(CaseSource):
    """Cases of two per patient whose image and masks carry the same marked corner, and 2 to 4 raters."""

    spatial_dims = 2
    channels = 1
    structures = ("a", "b")

    def __init__(self, n_cases: int = 40) -> None:
        self.n_cases = n_cases
        self.loads = 0

    def cases(self) -> Sequence[CaseRecord]:
        return [CaseRecord(f"case{i}", f"patient{i // 2}") for i in range(self.n_cases)]

    def load(self, case_id: str) -> RaterSample:
        self.loads += 1
        number = int(case_id.removeprefix("case"))
        raters = 2 + number % 3
        image = torch.zeros(1, 8, 8)
        image[0, :3, :2] = number + 1
        masks = (image > 0).to(torch.uint8).expand(raters, 2, 8, 8).contiguous()
        return RaterSample(image, masks, torch.ones(raters, dtype=torch.bool), case_id, spacing=(0.5, 2.0))


def epoch_of(loader: DataLoader, epoch: int) -> list[RaterBatch]:
    sampler = loader.sampler
    assert isinstance(sampler, CaseSampler)
    sampler.set_epoch(epoch)
    return list(loader)


def module(**settings: object) -> RaterDataModule:
    settings.setdefault("augmentation", Augmentation(flip=0.5, rotate90=0.5, intensity_shift=0.1))
    return RaterDataModule("numbered", NumberedCases(), batch_size=4, **settings)


def test_no_patient_is_torn_apart_and_no_case_lost() -> None:
    records = NumberedCases(41).cases()
    splits = split_cases(records, SplitFractions(val=0.2, test=0.3, draw="permutation"))
    groups = [{r.group for r in members} for members in splits.values()]
    assert sum(len(g) for g in groups) == len(set().union(*groups)) == 21
    assert sorted(r.case_id for members in splits.values() for r in members) == sorted(r.case_id for r in records)
    assert len(groups[2]) == round(0.3 * 21)
    assert splits == split_cases(records, SplitFractions(val=0.2, test=0.3, draw="permutation"))
    assert splits != split_cases(records, SplitFractions(val=0.2, test=0.3, seed=1, draw="permutation"))


def test_prescribed_splits_are_kept() -> None:
    records = [CaseRecord("a", "a", "train"), CaseRecord("b", "b", "val"), CaseRecord("c", "c", "test")]
    assert {
        split: [r.case_id for r in members] for split, members in split_cases(records, SplitFractions()).items()
    } == {
        "train": ["a"],
        "val": ["b"],
        "test": ["c"],
    }


def test_prescribed_test_cases_get_no_others_drawn_for_them() -> None:
    records = [CaseRecord(f"t{i}", f"t{i}", "test") for i in range(5)] + [
        CaseRecord(f"o{i}", f"o{i}") for i in range(20)
    ]
    splits = split_cases(records, SplitFractions(val=0.2, test=0.3, draw="permutation"))
    assert [record.case_id for record in splits["test"]] == [f"t{i}" for i in range(5)]
    assert (len(splits["val"]), len(splits["train"])) == (4, 16)


def test_every_drawn_split_holds_its_share_of_each_stratum() -> None:
    sizes = {"large": 60, "middle": 20, "small": 10}
    records = [CaseRecord(f"{name}{i}", f"{name}{i}", stratum=name) for name, n in sizes.items() for i in range(n)]
    splits = split_cases(records, SplitFractions(val=0.2, test=0.3, draw="permutation"))
    assert [len(splits[name]) for name in ("train", "val", "test")] == [45, 18, 27]
    for split, share in (("val", 0.2), ("test", 0.3)):
        found = Counter(record.stratum for record in splits[split])
        assert all(abs(found[name] - share * n) <= 1 for name, n in sizes.items())


def test_an_empty_split_is_an_error_where_it_is_used() -> None:
    class TestCasesAlone(NumberedCases):
        def cases(self) -> list[CaseRecord]:
            return [CaseRecord("case0", "case0", "test")]

    data = RaterDataModule("few", TestCasesAlone())
    assert [record.case_id for record in data.records("test")] == ["case0"]
    assert len(data.evaluation_dataloader("all")) == 1
    with pytest.raises(UserError, match="data=few: no case is left for train, val, as all 1 cases have another split"):
        data.require("train", "val", "test")
    with pytest.raises(UserError, match="no case is left for train"):
        data.train_dataloader()


def test_a_structure_with_a_slash_is_refused_before_training() -> None:
    class Slashed(NumberedCases):
        structures = ("a", "GTV/n")

    with pytest.raises(UserError, match=r"structure 'GTV/n': must not contain '/', .*; rename the structure"):
        RaterDataModule("slashed", Slashed())


def test_structures_whose_files_could_share_a_name_are_refused_before_training() -> None:
    class Ambiguous(NumberedCases):
        structures = ("disc", "mask__disc")

    with pytest.raises(UserError, match=r"'mask__disc' and 'disc': files of two cases could have one name; rename"):
        RaterDataModule("ambiguous", Ambiguous())


def test_raters_are_padded_and_marked_missing() -> None:
    source = NumberedCases()
    batch = collate_samples([source.load("case0"), source.load("case2")], [0, 2], [5, 6])
    assert batch.masks.shape == (2, 4, 2, 8, 8)
    assert batch.valid.tolist() == [[True, True, False, False], [True, True, True, True]]
    assert not batch.masks[0, 2:].any()
    assert batch.spacing.tolist() == [[0.5, 2.0], [0.5, 2.0]]
    unknown = RaterSample(
        torch.zeros(1, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.ones(2) > 0, "unknown"
    )
    assert collate_samples([unknown], [0], [0]).spacing.tolist() == [[1.0, 1.0]]


def test_cases_of_different_size_do_not_batch() -> None:
    small = RaterSample(torch.zeros(1, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.ones(2) > 0, "small")
    with pytest.raises(ValueError, match=r"small: \(1, 4, 4\)"):
        collate_samples([NumberedCases().load("case0"), small], [0, 1], [0, 1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image": torch.zeros(1, 8, 8, dtype=torch.float64)}, "float32"),
        ({"masks": torch.zeros(2, 1, 8, 9, dtype=torch.uint8)}, "grid"),
        ({"valid": torch.ones(3) > 0}, "valid"),
        ({"spacing": (1.0,)}, "spacing"),
    ],
)
def test_a_sample_that_breaks_the_contract_names_its_case(change: dict[str, object], match: str) -> None:
    good: dict[str, object] = {
        "image": torch.zeros(1, 8, 8),
        "masks": torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        "valid": torch.ones(2) > 0,
        "case_id": "patient 7",
    }
    with pytest.raises(ValueError, match=f"patient 7.*{match}"):
        RaterSample(**{**good, **change})


@pytest.mark.parametrize(
    "setting",
    [
        *({"flip": 2}, {"flip": -0.1}, {"rotate90": math.nan}, {"scaling": 1.5}, {"rotation": -1}),
        *({"intensity_scale": -0.1}, {"intensity_shift": math.inf}, {"rotation": math.nan}),
    ],
)
def test_augmentation_out_of_range_is_refused(setting: dict[str, float]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"^data\.augmentation\.{name} must "):
        Augmentation(**setting)


@pytest.mark.parametrize("shape", [(5, 9), (7, 7), (3, 6, 4), (4, 5, 5)])
def test_quarter_turns_keep_the_shape_of_an_image(shape: tuple[int, ...]) -> None:
    transform = Augmentation(flip=0.0, rotate90=1.0).transform(len(shape))
    image = torch.arange(float(math.prod(shape))).reshape(1, *shape)
    masks = (image % 3 == 0).to(torch.uint8)[None]
    sample = RaterSample(image, masks, torch.ones(1) > 0, "a")
    seen = set()
    for key in range(40):
        turned = augment(sample, transform, key)
        assert turned.image.shape == image.shape
        turns = [turn for turn in (1, 2, 3) if torch.equal(torch.rot90(image, turn, (-2, -1)), turned.image)]
        seen.update(turns)
        assert len(turns) == 1
        assert torch.equal(torch.rot90(masks, turns[0], (-2, -1)), turned.masks)
    assert seen == ({1, 2, 3} if shape[-1] == shape[-2] else {2})


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1.0, 1.0, 3.0), (-3, -2)), ((3.0, 1.0, 1.0), (-2, -1)), ((1.0, 3.0, 1.005), (-3, -1)), ((1.0, 2.0, 3.0), None)],
)
def test_quarter_turns_keep_to_planes_of_equal_spacing(spacing: tuple[float, ...], plane: tuple[int, int]) -> None:
    transform = Augmentation(flip=0.0, rotate90=1.0).transform(3)
    image = torch.arange(216.0).reshape(1, 6, 6, 6)
    sample = RaterSample(image, (image > 99).to(torch.uint8)[None], torch.ones(1) > 0, "a", spacing=spacing)
    for key in range(12):
        turned = augment(sample, transform, key)
        turns = [turn for turn in (1, 2, 3) if torch.equal(torch.rot90(image, turn, plane or (-2, -1)), turned.image)]
        assert len(turns) == 1
        assert plane is not None or turns == [2]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (2.0, 1.0), (0.5, 1.0, 2.0)])
def test_a_ball_in_millimetres_stays_one_when_it_is_rotated(spacing: tuple[float, ...]) -> None:
    shape = tuple(round(36 / size) for size in spacing)
    along = [(torch.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, spacing, strict=True)]
    places = torch.meshgrid(*along, indexing="ij")
    distance = torch.stack(places).square().sum(0).sqrt()
    image = (14 - distance).clamp(-1, 1)[None]
    sample = RaterSample(image, (image > 0).to(torch.uint8)[None], torch.ones(1) > 0, "a", spacing=spacing)
    transform = Augmentation(flip=0.0, rotation=1.5).transform(len(shape))
    for key in range(8):
        mask, changed = sample.masks > 0, augment(sample, transform, key).masks > 0
        assert 2 * (mask & changed).sum() / (mask.sum() + changed.sum()) > 0.93
    # something else does turn
    half = replace(sample, image=image * (places[0] > 0), masks=sample.masks * (places[0] > 0))
    assert (augment(half, transform, 1).masks != half.masks).any()


def test_augmentation_moves_image_and_masks_alike() -> None:
    data = module(augmentation=Augmentation(flip=0.5, rotate90=0.5))
    seen = set()
    for batch in epoch_of(data.train_dataloader(), 0) + epoch_of(data.train_dataloader(), 1):
        for image, masks, valid in zip(batch.image, batch.masks, batch.valid, strict=True):
            for rater in torch.nonzero(valid).flatten():
                for structure in range(2):
                    torch.testing.assert_close(masks[rater, structure] > 0, image[0] > 0)
            assert not masks[~valid].any()
            seen.add(tuple((image[0] > 0).flatten().tolist()))
    assert len(seen) == 4  # every symmetry of an image whose pixels are oblong was met


def test_smooth_augmentation_moves_image_and_masks_alike() -> None:
    data = module(augmentation=Augmentation(rotation=0.3, scaling=0.1, flip=0.0))
    batch = next(iter(data.train_dataloader()))
    bright = batch.image[:, 0] > 0.5 * batch.image.amax((1, 2, 3))[:, None, None]
    assert (bright == (batch.masks[:, 0, 0] > 0)).float().mean() > 0.95


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_structure_at_the_border_goes_on_beyond_it_in_image_and_masks(spatial_dims: int) -> None:
    shape = (20,) * spatial_dims
    image = torch.zeros(1, *shape)
    image[:, 12:] = 1  # a structure that fills one side up to the border
    sample = RaterSample(image, image[None].to(torch.uint8), torch.tensor([True]), "a")
    transform = Augmentation(rotation=0.4, scaling=0.3).transform(spatial_dims)
    filled = 0
    for key in range(20):
        changed = augment(sample, transform, key)
        certain = (changed.image[0] < 0.01) | (changed.image[0] > 0.99)
        torch.testing.assert_close(changed.masks[0, 0][certain].float(), changed.image[0][certain].round())
        filled += int(changed.masks.any())
    assert filled == 20


def test_epochs_are_shuffled_and_augmented_anew_evaluation_is_not() -> None:
    data = module()
    first, second = (epoch_of(data.train_dataloader(), epoch) for epoch in (0, 1))
    order = [torch.cat([b.case_index for b in epoch]).tolist() for epoch in (first, second)]
    assert order[0] != order[1]
    assert sorted(order[0]) == sorted(order[1]) == list(range(len(data.records("train"))))
    keys = [set(torch.cat([b.draw_key for b in epoch]).tolist()) for epoch in (first, second)]
    assert not keys[0] & keys[1]
    test = epoch_of(data.test_dataloader(), 0)
    assert torch.cat([b.case_index for b in test]).tolist() == list(range(len(data.records("test"))))
    assert all((b.image[:, 0, 0, 0] > 0).all() for b in test)  # the marked corner stays where it was


def test_one_seed_gives_the_same_batches_whatever_the_number_of_workers() -> None:
    reference = epoch_of(module(seed=3).train_dataloader(), 2)
    for workers in (1, 2):
        other = epoch_of(module(seed=3, num_workers=workers).train_dataloader(), 2)
        for expected, batch in zip(reference, other, strict=True):
            for name in ("image", "masks", "valid", "case_index", "draw_key"):
                assert torch.equal(getattr(expected, name), getattr(batch, name)), name
    different = epoch_of(module(seed=4).train_dataloader(), 2)
    assert not torch.equal(reference[0].image, different[0].image)


def test_cases_are_loaded_once() -> None:
    data = module()
    source = data.source
    assert isinstance(source, NumberedCases)
    for epoch in range(3):
        epoch_of(data.train_dataloader(), epoch)
    assert source.loads == len(data.records("train"))


def test_a_small_cache_gives_the_same_batches() -> None:
    whole, part = (epoch_of(module(cache_cases=n).train_dataloader(), 0) for n in (1000, 3))
    assert all(torch.equal(a.image, b.image) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize(("processes", "n_cases"), [(2, 7), (3, 7), (4, 3)])
def test_processes_share_training_evenly_and_evaluation_exactly(
    monkeypatch: pytest.MonkeyPatch, processes: int, n_cases: int
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
    drawn: dict[bool, list[list[int]]] = {True: [], False: []}
    for rank in range(processes):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        for shuffle in (True, False):
            drawn[shuffle].append([key.position for key in CaseSampler(n_cases, 0, shuffle)])
    assert len({len(part) for part in drawn[True]}) == 1
    assert set(chain(*drawn[True])) == set(range(n_cases))
    # one for whom none is left gets a case again, which counts once
    assert all(drawn[False])
    assert set(chain(*drawn[False])) == set(range(n_cases))
    assert len(list(chain(*drawn[False]))) == max(n_cases, processes)


class LargeAndSmallUnits(NumberedCases):
    """One unit of nine cases, one of three, and cases that stand alone."""

    def cases(self) -> Sequence[CaseRecord]:
        units = [*["large"] * 9, *["small"] * 3, *[""] * 28]
        return [CaseRecord(f"case{i}", unit or f"p{i}", "train", unit=unit) for i, unit in enumerate(units)]


def units_of(seed: int = 0, **settings: object) -> RaterDataModule:
    return RaterDataModule(
        "units", LargeAndSmallUnits(), batch_size=4, seed=seed, train_draw="one_per_unit", **settings
    )


def test_one_case_per_unit_is_drawn_anew_in_each_epoch() -> None:
    data = units_of()
    loader = data.train_dataloader()
    drawn: Counter[int] = Counter()
    for epoch in range(200):
        positions = torch.cat([batch.case_index for batch in epoch_of(loader, epoch)]).tolist()
        assert len(positions) == 30 == 4 * (data.training_batches() - 1) + 2
        assert sum(position < 9 for position in positions) == sum(9 <= position < 12 for position in positions) == 1
        assert set(positions) >= set(range(12, 40))
        drawn.update(positions)
    # 200 draws among 9, and among 3: four standard deviations
    assert all(abs(drawn[position] - 200 / 9) < 4 * math.sqrt(200 * 8 / 81) for position in range(9))
    assert all(abs(drawn[position] - 200 / 3) < 4 * math.sqrt(200 * 2 / 9) for position in range(9, 12))
    # all cases, in order, where nothing is trained
    assert len(torch.cat([batch.case_index for batch in epoch_of(data.evaluation_dataloader("train"), 0)])) == 40
    with pytest.raises(UserError, match=r"data\.train_draw=each: must be one_per_unit"):
        RaterDataModule("units", LargeAndSmallUnits(), train_draw="each")  # type: ignore[arg-type]


def test_draws_of_units_depend_on_seed_and_epoch_alone_and_resume_within_an_epoch() -> None:
    expected = [batch.draw_key.tolist() for batch in epoch_of(units_of(7).train_dataloader(), 3)]
    for workers, done in ((0, 0), (2, 0), (0, 5), (2, 5)):
        loader = units_of(7, num_workers=workers).train_dataloader()
        assert isinstance(loader, ResumableLoader)
        loader.load_state_dict({"batches": done})
        assert [batch.draw_key.tolist() for batch in epoch_of(loader, 3)] == expected[done:]
    assert [batch.draw_key.tolist() for batch in epoch_of(units_of(8).train_dataloader(), 3)] != expected


@pytest.mark.parametrize("draws", [1, 3])
def test_processes_draw_the_same_cases_of_units_between_them(monkeypatch: pytest.MonkeyPatch, draws: int) -> None:
    units = ["a"] * 5 + ["b"] * 2 + ["c", "d", "e"]
    alone = CaseSampler(10, 4, shuffle=True, draws=draws, units=units)
    alone.set_epoch(2)
    whole = list(alone)
    assert len(set(whole)) == len(whole) == 5 * draws
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        parts.append(list(alone))
    assert set(chain(*parts)) == set(whole)
    assert len(parts[0]) == len(parts[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_begins_within_an_epoch_and_the_next_one_is_whole(workers: int) -> None:
    whole = [[b.draw_key.tolist() for b in epoch_of(module().train_dataloader(), epoch)] for epoch in (1, 2)]
    for done in range(len(whole[0])):
        data = module(num_workers=workers)
        loader = data.train_dataloader()
        assert isinstance(loader, ResumableLoader)
        loader.load_state_dict({"batches": done})
        assert [b.draw_key.tolist() for b in epoch_of(loader, 1)] == whole[0][done:]
        assert [b.draw_key.tolist() for b in epoch_of(loader, 2)] == whole[1]


def test_the_place_of_a_loader_counts_batches_that_were_handed_out() -> None:
    data = module(num_workers=2)
    loader = data.train_dataloader()
    assert data.state_dict() == {"batches": 0}
    batches = iter(loader)
    for number in range(1, 4):
        next(batches)
        # however many the loader's processes have prepared
        assert data.state_dict() == {"batches": number}
    data.load_state_dict(data.state_dict())
    again = iter(data.train_dataloader())
    assert next(again).draw_key.tolist() == next(batches).draw_key.tolist()
    assert data.state_dict() == {"batches": 4}


def test_after_the_last_batch_a_new_epoch_begins() -> None:
    loader = module().train_dataloader()
    assert isinstance(loader, ResumableLoader)
    whole = [b.draw_key.tolist() for b in epoch_of(loader, 1)]
    loader.load_state_dict({"batches": len(whole)})
    assert [b.draw_key.tolist() for b in epoch_of(loader, 1)] == whole


def test_making_a_loader_and_loading_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for workers in (0, 2):
        data = module(num_workers=workers)
        epoch_of(data.train_dataloader(), 0)
        epoch_of(data.test_dataloader(), 0)
    assert torch.equal(torch.get_rng_state(), before)


def _sleep_as_a_loader(ready: Event) -> None:
    ignore_stop_signals(0)
    ready.set()
    time.sleep(PATIENCE)


def test_a_loader_ends_when_the_training_says_so_and_not_when_a_scheduler_does() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    loader = context.Process(target=_sleep_as_a_loader, args=(ready,))
    loader.start()
    assert loader.pid is not None
    assert ready.wait(PATIENCE)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.system(f"kill -{int(number)} {loader.pid}")
    loader.join(1)
    assert loader.is_alive()
    loader.terminate()
    loader.join(PATIENCE)
    assert loader.exitcode == 0


def _load_while_each_loader_is_signalled_as_it_starts(stopped: Event) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: stopped.set())
        os.register_at_fork(after_in_child=partial(os.system, f"kill -{int(number)} $PPID"))
    loaded = epoch_of(module(num_workers=2).train_dataloader(), 0)
    os._exit(0 if loaded else 1)


def test_a_loader_that_just_starts_ignores_a_scheduler_too() -> None:
    context = multiprocessing.get_context("fork")
    stopped = context.Event()
    training = context.Process(target=_load_while_each_loader_is_signalled_as_it_starts, args=(stopped,))
    training.start()
    training.join(PATIENCE)
    assert training.exitcode == 0
    assert not stopped.is_set()


def test_training_cases_are_evaluated_whole_and_as_they_are() -> None:
    source = NumberedCases(n_cases=12)
    data = RaterDataModule(
        "numbered", source, augmentation=Augmentation(flip=1.0), patch=PatchSampling(size=[4, 4]), eval_batch_size=3
    )
    seen = {}
    for batch in data.evaluation_dataloader("train"):
        assert batch.image.shape[2:] == (8, 8)
        seen |= dict(zip(batch.case_index.tolist(), batch.image, strict=True))
    records = data.records("train")
    assert sorted(seen) == list(range(len(records)))
    for position, record in enumerate(records):
        assert torch.equal(seen[position], source.load(record.case_id).image)
    assert next(iter(data.train_dataloader())).image.shape[2:] == (4, 4)
