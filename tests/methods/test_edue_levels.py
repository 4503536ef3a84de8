"""EDUE with levels: its targets, losses, read-outs and options."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_parts import parts_of
from torch import Tensor, nn

from edue_lightning.config.build import with_levels
from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus, SyntheticPetCt
from edue_lightning.losses import SegmentationLoss, level_targets, mean_prediction_nll
from edue_lightning.methods import EDUELevels, Inference, SingleNetwork, parameter_count
from edue_lightning.networks import HeadLayout, MultiHeadUNet
from edue_lightning.uncertainty import foreground, level_variance, majority, rater_mean, rater_variance


def levels(count: int | None = 5, inference: Inference | None = None, **options: object) -> EDUELevels:
    return EDUELevels(parts_of(inference=inference or Inference()), count, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24, missing_rater_rate=0.3), batch_size=4)
    found = next(iter(data.train_dataloader()))
    assert not found.valid.all()
    return found


def marks(raters: int, valid: list[bool], values: list[bool]) -> tuple[Tensor, Tensor]:
    masks = torch.tensor(values, dtype=torch.uint8).reshape(1, raters, 1, 2, 2)
    return masks, torch.tensor([valid])


@given(st.integers(2, 7), st.integers(2, 7), st.data())
def test_targets_descend_and_their_mean_is_the_share_for_any_raters(
    raters: int, count: int, data: st.DataObject
) -> None:
    valid = data.draw(st.lists(st.booleans(), min_size=raters, max_size=raters).filter(any))
    masks, is_valid = marks(raters, valid, data.draw(st.lists(st.booleans(), min_size=4 * raters, max_size=4 * raters)))
    targets = level_targets(masks, is_valid, count)
    assert targets.shape == (1, count, 1, 2, 2)
    assert (targets.diff(dim=1) <= 0).all()
    torch.testing.assert_close(targets.mean(dim=1), rater_mean(masks, is_valid), atol=1e-6, rtol=0)
    for k in range(1, count + 1):
        share = rater_mean(masks, is_valid)
        expected = (count * share - (k - 1)).clamp(0, 1)
        torch.testing.assert_close(targets[:, k - 1], expected, atol=1e-5, rtol=0)


@given(st.integers(2, 7), st.integers(0, 3), st.data())
def test_targets_of_as_many_raters_are_their_order_statistics_and_give_v_exactly(
    raters: int, missing: int, data: st.DataObject
) -> None:
    valid = [True] * raters + [False] * missing
    values = data.draw(st.lists(st.booleans(), min_size=4 * len(valid), max_size=4 * len(valid)))
    masks, is_valid = marks(len(valid), valid, values)
    targets = level_targets(masks, is_valid, raters)
    counted = masks[:, :raters].sum(dim=1)
    for k in range(1, raters + 1):
        assert torch.equal(targets[:, k - 1], (counted >= k).float())
    torch.testing.assert_close(level_variance(targets), rater_variance(masks, is_valid), atol=1e-7, rtol=0)


def test_the_loss_is_the_sum_of_its_parts(batch: RaterBatch) -> None:
    method = levels(dice_weight=0.5, stage_weight=0.3, mean_weight=4.0, mask_weight=2.0)
    parts = method.training_loss(batch)
    logits = method.network(batch.image)
    assert logits.shape == (4, 2 * 6, 2, 24, 24)
    stages = [logits[:, 6 * stage : 6 * stage + 6] for stage in range(2)]
    mean = (stages[0] + stages[1]) / 2
    loss, targets = SegmentationLoss(1.0, 0.5), level_targets(batch.masks, batch.valid, 5)
    wanted = majority(rater_mean(batch.masks, batch.valid), "foreground").float()[:, None]

    def of_levels(given: Tensor) -> Tensor:
        single = [loss(given[:, k : k + 1], targets[:, k : k + 1]).mean() for k in range(5)]
        return torch.stack(single).mean()

    def of_mask(given: Tensor) -> Tensor:
        return SegmentationLoss()(given[:, 5:], wanted).mean()

    expected = {
        "levels": of_levels(mean),
        "stages": (of_levels(stages[0]) + of_levels(stages[1])) / 2,
        "mean": mean_prediction_nll(mean[:, :5], batch.masks, batch.valid).mean(),
        "mask": of_mask(mean),
        "mask_stages": (of_mask(stages[0]) + of_mask(stages[1])) / 2,
    }
    assert set(parts) == {"loss", *expected}
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, msg=name)
    total = expected["levels"] + 0.3 * expected["stages"] + 4 * expected["mean"]
    torch.testing.assert_close(parts["loss"], total + 2 * (expected["mask"] + 0.3 * expected["mask_stages"]))
    alone = levels(stage_weight=0.0, mean_weight=0.0).training_loss(batch)
    assert set(alone) == {"loss", "levels"}
    torch.testing.assert_close(alone["loss"], alone["levels"])


class Logits(nn.Module):
    """A network whose logits are its parameters."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.members = logits.shape[1]

    def forward(self, image: Tensor) -> Tensor:
        return self.logits


