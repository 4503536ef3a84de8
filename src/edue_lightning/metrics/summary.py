"""From cases to figures: every metric over a set of cases, with a bootstrap interval over the cases.

Which cases a bootstrap resample draws depends on their number alone, so that two methods measured on the same cases are
compared on the same resamples (paired).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics.calibration import RELIABILITY_BINS
from edue_lightning.metrics.case_statistics import BINS, CaseStatistics
from edue_lightning.metrics.definitions import METRICS, Estimate, StructureCases
from edue_lightning.metrics.selective import QualityControl, quality_control_curve
from edue_lightning.metrics.settings import MetricSettings

Array = NDArray[np.float64]
MEAN_STRUCTURE = "mean"


@dataclass(frozen=True)
class MetricRow:
    """One metric of one structure.

    Attributes:
        structure: its name, or `mean` for the mean over structures.
        metric: its name.
        value: the estimate; NaN where it is undefined.
        ci_low: lower end of the interval.
        ci_high: upper end of the interval.
        n_cases: cases that define the value.
        n_undefined: cases that do not (no rater, fewer than two, a constant map).
    """

    structure: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n_cases: int
    n_undefined: int


@dataclass(frozen=True)
class ReliabilityRow:
    """One bin of a structure's reliability curve.

    Attributes:
        structure: its name.
        bin_low: lower edge of the predicted probability.
        bin_high: upper edge.
        count: pairs of a voxel and a rater.
        mean_probability: mean prediction; NaN in an empty bin.
        frequency: share of the pairs that the rater marked; NaN in an empty bin.
    """

    structure: str
    bin_low: float
    bin_high: float
    count: int
    mean_probability: float
    frequency: float


@dataclass(frozen=True)
class Summary:
    """All metrics of a set of cases.

    Attributes:
        rows: a row a structure and metric; with several structures also their `mean`.
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
    """Return how often each case is drawn in each bootstrap resample, `[resamples, n_cases]`."""
    drawn = np.random.default_rng([seed, n_cases]).integers(0, max(n_cases, 1), size=(resamples, n_cases))
    counts = np.zeros((resamples, n_cases))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
    return counts


def summarise(
    cases: CaseStatistics,
    structures: Sequence[str],
    *,
    metrics: Sequence[str] = tuple(METRICS),
    settings: MetricSettings | None = None,
    resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Summary:
    """Compute metrics over the cases.

    Args:
        cases: of N cases, with the statistics that the metrics need.
        structures: names of the K structures.
        metrics: names of those wanted.
        settings: see `MetricSettings`.
        resamples: bootstrap resamples of the cases; 0 for no intervals (NaN).
        confidence: of the percentile intervals.
        seed: of the resamples.
    """
    chosen = settings or MetricSettings()
    weights = np.concatenate([np.ones((1, len(cases))), resample_counts(len(cases), resamples, seed)])
    rows: list[MetricRow] = []
    reliability: list[ReliabilityRow] = []
    replicates: dict[tuple[str, str], Array] = {}
    columns = {name: value.double().cpu().numpy() for name, value in cases.columns.items()}
    per_metric: dict[str, list[Estimate]] = {name: [] for name in metrics}

    def add(structure: str, name: str, estimate: Estimate) -> None:
        rows.append(_row(structure, name, estimate, confidence))
        replicates[structure, name] = estimate.values[1:]

    for k, structure in enumerate(structures):
        own = StructureCases({name: v[:, k] for name, v in columns.items()}, chosen.poor_dice_of(structure))
        if BINS in own.columns:
            reliability += _curve(structure, own.columns[BINS].sum(axis=0))
        for name in metrics:
            per_metric[name].append(METRICS[name].estimate(own, weights))
            add(structure, name, per_metric[name][-1])
    if len(structures) > 1:
        for name, estimates in per_metric.items():
            values = np.mean([e.values for e in estimates], axis=0)
            add(MEAN_STRUCTURE, name, Estimate(values, np.logical_and.reduce([e.defined for e in estimates])))
    return Summary(rows, reliability, replicates)


def quality_control_curves(
    cases: CaseStatistics, structures: Sequence[str], settings: MetricSettings, score: str = "sv", sign: int = 1
) -> list[QualityControl]:
    """Return each structure's quality-control curve of a score, over the cases that define the score and Dice.

    Args:
        cases: with the score and the statistic `dice`.
        structures: names of the K structures.
        settings: see `MetricSettings`.
        score: name of the statistic.
        sign: -1 where a small score means an uncertain case.
    """
    curves = []
    for k, structure in enumerate(structures):
        values, dice = (cases[name][:, k].cpu().numpy() for name in (score, "dice"))
        defined = ~(np.isnan(values) | np.isnan(dice))
        poor = dice[defined] < settings.poor_dice_of(structure)
        curves.append(quality_control_curve(sign * values[defined], poor.astype(float)))
    return curves


def _row(structure: str, metric: str, estimate: Estimate, confidence: float) -> MetricRow:
    value, replicates = float(estimate.values[0]), estimate.values[1:]
    low, high = interval(replicates, confidence) if not np.isnan(value) else (np.nan, np.nan)
    defined = int(estimate.defined.sum())
    return MetricRow(structure, metric, value, low, high, defined, len(estimate.defined) - defined)


def interval(replicates: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap replicates, leaving out undefined ones; NaN if none is left."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _curve(structure: str, bins: Array) -> list[ReliabilityRow]:
    with np.errstate(invalid="ignore", divide="ignore"):
        means, frequencies = bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0]
    return [
        ReliabilityRow(structure, b / RELIABILITY_BINS, (b + 1) / RELIABILITY_BINS, round(bins[b, 0]), *pair)
        for b, pair in enumerate(zip(means.tolist(), frequencies.tolist(), strict=True))
    ]
