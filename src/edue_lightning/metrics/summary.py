"""Every metric over a set of cases, with a bootstrap interval over groups of cases."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edue_lightning.metrics.bootstrap import few_groups, group_numbers, interval, resample_counts, usable_replicates
from edue_lightning.metrics.calibration import ReliabilityRow, reliability_rows
from edue_lightning.metrics.case_statistics import CaseStatistics
from edue_lightning.metrics.catalogue import known_metrics
from edue_lightning.metrics.definition import Array, Better, Estimate, StructureCases
from edue_lightning.metrics.settings import MetricSettings

MEAN_STRUCTURE = "mean"


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
        found, reason = usable_replicates(estimate.values, few)
        ends = (np.nan, np.nan) if reason else interval(found, confidence)
        defined = int(estimate.defined.sum())
        counts = (defined, len(estimate.defined) - defined)
        value = float(estimate.values[0])
        rows.append(MetricRow(structure, name, value, *ends, *counts, wanted[name].better, reason))
        replicates[structure, name] = found

    for k, structure in enumerate(structures):
        own = StructureCases({name: v[:, k] for name, v in columns.items()}, chosen.poor_dice_of(structure))
        if "bins" in own.columns:
            reliability += reliability_rows(structure, own.columns["bins"].sum(axis=0))
        for name, definition in wanted.items():
            estimate = definition.estimate(own, weights)
            per_metric[name].append(estimate)
            add(structure, name, estimate, few_groups(numbers, estimate))
    if len(structures) > 1:
        for name, estimates in per_metric.items():
            values = np.mean([e.values for e in estimates], axis=0)
            few = next(filter(None, (few_groups(numbers, estimate) for estimate in estimates)), "")
            add(MEAN_STRUCTURE, name, Estimate(values, np.logical_and.reduce([e.defined for e in estimates])), few)
    return Summary(rows, reliability, replicates)
