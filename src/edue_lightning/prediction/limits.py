"""Limits of what counts as within the training's range, at a stated rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Range = tuple[float, float]

FALSE_ALARMS = 0.01
"""Share of cases like those of the training that may be found outside of its range, if there are enough cases."""

ROUNDING = 1e-5
"""Share of a width or limit by which a value may differ between two computations of one case."""


class Limit(NamedTuple):
    """A largest value, and the rate at which cases like the known ones exceed it.

    Attributes:
        value: the limit.
        false_alarms: probability that one more case like the known ones exceeds it, at most.
    """

    value: float
    false_alarms: float


def upper_limit(values: Array, rate: float) -> Limit:
    """Return the smallest of the known values that one more case exceeds with a probability of at most `rate`.

    The rank of a further case among N exchangeable ones is uniform, so it exceeds the k-th smallest of them with a
    probability of at most (N + 1 - k) / (N + 1), whatever their distribution (Vovk et al., Algorithmic Learning in a
    Random World, 2005). Fewer than 1 / rate - 1 cases allow no such value: then it is the largest one, which is
    exceeded with a probability of at most 1 / (N + 1).

    Args:
        values: values of known cases, `[N]`, N at least 1, not NaN.
        rate: probability above 0 and below 1.
    """
    count = len(values)
    rank = min(max(math.ceil(round((count + 1) * (1 - rate), 9)), 1), count)
    return Limit(float(np.sort(values)[rank - 1]), (count + 1 - rank) / (count + 1))


def fit_ranges(
    training: Mapping[str, Array], validation: Mapping[str, Array], units: Mapping[str, float], rate: float
) -> tuple[dict[str, Range], float]:
    """Return the range of each property, and the rate at which cases like those of the validation lie outside of one.

    Each range is that of the training cases, widened on both sides by a share of its unit. The share is the same for
    all properties: the `upper_limit` of what a validation case exceeds the training's ranges by, in the property that
    it exceeds most; 0 if that is negative.

    Args:
        training: values of the training cases by property, `[N]` each; NaN where a case has none.
        validation: values of the n validation cases, `[n]` each.
        units: what the excess of each property is measured in, positive.
        rate: see `upper_limit`.

    Returns:
        smallest and largest value by property, without those that no training case has a value of; the rate of cases
        outside of at least one of them, at most.
    """
    known = {name: values[np.isfinite(values)] for name, values in training.items()}
    ends = {name: (float(values.min()), float(values.max())) for name, values in known.items() if len(values)}
    beyond = [
        np.nan_to_num(np.maximum(low - validation[name], validation[name] - high) / units[name], nan=-math.inf)
        for name, (low, high) in ends.items()
    ]
    count = len(next(iter(validation.values())))
    limit = upper_limit(np.max([np.full(count, -math.inf), *beyond], axis=0), rate)
    share = max(limit.value, 0.0) + ROUNDING
    ranges = {name: (low - share * units[name], high + share * units[name]) for name, (low, high) in ends.items()}
    return ranges, limit.false_alarms


def rate_in_words(false_alarms: float | None, cases: int | None) -> str:
    """Return the rate of false alarms in words, empty if it is unknown, as for checkpoints of earlier versions.

    Args:
        false_alarms: probability that a case like those of the training is found outside of its range, at most.
        cases: number of validation cases that the limits were set on; None if it is unknown.
    """
    if false_alarms is None:
        return ""
    known = "" if cases is None else f", as set on {cases} validation cases"
    few = f", too few for {100 * FALSE_ALARMS:g} %" if known and false_alarms > FALSE_ALARMS else ""
    return f"At most {100 * false_alarms:.2g} % of cases like the training's are expected to lie outside{known}{few}."
