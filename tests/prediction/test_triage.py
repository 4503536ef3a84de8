"""Thresholds against a count by hand; ranges; what a damaged checkpoint says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edue_lightning.errors import UserError
from edue_lightning.metrics import CaseStatistics
from edue_lightning.prediction.expected_dice import ExpectedDice, Term
from edue_lightning.prediction.triage import (
    CANDIDATES,
    RANGE_SCORES,
    StructureTriage,
    Threshold,
    Triage,
    applicable,
    best_score,
    intensities_of,
)
from edue_lightning.uncertainty import Readout


def structure(dice: list[float], uncertainties: list[float], score: str = "sv", **ranges: Any) -> StructureTriage:
    return StructureTriage(score, 0.8, np.array(dice), np.array(uncertainties), ranges)


cases = st.lists(
    st.tuples(st.floats(0, 1), st.one_of(st.integers(0, 5).map(float), st.just(math.inf))), min_size=1, max_size=30
)


@given(cases, st.floats(0.01, 1))
def test_the_threshold_flags_the_share_of_the_poor_and_no_others(
    found: list[tuple[float, float]], sensitivity: float
) -> None:
    dice, uncertainties = (list(column) for column in zip(*found, strict=True))
    threshold = structure(dice, uncertainties).threshold(sensitivity)
    poor = [u for d, u in found if d < 0.8]
    if not poor:
        assert threshold.value is None
        return
    share = {value: sum(u >= value for u in poor) / len(poor) for value in set(uncertainties)}
    last = max(value for value, of_poor in share.items() if of_poor >= sensitivity - 1e-9)
    assert threshold.value is not None
    # the same cases as by the highest possible threshold, but not by a hair's breadth
    assert [u >= threshold.value for u in uncertainties] == [u >= last for u in uncertainties]
    assert threshold.sensitivity == share[last]
    assert threshold.flagged == sum(u >= last for u in uncertainties) / len(uncertainties)
    below = [u for u in uncertainties if u < last]
    if below and math.isfinite(last):
        assert threshold.value == pytest.approx((last + max(below)) / 2)


@pytest.mark.parametrize("value", [-3e8, -0.7, 0.0, 1e-9, 0.7, 3e8])
@pytest.mark.parametrize("score", ["sv_total", "model_agreement"])
def test_rounding_changes_no_flag(value: float, score: str) -> None:
    known = structure([0.5, 0.5], [value, 2 * abs(value) + 1], score)
    threshold = known.threshold(1.0).value
    assert threshold is not None
    assert float(np.float32(value)) * (1 - 1e-6 * np.sign(value)) >= threshold


def test_uncertainty_rises_as_agreement_falls_and_is_infinite_where_undefined() -> None:
    by_agreement = structure([0.5], [0.0], "layer_agreement")
    assert by_agreement.uncertainty({"layer_agreement": 0.9}) == -0.9
    assert by_agreement.measured(-0.9) == 0.9
    assert structure([0.5], [0.0], "sv_normalised").uncertainty({"sv_normalised": math.nan}) == math.inf


def test_uncertainty_is_shown_as_the_share_of_surer_validation_cases() -> None:
    known = structure([1.0] * 5, [1.0, 2.0, 3.0, 4.0, math.inf])
    assert [known.percentile(value) for value in (0.5, 1.5, 4.5, math.inf)] == pytest.approx([0, 20, 80, 90])
    assert known.percentile(2.0) == pytest.approx(30)


@pytest.mark.parametrize("uncertainties", [[2.0, 2.0, 2.0], [math.inf, math.inf], [math.inf, 1.0], [5e-324, 1e308]])
def test_no_uncertainty_is_shown_as_infinite(uncertainties: list[float]) -> None:
    known = structure([0.5] * len(uncertainties), uncertainties)
    for value in (-1e308, 0.0, 2.0, 2.0 + 1e-9, 1e308, math.inf):
        assert 0 <= known.percentile(value) <= 100


def test_the_score_that_orders_the_validation_cases_best_is_chosen() -> None:
    rng = np.random.default_rng(0)
    dice = rng.random(40)
    uncertainties = {name: rng.random(40) for name in CANDIDATES}
    uncertainties["model_agreement"] = -dice + rng.normal(scale=0.01, size=40)
    uncertainties["sv"] = np.full(40, np.inf)
    assert best_score(uncertainties, dice) == "model_agreement"
    # the other way round it is as bad as can be
    uncertainties["model_agreement"] = -uncertainties["model_agreement"]
    assert best_score(uncertainties, dice) not in ("model_agreement", "sv")


def test_the_dice_that_the_scores_let_expect_is_a_score() -> None:
    known = replace(
        structure([0.5], [-0.5], "expected_dice"),
        expected_dice=ExpectedDice(0.2, {"layer_agreement": Term(0.5, 0.0, 0.9)}),
    )
    scores = dict.fromkeys(RANGE_SCORES, 1.0)
    assert known.value(scores) == pytest.approx(0.2 + 0.5 * 0.9)
    assert known.uncertainty(scores) == pytest.approx(-0.65)
    assert known.measured(-0.65) == pytest.approx(0.65)
    assert known.uncertainty({**scores, "predicted_area": 0.0, "layer_agreement": math.nan}) == math.inf


def test_what_lies_outside_is_put_in_words() -> None:
    known = structure([0.5], [1.0], sv=(10.0, 20.0), predicted_area=(0.0, 0.0))
    inside = {"sv": 20.0, "predicted_area": 0.0}
    assert known.outside(inside) == []
    assert known.outside({**inside, "sv": 21.1}) == ["sv 21.1 outside 10 to 20"]
    assert known.outside({**inside, "sv": 8.9, "predicted_area": 1.0}) == [
        "sv 8.9 outside 10 to 20",
        "predicted_area 1 outside 0 to 0",
    ]
    assert known.outside({"sv": math.nan, "predicted_area": 0.0}) == []


def test_in_a_checkpoint_of_an_earlier_version_a_tenth_of_the_range_is_allowed_beyond_it() -> None:
    stored = whole().as_dict()
    del stored["false_alarms"]
    found = Triage.from_dict(stored, "x.ckpt")
    assert found.false_alarms is None
    assert found.structures["disc"].ranges == {"sv": pytest.approx((0.9, 2.1))}
    assert found.intensities == {"percentile 1 of channel 1": pytest.approx((-0.1, 1.1))}


@pytest.mark.parametrize(
    ("score", "value", "reason"),
    [
        ("sv", 3.0, "sv 3 is at least 2"),
        ("layer_agreement", -3.0, "layer_agreement -3 is at most -2"),
        ("sv_normalised", math.nan, "sv_normalised is undefined, as for an empty mask"),
    ],
)
def test_why_a_case_is_flagged_is_put_in_words(score: str, value: float, reason: str) -> None:
    assert structure([0.5], [1.0], score).reason({score: value}, 2.0) == reason


def test_intensities_are_percentiles_of_each_channel() -> None:
    image = torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(0))
    found = intensities_of(image)
    assert len(found) == 6
    assert found["percentile 50 of channel 2"] == pytest.approx(float(image[1].median()), abs=0.1)


def test_an_image_outside_of_the_range_of_intensities_is_reported() -> None:
    assert whole().outside(torch.full((1, 4, 4), 0.5)) == []
    (line,) = whole().outside(torch.full((1, 4, 4), -0.5))
    assert line == "percentile 1 of channel 1 -0.5 outside 0 to 1"


@pytest.mark.parametrize(
    ("score", "terms", "needs"),
    [
        ("sv_total", None, True),
        ("sv", None, True),
        ("entropy", None, True),
        ("sv_normalised", None, False),
        ("model_agreement", None, False),
        ("expected_dice", ("layer_agreement",), False),
        ("expected_dice", ("layer_agreement", "log(predicted_area)"), True),
    ],
)
def test_sizes_need_a_unit_and_ratios_do_not(score: str, terms: tuple[str, ...] | None, needs: bool) -> None:
    regression = None if terms is None else ExpectedDice(0.1, dict.fromkeys(terms, Term(1.0, 0.0, 1.0)))
    assert replace(structure([0.5], [1.0], score), expected_dice=regression).needs_unit is needs


def whole() -> Triage:
    one = structure([0.5, 0.9], [2.0, math.inf], "entropy", sv=(1.0, 2.0))
    regression = ExpectedDice(
        0.1, {"layer_agreement": Term(0.5, 0.0, 0.9), "log(predicted_area)": Term(-0.1, 1.0, 2.0)}
    )
    other = replace(one, score="expected_dice", expected_dice=regression)
    intensities = {"percentile 1 of channel 1": (0.0, 1.0)}
    return Triage(0.9, {"disc": one, "cup": other}, intensities, 7, spaced=True, false_alarms=0.05)


def test_what_is_stored_comes_back() -> None:
    again = Triage.from_dict(whole().as_dict(), "x.ckpt")
    assert again.sensitivity == 0.9
    assert again.training_cases == 7
    assert again.intensities == whole().intensities
    assert again.false_alarms == 0.05
    assert again.by_majority
    for name, one in whole().structures.items():
        found = again.structures[name]
        assert (found.score, found.poor_dice, found.ranges) == (one.score, one.poor_dice, one.ranges)
        assert found.expected_dice == one.expected_dice
        np.testing.assert_array_equal(found.dice, one.dice)
        np.testing.assert_array_equal(found.uncertainties, one.uncertainties)


def confident(score: str, *terms: str) -> Triage:
    regression = ExpectedDice(0.1, dict.fromkeys(terms, Term(0.5, 0.0, 0.9))) if terms else None
    return replace(whole(), structures={"disc": replace(structure([0.5], [1.0], score), expected_dice=regression)})


@pytest.mark.parametrize("own_maps", [(), ("decision",), ("probability",)])
@pytest.mark.parametrize(
    ("found", "takes_it"),
    [
        (confident("sv"), False),
        (confident("soft_dice_confidence"), True),
        (confident("expected_dice", "layer_agreement"), False),
        (confident("expected_dice", "layer_agreement", "soft_dice_confidence"), True),
    ],
)
def test_thresholds_for_the_confidence_of_an_earlier_version_flag_no_case(
    found: Triage, takes_it: bool, own_maps: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    readout = Readout(own_maps=own_maps)
    assert applicable(found, readout, "x.ckpt") is found
    assert applicable(None, readout, "x.ckpt") is None
    assert not caplog.text
    stored = found.as_dict()
    del stored["by_majority"]
    earlier = Triage.from_dict(stored, "x.ckpt")
    is_other = takes_it and own_maps == ("decision",)
    assert (applicable(earlier, readout, "x.ckpt") is None) is is_other
    assert ("x.ckpt: its thresholds are for the soft_dice_confidence of an earlier version" in caplog.text) is is_other


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.pop("structures"),
        lambda stored: stored.update(structures=3),
        lambda stored: stored["structures"]["disc"].pop("dice"),
        lambda stored: stored["structures"]["disc"].update(score="none"),
        lambda stored: stored["structures"]["disc"].update(dice="none"),
        lambda stored: stored["structures"]["disc"].update(ranges={"sv": [1.0]}),
        lambda stored: stored.update(sensitivity=None),
        lambda stored: stored["structures"]["disc"].update(score="expected_dice"),
        lambda stored: stored["structures"]["cup"].update(expected_dice=None),
        lambda stored: stored["structures"]["cup"]["expected_dice"].update(intercept=math.nan),
        lambda stored: stored["structures"]["cup"]["expected_dice"]["terms"].update(other=[1.0, 0.0, 1.0]),
        lambda stored: stored["structures"]["cup"]["expected_dice"].update(terms={"layer_agreement": [1.0]}),
    ],
)
def test_what_is_damaged_is_told_in_one_line(damage: Any) -> None:
    stored = whole().as_dict()
    damage(stored)
    with pytest.raises(UserError, match=r"x\.ckpt: its triage data is damaged"):
        Triage.from_dict(stored, "x.ckpt")


def test_every_score_has_its_statistic() -> None:
    names = set(CaseStatistics({name: torch.zeros(1, 1) for name in RANGE_SCORES}).columns)
    assert names == {*CANDIDATES, "predicted_area"} - {"expected_dice"}


def test_the_threshold_lies_between_neighbouring_scores_however_close() -> None:
    known = structure([0.9, 0.1, 0.1, 0.9, 0.9], [1.0, 1.00001, 1.00002, 1.0, math.inf])
    threshold = known.threshold(1.0)
    assert threshold.value is not None
    assert 1 < threshold.value < 1.00001
    assert (threshold.sensitivity, threshold.flagged) == (1, 0.6)


def test_scores_without_a_number_between_them_are_told_apart() -> None:
    smallest = float(np.nextafter(0.0, 1.0))
    for low, high in ((0.0, smallest), (smallest, 2 * smallest)):
        assert structure([0.9, 0.1], [low, high]).threshold(1.0) == Threshold(high, 1.0, 0.5)


def test_scores_that_differ_by_rounding_alone_are_flagged_together() -> None:
    above = float(np.nextafter(1.0, 2.0))
    for low, high in ((1.0, above), (above, float(np.nextafter(above, 2.0)))):
        for uncertainties in ([low, high, 0.5], [high, low, 0.5]):
            threshold = structure([0.9, 0.1, 0.9], uncertainties).threshold(1.0)
            assert threshold == Threshold(pytest.approx(0.75), 1.0, 2 / 3)
    threshold = structure([0.9, 0.1], [1.0, 1 + 1e-9]).threshold(1.0)
    assert threshold.value is not None
    assert 1 < threshold.value < 1 + 1e-9
    assert threshold.flagged == 0.5


def test_any_sensitivity_flags_a_poor_case_first() -> None:
    known = structure([0.1, 0.2, 0.9, 0.95], [5.0, 4.0, 3.0, 2.0])
    assert known.threshold(1e-10) == Threshold(4.5, 0.5, 0.25)


def test_a_case_without_raters_leaves_the_choice_of_the_score() -> None:
    rng = np.random.default_rng(0)
    dice = rng.random(30)
    uncertainties = {"sv": rng.permutation(30) * 1.0, "entropy": -dice}
    assert best_score(uncertainties, dice) == "entropy"
    dice[4] = math.nan
    assert best_score(uncertainties, dice) == "entropy"
