"""Losses of structures that exclude each other: known values, gradients, and the binary losses for one structure."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.losses import (
    Boundary,
    Focal,
    SegmentationLoss,
    Tversky,
    UnifiedFocal,
    VarianceGuidance,
    categorical_cross_entropy,
    mean_prediction_nll,
)
from edue_lightning.methods.level_ensemble import average_softmax_logits
from edue_lightning.methods.stochastic_segmentation import negative_log_likelihood
from edue_lightning.uncertainty import Readout, exclusive_log_odds

LOSSES: list[tuple[Any, dict[str, float]]] = [
    (SegmentationLoss, {"cross_entropy": 0.7, "dice": 1.3}),
    (Tversky, {}),
    (Focal, {"alpha": 0.3}),
    (UnifiedFocal, {}),
    (Boundary, {"weight": 0.4}),
]


def classes(generator: torch.Generator, *shape: int, structures: int) -> Tensor:
    """Return masks `[B, M, K, *S]` of drawn classes, of which the last is the background."""
    drawn = torch.randint(structures + 1, shape, generator=generator)
    return torch.stack([drawn == k for k in range(structures)], dim=2).double()


def test_the_cross_entropy_of_a_class_is_minus_its_log_probability() -> None:
    # odds of 1 : 2 : 5 with the background
    logits = torch.tensor([2.0, 5.0], dtype=torch.float64).log()[None]
    for target, probability in (([1.0, 0.0], 2 / 8), ([0.0, 1.0], 5 / 8), ([0.0, 0.0], 1 / 8)):
        found = categorical_cross_entropy(logits, torch.tensor([target]), dim=1)
        assert found.item() == pytest.approx(-math.log(probability))
    shares = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    expected = -0.5 * math.log(2 / 8) - 0.25 * math.log(5 / 8) - 0.25 * math.log(1 / 8)
    assert categorical_cross_entropy(logits, shares, dim=1).item() == pytest.approx(expected)


def test_the_cross_entropy_is_that_of_torch_over_all_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    drawn = torch.randint(4, (2, 4, 5), generator=generator)
    target = torch.stack([drawn == k for k in range(3)], dim=1).double()
    expected = F.cross_entropy(torch.cat([logits, torch.zeros(2, 1, 4, 5)], dim=1), drawn, reduction="none")
    torch.testing.assert_close(categorical_cross_entropy(logits, target, dim=1), expected)


def test_the_segmentation_loss_is_cross_entropy_and_dice_of_the_softmax() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 2, 6, 5, dtype=torch.float64, generator=generator)
    target = classes(generator, 2, 3, 6, 5, structures=2)
    found = SegmentationLoss(0.7, 1.3, exclusive=True)(logits, target)
    probability = exclusive_log_odds(logits, dim=2).sigmoid()
    for case in range(2):
        for member in range(3):
            p, y = probability[case, member].flatten(1), target[case, member].flatten(1)
            of_background = (1 - y.sum(dim=0)) * (1 - p.sum(dim=0)).log()
            entropy = -((y * p.log()).sum(dim=0) + of_background).mean()
            dice = 1 - 2 * (p * y).sum(dim=1) / (p.sum(dim=1) + y.sum(dim=1))
            expected = 0.7 * entropy + 1.3 * dice.mean()
            assert found[case, member].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_one_exclusive_structure_has_the_loss_of_a_structure(loss: Any, options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 1, 6, 5, generator=generator)
    target = classes(generator, 2, 3, 6, 5, structures=1)
    region = torch.rand(2, 6, 5, generator=generator) > 0.3
    for inside in (None, region):
        expected = loss(**options)(logits, target, inside)
        torch.testing.assert_close(loss(**options, exclusive=True)(logits, target, inside), expected)


@pytest.mark.parametrize(("loss", "options"), LOSSES)
def test_exclusive_losses_have_the_right_gradient(loss: Any, options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(3)
    target = classes(generator, 1, 2, 4, 3, structures=3)
    logits = torch.randn(1, 2, 3, 4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    region = torch.rand(1, 4, 3, generator=generator) > 0.3
    made = loss(**options, exclusive=True)
    assert torch.autograd.gradcheck(lambda values: made(values, target, region), logits)


@pytest.mark.parametrize(("loss", "options"), LOSSES[:-1])
def test_voxels_outside_of_the_region_have_no_part_in_exclusive_losses(loss: Any, options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 2, 3, 6, 5, generator=generator)
    target = classes(generator, 2, 2, 6, 5, structures=3)
    region = torch.zeros(2, 6, 5, dtype=torch.bool)
    region[:, :3] = True
    found = loss(**options, exclusive=True)(logits, target, region)
    torch.testing.assert_close(found, loss(**options, exclusive=True)(logits[:, :, :, :3], target[:, :, :, :3]))


@pytest.mark.parametrize("loss", [Tversky, Focal])
def test_losses_of_the_library_see_the_probability_of_the_softmax(loss: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 2, 3, 6, 5, dtype=torch.float64, generator=generator)
    target = classes(generator, 2, 2, 6, 5, structures=3)
    probability = torch.softmax(torch.cat([torch.zeros_like(logits[:, :, :1]), logits], dim=2), dim=2)[:, :, 1:]
    torch.testing.assert_close(loss(exclusive=True)(logits, target), loss()(probability.logit(), target))


def test_the_likelihood_of_the_mean_prediction_is_categorical() -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64, generator=generator)
    masks = classes(generator, 2, 4, 4, 5, structures=2)
    valid = torch.tensor([[True, True, True, False], [True, False, True, True]])
    found = mean_prediction_nll(logits, masks, valid, exclusive=True)
    mean = exclusive_log_odds(logits, dim=2).sigmoid().mean(dim=1)
    for case in range(2):
        terms = []
        for rater in range(4):
            for row in range(4):
                for column in range(5):
                    if valid[case, rater]:
                        p, y = mean[case, :, row, column], masks[case, rater, :, row, column]
                        of_all = [*p.tolist(), 1 - p.sum().item()]
                        terms.append(-math.log(of_all[int(y.argmax()) if y.any() else 2]))
        # masks are averaged in float32
        assert found[case].item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)
    one = mean_prediction_nll(logits[:, :, :1], masks[:, :, :1], valid)
    torch.testing.assert_close(mean_prediction_nll(logits[:, :, :1], masks[:, :, :1], valid, exclusive=True), one)


def test_the_likelihood_of_the_mean_prediction_has_the_right_gradient() -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    masks = classes(generator, 1, 3, 4, structures=3)
    valid, region = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, False, True, True]])
    assert torch.autograd.gradcheck(
        lambda values: mean_prediction_nll(values, masks, valid, region, exclusive=True), logits
    )
    extreme = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 1, 3, 1).expand(1, 2, 3, 4).clone().requires_grad_()
    mean_prediction_nll(extreme, masks, valid, exclusive=True).sum().backward()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_the_guidance_of_the_softmax_has_the_right_gradient_and_no_cost_for_the_raters_own_classes() -> None:
    generator = torch.Generator().manual_seed(8)
    masks = classes(generator, 1, 3, 4, 4, structures=2)
    valid = torch.ones(1, 3, dtype=torch.bool)
    guidance, readout = VarianceGuidance(1.0, "mse+l1"), Readout(exclusive=True)
    logits = torch.randn(1, 3, 2, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: guidance(readout.log_odds(values), masks, valid), logits)
    sure = torch.where(masks > 0, 60.0, -60.0)
    assert guidance(readout.log_odds(sure), masks, valid).item() < 1e-6


def test_the_likelihood_of_drawn_logits_is_categorical_per_voxel() -> None:
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    target = classes(generator, 2, 1, 4, 5, structures=2)
    region = torch.rand(2, 4, 5, generator=generator) > 0.3
    found = negative_log_likelihood(logits, target, region, exclusive=True)
    for case in range(2):
        inside = region[case]
        of_draws = []
        for draw in range(3):
            p = exclusive_log_odds(logits[case, draw], dim=0).sigmoid()
            y = target[case, 0]
            log_p = (y * p.log()).sum(dim=0) + (1 - y.sum(dim=0)) * (1 - p.sum(dim=0)).log()
            of_draws.append(log_p[inside].sum().exp().item())
        assert found[case].item() == pytest.approx(-math.log(sum(of_draws) / 3) / int(inside.sum()))
    assert torch.autograd.gradcheck(lambda values: negative_log_likelihood(values, target, region, True), logits)
    one = negative_log_likelihood(logits[:, :, :1], target[:, :, :1], region)
    torch.testing.assert_close(negative_log_likelihood(logits[:, :, :1], target[:, :, :1], region, True), one)


def test_the_average_of_softmaxes_keeps_its_logits() -> None:
    parts = [torch.randn(2, 1, 3, 4, dtype=torch.float64) * 3 for _ in range(3)]
    found = average_softmax_logits(parts, dim=2)
    mean = torch.stack([exclusive_log_odds(part, dim=2).sigmoid() for part in parts]).mean(dim=0)
    torch.testing.assert_close(exclusive_log_odds(found, dim=2).sigmoid(), mean)


def test_weights_count_the_voxels_of_a_structure_more() -> None:
    generator = torch.Generator().manual_seed(10)
    logits = torch.randn(1, 1, 2, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    target = classes(generator, 1, 1, 4, 5, structures=2)
    made = SegmentationLoss(dice=0.0, structure_weights=[1.0, 3.0], exclusive=True)
    p = exclusive_log_odds(logits, dim=2).sigmoid()[0, 0]
    y = target[0, 0]
    terms = 0.5 * y[0] * p[0].log() + 1.5 * y[1] * p[1].log() + (1 - y.sum(dim=0)) * (1 - p.sum(dim=0)).log()
    assert made(logits, target).item() == pytest.approx(-terms.mean().item())
    assert torch.autograd.gradcheck(lambda values: made(values, target), logits)
    even = SegmentationLoss(structure_weights=[2.0, 2.0], exclusive=True)(logits, target)
    torch.testing.assert_close(even, SegmentationLoss(exclusive=True)(logits, target))
    with pytest.raises(ValueError, match="structure_weights has 3 entries, but there are 2 structures"):
        SegmentationLoss(dice=0.0, structure_weights=[1.0, 1.0, 1.0], exclusive=True)(logits, target)


def test_the_boundary_loss_sees_the_probability_of_the_softmax() -> None:
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(2, 2, 3, 6, 5, dtype=torch.float64, generator=generator)
    target = classes(generator, 2, 2, 6, 5, structures=3)
    found = Boundary(exclusive=True).distances(logits, target, None, None)
    expected = Boundary().distances(exclusive_log_odds(logits, dim=2), target, None, None)
    torch.testing.assert_close(found, expected)