def given_logits(logits: Tensor, count: int, **options: object) -> EDUELevels:
    parts = parts_of(network=lambda heads: Logits(logits), structures=("a",))
    return EDUELevels(parts, count, **options).double()  # type: ignore[arg-type]


def small_batch(masks: Tensor, valid: Tensor, region: Tensor | None = None) -> RaterBatch:
    count = len(masks)
    image = torch.zeros(count, 3, *masks.shape[3:])
    return RaterBatch(image, masks, valid, torch.ones(count, 2), torch.arange(count), torch.arange(count), region)


@pytest.mark.parametrize("mask_weight", [0.0, 1.5])
def test_gradients_are_those_of_finite_differences(mask_weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 2, (2, 3, 1, 3, 3), generator=generator, dtype=torch.uint8)
    valid = torch.tensor([[True, True, True], [True, False, True]])
    region = torch.rand(2, 3, 3, generator=generator) > 0.3
    heads = 3 + (mask_weight > 0)
    start = torch.randn(2, 2 * heads, 1, 3, 3, dtype=torch.float64, generator=generator)

    def loss(logits: Tensor) -> Tensor:
        method = given_logits(torch.zeros_like(start), 3, mask_weight=mask_weight)
        method.network.forward = lambda image: logits  # type: ignore[method-assign]
        return method.training_loss(small_batch(masks, valid, region))["loss"]

    assert torch.autograd.gradcheck(loss, (start.requires_grad_(),))


def test_the_loss_is_smallest_at_the_raters_own_levels() -> None:
    masks = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0], dtype=torch.uint8).reshape(1, 3, 1, 2, 2)
    valid = torch.ones(1, 3, dtype=torch.bool)
    own = level_targets(masks, valid, 3).double()
    sure = (own * 2 - 1) * 30
    method = given_logits(torch.cat([sure, sure], dim=1), 3, mean_weight=0.0, dice_weight=1.0)
    assert float(method.training_loss(small_batch(masks, valid))["loss"].detach()) < 1e-6
    # with the share itself as the only term left, NLL is the entropy of the raters
    method = given_logits(torch.cat([sure, sure], dim=1), 3, stage_weight=0.0, mean_weight=1.0)
    share = rater_mean(masks, valid).double()
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).mean()
    torch.testing.assert_close(method.training_loss(small_batch(masks, valid))["mean"], entropy)


@pytest.mark.parametrize("mask_weight", [0.0, 1.0])
def test_levels_descend_at_prediction_and_are_handed_over_as_members(batch: RaterBatch, mask_weight: float) -> None:
    method = levels(mask_weight=mask_weight).eval()
    with torch.no_grad():
        # heads that have learnt nothing are in no order
        for parameter in method.network.heads.parameters():  # type: ignore[union-attr]
            parameter.normal_()
        channels = method.predict(batch.image)
        stages = method.stage_logits(batch.image)
    assert channels.shape == (4, 5 + (mask_weight > 0), 2, 24, 24)
    members = method.readout.members(channels)
    assert (members.diff(dim=1) <= 0).all()
    assert (stages.mean(dim=1)[:, :5].diff(dim=1) > 0).any()
    assert torch.equal(members, stages.mean(dim=1)[:, :5].sort(dim=1, descending=True).values)
    p = channels.sigmoid()
    assert (method.readout.disagreement(p) >= 0).all()
    if mask_weight:
        torch.testing.assert_close(method.readout.decision(p), stages.mean(dim=1)[:, 5].sigmoid())
    else:
        assert torch.equal(method.readout.decision(p), p[:, 2])
    masks = foreground(method.readout.members(p))
    assert (masks[:, :-1] | ~masks[:, 1:]).all()


