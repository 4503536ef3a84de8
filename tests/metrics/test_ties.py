"""Cases with equal scores are tied, whatever the rounding of their sums, in every statistic that ranks them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from edue_lightning.metrics import MetricSettings, case_statistics, image_spearman, ood_aupr, ood_auroc, pixel_pearson
from edue_lightning.metrics.selective import distance_to_ideal_area, quality_control_curve, risk_coverage
from edue_lightning.metrics.ties import ROUNDING, tied
from edue_lightning.prediction.triage import StructureTriage
from edue_lightning.reporting.out_of_distribution import auroc_replicates

Array = NDArray[np.float64]

# the same sum in two orders, and in float64 two numbers
ONE, OTHER = (0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3)


def disputed(raters: int, counts: list[int], seed: int) -> torch.Tensor:
    """Return masks `[B, R, 1, 20, 20]` with so many pixels that one rater or all but one marked."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((len(counts), raters, 400), bool)
    for case, count in zip(masks, counts, strict=True):
        for pixel in rng.choice(400, count, replace=False):
            case[rng.choice(raters, rng.choice([1, raters - 1]), replace=False), pixel] = True
    return torch.from_numpy(masks).reshape(len(counts), raters, 1, 20, 20)


def test_the_two_sums_differ_by_rounding() -> None:
    assert ONE != OTHER
    assert len(set(tied(np.array([OTHER, ONE])))) == 1


@pytest.mark.parametrize("raters", [3, 5, 7])
def test_equal_disagreement_of_raters_is_one_number(raters: int) -> None:
    counts = [4, 6, 4, 5, 6, 3, 4, 6]
    masks = disputed(raters, counts, seed=raters)
    prediction = torch.full((8, 1, 1, 20, 20), 0.5)
    found = case_statistics(
        prediction, masks, torch.ones(8, raters, dtype=torch.bool), contents="probabilities", names=["sv_star"]
    )["sv_star"][:, 0]
    exact = [float(Fraction(count * (raters - 1), raters**2)) for count in counts]
    assert found.tolist() == exact


