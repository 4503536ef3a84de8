"""Every metric over a set of cases, with a bootstrap interval over groups of cases.

Cases of one group, such as the slices of a patient, are not independent, so a resample draws whole groups. The draws
depend on the number of groups alone, so two methods measured on the same cases are compared on the same resamples
(paired).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics.calibration import ReliabilityRow, reliability_rows
from edue_lightning.metrics.case_statistics import CaseStatistics
from edue_lightning.metrics.catalogue import known_metrics
from edue_lightning.metrics.definition import Array, Better, Estimate, StructureCases
from edue_lightning.metrics.settings import MetricSettings

MEAN_STRUCTURE = "mean"

FEWEST_GROUPS = 5
"""Number of independent groups of cases (patients) that an interval needs."""

DEFINED_REPLICATES = 0.8
"""Share of the bootstrap replicates that must be defined for an interval."""

NO_RESAMPLES = "no resamples"


@dataclass(frozen=True)
class MetricRow:
    """One metric of one structure.

    Attributes:
        structure: name of the structure, or `mean` for the mean over structures.
        metric: name of the metric.
        value: the estimate; NaN where it is undefined.
        ci_low: lower end of the interval; NaN where there is none.
        ci_high: upper end of the interval; NaN where there is none.
        n_cases: number of cases that define the value.
        n_undefined: number of cases that do not (no rater, fewer than two, a constant map).
        better: direction of the metric, `high`, `low` or `neither`.
        no_interval: reason why there is no interval; empty if there is one.
    """

    structure: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n_cases: int
    n_undefined: int
    better: Better
    no_interval: str = ""


@dataclass(frozen=True)
class Summary:
    """All metrics of a set of cases.

    Attributes:
        rows: one row per structure and metric; with several structures also their `mean`.
        reliability: the reliability curve of each structure.
        replicates: bootstrap replicates by structure and metric; NaN where a replicate is undefined, and all of them
            where too few groups of cases define the metric.
    """

    rows: Sequence[MetricRow]
    reliability: Sequence[ReliabilityRow]
    replicates: Mapping[tuple[str, str], Array]

    def means(self) -> dict[str, float]:
        """Return each metric's value, averaged over the structures."""
        structures = {row.structure for row in self.rows}
        wanted = MEAN_STRUCTURE if MEAN_STRUCTURE in structures else next(iter(structures))
        return {row.metric: row.value for row in self.rows if row.structure == wanted}


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


def summarise(
    cases: CaseStatistics,
    structures: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    settings: MetricSettings | None = None,
    resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Summary:
    """Compute metrics over the cases.

    Args:
        cases: N cases, with the statistics that the metrics need.
        structures: names of the K structures.
        metrics: names of the metrics wanted; None for all.
        settings: see `MetricSettings`.
        resamples: number of bootstrap resamples of the groups of cases; 0 for no intervals (NaN).
        confidence: confidence of the percentile intervals.
        seed: seed of the resamples.
        groups: group of each case, such as its patient, `[N]`; None for independent cases.

    Raises:
        ValueError: if there are not as many groups as cases.
    """
    chosen = settings or MetricSettings()
    known = known_metrics(chosen)
    wanted = known if metrics is None else {name: known[name] for name in metrics}
    weights = np.concatenate([np.ones((1, len(cases))), resample_counts(len(cases), resamples, seed, groups)])
    numbers = group_numbers(range(len(cases)) if groups is None else groups)
    rows: list[MetricRow] = []
    reliability: list[ReliabilityRow] = []
    replicates: dict[tuple[str, str], Array] = {}
    columns = {name: value.double().cpu().numpy() for name, value in cases.columns.items()}
    per_metric: dict[str, list[Estimate]] = {name: [] for name in wanted}

    def add(structure: str, name: str, estimate: Estimate, few: str) -> None:
        value, found = float(estimate.values[0]), estimate.values[1:]
        if few:
            found = np.full_like(found, np.nan)
        obstacle = _obstacle(value, found)
        ends = interval(found, confidence) if not obstacle else (np.nan, np.nan)
        reason = few if few and obstacle and not np.isnan(value) else obstacle
        defined = int(estimate.defined.sum())
        counts = (defined, len(estimate.defined) - defined)
        rows.append(MetricRow(structure, name, value, *ends, *counts, wanted[name].better, reason))
        replicates[structure, name] = found

    for k, structure in enumerate(structures):
        own = StructureCases({name: v[:, k] for name, v in columns.items()}, chosen.poor_dice_of(structure))
        if "bins" in own.columns:
            reliability += reliability_rows(structure, own.columns["bins"].sum(axis=0))
        for name, definition in wanted.items():
            estimate = definition.estimate(own, weights)
            per_metric[name].append(estimate)
            add(structure, name, estimate, _few(numbers, estimate))
    if len(structures) > 1:
        for name, estimates in per_metric.items():
            values = np.mean([e.values for e in estimates], axis=0)
            few = next(filter(None, (_few(numbers, estimate) for estimate in estimates)), "")
            add(MEAN_STRUCTURE, name, Estimate(values, np.logical_and.reduce([e.defined for e in estimates])), few)
    return Summary(rows, reliability, replicates)


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


def _obstacle(value: float, replicates: Array) -> str:
    """Return the reason why replicates give no interval; empty if they do."""
    if np.isnan(value):
        return "undefined value"
    if not len(replicates):
        return NO_RESAMPLES
    share = float(np.mean(~np.isnan(replicates)))
    return "" if share >= DEFINED_REPLICATES else f"only {share:.0%} of the replicates are defined"


def _few(numbers: NDArray[np.intp], estimate: Estimate) -> str:
    """Return how many groups define an estimate if they are too few for an interval; empty if they suffice."""
    defined = len(np.unique(numbers[estimate.defined]))
    return (
        ""
        if defined >= FEWEST_GROUPS
        else f"{defined} independent cases or groups of cases, fewer than {FEWEST_GROUPS}"
    )
