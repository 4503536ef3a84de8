"""Choices between methods and between read-outs, made on validation data alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edue_lightning.metrics import LOWER_IS_BETTER
from edue_lightning.runs.files import Run


def validation_mean(runs: Sequence[Run], structure: str, metric: str) -> float:
    """Return a metric on validation data, averaged over the seeds of a method; NaN if a seed does not define it."""
    return float(np.mean([run.validation_value(structure, metric) for run in runs]))


def best_metric(runs: Sequence[Run], structure: str, metrics: Sequence[str]) -> str | None:
    """Return the metric, such as one of several read-outs, that is best on validation data for a method.

    Args:
        runs: seeds of the method.
        structure: name of the structure.
        metrics: names of metrics of one direction; the first of equals is chosen.

    Returns:
        None if validation data define none of them.
    """
    values = {metric: validation_mean(runs, structure, metric) for metric in metrics}
    defined = [metric for metric, value in values.items() if not np.isnan(value)]
    return max(defined, key=lambda metric: goodness(metric, values[metric]), default=None)


def goodness(metric: str, value: float) -> float:
    """Return a value with its sign changed where lower is better, so that larger is better."""
    return -value if metric in LOWER_IS_BETTER else value
