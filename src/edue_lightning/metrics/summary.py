"""Every metric over a set of cases, with a bootstrap interval over the cases.

The cases that a bootstrap resample draws depend on their number alone, so two methods measured on the same cases are
compared on the same resamples (paired).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edue_lightning.metrics.calibration import ReliabilityRow, reliability_rows
from edue_lightning.metrics.case_statistics import CaseStatistics
from edue_lightning.metrics.catalogue import known_metrics
from edue_lightning.metrics.definition import Array, Better, Definition, Estimate, StructureCases
from edue_lightning.metrics.settings import MetricSettings

MEAN_STRUCTURE = "mean"


@dataclass(frozen=True)
class MetricRow:
    """One metric of one structure.

    Attributes:
        structure: name of the structure, or `mean` for the mean over structures.
        metric: name of the metric.
        value: the estimate; NaN where it is undefined.
        ci_low: lower end of the interval.
        ci_high: upper end of the interval.
        n_cases: number of cases that define the value.
        n_undefined: number of cases that do not (no rater, fewer than two, a constant map).
        better: direction of the metric, `high`, `low` or `neither`.
    """

    structure: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n_cases: int
    n_undefined: int
    better: Better


@dataclass(frozen=True)
class Summary:
    """All metrics of a set of cases.

    Attributes:
        rows: one row per structure and metric; with several structures also their `mean`.
        reliability: the reliability curve of each structure.
        replicates: bootstrap replicates by structure and metric; undefined ones are NaN.
    """

    rows: Sequence[MetricRow]
    reliability: Sequence[ReliabilityRow]
    replicates: Mapping[tuple[str, str], Array]

    def means(self) -> dict[str, float]:
        """Return each metric's value, averaged over the structures."""
        structures = {row.structure for row in self.rows}
        wanted = MEAN_STRUCTURE if MEAN_STRUCTURE in structures else next(iter(structures))
        return {row.metric: row.value for row in self.rows if row.structure == wanted}


def resample_counts(n_cases: int, resamples: int, seed: int = 0) -> Array:
    """Return how often each bootstrap resample draws each case, `[resamples, n_cases]`."""
    drawn = np.random.default_rng([seed, n_cases]).integers(0, max(n_cases, 1), size=(resamples, n_cases))
    counts = np.zeros((resamples, n_cases))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
    return counts


def summarise(
    cases: CaseStatistics,
    structures: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    settings: MetricSettings | None = None,
    resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Summary:
    """Compute metrics over the cases.

    Args:
        cases: N cases, with the statistics that the metrics need.
        structures: names of the K structures.
        metrics: names of the metrics wanted; None for all.
        settings: see `MetricSettings`.
        resamples: number of bootstrap resamples of the cases; 0 for no intervals (NaN).
        confidence: confidence of the percentile intervals.
        seed: seed of the resamples.
    """
    chosen = settings or MetricSettings()
    known = known_metrics(chosen)
    wanted = known if metrics is None else {name: known[name] for name in metrics}
    weights = np.concatenate([np.ones((1, len(cases))), resample_counts(len(cases), resamples, seed)])
    rows: list[MetricRow] = []
    reliability: list[ReliabilityRow] = []
    replicates: dict[tuple[str, str], Array] = {}
    columns = {name: value.double().cpu().numpy() for name, value in cases.columns.items()}
    per_metric: dict[str, list[Estimate]] = {name: [] for name in wanted}

    def add(structure: str, name: str, estimate: Estimate) -> None:
        rows.append(_row(structure, wanted[name], estimate, confidence))
        replicates[structure, name] = estimate.values[1:]

    for k, structure in enumerate(structures):
        own = StructureCases({name: v[:, k] for name, v in columns.items()}, chosen.poor_dice_of(structure))
        if "bins" in own.columns:
            reliability += reliability_rows(structure, own.columns["bins"].sum(axis=0))
        for name, definition in wanted.items():
            per_metric[name].append(definition.estimate(own, weights))
            add(structure, name, per_metric[name][-1])
    if len(structures) > 1:
        for name, estimates in per_metric.items():
            values = np.mean([e.values for e in estimates], axis=0)
            add(MEAN_STRUCTURE, name, Estimate(values, np.logical_and.reduce([e.defined for e in estimates])))
    return Summary(rows, reliability, replicates)


def _row(structure: str, metric: Definition, estimate: Estimate, confidence: float) -> MetricRow:
    value, replicates = float(estimate.values[0]), estimate.values[1:]
    low, high = interval(replicates, confidence) if not np.isnan(value) else (np.nan, np.nan)
    defined = int(estimate.defined.sum())
    return MetricRow(structure, metric.name, value, low, high, defined, len(estimate.defined) - defined, metric.better)


def interval(replicates: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap replicates, leaving out undefined ones; NaN if none is left."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