@pytest.mark.parametrize("count", range(2, 10))
def test_levels_in_any_order_are_sorted(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = levels(count).eval()
    # what sorts every row of zeros and ones sorts every row (the zero-one principle)
    rows = torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)))
    monkeypatch.setattr(method, "stage_logits", lambda _: rows.T[None, None, :, None, :, None])
    found = method(torch.zeros(1))
    assert torch.equal(found[0, :, 0, :, 0].T, rows.sort(dim=1, descending=True).values)


def test_levels_descend_window_by_window_in_a_volume() -> None:
    data = RaterDataModule("petct", SyntheticPetCt(4, 16), batch_size=2)
    batch = next(iter(data.train_dataloader()))
    structures, channels = batch.masks.shape[2], batch.image.shape[1]
    inference = Inference((16, 8, 12), overlap=0.5)

    def network(heads: HeadLayout) -> MultiHeadUNet:
        return MultiHeadUNet(3, channels, structures, heads, features=(4, 6))

    parts = parts_of(network, tuple(map(str, range(structures))), inference=inference)
    method = EDUELevels(parts, 4, mask_weight=1.0)
    method.training_loss(batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    found = method.eval().predict(torch.randn(1, channels, 20, 14, 13)).detach()
    assert found.shape == (1, 5, structures, 20, 14, 13)
    assert (found[:, :4].diff(dim=1) <= 0).all()


def test_a_voxel_outside_of_the_region_counts_in_no_loss(batch: RaterBatch) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 2, (2, 3, 1, 4, 4), generator=generator, dtype=torch.uint8)
    valid, region = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    region[:, 1:3, 1:] = True
    logits = torch.randn(2, 8, 1, 4, 4, generator=generator, dtype=torch.float64)
    other = torch.where(region[:, None, None], logits, 7.0)
    losses = [
        given_logits(part, 3, mask_weight=1.0, dice_weight=1.0).training_loss(small_batch(masks, valid, region))
        for part in (logits, other)
    ]
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], msg=name)


def test_its_parameters_exceed_a_plain_networks_by_two_percent_at_most() -> None:
    def network(heads: HeadLayout) -> MultiHeadUNet:
        return MultiHeadUNet(2, 3, 2, heads)

    plain = parameter_count(SingleNetwork(parts_of(network), HeadLayout("last")))
    assert parameter_count(EDUELevels(parts_of(network), 6, mask_weight=1.0)) <= 1.02 * plain


def test_the_number_of_levels_is_that_of_the_raters_in_training() -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24, raters=4), batch_size=4)
    configuration = {"method": {"levels": None, "stages": "last"}}
    assert with_levels(configuration, data)["method"] == {"levels": 4, "stages": "last"}
    assert with_levels({"method": {"levels": 3}}, data)["method"]["levels"] == 3
    assert with_levels({"method": {"target": "majority"}}, data)["method"] == {"target": "majority"}
    seen = RaterDataModule("synthetic", SyntheticFundus(12, 24, raters=4), training_raters=[0, 2])
    assert with_levels(configuration, seen)["method"]["levels"] == 2
    assert configuration["method"]["levels"] is None


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (None, {}, "levels is not set"),
        (1, {}, "levels must be at least 2"),
        (3, {"mean_weight": math.nan}, "mean_weight must be finite and not negative: nan"),
        (3, {"stage_weight": -1.0}, "stage_weight must be finite and not negative: -1"),
        (3, {"mask_weight": -1.0}, "mask_weight must be finite and not negative: -1"),
        (3, {"cross_entropy_weight": 0.0, "dice_weight": 0.0}, "loss weights must be finite and not negative"),
    ],
)
def test_an_invalid_option_is_refused(count: int | None, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        levels(count, **options)


def test_variants_have_names_of_their_own() -> None:
    assert levels().label == "edue_levels"
    assert levels(mask_weight=0.5).label == "edue_levels_mask"
