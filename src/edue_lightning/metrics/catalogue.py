"""All metrics and statistics by name, collected from the families."""

from __future__ import annotations

from collections.abc import Sequence

from edue_lightning.metrics import agreement, calibration, correlation, distribution, overlap, selective, surface
from edue_lightning.metrics.case_statistics import Columns
from edue_lightning.metrics.definition import Definition, PerCaseMetric
from edue_lightning.metrics.scores import AREA, MODEL_SCORES, RATER_SCORES, RATERS, SCORES, WHOLE_MAP_SCORES
from edue_lightning.metrics.settings import MetricSettings

STATISTICS = (
    *overlap.STATISTICS,
    *surface.STATISTICS,
    *calibration.STATISTICS,
    *distribution.STATISTICS,
    MODEL_SCORES,
    WHOLE_MAP_SCORES,
    RATER_SCORES,
    *correlation.STATISTICS,
    AREA,
    RATERS,
)
"""Every number that is kept of a case and structure, in float64; NaN where the case leaves it undefined.

`docs/metrics.md` defines each. `bins` is a table of 15 x 3 numbers, see `reliability_bins`.
"""

STATISTIC_NAMES = Columns.all_of(STATISTICS).names

METRICS: dict[str, Definition] = {
    definition.name: definition
    for family in (overlap, surface, calibration, distribution, agreement, correlation, selective)
    for definition in family.METRICS
}
"""Every metric by its name in tables; `docs/metrics.md` defines each.

`image_*` correlate a method's score with the raters' SV* over cases, `pixel_*` average a correlation over voxels over
cases, `d_auc` and `*aurc` measure how well the score finds poor segmentations. Without suffix the score is SV, the
summed variance between members; the suffixes are those of `SCORES`.
"""

LOWER_IS_BETTER = frozenset(name for name, definition in METRICS.items() if definition.better == "low")
"""Metrics of which a smaller value is better; of all others a larger one, but for the agreement of members, which is
neither good nor bad by itself."""

_COSTLY_STATISTICS = frozenset({*surface.SURFACE.names, *calibration.ADAPTIVE_ERROR.names})
"""Statistics that take longer than all others together."""

VALIDATION_METRICS = tuple(
    name for name, definition in METRICS.items() if not set(definition.needs) & _COSTLY_STATISTICS
)
"""Metrics that are computed after every epoch."""


RESERVED_NAMES = frozenset(
    (
        *("method", "data", "split", "seed", "structure", "metric", "value", "ci_low", "ci_high", "n_cases"),
        *("n_undefined", "better", "no_interval", "case_id", "group", "fingerprint", "image_fingerprint"),
        "unit",
        *("score", "distortion", "severity"),
    )
)
"""Columns that stand beside metrics and statistics in tables: no metric of `MetricSettings.extra` has such a name."""


def known_metrics(settings: MetricSettings) -> dict[str, Definition]:
    """Return all metrics by name, those of `MetricSettings.extra` last.

    Raises:
        ValueError: if one of `extra` is not a `PerCaseMetric`, or its name is that of another number or column.
    """
    for name, metric in settings.extra.items():
        if not isinstance(metric, PerCaseMetric):
            raise ValueError(f"extra.{name} must be a PerCaseMetric (edue_lightning.metrics), not {metric!r}")
        if name in METRICS or name in STATISTIC_NAMES:
            raise ValueError(f"extra.{name}: there is a metric or statistic of this name already; choose another name")
        if name in RESERVED_NAMES:
            raise ValueError(f"extra.{name}: a column of the tables has this name; choose another name")
    return METRICS | {name: metric.definition(name) for name, metric in settings.extra.items()}


def known_columns(settings: MetricSettings) -> Columns:
    """Return all statistics, those of `MetricSettings.extra` last."""
    extra = [definition for name, definition in known_metrics(settings).items() if name in settings.extra]
    return Columns.all_of([*STATISTICS, *(part for definition in extra for part in definition.statistics)])


def statistics_needed(metrics: Sequence[str], settings: MetricSettings) -> tuple[str, ...]:
    """Return the names of the statistics that some metrics read."""
    known = known_metrics(settings)
    return tuple(dict.fromkeys(name for metric in metrics for name in known[metric].needs))


__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "SCORES",
    "STATISTICS",
    "STATISTIC_NAMES",
    "VALIDATION_METRICS",
    "known_columns",
    "known_metrics",
    "statistics_needed",
]
