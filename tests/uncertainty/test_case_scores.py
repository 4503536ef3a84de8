"""The scores of a case from sums and overlaps, against those of its maps and masks, whole and in slabs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from metric_cases import naive_patch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.metrics import case_statistics
from edue_lightning.metrics.scores import MODEL_SCORES, SCORES, WHOLE_MAP_SCORES
from edue_lightning.runs.files import DISTORTION_SCORES
from edue_lightning.uncertainty import (
    CASE_SCORES,
    MAP_SCORES,
    MASK_SCORES,
    VARIANCE_SCORES,
    PairOverlap,
    Readout,
    case_scores,
    disagreement_map,
    expected_entropy,
    layer_agreement,
    majority_maps,
    map_sums,
    member_variance,
    model_agreement,
    mutual_information,
    pair_overlap,
    patch_maximum,
    predictive_entropy,
    score_maps,
    soft_dice_confidence,
    sum_of_variances,
    top_mean,
    total_variance,
)


def overlap_of(members: Tensor) -> PairOverlap:
    """Return the overlap of the mean prediction's mask and the members', for probabilities `[M, K, *S]`."""
    masks = torch.cat([members.mean(dim=0, keepdim=True) >= 0.5, members >= 0.5])
    return pair_overlap(masks.transpose(0, 1).flatten(2))


def information_of(members: Tensor) -> Tensor:
    """Return the mutual information of probabilities `[B, M, K, *S]`."""
    return mutual_information(members, predictive_entropy(members.double()), expected_entropy(members))


def sums_of(members: Tensor) -> dict[str, Tensor]:
    """Return the sums of all maps, `[K]` each, for probabilities `[M, K, *S]`."""
    mean = members.mean(dim=0, keepdim=True)
    maps = {**score_maps(members[None]), **majority_maps(mean, mean >= 0.5)}
    return {name: found[0] for name, found in map_sums(maps).items()}


@pytest.mark.parametrize("members", [1, 2, 5])
def test_scores_are_those_of_maps_and_masks(members: int) -> None:
    p = torch.rand(members, 2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(members))
    found = case_scores(sums_of(p), overlap_of(p), 1.5)
    assert tuple(found) == CASE_SCORES == (*VARIANCE_SCORES, *MASK_SCORES)
    size = torch.tensor([1.5])
    maps = {"sv": member_variance, "sv_total": total_variance, "entropy": predictive_entropy}
    maps |= {"expected_entropy": expected_entropy, "mutual_information": information_of}
    for name, function in maps.items():
        if members > 1 or name not in ("sv", "mutual_information"):
            torch.testing.assert_close(found[name], sum_of_variances(function(p[None]), size)[0])
    area = (p.mean(dim=0) >= 0.5).flatten(1).sum(dim=1) * 1.5
    torch.testing.assert_close(found["predicted_area"], area.double())
    torch.testing.assert_close(found["sv_total_normalised"], found["sv_total"] / area)
    torch.testing.assert_close(found["expected_entropy"] + found["mutual_information"].nan_to_num(0), found["entropy"])
    mean, mask = p.mean(dim=0).flatten(1), (p.mean(dim=0) >= 0.5).flatten(1)
    confidence = 2 * (mean * mask).sum(dim=1) / (mean.sum(dim=1) + mask.sum(dim=1))
    torch.testing.assert_close(found["soft_dice_confidence"], confidence)
    if members == 1:
        for name in ("sv", "mutual_information", "sv_normalised", "layer_agreement", "aula", "model_agreement"):
            assert found[name].isnan().all()
        return
    torch.testing.assert_close(found["sv_normalised"], found["sv"] / area)
    dice = pair_overlap((p >= 0.5).transpose(0, 1).flatten(2)).dice()
    torch.testing.assert_close(found["layer_agreement"], layer_agreement(dice).mean(dim=-1))
    torch.testing.assert_close(found["model_agreement"], model_agreement(dice))
    expected = np.trapezoid(layer_agreement(dice).numpy(), axis=-1) if members > 2 else np.full(2, np.nan)
    np.testing.assert_allclose(found["aula"], expected)


def test_sums_and_overlaps_add_up_over_slabs() -> None:
    p = torch.rand(3, 2, 10, 8, dtype=torch.float64)
    slabs = p.split(4, dim=2)
    sums = [sums_of(slab) for slab in slabs]
    added = {name: sum(part[name] for part in sums) for name in sums[0]}
    overlap = PairOverlap(sum(overlap_of(slab).intersection for slab in slabs))
    whole = case_scores(sums_of(p), overlap_of(p))
    for name, values in case_scores(added, overlap).items():
        torch.testing.assert_close(values, whole[name], msg=name)


def test_a_single_member_shows_its_own_variance() -> None:
    p = torch.rand(1, 2, 1, 4, 4)
    assert disagreement_map(score_maps(p), True) is not None
    torch.testing.assert_close(disagreement_map(score_maps(p), True), member_variance(p.double()))
    torch.testing.assert_close(disagreement_map(score_maps(p[:, :1]), False), total_variance(p[:, :1].double()))


def test_every_list_of_scores_is_the_one_list() -> None:
    assert MODEL_SCORES.names == CASE_SCORES
    assert WHOLE_MAP_SCORES.names == MAP_SCORES
    assert {score for score, _ in SCORES.values()} <= {*CASE_SCORES, *MAP_SCORES}
    assert set(DISTORTION_SCORES) == {*CASE_SCORES, *MAP_SCORES} - {"predicted_area"}


def test_confidence_of_masks_by_hand() -> None:
    one = torch.ones(1).double()
    # of ten voxels of 0.8 in the mask and ten of 0.2 beside it
    assert float(soft_dice_confidence(10 * one, 8 * one, 10 * one)) == pytest.approx(0.8)
    assert float(soft_dice_confidence(10 * one, 10 * one, 10 * one)) == 1
    assert float(soft_dice_confidence(2 * one, 0 * one, 0 * one)) == 0
    assert float(soft_dice_confidence(0 * one, 0 * one, 0 * one)) == 1


@pytest.mark.parametrize("own", [False, True])
def test_confidence_of_any_mask_is_by_the_probability_of_a_majority(own: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    channels = torch.rand(1, 5, 2, 4, 5, generator=generator, dtype=torch.float64)
    channels[:, :4] = channels[:, :4].sort(dim=1, descending=True).values
    readout = Readout(levels=True, own_maps=("decision",) if own else ())
    given = channels if own else channels[:, :4]
    masks, valid = torch.zeros(1, 4, 2, 4, 5), torch.ones(1, 4, dtype=torch.bool)
    found = case_statistics(given, masks, valid, contents="probabilities", readout=readout)
    for k in range(2):
        predicted, inside, total = 0, 0.0, 0.0
        for row, column in np.ndindex(4, 5):
            # two of four raters are a majority
            majority = float(channels[0, 1, k, row, column])
            marked = float(channels[0, 4 if own else 1, k, row, column]) >= 0.5
            predicted, inside, total = predicted + marked, inside + majority * marked, total + majority
        assert float(found["soft_dice_confidence"][0, k]) == pytest.approx(2 * inside / (total + predicted), rel=1e-6)


def exact_entropies(members: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the entropy of the mean, the expected entropy and the mutual information, in extended precision.

    The latter is the mean divergence of the members from their mean, which needs no difference of entropies.

    Args:
        members: log-odds `[M, ...]`.
    """
    odds = members.astype(np.longdouble)
    p, not_p = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))
    mean, not_mean = p.mean(axis=0), not_p.mean(axis=0)
    information = (xlog_of(p, p / mean) + xlog_of(not_p, not_p / not_mean)).mean(axis=0)
    of_members = -(xlog_of(p, p) + xlog_of(not_p, not_p)).mean(axis=0)
    return -(xlog_of(mean, mean) + xlog_of(not_mean, not_mean)), of_members, information


