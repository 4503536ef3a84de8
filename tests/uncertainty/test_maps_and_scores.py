import itertools

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from edue_lightning.uncertainty import (
    area_under_layer_agreement,
    enough_raters,
    foreground,
    layer_agreement,
    member_variance,
    model_agreement,
    overlap_by_product,
    pair_overlap,
    predictive_entropy,
    rater_mean,
    rater_variance,
    sum_of_variances,
    total_variance,
)


@pytest.mark.parametrize("raters", range(1, 9))
def test_rater_maps_equal_numpy_over_the_valid_raters(raters: int) -> None:
    generator = torch.Generator().manual_seed(raters)
    masks = torch.randint(0, 2, (3, raters, 2, 4, 5, 6), generator=generator, dtype=torch.uint8)
    valid = torch.rand(3, raters, generator=generator) > 0.3
    for i in range(3):
        chosen = masks[i, valid[i]].numpy()
        if len(chosen):
            np.testing.assert_allclose(rater_mean(masks, valid)[i], chosen.mean(axis=0), rtol=1e-6)
            np.testing.assert_allclose(rater_variance(masks, valid)[i], chosen.var(axis=0), atol=1e-7)
        else:
            assert not rater_mean(masks, valid)[i].any()
    assert enough_raters(valid).tolist() == [int(v.sum()) >= 2 for v in valid]


def test_member_maps_equal_numpy_and_obey_the_law_of_total_variance() -> None:
    p = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64)
    np.testing.assert_allclose(member_variance(p), p.numpy().var(axis=1))
    own = (p * (1 - p)).mean(dim=1)
    torch.testing.assert_close(total_variance(p), member_variance(p) + own)
    mean = p.mean(dim=1).numpy()
    np.testing.assert_allclose(predictive_entropy(p), entropy(np.stack([mean, 1 - mean])))


def test_certain_members_have_no_entropy_and_one_member_no_variance() -> None:
    p = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert not predictive_entropy(p).any()
    assert not member_variance(p).any()


def test_half_precision_is_widened_first() -> None:
    p = torch.rand(1, 3, 1, 8, 8).half()
    torch.testing.assert_close(member_variance(p), member_variance(p.float()))
    assert member_variance(p).dtype == torch.float32


def test_sum_of_variances_counts_square_millimetres() -> None:
    variance = torch.full((2, 1, 10, 10), 0.25)
    assert sum_of_variances(variance, torch.tensor([1.0, 0.49])).flatten().tolist() == pytest.approx([25, 12.25])


def test_agreements_of_known_masks() -> None:
    # heads that mark 1, 2 and 4 of four voxels: Dice 2/3 between the first two, 2/3 between the last two, 2/5 else
    masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()[None]
    dice = pair_overlap(masks).dice()
    torch.testing.assert_close(layer_agreement(dice), torch.full((1, 2), 2 / 3, dtype=torch.float64))
    assert area_under_layer_agreement(layer_agreement(dice)).item() == pytest.approx(2 / 3)
    assert model_agreement(dice).item() == pytest.approx((2 / 3 + 2 / 3 + 2 / 5) / 3)


def test_aula_is_the_trapezoid_over_depth() -> None:
    agreement = torch.rand(3, 2, 6, dtype=torch.float64)
    np.testing.assert_allclose(area_under_layer_agreement(agreement), np.trapezoid(agreement.numpy(), axis=-1))
    assert area_under_layer_agreement(agreement[..., :1]).isnan().all()


def test_too_few_members_have_no_agreement() -> None:
    dice = pair_overlap(torch.ones(2, 3, 1, 4, dtype=torch.bool)).dice()
    assert layer_agreement(dice).shape == (2, 3, 0)
    assert model_agreement(dice).isnan().all()


def test_pair_overlap_equals_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 5, 300, generator=generator) > 0.6
    overlap = pair_overlap(masks)
    for k, i, j in itertools.product(range(2), range(5), range(5)):
        both, either = (masks[k, i] & masks[k, j]).sum(), (masks[k, i] | masks[k, j]).sum()
        assert overlap.intersection[k, i, j] == both
        assert overlap.intersection_over_union()[k, i, j] == pytest.approx(float(both / either))
        assert overlap.dice()[k, i, j] == pytest.approx(float(2 * both / (masks[k, i].sum() + masks[k, j].sum())))


def test_masks_may_lie_in_memory_in_any_order_and_there_may_be_none() -> None:
    masks = torch.rand(30, 5, 2, generator=torch.Generator().manual_seed(0)).permute(2, 1, 0) > 0.6
    assert not masks.is_contiguous()
    assert torch.equal(pair_overlap(masks).intersection, overlap_by_product(masks.contiguous()).intersection)
    assert pair_overlap(torch.ones(2, 0, 30)).intersection.shape == (2, 0, 0)


def test_pairs_are_counted_exactly_over_many_voxels() -> None:
    masks = torch.ones(1, 2, 2**24 + 3, dtype=torch.bool)  # more than float32 can count one by one
    assert (pair_overlap(masks).intersection == 2**24 + 3).all()


def test_empty_masks_agree() -> None:
    overlap = pair_overlap(torch.tensor([[[False] * 4, [False] * 4, [True] * 4]]))
    for similarity in (overlap.dice()[0], overlap.intersection_over_union()[0]):
        assert similarity[0, 1] == 1
        assert similarity[0, 2] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_mask_is_that_of_the_probability_rounded_to_float32(dtype: torch.dtype) -> None:
    below = 0.5 - torch.logspace(-12, -1, 200, dtype=torch.float64)
    values = torch.cat([below, torch.tensor([0.5 - 2.0**-26, 0.5 - 2.0**-25, 0.5, 0.5 + 1e-9])]).to(dtype)
    assert torch.equal(foreground(values), values.float() >= 0.5)
    if dtype in (torch.float32, torch.float64):
        numbers = values.numpy()
        assert (foreground(numbers) == (numbers.astype("float32") >= 0.5)).all()
