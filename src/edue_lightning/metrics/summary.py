"""From cases to figures: every metric over a set of cases, with a bootstrap interval over the cases.

A metric is written once, as a function of the cases and of how often each counts (`weights`). The estimate counts every
case once; a bootstrap replicate counts each as often as it was drawn. Which cases are drawn depends on their number
alone, so that two methods measured on the same cases are compared on the same replicates (paired).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics.case_statistics import RELIABILITY_BINS, CaseStatistics

Array = NDArray[np.float64]
MEAN_STRUCTURE = "mean"
FEWEST_CASES_FOR_CORRELATION = 3


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


@dataclass(frozen=True)
class _Estimate:
    values: Array
    defined: NDArray[np.bool_]


def _mean(values: Array, weights: Array) -> _Estimate:
    defined = ~np.isnan(values)
    return _Estimate(_divide(weights @ np.where(defined, values, 0), weights @ defined), defined)


def _pearson(first: Array, second: Array, weights: Array) -> _Estimate:
    defined = ~(np.isnan(first) | np.isnan(second))
    counted = np.where(defined, weights, 0)
    first, second = (np.where(defined, part, 0) for part in (first, second))
    return _Estimate(_weighted_pearson(first[None], second[None], counted), defined)


def _spearman(first: Array, second: Array, weights: Array) -> _Estimate:
    defined = ~(np.isnan(first) | np.isnan(second))
    counted = np.where(defined, weights, 0)
    first, second = (np.where(defined, part, 0) for part in (first, second))
    return _Estimate(_weighted_pearson(_ranks(first, counted), _ranks(second, counted), counted), defined)


def _ranks(values: Array, weights: Array) -> Array:
    """Return average ranks `[replicates, N]` of values that occur `weights` times each."""
    _, group = np.unique(values, return_inverse=True)
    per_group = np.zeros((len(weights), group.max(initial=0) + 1))
    np.add.at(per_group.T, group, weights.T)
    below = np.cumsum(per_group, axis=1) - per_group
    return (below + (per_group + 1) / 2)[:, group]


def _weighted_pearson(first: Array, second: Array, weights: Array) -> Array:
    count = weights.sum(axis=1, keepdims=True)

    def centred(part: Array) -> Array:
        return part - _divide((weights * part).sum(axis=1, keepdims=True), count)

    # told by the values themselves: rounding leaves a centred constant with a tiny variance
    drawn = weights > 0
    varies = np.logical_and.reduce(
        [
            np.where(drawn, part, -np.inf).max(axis=1, initial=-np.inf)
            > np.where(drawn, part, np.inf).min(axis=1, initial=np.inf)
            for part in (first, second)
        ]
    )
    first, second = centred(first), centred(second)
    power = (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
    result = _divide((weights * first * second).sum(axis=1), np.sqrt(power))
    defined = varies & (drawn.sum(axis=1) >= FEWEST_CASES_FOR_CORRELATION)
    return np.where(defined, np.clip(result, -1, 1), np.nan)


def _calibration_error(bins: Array, weights: Array) -> _Estimate:
    """Return the ECE: the mean over all voxel-rater pairs of a bin's |mean probability - frequency|."""
    defined = bins[..., 0].sum(axis=1) > 0
    totals = np.einsum("wn,nbs->wbs", weights, bins)
    gaps = np.abs(totals[..., 1] - totals[..., 2]).sum(axis=1)
    return _Estimate(_divide(gaps, totals[..., 0].sum(axis=1)), defined)


def _divide(numerator: Array, denominator: Array) -> Array:
    denominator = np.asarray(denominator, dtype=np.float64)
    undefined = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


