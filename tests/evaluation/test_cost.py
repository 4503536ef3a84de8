"""Parameters and operations against closed forms; no time is asserted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edue_lightning.evaluation.cost import Cost, measure_cost, prediction_flops, side_by_side
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods import (
    DeepEnsemble,
    Inference,
    MonteCarloDropout,
    OptimizerSettings,
    SegmentationMethod,
    SingleNetwork,
    StochasticSegmentation,
    parameter_count,
)
from edue_lightning.networks import HeadLayout, MultiHeadUNet

STRUCTURES = ("disc", "cup")
IMAGE = torch.rand(1, 3, 24, 24)


def network(heads: HeadLayout) -> MultiHeadUNet:
    return MultiHeadUNet(2, 3, 2, heads, features=(4, 6, 8))


def single() -> SingleNetwork:
    return SingleNetwork(network, HeadLayout("last"), STRUCTURES, SegmentationLoss(), OptimizerSettings())


class OneConvolution(nn.Module):
    """Convolution to the logits of two structures."""

    members = 1

    def __init__(self, dims: int) -> None:
        super().__init__()
        make = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.convolution = make(3, 2, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.convolution(image)[:, None]


def one_convolution(dims: int) -> SingleNetwork:
    return SingleNetwork(
        lambda heads: OneConvolution(dims), HeadLayout("last"), STRUCTURES, SegmentationLoss(), OptimizerSettings()
    )


@pytest.mark.parametrize(("dims", "batch"), [(2, 1), (2, 3), (3, 1)])
def test_operations_of_a_convolution_are_two_for_each_weight_and_voxel(dims: int, batch: int) -> None:
    image = torch.rand(batch, 3, *(8, 10, 6)[:dims])
    expected = 2 * batch * math.prod(image.shape[2:]) * 2 * 3 * 3**dims
    assert prediction_flops(one_convolution(dims), image) == expected


def test_operations_are_those_of_every_window() -> None:
    method, image = one_convolution(2), torch.rand(1, 3, 16, 16)
    whole = prediction_flops(method, image)
    method.inference = Inference(window=(8, 8), overlap=0.0)
    assert prediction_flops(method, image) == whole
    method.inference = Inference(window=(8, 8), overlap=0.5)
    assert prediction_flops(method, image) == 9 * whole / 4


def test_the_reference_against_itself() -> None:
    reference = single()
    cost = measure_cost(reference, reference, IMAGE)
    assert cost.parameters == parameter_count(reference)
    assert cost.flops == prediction_flops(reference, IMAGE) > 0
    assert (cost.parameter_ratio, cost.flop_ratio) == (1.0, 1.0)
    assert cost.latency_ratio > 0


def cost_of(method: SegmentationMethod) -> Cost:
    return measure_cost(method, single(), IMAGE)


def test_an_ensemble_costs_as_often_as_it_has_members() -> None:
    ensemble = DeepEnsemble(network, HeadLayout("last"), STRUCTURES, SegmentationLoss(), OptimizerSettings(), members=5)
    cost = cost_of(ensemble)
    assert (cost.parameter_ratio, cost.flop_ratio) == (5.0, 5.0)


def test_passes_with_dropout_cost_work_but_no_parameters() -> None:
    method = MonteCarloDropout(
        network, HeadLayout("last"), STRUCTURES, SegmentationLoss(), OptimizerSettings(), samples=4
    )
    # a reference in training mode would be counted with a single pass of the method
    assert (cost_of(method.train()).parameter_ratio, cost_of(method.train()).flop_ratio) == (1.0, 4.0)


def test_draws_of_logits_cost_their_product_with_the_factors() -> None:
    method = StochasticSegmentation(network, STRUCTURES, SegmentationLoss(), OptimizerSettings(), rank=3, samples=7)
    more_channels = (3 + 1) * 2  # of the head, beyond the two of a plain network
    draws = 2 * 7 * 3 * 2 * 24 * 24
    head = 2 * 24 * 24 * 4 * more_channels
    assert cost_of(method).flops == prediction_flops(single(), IMAGE) + head + draws


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