def test_equal_disagreement_of_different_numbers_of_raters_is_one_number() -> None:
    # 4 pixels with 1 of 2 raters: 4 * 1/4; 9 pixels with 1 or 2 of 3 raters: 9 * 2/9
    masks = torch.zeros(2, 4, 1, 20, 20, dtype=torch.bool)
    masks[0, 0, 0, 0, :4] = True
    masks[1, 0, 0, 0, :9] = masks[1, 1, 0, 0, 4:9] = True
    valid = torch.tensor([[True, True, False, False], [True, True, True, False]])
    prediction = torch.full((2, 1, 1, 20, 20), 0.5)
    found = case_statistics(prediction, masks, valid, contents="probabilities", names=["sv_star"])["sv_star"]
    assert found[:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("raters", [3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_spearman_takes_average_ranks_of_equal_disagreement(raters: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 7, 12).tolist()
    spread = rng.uniform(0, 0.2, 12)
    pairs = 0.5 + torch.from_numpy(np.stack([spread, -spread], axis=1))
    members = pairs[..., None, None, None].expand(-1, -1, 1, 20, 20)
    valid = torch.ones(12, raters, dtype=torch.bool)
    found = image_spearman(members, disputed(raters, counts, seed), valid, contents="probabilities")
    assert float(found) == pytest.approx(spearmanr(spread, counts).statistic, abs=1e-12)


def test_a_map_of_one_variance_is_constant_though_shares_differ() -> None:
    masks = torch.tensor([[1, 1], [0, 1], [0, 1], [0, 1], [0, 0]]).reshape(1, 5, 1, 1, 2)
    members = torch.tensor([[0.2, 0.4], [0.4, 0.9]]).double().reshape(1, 2, 1, 1, 2)
    found = pixel_pearson(members, masks, torch.ones(1, 5, dtype=torch.bool), contents="probabilities")
    assert torch.isnan(found)


@pytest.mark.parametrize("swapped", [False, True])
def test_statistics_of_one_set_of_cases_do_not_depend_on_rounding(swapped: bool) -> None:
    first, second = (OTHER, ONE) if swapped else (ONE, OTHER)
    score, equal = np.array([first, second, 0.1, 0.9]), np.array([0.6, 0.6, 0.1, 0.9])
    risk, poor, weights = np.array([0.5, 0.1, 0.2, 0.3]), np.array([1.0, 0, 0, 0]), np.ones((1, 4))
    assert risk_coverage(score, risk, weights).area == pytest.approx(risk_coverage(equal, risk, weights).area)
    assert distance_to_ideal_area(score, poor, weights) == pytest.approx(distance_to_ideal_area(equal, poor, weights))
    assert quality_control_curve(score, poor).flagged.tolist() == [0, 0.25, 0.75, 1]
    # the optimum orders cases by their risk
    assert risk_coverage(equal, score, weights).optimum == pytest.approx(risk_coverage(equal, equal, weights).optimum)


@pytest.mark.parametrize("swapped", [False, True])
def test_detection_counts_pairs_that_differ_by_rounding_half(swapped: bool) -> None:
    clean, distorted = (OTHER, ONE) if swapped else (ONE, OTHER)
    score = torch.tensor([clean, distorted], dtype=torch.float64)
    assert float(ood_auroc(score, torch.tensor([False, True]))) == 0.5
    assert float(ood_aupr(score, torch.tensor([False, True]))) == 0.5
    replicates = auroc_replicates(np.array([clean]), np.array([distorted]), np.array([0]), np.ones((1, 1)))
    assert replicates.tolist() == [0.5]


@pytest.mark.parametrize("swapped", [False, True])
def test_percentiles_and_thresholds_of_triage_take_equal_uncertainties_as_one(swapped: bool) -> None:
    known, new = (OTHER, ONE) if swapped else (ONE, OTHER)
    triage = StructureTriage("sv", 0.8, np.array([0.5, 0.9, 0.9]), np.array([known, new, 0.2]), {})
    assert triage.percentile(new) == pytest.approx(100 * (1 / 3 + 1 / 3))
    assert triage.percentile(known) == triage.percentile(new)
    threshold = triage.threshold(1.0)
    # between the poor case with its equal, and the one below
    assert threshold.value == pytest.approx(0.4)
    assert threshold.flagged == pytest.approx(2 / 3)


def test_a_chain_of_near_scores_is_cut_into_ties_of_the_rounding() -> None:
    chain = 1 + np.arange(1000) * ROUNDING / 4
    found = tied(chain)
    assert 150 < len(set(found)) < 300
    assert ((chain - found >= 0) & (chain - found <= ROUNDING * chain)).all()
    assert (np.diff(found) >= 0).all()


def test_scores_that_differ_by_more_than_rounding_stay_as_they_are() -> None:
    values = np.array([0.3, -0.3, 0.0, 1e-30, 2e-30, -1e-30, 1 + 1e-9, 1.0, 1e9, 1e9 + 1, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(tied(values), values)
    assert tied(np.zeros(0)).shape == (0,)


def test_ties_are_relative_and_of_either_sign() -> None:
    for scale in (1e-200, 1e-3, 1.0, 1e12):
        found = tied(scale * np.array([-ONE, -OTHER, ONE, OTHER]))
        assert found[0] == found[1] < 0 < found[2] == found[3]


def test_sums_of_three_hard_members_are_tied() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(3, 6, 10).tolist()
    members = disputed(3, counts, seed=1).double()
    masks = torch.zeros(10, 1, 1, 20, 20, dtype=torch.bool)
    found = case_statistics(
        members,
        masks,
        torch.ones(10, 1, dtype=torch.bool),
        contents="probabilities",
        names=["sv"],
        settings=MetricSettings(),
    )["sv"][:, 0].numpy()
    assert len(set(tied(found))) == len(set(counts))
