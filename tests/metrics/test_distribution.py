"""The score of a volume against another package's closed form, and matchings against all possible ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import random_cases
from scipy.optimize import linear_sum_assignment
from scoringrules import crps_normal

from edue_lightning.metrics import case_statistics
from edue_lightning.metrics.distribution import best_sample_similarity, gaussian_crps, matched_similarity


@settings(max_examples=60)
@given(seed=st.integers(0, 1000), raters=st.integers(2, 8))
def test_crps_equals_scoringrules(seed: int, raters: int) -> None:
    rng = np.random.default_rng(seed)
    value, samples = rng.normal(50, 20, size=2), rng.normal(50, 5, size=(raters, 2))
    expected = crps_normal(value, samples.mean(axis=0), samples.std(axis=0))
    found = gaussian_crps(torch.from_numpy(value), torch.from_numpy(samples))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_crps_of_raters_who_agree_is_the_distance() -> None:
    value = torch.tensor([7.0, 7.0], dtype=torch.float64)
    samples = torch.tensor([[5.0, 5.0], [5.0, 5.0]], dtype=torch.float64)
    assert gaussian_crps(value, samples).tolist() == [2, 2]
    assert gaussian_crps(value, samples[:1]).tolist() == [2, 2]
    assert gaussian_crps(value, samples[:0]).isnan().all()
    nearly = gaussian_crps(value, samples + torch.tensor([[1e-6], [-1e-6]]))
    torch.testing.assert_close(nearly, torch.full_like(nearly, 2), rtol=0, atol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), members=st.integers(1, 4), raters=st.integers(1, 4))
def test_the_matching_is_the_best_of_all(seed: int, members: int, raters: int) -> None:
    similarity = torch.rand(2, members, raters, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    own, common = -(-raters // members), math.lcm(members, raters)
    best_own, best_common = [], []
    for values in similarity.numpy():
        slots = np.repeat(values, own, axis=0)
        orders = itertools.permutations(range(len(slots)), raters)
        best_own.append(max(float(slots[list(order), range(raters)].mean()) for order in orders))
        if common <= 6:
            square = np.repeat(np.repeat(values, common // members, axis=0), common // raters, axis=1)
            orders = itertools.permutations(range(common))
            best_common.append(max(float(square[list(order), range(common)].mean()) for order in orders))
    assert matched_similarity(similarity, repeat_raters=False).tolist() == pytest.approx(best_own)
    if best_common:
        assert matched_similarity(similarity, repeat_raters=True).tolist() == pytest.approx(best_common)


def test_sixteen_samples_are_matched_with_each_of_four_raters_four_times() -> None:
    # the protocol of the literature: the raters' masks repeated to 16
    similarity = torch.rand(1, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    repeated = similarity.repeat(1, 1, 4)[0].numpy()
    expected = repeated[linear_sum_assignment(-repeated)].mean()
    assert float(matched_similarity(similarity, repeat_raters=True)) == pytest.approx(expected)


def test_members_that_are_the_raters_match_fully() -> None:
    cases = random_cases(1)
    cases.valid[:] = True
    found = case_statistics(cases.masks.float(), *cases[1:], contents="probabilities")
    for name in ("d_max", "d_match", "matched_iou"):
        torch.testing.assert_close(found[name], torch.ones(3, 2, dtype=torch.float64), msg=name)


def test_one_member_has_the_mean_overlap_with_the_raters() -> None:
    found = case_statistics(*random_cases(2, members=1))
    for name in ("d_max", "d_match"):
        torch.testing.assert_close(found[name], found["dice_per_rater"], msg=name)


def test_more_members_than_raters_must_all_be_matched_for_the_iou_and_not_for_the_dice() -> None:
    members = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).double().reshape(1, 2, 1, 2, 2)
    found = case_statistics(members, members[:, :1], torch.ones(1, 1) > 0, contents="probabilities")
    assert [float(found[name]) for name in ("d_max", "d_match", "matched_iou")] == [1, 1, 0.5]


def test_missing_raters_match_nothing() -> None:
    assert matched_similarity(torch.ones(2, 3, 0), repeat_raters=True).isnan().all()
    assert best_sample_similarity(torch.ones(2, 3, 0)).isnan().all()