def xlog_of(factor: NDArray[Any], value: NDArray[Any]) -> NDArray[Any]:
    """Return `factor log(value)`, 0 where the factor is."""
    logs = np.log(value, out=np.zeros_like(value), where=factor > 0)
    found: NDArray[Any] = factor * logs
    return found


def test_sure_members_of_one_mind_have_no_entropy_and_opposite_ones_all_of_it_between_them() -> None:
    p = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(-1, -1, 1, 5)
    for log_odds in (None, torch.logit(p)):
        assert expected_entropy(p, log_odds).tolist() == [[[0] * 5]]
    torch.testing.assert_close(information_of(p), torch.full((1, 1, 5), math.log(2)).double())
    assert not information_of(p[:, :1].expand(-1, 3, -1, -1)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("members", [2, 3, 5, 7])
def test_equal_members_have_exactly_no_mutual_information(members: int, dtype: torch.dtype) -> None:
    logits = 20 * torch.randn(1, 1, 2, 40, 40, generator=torch.Generator().manual_seed(0), dtype=dtype)
    p = torch.sigmoid(logits)
    p[..., 0, :4] = torch.tensor([0.0, 1.0, 1e-38, 0.5], dtype=dtype)
    for given in (None, torch.logit(p).expand(-1, members, -1, -1, -1)):
        maps = score_maps(p.expand(-1, members, -1, -1, -1), log_odds=given)
        assert not maps["mutual_information"].any()
        assert map_sums(maps)["mutual_information"].tolist() == [[0, 0]]


@pytest.mark.parametrize("mean", [-30.0, -25.0, -12.0, -7.0, 0.0, 7.0])
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 3.0])
def test_entropies_of_members_are_exact_however_little_these_differ(spread: float, mean: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # at a mean of -7 background with p about 1e-3, where entropies in float32 are rounded by more than members differ
    logits = 2 * torch.randn(1, 1, 1, 50, 50, generator=generator) + mean
    logits = logits + spread * torch.randn(1, 5, 1, 50, 50, generator=generator)
    p = torch.sigmoid(logits.double())
    total, expected, information = (part.sum() for part in exact_entropies(logits[0, :, 0].numpy()))
    for given in (None, logits):
        found = {name: values.item() for name, values in map_sums(score_maps(p, log_odds=given)).items()}
        assert found["entropy"] == pytest.approx(float(total), rel=1e-12)
        assert found["expected_entropy"] == pytest.approx(float(expected), rel=1e-12)
        # the difference of entropies below 1e-3 that agree in ten digits
        rel = 1e-5 if (spread, abs(mean)) == (1e-4, 12.0) else 1e-6
        assert found["mutual_information"] == pytest.approx(float(information), rel=rel)
        assert (score_maps(p, log_odds=given)["mutual_information"] >= 0).all()


def test_rounded_probabilities_of_float32_lose_no_mutual_information_beyond_their_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 1, 1, 50, 50, generator=generator) - 7
    p = torch.sigmoid(logits + 1e-4 * torch.randn(1, 5, 1, 50, 50, generator=generator))
    exact = p[0, :, 0].numpy().astype(np.longdouble)
    mean = exact.mean(axis=0)
    wanted = (xlog_of(exact, exact / mean) + xlog_of(1 - exact, (1 - exact) / (1 - mean))).mean(axis=0).sum()
    assert map_sums(score_maps(p))["mutual_information"].item() == pytest.approx(float(wanted), rel=1e-6)


