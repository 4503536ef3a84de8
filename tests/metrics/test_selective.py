"""Quality control and selective segmentation against naive loops over all orders of equal scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edue_lightning.metrics.selective import distance_to_ideal_area, quality_control_curve, risk_coverage


def orders(score: np.ndarray) -> list[list[int]]:
    """Return every order of the cases in which the score never falls."""
    groups = [np.flatnonzero(score == value).tolist() for value in np.unique(score)]
    return [list(itertools.chain(*choice)) for choice in itertools.product(*map(itertools.permutations, groups))]


def naive_area(score: np.ndarray, risk: np.ndarray) -> float:
    areas = []
    for order in orders(score):
        sorted_risk = risk[order]
        areas.append(np.mean([sorted_risk[:n].mean() for n in range(1, len(risk) + 1)]))
    return float(np.mean(areas))


def naive_d_auc(uncertainty: np.ndarray, poor: np.ndarray) -> float:
    areas = []
    for order in orders(-uncertainty):
        missed = [poor[order][n:].sum() / len(poor) for n in range(len(poor) + 1)]
        areas.append(np.trapezoid(missed, np.arange(len(poor) + 1) / len(poor)))
    return float(np.mean(areas)) - poor.mean() ** 2 / 2


def one(n: int) -> np.ndarray:
    return np.ones((1, n))


scores = st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.7, 1.5]), min_size=2, max_size=6)


@settings(max_examples=60)
@given(score=scores, seed=st.integers(0, 1000))
def test_areas_are_the_means_over_all_orders_of_equal_scores(score: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    uncertainty, risk = np.array(score), rng.choice([0.0, 0.2, 0.35, 0.9], size=len(score))
    curve = risk_coverage(uncertainty, risk, one(len(score)))
    assert curve.area[0] == pytest.approx(naive_area(uncertainty, risk))
    assert curve.optimum[0] == pytest.approx(naive_area(risk, risk))
    assert curve.random[0] == pytest.approx(risk.mean())
    assert curve.excess[0] == pytest.approx(naive_area(uncertainty, risk) - naive_area(risk, risk), abs=1e-12)
    poor = (risk > 0.3).astype(float)
    expected = naive_d_auc(uncertainty, poor) if 0 < poor.mean() < 1 else np.nan
    assert distance_to_ideal_area(uncertainty, poor, one(len(score)))[0] == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40)
@given(score=scores, seed=st.integers(0, 1000))
def test_a_weight_counts_a_case_that_often(score: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    uncertainty, risk = np.array(score), rng.random(len(score))
    weights = rng.integers(0, 3, size=(4, len(score))).astype(float)
    weights[0] = 0
    curve, area = risk_coverage(uncertainty, risk, weights), distance_to_ideal_area(uncertainty, risk > 0.5, weights)
    for w, counts in enumerate(weights.astype(int)):
        if not counts.any():
            assert np.isnan([curve.area[w], curve.optimum[w], curve.random[w], area[w]]).all()
            continue
        repeated = np.repeat(uncertainty, counts), np.repeat(risk, counts)
        alone = risk_coverage(*repeated, one(counts.sum()))
        for name in ("area", "optimum", "random", "excess", "normalised"):
            assert getattr(curve, name)[w] == pytest.approx(getattr(alone, name)[0], abs=1e-12, nan_ok=True), name
        poor = (repeated[1] > 0.5).astype(float)
        expected = distance_to_ideal_area(repeated[0], poor, one(len(poor)))[0]
        assert area[w] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=60)
@given(seed=st.integers(0, 1000), n=st.integers(3, 40))
def test_bounds_and_the_ideal_score(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    risk = rng.random(n)
    curve = risk_coverage(rng.random(n), risk, one(n))
    assert curve.excess[0] >= -1e-12
    ideal = risk_coverage(risk, risk, one(n))
    assert ideal.excess[0] == 0
    assert ideal.normalised[0] == 0
    poor = (risk > np.median(risk)).astype(float)
    found = distance_to_ideal_area(rng.random(n), poor, one(n))[0]
    best, worst = (distance_to_ideal_area(sign * risk, poor, one(n))[0] for sign in (1, -1))
    share = poor.mean()
    assert best == pytest.approx(0, abs=1e-12)
    assert worst == pytest.approx(share - share**2)  # the mirror image of the ideal line
    assert -1e-12 <= found <= worst + 1e-12


def test_a_score_without_information_is_the_random_line() -> None:
    poor = np.array([1.0, 0, 0, 1, 0])
    area = distance_to_ideal_area(np.full(5, 0.3), poor, one(5))[0]
    assert area == pytest.approx(0.4 / 2 - 0.4**2 / 2)
    curve = risk_coverage(np.full(5, 0.3), poor, one(5))
    assert curve.area[0] == pytest.approx(0.4)
    assert curve.normalised[0] == pytest.approx(1)


@pytest.mark.parametrize("poor", [np.zeros(4), np.ones(4), np.zeros(0)])
def test_no_and_only_poor_segmentations_are_undefined(poor: np.ndarray) -> None:
    score = np.arange(float(len(poor)))
    assert np.isnan(distance_to_ideal_area(score, poor, one(len(poor)))[0])
    assert np.isnan(risk_coverage(score, poor, one(len(poor))).normalised[0])


def test_the_curve_starts_at_the_share_of_poor_ones_and_ends_at_nothing_missed() -> None:
    curve = quality_control_curve(np.array([0.9, 0.1, 0.5, 0.5]), np.array([1.0, 1, 0, 0]))
    assert curve.flagged.tolist() == [0, 0.25, 0.75, 1]
    assert curve.missed.tolist() == [0.5, 0.25, 0.25, 0]
    area = distance_to_ideal_area(np.array([0.9, 0.1, 0.5, 0.5]), np.array([1.0, 1, 0, 0]), one(4))[0]
    assert area == pytest.approx(np.trapezoid(curve.missed, curve.flagged) - 0.125)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_cases_give_what_they_define(n: int) -> None:
    score, risk = np.array([0.3, 0.1])[:n], np.array([0.6, 0.2])[:n]
    curve, area = risk_coverage(score, risk, one(n)), distance_to_ideal_area(score, (risk > 0.5).astype(float), one(n))
    # of two cases one is poor and more uncertain, an ideal order; one case has no order, none has no risk
    assert curve.area[0] == pytest.approx([np.nan, 0.6, (0.2 + 0.4) / 2][n], nan_ok=True)
    assert curve.excess[0] == pytest.approx([np.nan, 0, 0][n], nan_ok=True)
    assert curve.normalised[0] == pytest.approx([np.nan, np.nan, 0][n], nan_ok=True)
    assert area[0] == pytest.approx([np.nan, np.nan, 0][n], nan_ok=True)
    control = quality_control_curve(score, (risk > 0.5).astype(float))
    assert control.flagged.tolist() == [[0], [0, 1], [0, 0.5, 1]][n]
    assert control.missed.tolist() == [[0], [1, 0], [0.5, 0, 0]][n]
