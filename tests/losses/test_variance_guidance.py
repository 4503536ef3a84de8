import math

import pytest
import torch
from torch import Tensor

from edue_lightning.losses import VarianceGuidance, map_distance
from edue_lightning.losses.variance_guidance import Distance

DISTANCES: list[Distance] = ["mse", "l1", "mse+l1", "ncc", "relative"]


def raters(*, cases: int = 3, raters: int = 4, structures: int = 2, size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    masks = torch.randint(0, 2, (cases, raters, structures, size, size), generator=generator, dtype=torch.uint8)
    valid = torch.ones(cases, raters, dtype=torch.bool)
    valid[1, 2] = False
    return masks * valid[:, :, None, None, None], valid


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_right(distance: Distance) -> None:
    masks, valid = raters()
    logits = torch.randn(3, 3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    guidance = VarianceGuidance(1.0, distance)
    assert torch.autograd.gradcheck(lambda x: guidance(x, masks, valid), logits.requires_grad_())


def test_known_value_of_each_distance() -> None:
    # two heads with probabilities 0.2 and 0.8: V = 0.09; two raters who differ: V* = 0.25
    logits = torch.logit(torch.tensor([0.2, 0.8], dtype=torch.float64)).reshape(1, 2, 1, 1, 1)
    masks = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 2, 1, 1, 1)
    valid = torch.ones(1, 2, dtype=torch.bool)
    expected = {"mse": 0.16**2, "l1": 0.16, "mse+l1": 0.16**2 + 0.16}
    for distance, value in expected.items():
        assert float(VarianceGuidance(1.0, distance)(logits, masks, valid)) == pytest.approx(value)


def test_the_relative_distance_ignores_what_no_rater_doubts() -> None:
    generator = torch.Generator().manual_seed(4)
    variance, target = (torch.rand(2, 2, 6, 6, generator=generator, dtype=torch.float64) / 4 for _ in range(2))
    distance = map_distance(variance, target, "relative")
    for case in range(2):
        expected = [
            sum(float(a - b) ** 2 for a, b in zip(v.flatten(), t.flatten(), strict=True))
            / (float((v**2).sum() + (t**2).sum()) + 1e-3)
            for v, t in zip(variance[case], target[case], strict=True)
        ]
        assert float(distance[case]) == pytest.approx(sum(expected) / 2)
    wider = [torch.nn.functional.pad(part, (20, 20, 20, 20)) for part in (variance, target)]
    torch.testing.assert_close(map_distance(*wider, "relative"), distance)
    zeros = torch.zeros(1, 1, 3, 3)
    assert float(map_distance(zeros, zeros, "relative")) == 0
    assert float(map_distance(torch.full_like(zeros, 0.2), zeros, "relative")) == pytest.approx(1, abs=0.01)


def test_ncc_is_one_minus_pearson_and_nothing_where_raters_agree() -> None:
    generator = torch.Generator().manual_seed(3)
    variance = torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    target = torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    target[1] = 0
    distance = map_distance(variance, target, "ncc")
    pearson = torch.corrcoef(torch.stack([variance[0].flatten(), target[0].flatten()]))[0, 1]
    assert float(distance[0]) == pytest.approx(1 - float(pearson), abs=1e-9)
    assert float(distance[1]) == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_perfectly_agreeing_heads_have_a_finite_gradient(distance: Distance) -> None:
    masks, valid = raters()
    logits = torch.zeros(3, 3, 2, 5, 5, requires_grad=True)
    VarianceGuidance(1.0, distance)(logits, masks, valid).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_case_with_fewer_than_two_raters_takes_no_part() -> None:
    masks, valid = raters()
    lonely = valid.clone()
    lonely[1] = torch.tensor([True, False, False, False])
    logits = torch.randn(3, 3, 2, 5, 5, generator=torch.Generator().manual_seed(2))
    guidance = VarianceGuidance(1.0, "mse")
    expected = guidance(logits[[0, 2]], masks[[0, 2]], valid[[0, 2]])
    torch.testing.assert_close(guidance(logits, masks, lonely), expected)


def test_a_batch_without_disagreement_costs_nothing() -> None:
    masks, valid = raters()
    logits = torch.randn(3, 3, 2, 5, 5, requires_grad=True)
    loss = VarianceGuidance(1.0, "mse+l1")(logits, masks, torch.zeros_like(valid))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_missing_raters_masks_do_not_matter() -> None:
    masks, valid = raters()
    scribbled = masks.clone()
    scribbled[1, 2] = 1
    logits = torch.randn(3, 3, 2, 5, 5)
    guidance = VarianceGuidance(1.0, "l1")
    assert guidance(logits, masks, valid) == guidance(logits, scribbled, valid)


def test_low_precision_logits_are_measured_in_float32() -> None:
    masks, valid = raters()
    logits = torch.randn(3, 3, 2, 5, 5).to(torch.bfloat16)
    guidance = VarianceGuidance(1.0, "mse")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = guidance(logits, masks, valid)
    assert loss.dtype == torch.float32
    assert loss == guidance(logits.float(), masks, valid)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.0), (1, 2.0), (2.5, 5.0), (5, 10.0), (9, 10.0)])
def test_weight_ramps_up_linearly(epoch: float, expected: float) -> None:
    assert VarianceGuidance(10.0, ramp_up_epochs=5).current_weight(epoch) == pytest.approx(expected)
    assert VarianceGuidance(10.0).current_weight(epoch) == 10.0


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": -1},
        {"weight": math.nan},
        {"weight": 1, "ramp_up_epochs": -1},
        {"weight": 1, "ramp_up_epochs": math.nan},
        {"weight": 1, "distance": "mae"},
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        VarianceGuidance(**settings)