def test_members_at_the_ends_of_float32_have_a_finite_mutual_information() -> None:
    # a mean that rounds to 1, and members at and next to it
    below = 1 - 2.0**-24
    p = torch.tensor([[below, 1.0, 1.0, 1.0], [0.0, 1e-45, 0.0, 1.0], [0.0, 0.0, 0.0, 1e-45]]).T
    exact = p.double().numpy().astype(np.longdouble)
    mean = exact.mean(axis=0)
    expected = (xlog_of(exact, exact / mean) + xlog_of(1 - exact, (1 - exact) / (1 - mean))).mean(axis=0)
    for dtype in (torch.float32, torch.float64):
        found = information_of(p.to(dtype)[None, :, None])[0, 0]
        torch.testing.assert_close(found, torch.from_numpy(expected.astype(np.float64)), rtol=1e-6, atol=1e-16)


def test_infinite_and_huge_log_odds_are_those_of_sure_members() -> None:
    log_odds = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, 90.0, -90.0, 0.0]).reshape(1, 1, 1, -1)
    p = torch.sigmoid(log_odds.double())
    _, expected, _ = exact_entropies(log_odds[0, :, 0, 4:].numpy())
    for members in (1, 3):
        found = expected_entropy(p.expand(-1, members, -1, -1), log_odds.expand(-1, members, -1, -1))[0, 0]
        assert found[:4].tolist() == [0] * 4
        torch.testing.assert_close(found[4:], torch.from_numpy(expected.astype(np.float64)), rtol=1e-12, atol=1e-14)


def test_very_many_members_have_the_expected_entropy_of_few() -> None:
    p = torch.tensor([0.5, 0.4, 0.999]).reshape(1, 3, 1, 1)
    many = expected_entropy(p.repeat(1, 1000, 1, 1))
    torch.testing.assert_close(many, expected_entropy(p), rtol=1e-12, atol=0)


def test_a_probability_of_its_own_leaves_the_mutual_information_of_the_members() -> None:
    p = torch.rand(1, 4, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = score_maps(p, Readout(own_maps=("probability",)))
    torch.testing.assert_close(maps["entropy"], predictive_entropy(p[:, 3:]))
    torch.testing.assert_close(maps["mutual_information"], score_maps(p[:, :3])["mutual_information"])


@pytest.mark.parametrize("size", [(14, 12), (7, 15), (12, 11, 4)])
def test_the_largest_window_is_that_of_a_naive_loop(size: tuple[int, ...]) -> None:
    shown = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    expected = [naive_patch(values.double().numpy()) for values in shown]
    assert patch_maximum(shown, shown.ndim - 1).tolist() == pytest.approx(expected)


def test_the_largest_values_are_as_many_as_the_mask_has_voxels() -> None:
    shown = torch.tensor([[0.1, 0.25, 0.0, 0.2], [0.1, 0.25, 0.0, 0.2]])
    found = top_mean(shown, torch.tensor([2, 0]))
    assert float(found[0]) == pytest.approx(0.225)
    assert found[1].isnan()
    assert float(top_mean(shown[0], torch.tensor(2))) == pytest.approx(0.225)
