"""Bootstrap intervals over groups of cases.

Cases of one group, such as the slices of a patient, are not independent, so a resample draws whole groups. The draws
depend on the number of groups alone, so two methods measured on the same cases are compared on the same resamples
(paired).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics.definition import Array, Estimate

FEWEST_GROUPS = 5
"""Number of independent groups of cases (patients) that an interval needs."""

DEFINED_REPLICATES = 0.8
"""Share of the bootstrap replicates that must be defined for an interval."""

NO_RESAMPLES = "no resamples"


def group_numbers(groups: Sequence[Hashable]) -> NDArray[np.intp]:
    """Return each case's group as a number from 0 on, in the order of the groups' names, `[N]`.

    The order of the cases does not matter, so a resample draws the same groups whatever order a table lists them in.
    """
    numbers = {group: number for number, group in enumerate(sorted(set(groups), key=str))}
    return np.array([numbers[group] for group in groups], dtype=np.intp)


def resample_counts(n_cases: int, resamples: int, seed: int = 0, groups: Sequence[Hashable] | None = None) -> Array:
    """Return how often each bootstrap resample draws each case, `[resamples, n_cases]`.

    A resample draws as many groups as there are, with replacement, and each of them with all its cases (cluster
    bootstrap; Field and Welsh, JRSS B 2007).

    Args:
        n_cases: number of cases, N.
        resamples: number of resamples.
        seed: seed of the draws.
        groups: group of each case, `[N]`; None for independent cases.

    Raises:
        ValueError: if there are not as many groups as cases.
    """
    numbers = np.arange(n_cases) if groups is None else group_numbers(groups)
    if len(numbers) != n_cases:
        raise ValueError(f"groups must name the group of each of the {n_cases} cases, not of {len(numbers)}")
    n_groups = int(numbers.max(initial=-1)) + 1
    drawn = np.random.default_rng([seed, n_groups]).integers(0, max(n_groups, 1), size=(resamples, n_groups))
    counts = np.zeros((resamples, n_groups))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
    return np.ascontiguousarray(counts[:, numbers])


def interval(replicates: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap replicates, leaving out undefined ones.

    Args:
        replicates: `[resamples]`, NaN where undefined.
        confidence: confidence of the interval.

    Returns:
        both ends; NaN if fewer than `DEFINED_REPLICATES` of the replicates are defined, or there are none.
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined) or len(defined) < DEFINED_REPLICATES * len(replicates):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def usable_replicates(values: Array, few: str) -> tuple[Array, str]:
    """Return the replicates of an estimate, and the reason why they give no interval; empty if they do.

    Args:
        values: the estimate and its replicates, `[1 + resamples]`; NaN where undefined.
        few: see `few_groups`; if it is not empty, every replicate becomes NaN.
    """
    value, replicates = float(values[0]), values[1:]
    if few:
        replicates = np.full_like(replicates, np.nan)
    obstacle = _obstacle(value, replicates)
    return replicates, few if few and obstacle and not np.isnan(value) else obstacle


def _obstacle(value: float, replicates: Array) -> str:
    """Return the reason why replicates give no interval; empty if they do."""
    if np.isnan(value):
        return "undefined value"
    if not len(replicates):
        return NO_RESAMPLES
    share = float(np.mean(~np.isnan(replicates)))
    return "" if share >= DEFINED_REPLICATES else f"only {share:.0%} of the replicates are defined"


def few_groups(numbers: NDArray[np.intp], estimate: Estimate) -> str:
    """Return how many groups define an estimate if they are too few for an interval; empty if they suffice."""
    defined = len(np.unique(numbers[estimate.defined]))
    return (
        ""
        if defined >= FEWEST_GROUPS
        else f"{defined} independent cases or groups of cases, fewer than {FEWEST_GROUPS}"
    )
