"""The regression against scikit-learn's, and against leaving each case out in turn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from edue_lightning.prediction.expected_dice import ExpectedDice, features, fit_expected_dice

Array = NDArray[np.float64]
PENALTIES = np.logspace(-1, 3, 9)


def random_cases(cases: int, seed: int = 0) -> tuple[dict[str, Array], Array]:
    rng = np.random.default_rng(seed)
    area = rng.uniform(10, 1000, cases)
    agreement = rng.uniform(0.3, 1, cases)
    scores = {
        "entropy": area * rng.uniform(0.1, 1, cases),
        "sv_total": area * rng.uniform(0.1, 1, cases),
        "sv": area * rng.uniform(0.01, 0.2, cases),
        "layer_agreement": agreement,
        "model_agreement": agreement * rng.uniform(0.8, 1, cases),
        "soft_dice_confidence": agreement * rng.uniform(0.7, 1, cases),
        "predicted_area": area,
    }
    dice = 0.5 * agreement - 0.1 * np.log(scores["entropy"] / area) + rng.normal(scale=0.05, size=cases)
    return scores, np.clip(dice, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_weights_and_left_out_cases_are_scikit_learns(seed: int) -> None:
    scores, dice = random_cases(40, seed)
    columns = np.stack(list(features(scores).values()), axis=1)
    standard = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    left_out = {}
    for penalty in PENALTIES:
        without = [np.arange(40) != case for case in range(40)]
        models = [Ridge(penalty, fit_intercept=True).fit(standard[kept], dice[kept]) for kept in without]
        left_out[penalty] = np.array([model.predict(standard[i : i + 1])[0] for i, model in enumerate(models)])
    best = min(PENALTIES, key=lambda penalty: float(np.square(dice - left_out[penalty]).mean()))
    fitted = fit_expected_dice(scores, dice)
    assert fitted is not None
    np.testing.assert_allclose(fitted.left_out, left_out[best], rtol=1e-6)
    expected = Ridge(best).fit(standard, dice).predict(standard)
    found = [fitted.expected_dice({name: values[i] for name, values in scores.items()}) for i in range(40)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_beyond_what_the_cases_showed_nothing_more_is_expected() -> None:
    scores, dice = random_cases(30)
    fitted = fit_expected_dice(scores, dice)
    assert fitted is not None
    at_end = {name: values[int(scores["predicted_area"].argmax())] for name, values in scores.items()}
    # as large an uncertainty by size as before, and a hundred times the size
    beyond = {
        name: value * (1 if name.endswith(("agreement", "confidence")) else 100) for name, value in at_end.items()
    }
    assert fitted.expected_dice(beyond) == pytest.approx(fitted.expected_dice(at_end))


def test_an_empty_mask_has_no_expected_dice() -> None:
    scores, dice = random_cases(30)
    for values in (scores["predicted_area"], scores["layer_agreement"]):
        values[3] = 0
    fitted = fit_expected_dice(scores, dice)
    assert fitted is not None
    assert np.flatnonzero(np.isnan(fitted.left_out)).tolist() == [3]
    assert math.isnan(fitted.expected_dice({name: float(values[3]) for name, values in scores.items()}))


def test_scores_that_no_case_has_are_left_out() -> None:
    scores, dice = random_cases(30)
    for name in ("sv", "layer_agreement", "model_agreement"):
        scores[name][:] = math.nan
    scores["soft_dice_confidence"][:] = 0.8
    scores["sv_total"] = scores["predicted_area"] * 0.25
    fitted = fit_expected_dice(scores, dice)
    assert fitted is not None
    assert set(fitted.expected_dice.terms) == {"log(entropy / predicted_area)", "log(predicted_area)"}
    assert ExpectedDice.from_dict(fitted.expected_dice.as_dict()) == fitted.expected_dice


def test_few_cases_tell_nothing() -> None:
    scores, dice = random_cases(19)
    assert fit_expected_dice(scores, dice) is None
    scores, dice = random_cases(25)
    scores["predicted_area"][:10] = 0
    assert fit_expected_dice(scores, dice) is None


def test_a_feature_that_is_constant_but_for_rounding_is_left_out() -> None:
    scores, dice = random_cases(40)
    noise = np.random.default_rng(1).random(40)
    scores["model_agreement"] = np.where(noise < 0.5, 0.9, np.nextafter(0.9, 1))
    scores["sv_total"] = scores["predicted_area"] * 0.25 * (1 + 1e-7 * noise)
    fitted = fit_expected_dice(scores, dice)
    assert fitted is not None
    assert not {"model_agreement", "log(sv_total / predicted_area)"} & set(fitted.expected_dice.terms)
    found = [fitted.expected_dice({name: values[i] for name, values in scores.items()}) for i in range(40)]
    np.testing.assert_allclose(found, fitted.fitted, rtol=1e-9)


def test_a_case_without_raters_is_predicted_and_not_fitted_to() -> None:
    scores, dice = random_cases(40)
    without = fit_expected_dice({name: values[1:] for name, values in scores.items()}, dice[1:])
    dice[0] = math.nan
    fitted = fit_expected_dice(scores, dice)
    assert fitted is not None
    assert without is not None
    assert fitted.expected_dice == without.expected_dice
    np.testing.assert_array_equal(fitted.left_out[1:], without.left_out)
    wanted = fitted.expected_dice({name: values[0] for name, values in scores.items()})
    assert fitted.left_out[0] == pytest.approx(wanted)
    assert fitted.fitted[0] == pytest.approx(wanted)
