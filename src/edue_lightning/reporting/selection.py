"""Choices between methods and between read-outs, by values on validation data alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edue_lightning.metrics import LOWER_IS_BETTER, SCORES
from edue_lightning.runs.files import Run


def scores_of(family: str) -> dict[str, str]:
    """Return the score behind each metric of a family, such as `sv_total` behind `aurc_total` of `aurc`."""
    return {f"{family}{suffix}": score for suffix, (score, _) in SCORES.items()}


def validation_mean(runs: Sequence[Run], structure: str, metric: str) -> float:
    """Return a metric on validation data, averaged over the seeds of a method; NaN if a seed does not define it."""
    return float(np.mean([run.validation_value(structure, metric) for run in runs]))


def eligible_metrics(runs: Sequence[Run], structure: str, metrics: Sequence[str]) -> list[str]:
    """Return the read-outs that no other one surpasses in the number of cases that define it.

    A read-out that a case leaves undefined drops this case, which may be just a failure, such as an empty mask without
    a variance by size. So only the read-outs that most test cases define can be chosen, and of these the ones that most
    validation cases define. The numbers of cases decide, no value on the test split does.

    Args:
        runs: seeds of the method.
        structure: name of the structure.
        metrics: names of the read-outs of one quantity.
    """
    counts = {
        metric: (
            min(run.n_cases(structure, metric) for run in runs),
            min(run.validation_n_cases(structure, metric) for run in runs),
        )
        for metric in metrics
    }
    most = max(counts.values())
    return [metric for metric in metrics if counts[metric] == most]


def best_metric(runs: Sequence[Run], structure: str, metrics: Sequence[str]) -> str | None:
    """Return the eligible metric, of several read-outs, that is best on validation data for a method.

    Args:
        runs: seeds of the method.
        structure: name of the structure.
        metrics: names of metrics of one direction, see `eligible_metrics`; the first of equals is chosen.

    Returns:
        None if validation data define none of them.
    """
    values = {metric: validation_mean(runs, structure, metric) for metric in eligible_metrics(runs, structure, metrics)}
    defined = [metric for metric, value in values.items() if not np.isnan(value)]
    return max(defined, key=lambda metric: goodness(metric, values[metric]), default=None)


def goodness(metric: str, value: float) -> float:
    """Return a value with its sign changed where lower is better, so that larger is better."""
    return -value if metric in LOWER_IS_BETTER else value
