"""MONAI's losses under the contract of all methods: known values, soft targets, regions, weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_parts import parts_of
from monai.losses import AsymmetricUnifiedFocalLoss, FocalLoss, TverskyLoss
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.losses import Focal, MemberLoss, Tversky, UnifiedFocal
from edue_lightning.methods import DeepEnsemble, SingleNetwork
from edue_lightning.networks import HeadLayout
from edue_lightning.training.checks import check_loss

ALL = [Tversky, Focal, UnifiedFocal]


def maps(size: tuple[int, ...] = (5, 6), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return logits and hard targets of two cases, three members and two structures."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 2, *size, generator=generator, dtype=dtype)
    return logits, (torch.rand(2, 3, 2, *size, generator=generator) > 0.5).to(dtype)


def by_monai(loss: MemberLoss, logits: Tensor, target: Tensor) -> Tensor:
    """Return MONAI's own loss of one map."""
    logits, target = logits[None, None], target[None, None]
    if isinstance(loss, Tversky):
        return TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7)(logits, target)
    if isinstance(loss, Focal):
        return FocalLoss(gamma=2.0)(logits, target)
    p = torch.sigmoid(logits)
    return AsymmetricUnifiedFocalLoss()(torch.cat([1 - p, p], 1), torch.cat([1 - target, target], 1))


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize("made", ALL)
def test_hard_targets_give_the_value_of_monai(made: type[MemberLoss], size: tuple[int, ...]) -> None:
    loss = made()
    logits, target = maps(size)
    found = loss(logits, target)
    assert found.shape == (2, 3)
    expected = [
        [[by_monai(loss, *map_) for map_ in zip(*of, strict=True)] for of in zip(*case, strict=True)]
        for case in zip(logits, target, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype).mean(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", ALL)
def test_gradients_are_right(made: type[MemberLoss]) -> None:
    logits, target = maps((3, 3))
    if made is Focal:
        target = torch.rand_like(target)
    assert torch.autograd.gradcheck(lambda x: made()(x, target), logits.requires_grad_())


def test_known_values() -> None:
    logits, target = torch.zeros(1, 1, 1, 2, 2), torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 2, 2)
    # p = 1/2: TP = FP = FN = 1
    assert float(Tversky(alpha=0.5, beta=1.5)(logits, target)) == pytest.approx(1 - 1 / 3, abs=1e-4)
    assert float(Focal(gamma=2.0)(logits, target)) == pytest.approx(0.25 * 0.693147, abs=1e-5)
    # focal: 0.3 sqrt(1/2) and 0.7, each on half of the voxels; Tversky: both scores 1/2, of the foreground the root
    focal = 0.693147 * (0.3 * 0.5**0.5 + 0.7) / 4
    assert float(UnifiedFocal()(logits, target)) == pytest.approx(0.5 * focal + 0.5 * (0.5 + 0.5**0.5) / 2, abs=1e-5)


def test_a_soft_target_is_the_optimum_of_tversky() -> None:
    target = torch.rand(1, 1, 1, 8, 8, dtype=torch.float64)
    at_target = float(Tversky()(torch.logit(target), target))
    assert at_target == pytest.approx(0, abs=1e-6)
    assert at_target < float(Tversky()(torch.logit(target) * 5, target))


def test_a_soft_target_gives_the_expected_focal_loss_over_raters() -> None:
    logits, first = maps()
    _, second = first.flip(-1), first.flip(-1)
    expected = (Focal()(logits, first) + Focal()(logits, second)) / 2
    torch.testing.assert_close(Focal()(logits, (first + second) / 2), expected)
    soft = torch.rand_like(first)
    entropy = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").flatten(2).mean(-1)
    torch.testing.assert_close(Focal(gamma=0.0)(logits, soft), entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", ALL)
def test_what_lies_outside_of_the_region_does_not_count(made: type[MemberLoss]) -> None:
    logits, target = maps((6, 6))
    region = torch.zeros(2, 6, 6, dtype=torch.bool)
    region[:, :3] = True
    found = made()(logits, target, region)
    torch.testing.assert_close(found, made()(logits[..., :3, :], target[..., :3, :]), rtol=1e-5, atol=1e-5)
    counted = region[:, None, None]
    assert torch.equal(found, made()(logits.where(counted, 7.0), target.where(counted, 1 - target), region))


@pytest.mark.parametrize("loss", [Tversky(), Focal(), UnifiedFocal(), UnifiedFocal(delta=0.3)])
@pytest.mark.parametrize("filled", [0.0, 1.0])
@pytest.mark.parametrize("logit", [0.0, 16.0, 40.0, -40.0])
def test_empty_full_and_certain_maps_have_finite_gradients(loss: MemberLoss, filled: float, logit: float) -> None:
    logits = torch.full((1, 1, 1, 20, 20), logit, requires_grad=True)
    loss(logits, torch.full_like(logits, filled)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("made", ALL)
def test_weights_of_structures(made: type[MemberLoss]) -> None:
    logits, target = maps()
    alone = [made()(logits[:, :, [k]], target[:, :, [k]]) for k in range(2)]
    weighted = made(structure_weights=[1, 3])(logits, target)
    torch.testing.assert_close(weighted, (alone[0] + 3 * alone[1]) / 4)
    with pytest.raises(ValueError, match="structure_weights has 3 entries, but there are 2 structures"):
        made(structure_weights=[1, 1, 1])(logits, target)


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        (Tversky, {"alpha": 0}, "alpha and beta must be above 0"),
        (Focal, {"gamma": -1}, "gamma must be at least 0"),
        (Focal, {"alpha": 1.5}, "alpha must lie between 0 and 1"),
        (UnifiedFocal, {"delta": 1.2}, "delta must lie between 0 and 1"),
        (UnifiedFocal, {"gamma": 1.0}, "gamma must be at least 0 and below 1"),
        (Focal, {"structure_weights": [0, 0]}, "structure_weights must be positive numbers"),
        (Focal, {"structure_weights": [-1, 2]}, "structure_weights must be positive numbers"),
    ],
)
def test_settings_out_of_range_are_refused(made: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_a_training_refuses_what_its_loss_cannot_do() -> None:
    def trained(loss: MemberLoss, target: Any) -> SingleNetwork:
        return SingleNetwork(parts_of(loss=loss), HeadLayout("last"), target=target)

    with pytest.raises(UserError, match="soft_majority: the loss UnifiedFocal is defined for masks"):
        check_loss(trained(UnifiedFocal(), "soft_majority"))
    with pytest.raises(UserError, match="soft_majority: the loss UnifiedFocal is defined for masks"):
        check_loss(DeepEnsemble(parts_of(loss=UnifiedFocal()), HeadLayout("last"), members=2, target="soft_majority"))
    with pytest.raises(UserError, match=r"loss\.structure_weights=\[1\.0\]: there are 2 structures \(disc, cup\)"):
        check_loss(trained(Focal(structure_weights=[1]), "majority"))
    check_loss(trained(UnifiedFocal(structure_weights=[1, 2]), "random_rater"))
    check_loss(trained(Tversky(), "soft_majority"))
