"""Limits of the training's range: their rate of false alarms, by counting, whatever the distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edue_lightning.prediction.limits import fit_ranges, rate_in_words, upper_limit

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(size=shape),
    "few values": lambda rng, shape: rng.integers(0, 3, size=shape).astype(float),
    "one value": lambda rng, shape: np.full(shape, 0.25),
    "one value but for some": lambda rng, shape: np.where(rng.random(shape) < 0.02, rng.random(shape), 0.0),
}


@given(st.integers(1, 60), st.floats(0.001, 0.9), st.integers(0, 99))
def test_the_limit_is_the_smallest_value_with_the_rate(count: int, rate: float, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(count).astype(float)
    limit = upper_limit(values, rate)
    # one more case has each of the count + 1 ranks with equal probability
    rates = {value: (count + 1 - (values <= value).sum()) / (count + 1) for value in values}
    assert limit.false_alarms == pytest.approx(rates[limit.value])
    allowed = [value for value in values if rates[value] <= rate + 1e-9]
    assert limit.value == (min(allowed) if allowed else values.max())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("cases", "rate"), [(10, 0.01), (99, 0.01), (250, 0.02)])
def test_further_cases_exceed_it_at_the_stated_rate(name: str, cases: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    draws = DISTRIBUTIONS[name](rng, (4000, cases + 1))
    limits = [upper_limit(part[:-1], rate) for part in draws]
    exceeded = np.mean([part[-1] > limit.value for part, limit in zip(draws, limits, strict=True)])
    stated = limits[0].false_alarms
    assert stated == pytest.approx(max(rate, 1 / (cases + 1)), abs=1 / (cases + 1))
    spread = math.sqrt(stated * (1 - stated) / len(draws))
    assert exceeded <= stated + 3 * spread
    if name in ("normal", "heavy tails"):
        assert exceeded >= stated - 4 * spread


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("training", "validation"), [(40, 12), (60, 199)])
def test_cases_like_the_known_ones_lie_outside_of_any_range_at_the_stated_rate(
    name: str, training: int, validation: int
) -> None:
    rng = np.random.default_rng(1)
    outside, stated = [], []
    for _ in range(1500):
        drawn = {str(n): DISTRIBUTIONS[name](rng, (training + validation + 1,)) for n in range(5)}
        known, unseen, new = (
            {key: values[part] for key, values in drawn.items()}
            for part in (slice(training), slice(training, -1), slice(-1, None))
        )
        units = {key: max(float(np.ptp(values)), 1e-6) for key, values in known.items()}
        ranges, false_alarms = fit_ranges(known, unseen, units, 0.01)
        outside.append(any(not low <= new[key][0] <= high for key, (low, high) in ranges.items()))
        stated.append(false_alarms)
    assert set(stated) == {max(stated)}
    # never narrower than the training's range, so the rate may be lower
    assert np.mean(outside) <= stated[0] + 3 * math.sqrt(stated[0] / len(outside))


def test_ranges_by_hand() -> None:
    known = {"a": np.array([0.0, 10.0]), "b": np.array([1.0, math.nan]), "none": np.full(2, math.nan)}
    unseen = {"a": np.array([5.0, 12.0, math.nan]), "b": np.array([0.9, 1.0, 1.0]), "none": np.zeros(3)}
    ranges, false_alarms = fit_ranges(known, unseen, {"a": 10.0, "b": 1.0, "none": 1.0}, 0.01)
    # 12 exceeds 10 by a fifth of the unit, 0.9 falls below 1 by a tenth
    assert ranges == {"a": pytest.approx((-2, 12), abs=1e-3), "b": pytest.approx((0.8, 1.2), abs=1e-3)}
    assert false_alarms == 0.25
    inside = {**unseen, "a": np.array([1.0, 2.0, 3.0]), "b": np.ones(3)}
    assert fit_ranges(known, inside, {"a": 10.0, "b": 1.0, "none": 1.0}, 0.01)[0]["a"] == pytest.approx(
        (0, 10), abs=1e-3
    )


def test_the_rate_is_put_in_words() -> None:
    assert rate_in_words(None, 5) == ""
    enough = "At most 1 % of cases like the training's are expected to lie outside"
    assert rate_in_words(0.01, None) == f"{enough}."
    assert rate_in_words(0.01, 300) == f"{enough}, as set on 300 validation cases."
    assert rate_in_words(2 / 126, 125).endswith("as set on 125 validation cases, too few for 1 %.")
