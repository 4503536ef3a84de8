"""Every number of a case against an independent reference, in 2D and 3D, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import Cases, naive_statistics, random_cases
from monai.metrics import CalibrationErrorMetric, DiceMetric, GeneralizedDiceScore
from sklearn.calibration import calibration_curve
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from edue_lightning.errors import UserError
from edue_lightning.metrics import (
    CaseStatistics,
    MetricSettings,
    ace_union,
    average_calibration_error,
    case_statistics,
    ece_union,
    expected_calibration_error,
    maximum_calibration_error,
    thresholded_ece,
)
from edue_lightning.metrics.catalogue import STATISTIC_NAMES

OF_MEMBERS_ORDER = {"layer_agreement", "aula"}


def assert_equal(first: CaseStatistics, second: CaseStatistics, but: set[str] = frozenset()) -> None:
    assert first.columns.keys() == second.columns.keys()
    for name in first.columns.keys() - but:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-7, equal_nan=True, msg=name)


@pytest.mark.parametrize("size", [(9, 8), (5, 6, 7)])
@pytest.mark.parametrize(
    ("members", "raters", "structures"),
    [(1, 1, 1), (2, 2, 1), (3, 4, 2), (5, 8, 3), (4, 3, 1), (2, 5, 1), (3, 6, 1), (6, 7, 2)],
)
def test_equals_a_naive_loop(size: tuple[int, ...], members: int, raters: int, structures: int) -> None:
    cases = random_cases(members + raters, members=members, raters=raters, structures=structures, size=size)
    found = case_statistics(*cases)
    for i in range(3):
        for k in range(structures):
            expected = naive_statistics(cases, i, k)
            assert {*expected, "bins", "union_bins"} == set(found.columns)
            for name, value in expected.items():
                assert float(found[name][i, k]) == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_probabilities_give_what_their_logits_give() -> None:
    cases = random_cases(0)
    probabilities = torch.sigmoid(cases.logits.double())
    found = case_statistics(probabilities, *cases[1:], contents="probabilities")
    assert_equal(found, case_statistics(*cases))


def test_masks_as_probabilities() -> None:
    members = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).float().reshape(1, 2, 1, 1, 4)
    masks = torch.tensor([[1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 1, 1, 1, 4)
    found = case_statistics(members, masks, torch.ones(1, 1) > 0, contents="probabilities")
    assert float(found["dice"]) == pytest.approx(0.8)  # a tie of the members is foreground
    assert float(found["sv"]) == 0.5
    # log 0.5 for the two voxels of a tie, and certainty elsewhere
    assert float(found["nll"]) == pytest.approx(0.5 * 0.693147, abs=1e-5)
    wrong = case_statistics(1 - masks.float(), masks, torch.ones(1, 1) > 0, contents="probabilities")
    assert float(wrong["nll"]) == pytest.approx(16.118, abs=1e-3)  # finite: log 1e-7


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_a_value_that_is_no_probability_is_refused(value: float) -> None:
    cases = random_cases(0)
    with pytest.raises(UserError, match="between 0 and 1"):
        case_statistics(torch.full_like(cases.logits, value), *cases[1:], contents="probabilities")


def test_only_what_is_asked_for_is_kept() -> None:
    found = case_statistics(*random_cases(0), names=("nll", "dice"))
    assert list(found.columns) == ["nll", "dice"]
    everything = case_statistics(*random_cases(0))
    assert tuple(everything.columns) == STATISTIC_NAMES
    torch.testing.assert_close(found["nll"], everything["nll"])


def test_dice_equals_monai() -> None:
    cases = random_cases(1)
    cases.valid[:] = True
    predicted = (torch.sigmoid(cases.logits).mean(dim=1) >= 0.5).float()
    consensus = (cases.masks.float().mean(dim=1) >= 0.5).float()
    found = case_statistics(*cases)["dice"]
    torch.testing.assert_close(found, DiceMetric(reduction="none")(predicted, consensus).double())
    one = [part[:, :1] for part in (predicted, consensus)]
    torch.testing.assert_close(found[:, :1], GeneralizedDiceScore(reduction="none")(*one).double().reshape(-1, 1))


def test_the_tie_of_a_majority_is_an_option() -> None:
    masks = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 1, 3)
    logits = torch.tensor([9.0, 9.0, -9.0]).reshape(1, 1, 1, 1, 3)
    found = {
        tie: float(
            case_statistics(logits, masks, torch.ones(1, 2) > 0, settings=MetricSettings(majority_tie=tie))["dice"]
        )
        for tie in ("foreground", "background")
    }
    assert found == {"foreground": 1.0, "background": pytest.approx(2 / 3)}


def test_the_distance_of_ged_is_an_option() -> None:
    cases = random_cases(2, members=1, raters=1, structures=1)
    by_dice = case_statistics(*cases, settings=MetricSettings(ged_distance="dice"))
    torch.testing.assert_close(by_dice["ged2"], 2 * (1 - case_statistics(*cases)["dice_per_rater"]))


def test_the_tolerance_is_each_structures_own() -> None:
    cases = random_cases(2)
    names = ("disc", "cup")
    tolerant = MetricSettings(surface_tolerance={"disc": 1e9, "cup": 0.0})
    found = case_statistics(*cases, names, settings=tolerant)["nsd"]
    assert (found[:, 0] == 1).all()
    strict = case_statistics(*cases, names, settings=MetricSettings(surface_tolerance=0.0))["nsd"]
    torch.testing.assert_close(found[:, 1], strict[:, 1])
    assert (strict < 1).all()


def test_bins_equal_scikit_learns_calibration_curve() -> None:
    cases = random_cases(2, structures=1, size=(40, 40))
    bins = case_statistics(*cases)["bins"][:, 0]
    for i in range(3):
        probability = torch.sigmoid(cases.logits[i].double()).mean(dim=0)[0]
        labels = cases.masks[i, cases.valid[i], 0].flatten(1)
        repeated = probability.flatten().expand_as(labels)
        frequency, mean = calibration_curve(labels.flatten(), repeated.flatten(), n_bins=15)
        filled = bins[i][bins[i, :, 0] > 0]
        torch.testing.assert_close(filled[:, 1] / filled[:, 0], torch.from_numpy(mean), rtol=1e-5, atol=0)
        torch.testing.assert_close(filled[:, 2] / filled[:, 0], torch.from_numpy(frequency), rtol=1e-9, atol=0)
        assert bins[i, :, 0].sum() == labels.numel()


@pytest.mark.parametrize("raters", [1, 4])
def test_calibration_errors_equal_monai_and_torchmetrics(raters: int) -> None:
    cases = random_cases(5, raters=raters, structures=1, size=(30, 31))
    cases.valid[:] = True
    found = {
        "expected": expected_calibration_error(*cases),
        "average": average_calibration_error(*cases),
        "maximum": maximum_calibration_error(*cases),
    }
    p = torch.sigmoid(cases.logits.double()).mean(dim=1, keepdim=True).expand(-1, raters, -1, -1, -1)
    flat = [part.reshape(1, 1, -1) for part in (p, cases.masks.double())]
    for reduction, value in found.items():
        metric = CalibrationErrorMetric(num_bins=15, calibration_reduction=reduction)
        metric(*flat)
        assert float(value) == pytest.approx(float(metric.aggregate()), abs=1e-5)
    for norm, reduction in (("l1", "expected"), ("max", "maximum")):
        reference = binary_calibration_error(flat[0].flatten(), flat[1].flatten().long(), n_bins=15, norm=norm)
        assert float(found[reduction]) == pytest.approx(float(reference), abs=1e-5)


def test_calibration_in_the_raters_union_equals_scikit_learns_curve_of_its_voxels() -> None:
    cases = random_cases(6, structures=1, size=(40, 40))
    pooled: list[tuple[Tensor, Tensor]] = []
    for logits, masks, valid, _ in zip(*cases, strict=True):
        labels = masks[valid, 0].flatten(1)
        inside = labels.bool().any(dim=0)
        probability = torch.sigmoid(logits.double()).mean(dim=0)[0].flatten()
        pooled.append((labels[:, inside].flatten(), probability[inside].expand(len(labels), -1).flatten()))
    labels, probability = (torch.cat(parts).numpy() for parts in zip(*pooled, strict=True))
    frequency, mean = calibration_curve(labels, probability, n_bins=15)
    counts = np.histogram(probability, bins=15, range=(0, 1))[0]
    gaps = np.abs(frequency - mean)
    assert float(ace_union(*cases)) == pytest.approx(gaps.mean(), abs=1e-9)
    assert float(ece_union(*cases)) == pytest.approx(np.average(gaps, weights=counts[counts > 0]), abs=1e-9)


def test_thresholded_calibration_equals_torchmetrics_above_each_threshold() -> None:
    cases = random_cases(5, structures=1, size=(30, 31))
    cases.valid[:] = True
    p = torch.sigmoid(cases.logits.double()).mean(dim=1, keepdim=True).expand(-1, 4, -1, -1, -1).flatten()
    labels = cases.masks.flatten().long()
    errors = []
    for b in range(1, 8):
        above = p >= b / 15
        errors.append(float(binary_calibration_error(p[above], labels[above], n_bins=15, norm="l1")))
    assert float(thresholded_ece(*cases)) == pytest.approx(np.mean(errors), abs=1e-5)


def test_a_calibrated_model_has_no_thresholded_error_but_one_in_the_raters_union() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.0, 0.3, 0.7, 0.9]).repeat_interleave(4000).double().reshape(1, 1, 1, 160, 100)
    masks = torch.rand(1, 4, 1, 160, 100, generator=generator) < p
    valid, given = torch.ones(1, 4) > 0, {"contents": "probabilities"}
    assert float(thresholded_ece(p, masks, valid, **given)) < 0.01
    assert float(ece_union(p, masks, valid, **given)) > 0.02
    surer = (1.2 * p).clamp_max(1)
    assert float(thresholded_ece(surer, masks, valid, **given)) > 0.05


def test_calibration_without_foreground_is_undefined() -> None:
    sure = torch.full((1, 1, 1, 4, 4), -9.0)
    empty, valid = torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 2) > 0
    assert thresholded_ece(sure, 1 - empty, valid).isnan()
    assert ece_union(sure, empty, valid).isnan()
    assert ace_union(sure, empty, valid).isnan()
    assert float(ece_union(sure, 1 - empty, valid)) == pytest.approx(1, abs=1e-3)


def test_consensus_and_dissensus_split_the_image_as_in_curvas() -> None:
    masks = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 1, 6)
    logits = torch.tensor([9.0, -9.0, 9.0, -9.0, 9.0, -9.0]).reshape(1, 1, 1, 1, 6)
    found = {
        tie: case_statistics(logits, masks, torch.ones(1, 2) > 0, settings=MetricSettings(majority_tie=tie))
        for tie in ("foreground", "background")
    }
    # one of two agreed voxels found, and one too many
    assert [float(part["dice_consensus"]) for part in found.values()] == [0.5, 0.5]
    assert float(found["foreground"]["dice_dissensus"]) == pytest.approx(2 / 3)
    assert float(found["background"]["dice_dissensus"]) == 0
    agreed = case_statistics(logits, masks[:, :1].expand(-1, 2, -1, -1, -1), torch.ones(1, 2) > 0)
    assert float(agreed["dice_consensus"]) == float(agreed["dice"])
    assert agreed["dice_dissensus"].isnan()


def test_probabilities_of_exactly_0_and_1_have_a_bin() -> None:
    logits = torch.tensor([-800.0, 800.0]).reshape(1, 1, 1, 1, 2)
    masks = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 1, 1, 1, 2)
    bins = case_statistics(logits, masks, torch.ones(1, 1) > 0)["bins"][0, 0]
    assert bins[0].tolist() == [1, 0, 0]
    assert bins[14].tolist() == [1, 1, 1]


def test_adaptive_ranges_share_voxels_of_one_probability() -> None:
    # of 30 voxels of one probability, every order of the labels must give the same
    masks = torch.zeros(1, 1, 1, 5, 6, dtype=torch.uint8)
    masks.view(-1)[:12] = 1
    found = [
        case_statistics(torch.zeros(1, 1, 1, 5, 6), part, torch.ones(1, 1) > 0)["adaptive_ece"]
        for part in (masks, masks.flip(-1, -2))
    ]
    assert [float(part) for part in found] == pytest.approx([0.1, 0.1])


def test_a_sure_and_wrong_prediction_has_a_finite_nll() -> None:
    logits = torch.full((1, 2, 1, 2, 2), 300.0)
    masks = torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8)
    found = case_statistics(logits, masks, torch.ones(1, 3) > 0)
    assert float(found["nll"]) == pytest.approx(300)
    assert float(found["brier"]) == 1
    assert torch.isfinite(case_statistics(-logits, masks, torch.ones(1, 3) > 0)["nll"]).all()


def test_empty_masks() -> None:
    masks = torch.zeros(1, 3, 1, 4, 4, dtype=torch.uint8)
    rated = torch.ones(1, 3) > 0
    empty = case_statistics(torch.full((1, 3, 1, 4, 4), -5.0), masks, rated)
    overlaps = ("dice", "dice_per_rater", "d_soft", "nsd", "model_agreement", "layer_agreement")
    for name in (*overlaps, "d_max", "d_match", "matched_iou", "dice_consensus"):
        assert float(empty[name]) == 1, name
    assert empty["dice_dissensus"].isnan().all()
    assert not empty["union_bins"].any()
    for name in ("sv_star", "area", "predicted_area", "ged2"):
        assert float(empty[name]) == 0, name
    # constant maps, no surface, no size
    for name in ("pixel_pearson", "pixel_pearson_total", "pixel_s_ncc", "hd95", "sv_normalised", "sv_star_normalised"):
        assert empty[name].isnan().all(), name
    wrong = case_statistics(torch.full((1, 3, 1, 4, 4), 5.0), masks, rated)
    assert float(wrong["dice"]) == float(wrong["dice_per_rater"]) == float(wrong["nsd"]) == 0
    assert [float(wrong[name]) for name in ("d_max", "d_match", "matched_iou", "dice_consensus")] == [0] * 4
    assert float(wrong["ged2"]) == 2
    assert wrong["hd95"].isnan().all()


def test_one_voxel() -> None:
    found = case_statistics(torch.ones(1, 2, 1, 1, 1), torch.ones(1, 2, 1, 1, 1), torch.ones(1, 2) > 0)
    assert float(found["dice"]) == float(found["nsd"]) == 1
    assert float(found["hd95"]) == 0
    assert found["pixel_pearson"].isnan().all()


def test_too_few_raters_leave_values_undefined() -> None:
    cases = random_cases(4)
    cases.valid[0] = torch.tensor([True, False, False, False])
    cases.valid[2] = False
    found = case_statistics(*cases)
    needs_two = {"sv_star", "sv_star_normalised", "pixel_pearson", "pixel_pearson_total", "pixel_s_ncc"}
    needs_two |= {"dice_consensus", "dice_dissensus"}
    assert found["n_raters"][:, 0].tolist() == [1, 3, 0]
    assert not found["bins"][2].any()
    assert not found["union_bins"][2].any()
    for name in found.columns.keys() - {"n_raters", "bins", "union_bins"}:
        assert found[name][2].isnan().all(), name
        assert found[name][0].isnan().all() == (name in needs_two), name
        assert not found[name][1].isnan().any(), name


def test_a_single_member_has_no_agreement_and_no_variance() -> None:
    found = case_statistics(*random_cases(3, members=1))
    for name in ("layer_agreement", "aula", "model_agreement", "pixel_pearson", "sv", "sv_normalised"):
        assert found[name].isnan().all(), name


@pytest.mark.parametrize("members", [2, 3, 5, 7])
def test_members_of_one_mind_have_no_variance_to_the_last_digit(members: int) -> None:
    cases = random_cases(3, members=1)
    found = case_statistics(cases.logits.expand(-1, members, -1, -1, -1), *cases[1:])
    assert not found["sv"].any()
    assert found["pixel_pearson"].isnan().all()


def test_d_soft_of_the_raters_themselves_is_1() -> None:
    raters = torch.rand(2, 10, 1, 20, 20, generator=torch.Generator().manual_seed(0)) > 0.6
    share = raters.double().mean(dim=1, keepdim=True)
    for members in (share, share.float()):
        found = case_statistics(members, raters, torch.ones(2, 10) > 0, contents="probabilities")
        assert (found["d_soft"] == 1).all()


seeds = st.integers(0, 10_000)


@settings(max_examples=25)
@given(seed=seeds, raters=st.integers(1, 8), members=st.integers(1, 5), volume=st.booleans())
def test_order_of_raters_and_members_does_not_matter(seed: int, raters: int, members: int, volume: bool) -> None:
    cases = random_cases(seed, raters=raters, members=members, size=(4, 5, 3) if volume else (9, 8))
    order = torch.randperm(raters, generator=torch.Generator().manual_seed(seed))
    found = case_statistics(*cases)
    reordered = Cases(cases.logits, cases.masks[:, order], cases.valid[:, order], cases.spacing)
    assert_equal(found, case_statistics(*reordered))
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    assert_equal(found, case_statistics(cases.logits[:, order], *cases[1:]), OF_MEMBERS_ORDER)


@settings(max_examples=25)
@given(seed=seeds, padding=st.integers(1, 3))
def test_padded_raters_and_batching_do_not_matter(seed: int, padding: int) -> None:
    cases = random_cases(seed)
    found = case_statistics(*cases)
    masks = torch.cat([cases.masks, torch.ones(3, padding, *cases.masks.shape[2:], dtype=torch.uint8)], dim=1)
    valid = torch.cat([cases.valid, torch.zeros(3, padding, dtype=torch.bool)], dim=1)
    assert_equal(found, case_statistics(cases.logits, masks, valid, cases.spacing))
    parts = [case_statistics(*cases.select(slice(i, i + 1))) for i in range(3)]
    assert_equal(found, CaseStatistics.concatenate(parts))


@settings(max_examples=25)
@given(seed=seeds, raters=st.integers(1, 6), members=st.integers(1, 5))
def test_turned_and_mirrored_images_give_the_same(seed: int, raters: int, members: int) -> None:
    cases = random_cases(seed, raters=raters, members=members)
    turned = Cases(
        cases.logits.transpose(-1, -2).flip(-1),
        cases.masks.transpose(-1, -2).flip(-1),
        cases.valid,
        cases.spacing.flip(-1),
    )
    assert_equal(case_statistics(*cases), case_statistics(*turned))


@settings(max_examples=25)
@given(seed=seeds, raters=st.integers(1, 6), members=st.integers(1, 5))
def test_complement_and_bounds(seed: int, raters: int, members: int) -> None:
    cases = random_cases(seed, raters=raters, members=members)
    found = case_statistics(*cases)
    mirrored = case_statistics(-cases.logits, 1 - cases.masks, *cases[2:])
    same = ("nll", "brier", "adaptive_ece", "volume_crps", "sv", "sv_star", "sv_total", "entropy")
    for name in (*same, "pixel_pearson", "pixel_pearson_total", "pixel_s_ncc"):
        torch.testing.assert_close(found[name], mirrored[name], rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
    shares = ("dice", "dice_per_rater", "d_soft", "nsd", "brier", "adaptive_ece", "model_agreement", "layer_agreement")
    assert (found["d_match"] <= found["d_max"] + 1e-12)[~found["d_max"].isnan()].all()
    for name in (*shares, "d_max", "d_match", "matched_iou", "dice_consensus", "dice_dissensus"):
        assert ((found[name] >= 0) & (found[name] <= 1) | found[name].isnan()).all(), name
    for name in ("pixel_pearson", "pixel_pearson_total", "pixel_s_ncc"):
        assert ((found[name].abs() <= 1) | found[name].isnan()).all(), name
    for name in ("nll", "hd95", "volume_crps"):
        assert ((found[name] >= 0) | found[name].isnan()).all(), name
    voxels = 72 * cases.spacing.prod(dim=1, keepdim=True)
    assert ((found["sv"] <= 0.25 * voxels + 1e-6) | (members == 1)).all()
    assert ((found["sv"] <= found["sv_total"] + 1e-6) | (members == 1)).all()  # the law of total variance
    # a squared distance of distributions with a metric below it is not negative
    assert ((found["ged2"] >= -1e-9) & (found["ged2"] <= 2)).all()


def test_members_that_are_the_raters_have_no_energy_distance() -> None:
    cases = random_cases(1)
    cases.valid[:] = True
    found = case_statistics(cases.masks.float(), *cases[1:], contents="probabilities")
    torch.testing.assert_close(found["ged2"], torch.zeros(3, 2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_large_volume_is_summed_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 1, 128, 96, 96, generator=generator)
    masks = (torch.rand(1, 2, 1, 128, 96, 96, generator=generator) > 0.7).to(torch.uint8)
    names = ("nll", "sv", "dice_per_rater", "volume_crps", "ged2")
    found = case_statistics(logits, masks, torch.ones(1, 2) > 0, names=names)
    p = torch.sigmoid(logits.double())
    mean, share = p.mean(dim=1), masks.double().mean(dim=1)
    nll = -(share * mean.log() + (1 - share) * (1 - mean).log()).mean()
    assert float(found["nll"]) == pytest.approx(float(nll), rel=1e-9)
    assert float(found["sv"]) == pytest.approx(float(p.var(1, correction=0).sum()), rel=1e-9)
    predicted = (mean >= 0.5)[0, 0]
    overlaps = [float(2 * (predicted & (mask > 0)).sum() / (predicted.sum() + mask.sum())) for mask in masks[0, :, 0]]
    assert float(found["dice_per_rater"]) == pytest.approx(sum(overlaps) / 2, rel=1e-6)


@pytest.mark.parametrize("members", [1, 2, 5, 10])
def test_likelihood_of_sure_members_is_exact(members: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 14 + torch.randn(1, members, 1, 40, 40, generator=generator)
    masks = torch.ones(1, 2, 1, 40, 40, dtype=torch.uint8)
    found = case_statistics(logits, masks, torch.ones(1, 2) > 0)
    # log(1 - x) of the small x = mean of 1 - p, which float64 holds to the last digit
    wrong = torch.sigmoid(-logits.double()).mean(dim=1)
    assert float(found["nll"]) == pytest.approx(float(-torch.log1p(-wrong).mean()), rel=1e-6)


@pytest.mark.parametrize("raters", range(2, 41, 2))
def test_a_tie_of_raters_is_foreground_whatever_their_number(raters: int) -> None:
    masks = torch.zeros(1, raters, 1, 8, 8, dtype=torch.uint8)
    for voxel in range(64):
        chosen = torch.randperm(raters, generator=torch.Generator().manual_seed(voxel))[: raters // 2]
        masks[0, chosen, 0, voxel // 8, voxel % 8] = 1
    found = case_statistics(torch.full((1, 1, 1, 8, 8), 3.0), masks, torch.ones(1, raters) > 0)
    assert float(found["area"]) == 64
    assert float(found["dice"]) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_diverged_model_is_an_error_and_no_missing_case(value: float) -> None:
    cases = random_cases(0)
    cases.logits[1, 0, 0, 0, 0] = value
    with pytest.raises(UserError, match="diverged"):
        case_statistics(*cases)


@pytest.mark.parametrize("spacing", [0.1, 0.3, 0.4, 0.7])
def test_a_distance_equal_to_the_tolerance_is_within_it(spacing: float) -> None:
    logits = torch.full((1, 1, 1, 30, 30), -4.0)
    logits[..., 5:15, 5:15] = 4.0
    masks = (logits > 0)[:, :].roll(5, dims=-1)
    grid = torch.full((1, 2), spacing)

    def found(tolerance: float) -> float:
        settings = MetricSettings(surface_tolerance=tolerance)
        return float(case_statistics(logits, masks, torch.ones(1, 1) > 0, grid, settings=settings)["nsd"])

    assert found(5 * spacing) == 1
    assert found(5 * spacing * (1 - 1e-5)) < 1


@pytest.mark.parametrize("logits", [(20.0, -22.0), (20.0, -20.5), (18.0, -25.0), (1.3, -1.3)])
def test_a_mean_that_is_one_half_once_stored_is_inside_the_mask(logits: tuple[float, ...]) -> None:
    members = torch.tensor(logits).reshape(1, 2, 1, 1, 1).expand(-1, -1, -1, 2, 2).contiguous()
    valid, marked = torch.ones(1, 1) > 0, torch.ones(1, 1, 1, 2, 2)
    stored = torch.sigmoid(members)
    for found in (
        case_statistics(members, marked, valid),
        case_statistics(members.double(), marked, valid),
        case_statistics(stored, marked, valid, contents="probabilities"),
    ):
        assert (float(found["dice"]), float(found["predicted_area"])) == (1, 4)