Columns = Mapping[str, Array]
METRICS: dict[str, Callable[[Columns, Array], _Estimate]] = {
    "dice": lambda case, weights: _mean(case["dice"], weights),
    "dice_per_rater": lambda case, weights: _mean(case["dice_per_rater"], weights),
    "nll": lambda case, weights: _mean(case["nll"], weights),
    "brier": lambda case, weights: _mean(case["brier"], weights),
    "ece": lambda case, weights: _calibration_error(case["bins"], weights),
    "image_pearson": lambda case, weights: _pearson(case["sv"], case["sv_star"], weights),
    "image_spearman": lambda case, weights: _spearman(case["sv"], case["sv_star"], weights),
    "pixel_pearson": lambda case, weights: _mean(case["pixel_pearson"], weights),
    "image_pearson_total": lambda case, weights: _pearson(case["sv_total"], case["sv_star"], weights),
    "image_spearman_total": lambda case, weights: _spearman(case["sv_total"], case["sv_star"], weights),
    "pixel_pearson_total": lambda case, weights: _mean(case["pixel_pearson_total"], weights),
    "image_spearman_entropy": lambda case, weights: _spearman(case["entropy"], case["sv_star"], weights),
    "image_spearman_aula": lambda case, weights: _spearman(-case["aula"], case["sv_star"], weights),
    "image_spearman_model_agreement": lambda case, weights: _spearman(
        -case["model_agreement"], case["sv_star"], weights
    ),
}
"""Every metric by its name in tables.

`image_*` correlate over cases the sum of a method's disagreement map with the raters' SV*; `pixel_*` average over cases
the correlation over voxels of the map with V*. Without suffix the map is the variance between members, `_total` is
p (1 - p) of their mean. `_entropy`, `_aula` and `_model_agreement` put another score in the place of SV, turned so
that a good score correlates positively.
"""


LOWER_IS_BETTER = frozenset({"nll", "brier", "ece"})
"""Metrics of which a smaller value is better; of all others a larger one."""


def resample_counts(n_cases: int, resamples: int, seed: int = 0) -> Array:
    """Return how often each case is drawn in each bootstrap resample, `[resamples, n_cases]`."""
    drawn = np.random.default_rng([seed, n_cases]).integers(0, max(n_cases, 1), size=(resamples, n_cases))
    counts = np.zeros((resamples, n_cases))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
    return counts


def summarise(
    cases: CaseStatistics,
    structures: Sequence[str],
    resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Summary:
    """Compute every metric over the cases.

    Args:
        cases: of N cases.
        structures: names of the K structures.
        resamples: bootstrap resamples of the cases; 0 for no intervals (NaN).
        confidence: of the percentile intervals.
        seed: of the resamples.
    """
    weights = np.concatenate([np.ones((1, len(cases))), resample_counts(len(cases), resamples, seed)])
    rows: list[MetricRow] = []
    reliability: list[ReliabilityRow] = []
    replicates: dict[tuple[str, str], Array] = {}
    columns = {name: value.double().cpu().numpy() for name, value in vars(cases).items()}
    per_metric: dict[str, list[_Estimate]] = {name: [] for name in METRICS}
    for k, structure in enumerate(structures):
        of_structure = {name: values[:, k] for name, values in columns.items()}
        reliability += _curve(structure, of_structure["bins"].sum(axis=0))
        for name, metric in METRICS.items():
            estimate = metric(of_structure, weights)
            per_metric[name].append(estimate)
            rows.append(_row(structure, name, estimate, confidence))
            replicates[structure, name] = estimate.values[1:]
    if len(structures) > 1:
        for name, estimates in per_metric.items():
            together = _Estimate(
                values=np.mean([e.values for e in estimates], axis=0),
                defined=np.logical_and.reduce([e.defined for e in estimates]),
            )
            rows.append(_row(MEAN_STRUCTURE, name, together, confidence))
            replicates[MEAN_STRUCTURE, name] = together.values[1:]
    return Summary(rows, reliability, replicates)


def _row(structure: str, metric: str, estimate: _Estimate, confidence: float) -> MetricRow:
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
    means = _divide(bins[:, 1], bins[:, 0])
    frequencies = _divide(bins[:, 2], bins[:, 0])
    return [
        ReliabilityRow(structure, b / RELIABILITY_BINS, (b + 1) / RELIABILITY_BINS, round(bins[b, 0]), *pair)
        for b, pair in enumerate(zip(means.tolist(), frequencies.tolist(), strict=True))
    ]
