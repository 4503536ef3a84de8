import math

import pytest
import torch
import torch.nn.functional as F
from method_parts import parts_of

from edue_lightning.errors import UserError
from edue_lightning.losses import Focal, SegmentationLoss
from edue_lightning.methods import EDUELevels, StochasticSegmentation
from edue_lightning.training.checks import check_loss, check_structure_weights


def naive(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice of one member of one case, structure by structure."""
    parts = []
    for logit, truth in zip(logits, target, strict=True):
        p = torch.sigmoid(logit)
        overlap = (p.sum() + truth.sum() - (p - truth).abs().sum()) / 2
        dice = 1 - (2 * overlap + 1e-5) / (p.sum() + truth.sum() + 1e-5)
        parts.append(F.binary_cross_entropy(p, truth) + dice)
    return torch.stack(parts).mean()


@pytest.mark.parametrize("soft", [False, True])
def test_equals_a_naive_loop_in_2d_and_3d(soft: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    for size in [(6, 7), (3, 4, 5)]:
        logits = torch.randn(2, 3, 2, *size, generator=generator, dtype=torch.float64)
        target = torch.rand(2, 3, 2, *size, generator=generator, dtype=torch.float64)
        target = target if soft else (target > 0.5).double()
        loss = SegmentationLoss()(logits, target)
        assert loss.shape == (2, 3)
        for case in range(2):
            for member in range(3):
                expected = naive(logits[case, member], target[case, member])
                torch.testing.assert_close(loss[case, member], expected)


def test_gradients_are_right() -> None:
    logits = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 2, 1, 3, 3) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: SegmentationLoss()(x, target), logits)


def test_soft_target_is_the_optimum_of_the_dice_part() -> None:
    target = torch.rand(1, 1, 1, 8, 8, dtype=torch.float64)
    loss = SegmentationLoss(cross_entropy=0.0)
    at_target = float(loss(torch.logit(target), target))
    assert at_target == pytest.approx(0, abs=1e-6)
    assert at_target < float(loss(torch.logit(target) * 5, target))


def test_empty_target_is_finite() -> None:
    logits = torch.randn(1, 1, 1, 4, 4, requires_grad=True)
    SegmentationLoss()(logits, torch.zeros(1, 1, 1, 4, 4)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_weights_of_structures_in_both_parts_and_within_a_region() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 2, 6, 7, generator=generator, dtype=torch.float64)
    target = (torch.rand(logits.shape, generator=generator) > 0.5).double()
    region = torch.rand(2, 6, 7, generator=generator) > 0.3
    for inside in (None, region):
        first, second = (SegmentationLoss()(logits[:, :, [k]], target[:, :, [k]], inside) for k in range(2))
        weighted = SegmentationLoss(structure_weights=[1, 3])(logits, target, inside)
        torch.testing.assert_close(weighted, (first + 3 * second) / 4)
        equal = SegmentationLoss(structure_weights=[2, 2])(logits, target, inside)
        torch.testing.assert_close(equal, SegmentationLoss()(logits, target, inside))


def test_a_training_needs_one_positive_weight_per_structure() -> None:
    for wrong in ([1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [float("inf"), 1.0], []):
        with pytest.raises(ValueError, match="structure_weights must be positive numbers"):
            SegmentationLoss(structure_weights=wrong)
    with pytest.raises(UserError, match=r"loss\.structure_weights=\[1\.0\]: there are 2 structures \(disc, cup\)"):
        check_structure_weights(SegmentationLoss(structure_weights=[1]), ("disc", "cup"))
    with pytest.raises(ValueError, match="structure_weights has 1 entries, but there are 2 structures"):
        SegmentationLoss(structure_weights=[1])(torch.zeros(1, 1, 2, 4, 4), torch.zeros(1, 1, 2, 4, 4))


def test_levels_take_the_weights_and_likelihoods_refuse_them() -> None:
    loss = SegmentationLoss(structure_weights=[1, 3])
    assert EDUELevels(parts_of(loss=loss), levels=3).level_loss.structure_weights == (1.0, 3.0)
    assert EDUELevels(parts_of(), levels=3).level_loss.structure_weights is None
    check_loss(StochasticSegmentation(parts_of()))
    with pytest.raises(UserError, match=r"loss\.structure_weights: has no effect on stochastic_segmentation"):
        check_loss(StochasticSegmentation(parts_of(loss=loss)))


def test_a_loss_without_effect_is_named(caplog: pytest.LogCaptureFixture) -> None:
    cross_entropy = SegmentationLoss(dice=0)
    for method in (
        StochasticSegmentation(parts_of(loss=SegmentationLoss(structure_weights=None))),
        EDUELevels(parts_of(loss=cross_entropy), levels=3, mask_weight=1.0),
        EDUELevels(parts_of(loss=SegmentationLoss(structure_weights=[1, 3])), levels=3),
    ):
        check_loss(method)
    assert not caplog.records
    for method in (StochasticSegmentation(parts_of(loss=cross_entropy)), EDUELevels(parts_of(loss=Focal()), levels=3)):
        check_loss(method)
        assert f"has no effect on {method.label}" in caplog.records[-1].message


def test_senseless_weights_are_refused() -> None:
    for cross_entropy, dice in ((0, 0), (-1, 1), (math.nan, 1), (1, math.inf)):
        with pytest.raises(ValueError, match="finite and not negative, and not both 0"):
            SegmentationLoss(cross_entropy, dice)
