"""Parameters and operations against closed forms; no time is asserted."""

from __future__ import annotations

import math

import pytest
import torch
from method_parts import parts_of
from torch import Tensor, nn

from edue_lightning.evaluation.cost import Cost, count_passes, measure_cost, prediction_flops, ratios, side_by_side
from edue_lightning.methods import (
    DeepEnsemble,
    Inference,
    MonteCarloDropout,
    ProbabilisticUNet,
    SegmentationMethod,
    SingleNetwork,
    StochasticSegmentation,
    parameter_count,
)
from edue_lightning.networks import HeadLayout

IMAGE = torch.rand(1, 3, 24, 24)


def single() -> SingleNetwork:
    return SingleNetwork(parts_of(), HeadLayout("last"))


class OneConvolution(nn.Module):
    """Convolution to the logits of two structures."""

    members = 1

    def __init__(self, dims: int) -> None:
        super().__init__()
        make = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.convolution = make(3, 2, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.convolution(image)[:, None]


def one_convolution(dims: int, inference: Inference | None = None) -> SingleNetwork:
    parts = parts_of(lambda heads: OneConvolution(dims), inference=inference or Inference())
    return SingleNetwork(parts, HeadLayout("last"))


@pytest.mark.parametrize(("dims", "batch"), [(2, 1), (2, 3), (3, 1)])
def test_operations_of_a_convolution_are_two_for_each_weight_and_voxel(dims: int, batch: int) -> None:
    image = torch.rand(batch, 3, *(8, 10, 6)[:dims])
    expected = 2 * batch * math.prod(image.shape[2:]) * 2 * 3 * 3**dims
    assert prediction_flops(one_convolution(dims), image) == expected


def test_operations_are_those_of_every_window() -> None:
    image = torch.rand(1, 3, 16, 16)
    whole = prediction_flops(one_convolution(2), image)
    assert prediction_flops(one_convolution(2, Inference(window=(8, 8), overlap=0.0)), image) == whole
    assert prediction_flops(one_convolution(2, Inference(window=(8, 8), overlap=0.5)), image) == 9 * whole / 4


def test_the_reference_against_itself() -> None:
    reference = single()
    cost = measure_cost(reference, reference, IMAGE)
    assert cost.parameters == parameter_count(reference)
    assert cost.flops == prediction_flops(reference, IMAGE) > 0
    assert (cost.parameter_ratio, cost.flop_ratio) == (1.0, 1.0)
    assert 0 < cost.latency_ratio_low <= cost.latency_ratio <= cost.latency_ratio_high


def test_a_machine_that_slows_down_does_not_change_the_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # the method takes 1.5 times as long, and other work makes each round slower than the one before
    reference = [2.0**number for number in range(11)]
    taken = {"method": [1.5 * seconds for seconds in reference], "reference": reference}
    taken["method"][3] *= 40
    monkeypatch.setattr("edue_lightning.evaluation.cost.side_by_side", lambda *_: taken)
    cost = measure_cost(single(), single(), IMAGE)
    assert (cost.latency_ratio_low, cost.latency_ratio, cost.latency_ratio_high) == (1.5, 1.5, 1.5)
    low, middle, high = ratios([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (low, middle, high) == (2.0, 3.0, 4.0)


def cost_of(method: SegmentationMethod) -> Cost:
    return measure_cost(method, single(), IMAGE)


def test_an_ensemble_costs_as_often_as_it_has_members() -> None:
    ensemble = DeepEnsemble(parts_of(), HeadLayout("last"), members=5)
    cost = cost_of(ensemble)
    assert (cost.parameter_ratio, cost.flop_ratio) == (5.0, 5.0)
    assert (cost.networks, cost.forward_passes) == (5, 5)


def test_passes_with_dropout_cost_work_but_no_parameters() -> None:
    method = MonteCarloDropout(parts_of(), HeadLayout("last"), samples=4)
    # a reference in training mode would be counted with a single pass of the method
    cost = cost_of(method.train())
    assert (cost.parameter_ratio, cost.flop_ratio) == (1.0, 4.0)
    assert (cost.networks, cost.forward_passes) == (1, 4)


class Twice(SingleNetwork):
    """A method that runs its network on the image and on its mirror image, and says nothing of it."""

    def predict(self, image: Tensor) -> Tensor:
        return (super().predict(image) + super().predict(image.flip(-1)).flip(-1)) / 2


@pytest.mark.parametrize("window", [None, (8, 8), (40, 40)], ids=["whole", "windows", "padded"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_passes_are_counted_in_a_prediction_of_one_window(window: tuple[int, int] | None, compiled: bool) -> None:
    method = Twice(parts_of(inference=Inference(window, overlap=0.5)), HeadLayout("last"))
    if compiled:
        method.compile_networks()
    passes = count_passes(method.eval(), IMAGE)
    assert list(passes.values()) == [2]
    # networks that count are left as they were
    assert not method.network._forward_pre_hooks


def test_members_in_turn_and_members_that_share_a_network_are_counted_once_each() -> None:
    ensemble = DeepEnsemble(parts_of(), HeadLayout("last"), members=3)
    ensemble.members[2].network = ensemble.members[0].network
    passes = count_passes(ensemble.eval(), IMAGE)
    assert sorted(passes.values()) == [1, 2]


def test_draws_of_logits_cost_their_product_with_the_factors() -> None:
    method = StochasticSegmentation(parts_of(), rank=3, samples=7)
    more_channels = (3 + 1) * 2  # of the head, beyond the two of a plain network
    draws = 2 * 7 * 3 * 2 * 24 * 24
    head = 2 * 24 * 24 * 4 * more_channels
    assert cost_of(method).flops == prediction_flops(single(), IMAGE) + head + draws


def test_samples_of_a_prior_cost_the_prior_once_and_the_last_convolutions_each() -> None:
    method = ProbabilisticUNet(parts_of(), latent_dim=3, width=6, samples=7)
    cost = cost_of(method)
    # the U-Net, the prior, and the convolutions that combine them; the posterior only learns
    assert (cost.networks, cost.forward_passes) == (3, 3)
    voxels, prior = 24 * 24, 0
    for scale, (before, after) in enumerate([(3, 4), (4, 6), (6, 8)]):
        prior += 2 * voxels // 4**scale * 9 * (before * after + after * after)
    moments = 2 * 8 * 6
    combined = 7 * 2 * (3 * 6 + voxels * (6 * 6 + 6 * 2))
    head = 2 * voxels * 4 * (6 - 2)
    assert cost.flops == prediction_flops(single(), IMAGE) + head + prior + moments + combined


def test_every_part_is_left_in_the_mode_it_was_in() -> None:
    method, reference = single().train(), single().eval()
    method.network.encoder[1].eval()
    before = [part.training for part in method.modules()]
    random_state = torch.get_rng_state()
    measure_cost(method, reference, IMAGE)
    assert [part.training for part in method.modules()] == before
    assert True in before
    assert False in before
    assert not any(part.training for part in reference.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in method.parameters())
    with pytest.raises(ValueError, match="too small"):
        measure_cost(method, reference, torch.rand(1, 3, 2, 2))
    assert [part.training for part in method.modules()] == before


def test_calls_take_turns() -> None:
    made: list[str] = []
    seconds = side_by_side({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, rounds=3)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(made).endswith("ab" + "ba" + "ab")
    assert min(seconds["a"] + seconds["b"]) >= 0
