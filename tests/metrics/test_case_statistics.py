"""Every statistic of a case against an independent reference, in 2D and 3D."""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric
from scipy.stats import pearsonr
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.metrics import CaseStatistics, case_statistics

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def random_case(
    seed: int, *, members: int = 3, raters: int = 4, structures: int = 2, size: tuple[int, ...] = (9, 8)
) -> Case:
    """Return logits, masks, valid and voxel size of three cases; the middle one lacks a rater if it has several."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, members, structures, *size, generator=generator)
    shared = torch.rand(3, 1, structures, *size, generator=generator)
    own = torch.rand(3, raters, structures, *size, generator=generator)
    valid = torch.ones(3, raters, dtype=torch.bool)
    if raters > 1:
        valid[1, 0] = False
    masks = ((shared + 0.5 * own > 0.8) & valid.reshape(3, raters, *[1] * (len(size) + 1))).to(torch.uint8)
    return logits, masks, valid, torch.rand(3, generator=generator) + 0.1


def naive_dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2 * int((first & second).sum()) / total


def naive_statistics(case: Case, i: int, k: int) -> dict[str, float]:
    """Compute one case and structure in float64 with NumPy, SciPy and scikit-learn."""
    logits, masks, valid, voxel_size = case
    p = 1 / (1 + np.exp(-logits[i, :, k].double().numpy()))
    y = masks[i, valid[i], k].numpy().astype(bool)
    scale = float(voxel_size[i])
    mean, share = p.mean(axis=0), y.mean(axis=0)
    predicted, consensus = mean >= 0.5, share >= 0.5
    expert, between, total = y.var(axis=0), p.var(axis=0), mean * (1 - mean)
    labels = y.reshape(len(y), -1)
    repeated = np.broadcast_to(mean.ravel(), labels.shape)
    pairs = list(itertools.combinations(p >= 0.5, 2))
    neighbours = [naive_dice(a, b) for a, b in itertools.pairwise(p >= 0.5)]
    two = len(y) >= 2
    varies = len(p) >= 2
    return {
        "dice": naive_dice(predicted, consensus),
        "dice_per_rater": float(np.mean([naive_dice(predicted, mask) for mask in y])),
        "nll": log_loss(labels.ravel(), repeated.ravel(), labels=[0, 1]),
        "brier": brier_score_loss(labels.ravel(), repeated.ravel()),
        "sv": between.sum() * scale,
        "sv_star": expert.sum() * scale if two else np.nan,
        "sv_total": total.sum() * scale,
        "pixel_pearson": pearsonr(between.ravel(), expert.ravel())[0] if two and varies else np.nan,
        "pixel_pearson_total": pearsonr(total.ravel(), expert.ravel())[0] if two else np.nan,
        "entropy": -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean)).sum() * scale,
        "layer_agreement": float(np.mean(neighbours)) if neighbours else np.nan,
        "aula": float(np.trapezoid(neighbours)) if len(neighbours) >= 2 else np.nan,
        "model_agreement": float(np.mean([naive_dice(a, b) for a, b in pairs])) if pairs else np.nan,
        "area": consensus.sum() * scale,
        "n_raters": float(len(y)),
    }


@pytest.mark.parametrize("size", [(9, 8), (5, 6, 7)])
@pytest.mark.parametrize(("members", "raters", "structures"), [(1, 1, 1), (2, 2, 1), (3, 4, 2), (5, 8, 3), (4, 3, 1)])
def test_equals_a_naive_loop(size: tuple[int, ...], members: int, raters: int, structures: int) -> None:
    case = random_case(members + raters, members=members, raters=raters, structures=structures, size=size)
    found = case_statistics(*case)
    for i in range(3):
        for k in range(structures):
            for name, expected in naive_statistics(case, i, k).items():
                value = float(getattr(found, name)[i, k])
                assert value == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_dice_equals_monai() -> None:
    logits, masks, valid, size = random_case(1)
    valid[:] = True
    predicted = (torch.sigmoid(logits).mean(dim=1) >= 0.5).float()
    consensus = (masks.float().mean(dim=1) >= 0.5).float()
    expected = DiceMetric(reduction="none")(predicted, consensus)
    torch.testing.assert_close(case_statistics(logits, masks, valid, size).dice, expected.double())


def test_bins_equal_scikit_learns_calibration_curve() -> None:
    logits, masks, valid, size = random_case(2, structures=1, size=(40, 40))
    bins = case_statistics(logits, masks, valid, size).bins[:, 0]
    for i in range(3):
        probability = torch.sigmoid(logits[i].double()).mean(dim=0)[0]
        labels = masks[i, valid[i], 0].flatten(1)
        repeated = probability.flatten().expand_as(labels)
        frequency, mean = calibration_curve(labels.flatten(), repeated.flatten(), n_bins=15)
        filled = bins[i][bins[i, :, 0] > 0]
        np.testing.assert_allclose(filled[:, 1] / filled[:, 0], mean, rtol=1e-5)
        np.testing.assert_allclose(filled[:, 2] / filled[:, 0], frequency, rtol=1e-9)
        assert bins[i, :, 0].sum() == labels.numel()


def test_probabilities_of_exactly_0_and_1_have_a_bin() -> None:
    logits = torch.tensor([-800.0, 800.0]).reshape(1, 1, 1, 1, 2)
    masks = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 1, 1, 1, 2)
    bins = case_statistics(logits, masks, torch.ones(1, 1) > 0, torch.ones(1)).bins[0, 0]
    assert bins[0].tolist() == [1, 0, 0]
    assert bins[14].tolist() == [1, 1, 1]


def test_a_sure_and_wrong_prediction_has_a_finite_nll() -> None:
    logits = torch.full((1, 2, 1, 2, 2), 300.0)
    masks = torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8)
    found = case_statistics(logits, masks, torch.ones(1, 3) > 0, torch.ones(1))
    assert float(found.nll) == pytest.approx(300)
    assert float(found.brier) == 1


def test_empty_masks() -> None:
    masks = torch.zeros(1, 3, 1, 4, 4, dtype=torch.uint8)
    rated = torch.ones(1, 3) > 0
    empty = case_statistics(torch.full((1, 3, 1, 4, 4), -5.0), masks, rated, torch.ones(1))
    assert float(empty.dice) == float(empty.dice_per_rater) == float(empty.model_agreement) == 1
    assert float(empty.sv_star) == float(empty.area) == 0
    assert empty.pixel_pearson.isnan().all()  # both maps are constant
    wrong = case_statistics(torch.full((1, 3, 1, 4, 4), 5.0), masks, rated, torch.ones(1))
    assert float(wrong.dice) == 0


def test_too_few_raters_leave_values_undefined() -> None:
    logits, masks, valid, size = random_case(4)
    valid[0] = torch.tensor([True, False, False, False])
    valid[2] = False
    found = case_statistics(logits, masks, valid, size)
    for field in fields(CaseStatistics):
        value = getattr(found, field.name)
        if field.name == "bins":
            assert not value[2].any()
        elif field.name == "n_raters":
            assert value[:, 0].tolist() == [1, 3, 0]
        else:
            assert value[2].isnan().all(), field.name
            needs_two = field.name in {"sv_star", "pixel_pearson", "pixel_pearson_total"}
            assert value[0].isnan().all() == needs_two, field.name
            assert not value[1].isnan().any(), field.name


def assert_equal(first: CaseStatistics, second: CaseStatistics, *, but: set[str] = frozenset()) -> None:
    for field in fields(CaseStatistics):
        if field.name not in but:
            one, other = getattr(first, field.name), getattr(second, field.name)
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7, equal_nan=True, msg=field.name)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), raters=st.integers(1, 6), members=st.integers(1, 5))
def test_order_of_raters_and_members_does_not_matter(seed: int, raters: int, members: int) -> None:
    logits, masks, valid, size = random_case(seed, raters=raters, members=members)
    order = torch.randperm(raters, generator=torch.Generator().manual_seed(seed))
    found = case_statistics(logits, masks, valid, size)
    assert_equal(found, case_statistics(logits, masks[:, order], valid[:, order], size))
    members_order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    # the layer agreement is about the order of the heads
    assert_equal(found, case_statistics(logits[:, members_order], masks, valid, size), but={"layer_agreement", "aula"})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), padding=st.integers(1, 3))
def test_padded_raters_and_batching_do_not_matter(seed: int, padding: int) -> None:
    logits, masks, valid, size = random_case(seed)
    found = case_statistics(logits, masks, valid, size)
    noise = torch.ones(3, padding, *masks.shape[2:], dtype=torch.uint8)
    missing = torch.zeros(3, padding, dtype=torch.bool)
    assert_equal(found, case_statistics(logits, torch.cat([masks, noise], 1), torch.cat([valid, missing], 1), size))
    parts = [case_statistics(logits[i : i + 1], masks[i : i + 1], valid[i : i + 1], size[i : i + 1]) for i in range(3)]
    assert_equal(found, CaseStatistics.concatenate(parts))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), raters=st.integers(1, 6), members=st.integers(1, 5))
def test_complement_and_bounds(seed: int, raters: int, members: int) -> None:
    logits, masks, valid, size = random_case(seed, raters=raters, members=members)
    masks = masks * valid.reshape(3, raters, 1, 1, 1)
    found = case_statistics(logits, masks, valid, size)
    mirrored = case_statistics(-logits, 1 - masks, valid, size)
    for name in ("nll", "brier", "sv", "sv_star", "sv_total", "entropy", "pixel_pearson", "pixel_pearson_total"):
        one, other = getattr(found, name), getattr(mirrored, name)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
    for name in ("dice", "dice_per_rater", "brier", "model_agreement", "layer_agreement"):
        value = getattr(found, name)
        assert ((value >= 0) & (value <= 1) | value.isnan()).all(), name
    voxels = 72 * size[:, None]
    assert (found.sv <= 0.25 * voxels + 1e-9).all()
    assert (found.sv <= found.sv_total + 1e-6).all()  # the law of total variance
    assert (found.nll >= 0).all()


def test_a_large_volume_is_summed_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 1, 96, 96, 96, generator=generator)
    masks = (torch.rand(1, 2, 1, 96, 96, 96, generator=generator) > 0.7).to(torch.uint8)
    found = case_statistics(logits, masks, torch.ones(1, 2) > 0, torch.ones(1))
    p = torch.sigmoid(logits.double()).mean(dim=1)
    share = masks.double().mean(dim=1)
    nll = -(share * p.log() + (1 - share) * (1 - p).log()).mean()
    assert float(found.nll) == pytest.approx(float(nll), rel=1e-6)
    assert float(found.sv) == pytest.approx(float(torch.sigmoid(logits.double()).var(1, correction=0).sum()), rel=1e-6)


@pytest.mark.parametrize("members", [1, 2, 5, 10])
def test_likelihood_of_sure_members_is_exact(members: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 14 + torch.randn(1, members, 1, 40, 40, generator=generator)
    masks = torch.ones(1, 2, 1, 40, 40, dtype=torch.uint8)
    found = case_statistics(logits, masks, torch.ones(1, 2) > 0, torch.ones(1))
    # log(1 - x) of the small x = mean of 1 - p, which float64 holds to the last digit
    wrong = torch.sigmoid(-logits.double()).mean(dim=1)
    assert float(found.nll) == pytest.approx(float(-torch.log1p(-wrong).mean()), rel=1e-6)


@pytest.mark.parametrize("raters", range(2, 41, 2))
def test_a_tie_of_raters_is_foreground_whatever_their_number(raters: int) -> None:
    masks = torch.zeros(1, raters, 1, 8, 8, dtype=torch.uint8)
    for voxel in range(64):
        chosen = torch.randperm(raters, generator=torch.Generator().manual_seed(voxel))[: raters // 2]
        masks[0, chosen, 0, voxel // 8, voxel % 8] = 1
    found = case_statistics(torch.full((1, 1, 1, 8, 8), 3.0), masks, torch.ones(1, raters) > 0, torch.ones(1))
    assert float(found.area) == 64
    assert float(found.dice) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_diverged_model_is_an_error_and_no_missing_case(value: float) -> None:
    logits, masks, valid, size = random_case(0)
    logits[1, 0, 0, 0, 0] = value
    with pytest.raises(UserError, match="diverged"):
        case_statistics(logits, masks, valid, size)
