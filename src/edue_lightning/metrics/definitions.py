"""Every metric by its name in tables, each written once as a function of the cases and of how often each counts.

A weighting of ones gives the estimate, the counts of a bootstrap resample give a replicate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edue_lightning.metrics.calibration import (
    average_calibration_error,
    brier_split,
    expected_calibration_error,
    maximum_calibration_error,
)
from edue_lightning.metrics.case_statistics import BINS
from edue_lightning.metrics.correlation import weighted_pearson, weighted_spearman
from edue_lightning.metrics.selective import RiskCoverage, distance_to_ideal_area, risk_coverage

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StructureCases:
    """The cases of one structure.

    Attributes:
        columns: numbers of the N cases by name, `[N]`, `bins` `[N, 15, 3]`; NaN where a case defines none.
        poor_dice: a segmentation with a Dice below this is a poor one.
    """

    columns: Mapping[str, Array]
    poor_dice: float


@dataclass(frozen=True)
class Estimate:
    """A metric over some cases.

    Attributes:
        values: for each weighting, `[W]`; NaN where it is undefined.
        defined: which cases define it, `[N]`.
    """

    values: Array
    defined: NDArray[np.bool_]


Estimator = Callable[[StructureCases, Array], Estimate]
"""From cases and weights `[W, N]`."""


@dataclass(frozen=True)
class Definition:
    """A metric.

    Attributes:
        estimate: its function.
        needs: names of the statistics that it reads.
        lower_is_better: direction.
    """

    estimate: Estimator
    needs: tuple[str, ...]
    lower_is_better: bool = False


def _mean(column: str, lower_is_better: bool = False) -> Definition:
    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        values = cases.columns[column]
        defined = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return Estimate((weights @ np.where(defined, values, 0)) / (weights @ defined), defined)

    return Definition(estimate, (column,), lower_is_better)


def _calibration(function: Callable[[Array], Array]) -> Definition:
    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        bins = cases.columns[BINS]
        return Estimate(function(np.einsum("wn,nbs->wbs", weights, bins)), bins[..., 0].sum(axis=1) > 0)

    return Definition(estimate, (BINS,), lower_is_better=True)


def _pair(
    function: Callable[[Array, Array, Array], Array], first: str, second: str, sign: int = 1, *, lower: bool = False
) -> Definition:
    """Define a metric of two columns, the first turned by `sign`, over the cases that have both."""

    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        columns = (sign * cases.columns[first], cases.columns[second])
        defined = ~(np.isnan(columns[0]) | np.isnan(columns[1]))
        filled = [np.where(defined, column, 0) for column in columns]
        return Estimate(function(filled[0], filled[1], np.where(defined, weights, 0)), defined)

    return Definition(estimate, (first, second), lower)


def _quality_control(score: str, sign: int) -> Definition:
    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        def area(uncertainty: Array, dice: Array, counted: Array) -> Array:
            return distance_to_ideal_area(uncertainty, (dice < cases.poor_dice).astype(float), counted)

        return _pair(area, score, "dice", sign).estimate(cases, weights)

    return Definition(estimate, (score, "dice"), lower_is_better=True)


def _selective(score: str, sign: int, area: Callable[[RiskCoverage], Array]) -> Definition:
    def of_dice(uncertainty: Array, dice: Array, weights: Array) -> Array:
        return area(risk_coverage(uncertainty, 1 - dice, weights))

    return _pair(of_dice, score, "dice", sign, lower=True)


SCORES = {
    "": ("sv", 1),
    "_total": ("sv_total", 1),
    "_normalised": ("sv_normalised", 1),
    "_entropy": ("entropy", 1),
    "_aula": ("aula", -1),
    "_model_agreement": ("model_agreement", -1),
}
"""Image-level scores of uncertainty by the suffix of the metrics that use them: the statistic, and its sign."""


def _of_scores() -> dict[str, Definition]:
    metrics: dict[str, Definition] = {}
    for suffix, (score, sign) in SCORES.items():
        # a score by size is compared with the raters' score by size
        raters = "sv_star_normalised" if suffix == "_normalised" else "sv_star"
        metrics[f"image_pearson{suffix}"] = _pair(weighted_pearson, score, raters, sign)
        metrics[f"image_spearman{suffix}"] = _pair(weighted_spearman, score, raters, sign)
        metrics[f"d_auc{suffix}"] = _quality_control(score, sign)
        metrics[f"aurc{suffix}"] = _selective(score, sign, lambda curve: curve.area)
        metrics[f"e_aurc{suffix}"] = _selective(score, sign, lambda curve: curve.excess)
        metrics[f"normalised_aurc{suffix}"] = _selective(score, sign, lambda curve: curve.normalised)
    return metrics


METRICS: dict[str, Definition] = {
    "dice": _mean("dice"),
    "dice_per_rater": _mean("dice_per_rater"),
    "d_soft": _mean("d_soft"),
    "hd95": _mean("hd95", lower_is_better=True),
    "nsd": _mean("nsd"),
    "nll": _mean("nll", lower_is_better=True),
    "brier": _mean("brier", lower_is_better=True),
    "brier_calibration": _calibration(lambda bins: brier_split(bins)[0]),
    "brier_refinement": _calibration(lambda bins: brier_split(bins)[1]),
    "ece": _calibration(expected_calibration_error),
    "ace": _calibration(average_calibration_error),
    "mce": _calibration(maximum_calibration_error),
    "adaptive_ece": _mean("adaptive_ece", lower_is_better=True),
    "ged2": _mean("ged2", lower_is_better=True),
    "volume_crps": _mean("volume_crps", lower_is_better=True),
    "layer_agreement": _mean("layer_agreement"),
    "aula": _mean("aula"),
    "model_agreement": _mean("model_agreement"),
    "pixel_pearson": _mean("pixel_pearson"),
    "pixel_pearson_total": _mean("pixel_pearson_total"),
    "pixel_s_ncc": _mean("pixel_s_ncc"),
    **_of_scores(),
}
"""Every metric by its name in tables; `docs/metrics.md` defines each.

`image_*` correlate over cases a method's score with the raters' SV*, `pixel_*` average over cases a correlation over
voxels, `d_auc` and `*aurc` tell how well the score finds poor segmentations. Without suffix the score is SV, the summed
variance between members; the suffixes are those of `SCORES`.
"""

LOWER_IS_BETTER = frozenset(name for name, definition in METRICS.items() if definition.lower_is_better)
"""Metrics of which a smaller value is better; of all others a larger one, but for the agreement of members, which is
neither good nor bad by itself."""

COSTLY_STATISTICS = frozenset({"hd95", "nsd", "adaptive_ece"})
"""Statistics that take longer than all others together."""

VALIDATION_METRICS = tuple(
    name for name, definition in METRICS.items() if not set(definition.needs) & COSTLY_STATISTICS
)
"""Metrics that are watched after every epoch."""


def statistics_needed(metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the statistics that some metrics read."""
    return tuple(dict.fromkeys(name for metric in metrics for name in METRICS[metric].needs))
