"""Rules for masks, against sums over binomials, brute force over all masks, and naive loops over thresholds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from edue_lightning.metrics import case_statistics
from edue_lightning.metrics.thresholds import GRID, BestThresholds
from edue_lightning.uncertainty import (
    MaskRule,
    Readout,
    Tie,
    foreground,
    largest_expected_dice,
    majority_threshold,
    masks_of,
    rater_mean,
    reached,
)


@pytest.mark.parametrize("raters", range(1, 9))
@pytest.mark.parametrize("tie", ["foreground", "background"])
def test_at_its_threshold_a_majority_is_as_likely_as_none(raters: int, tie: Tie) -> None:
    p = majority_threshold(raters, tie)
    wins = [k for k in range(raters + 1) if (k >= raters / 2 if tie == "foreground" else k > raters / 2)]
    assert sum(binom.pmf(k, raters, p) for k in wins) == pytest.approx(0.5)


def test_known_thresholds_of_even_numbers_of_raters() -> None:
    assert majority_threshold(4, "foreground") == pytest.approx(0.386, abs=5e-4)
    assert majority_threshold(6, "foreground") == pytest.approx(0.421, abs=5e-4)
    assert majority_threshold(4, "background") == pytest.approx(1 - 0.386, abs=5e-4)
    assert majority_threshold(5, "foreground") == pytest.approx(0.5)


def expected_dice(mask: tuple[int, ...], p: list[float]) -> float:
    """Return the expected Dice of a mask over all outcomes of independent voxels."""
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=len(p)):
        weight = np.prod([q if mark else 1 - q for mark, q in zip(outcome, p, strict=True)])
        both, sizes = sum(a * b for a, b in zip(mask, outcome, strict=True)), sum(mask) + sum(outcome)
        total += weight * (2 * both / sizes if sizes else 1)
    return float(total)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6, unique=True))
def test_no_mask_has_a_larger_expected_dice(p: list[float]) -> None:
    threshold, dice = largest_expected_dice(torch.tensor(p, dtype=torch.float64))
    best = max(expected_dice(mask, p) for mask in itertools.product((0, 1), repeat=len(p)))
    assert dice == pytest.approx(best, abs=1e-9)
    own = tuple(int(value >= threshold) for value in p)
    assert expected_dice(own, p) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(("count", "p"), [(50, 0.3), (500, 0.01), (3000, 0.02), (20000, 0.7)])
def test_voxels_of_one_probability_have_a_binomial_size(count: int, p: float) -> None:
    threshold, dice = largest_expected_dice(torch.full((count,), p, dtype=torch.float64))
    sizes = np.arange(count + 1)
    weights = binom.pmf(sizes, count, p)
    # of n voxels a share of n / count is marked, whatever the size
    found = [(weights * 2 * sizes * n / count / np.maximum(n + sizes, 1)).sum() for n in (count // 2, count)]
    assert threshold == p
    assert dice == pytest.approx(max(found), rel=1e-9)


@pytest.mark.parametrize(("likely", "p", "many", "small"), [(40, 0.8, 3000, 0.004), (5, 0.6, 200, 0.019)])
def test_voxels_that_are_no_candidates_count(likely: int, p: float, many: int, small: float) -> None:
    values = torch.tensor([p] * likely + [small] * many, dtype=torch.float64)
    threshold, dice = largest_expected_dice(values)
    others = np.arange(many + 1)
    weights = binom.pmf(others, many, small)
    # of n likely voxels in the mask a are marked, and b of the other likely ones
    best = max(
        sum(
            binom.pmf(a, n, p) * binom.pmf(b, likely - n, p) * (weights * 2 * a / (n + a + b + others)).sum()
            for a in range(n + 1)
            for b in range(likely - n + 1)
        )
        for n in (likely - 1, likely)
    )
    assert threshold == pytest.approx(p)
    assert dice == pytest.approx(best, rel=1e-9)


def test_an_image_that_is_empty_more_often_than_not_has_no_mask() -> None:
    threshold, dice = largest_expected_dice(torch.tensor([0.1, 0.05, 0.0]))
    assert threshold == float("inf")
    assert dice == pytest.approx(0.9 * 0.95)
    assert not reached(torch.tensor([1.0]), threshold).any()
    threshold, dice = largest_expected_dice(torch.zeros(3))
    assert (threshold, dice) == (float("inf"), 1.0)


def test_a_sure_mask_stays_as_it_is() -> None:
    threshold, dice = largest_expected_dice(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert threshold == 1
    assert dice == pytest.approx(1)


def test_the_default_is_the_decision_at_one_half() -> None:
    values = torch.cat([torch.rand(1000, dtype=torch.float64), 0.5 + 1e-9 * torch.arange(-50, 50)])[None]
    thresholds = MaskRule().of_image(values, ("a",))
    assert torch.equal(masks_of(values, thresholds), foreground(values))
    assert np.array_equal(reached(values.numpy(), 0.5), foreground(values).numpy())


def test_a_rule_without_its_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs mask\.raters"):
        MaskRule("raters").fixed(("a",))
    with pytest.raises(ValueError, match=r"needs mask\.thresholds for b"):
        MaskRule("validation", thresholds={"a": 0.4}).fixed(("a", "b"))
    with pytest.raises(ValueError, match=r"mask\.rule must be one of half"):
        MaskRule("best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask\.thresholds\.a must be above 0"):
        MaskRule("validation", thresholds={"a": 0.0})
    with pytest.raises(ValueError, match=r"mask\.raters must be at least 1"):
        MaskRule("raters", raters=0)


def levels_and_masks() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    levels = torch.rand(5, 4, 2, 6, 6, generator=generator).sort(dim=1, descending=True)[0]
    masks = torch.randint(0, 2, (5, 4, 2, 6, 6), generator=generator, dtype=torch.uint8)
    valid = torch.tensor([[True] * 4, [True, True, False, False], *[[True] * 4] * 3])
    return levels, masks, valid


def test_tables_take_the_mask_by_the_rule() -> None:
    levels, masks, valid = levels_and_masks()
    p, decision = levels.mean(dim=1), levels[:, 1]
    rules = {
        "half": (MaskRule(), decision >= 0.5),
        "raters": (MaskRule("raters", raters=4), p >= 0.3857),
        "validation": (
            MaskRule("validation", thresholds={"0": 0.3, "1": 0.7}),
            decision >= torch.tensor([0.3, 0.7])[:, None, None],
        ),
    }
    best = [[largest_expected_dice(values)[0] for values in case] for case in decision]
    rules["expected_dice"] = (MaskRule("expected_dice"), decision >= torch.tensor(best)[..., None, None])
    for name, (rule, expected) in rules.items():
        readout = Readout(levels=True, mask=rule)
        found = case_statistics(levels, masks, valid, contents="probabilities", readout=readout)
        wanted = rater_mean(masks, valid) >= 0.5
        both = (expected & wanted).flatten(2).sum(dim=2)
        dice = 2 * both / (expected.flatten(2).sum(dim=2) + wanted.flatten(2).sum(dim=2))
        torch.testing.assert_close(found["dice"], dice.double(), msg=name)
        torch.testing.assert_close(found["predicted_area"], expected.flatten(2).sum(dim=2).double(), msg=name)
        # the rule decides masks alone
        plain = case_statistics(levels, masks, valid, contents="probabilities", readout=Readout(levels=True))
        for other in ("nll", "sv", "d_soft", "ged2"):
            assert torch.equal(found[other], plain[other])


def test_the_threshold_of_the_validation_cases_is_that_of_a_naive_loop() -> None:
    levels, masks, valid = levels_and_masks()
    readout = Readout(levels=True)
    found = BestThresholds(("0", "1"), contents="probabilities", readout=readout)
    for case in range(5):
        found.update(*(part[case : case + 1] for part in (levels, masks, valid)))
    chosen = found.thresholds()
    for k in range(2):
        scores = []
        for threshold in GRID.tolist():
            rule = MaskRule("validation", thresholds={"0": threshold, "1": threshold})
            of_rule = replace(readout, mask=rule)
            table = case_statistics(levels, masks, valid, contents="probabilities", readout=of_rule, names=["dice"])
            scores.append(float(table["dice"][:, k].mean()))
        best = [t for t, score in zip(GRID.tolist(), scores, strict=True) if score >= max(scores) - 1e-12]
        nearest = min(best, key=lambda t: abs(t - 0.5))
        assert chosen[str(k)] == pytest.approx(nearest, abs=1e-6)


def test_without_a_rater_the_threshold_stays_one_half() -> None:
    found = BestThresholds(("0",), contents="probabilities")
    found.update(torch.rand(1, 1, 1, 4, 4), torch.zeros(1, 1, 1, 4, 4), torch.zeros(1, 1) > 0)
    assert found.thresholds() == {"0": 0.5}
