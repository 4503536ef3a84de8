"""Comparison of methods on the cases that define the metrics of all of them.

A metric may leave a case undefined for one method and not for another, such as a correlation by size where a method
marks nothing. Methods with different cases cannot be compared, so such a metric is computed again over the shared ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from edue_lightning.config.build import build_metric_settings
from edue_lightning.config.schema import check_only_ours
from edue_lightning.metrics import MEAN_STRUCTURE, METRICS, MetricSettings, interval, resample_counts
from edue_lightning.metrics.bootstrap import few_groups, group_numbers, usable_replicates
from edue_lightning.metrics.definition import Estimate, StructureCases, mean_estimate
from edue_lightning.runs.files import METRICS_COLUMNS, Run
from edue_lightning.runs.record import TRAINING
from edue_lightning.text import listed

Measured = tuple[Sequence[Run], str]
"""Seeds of a method, and the metric that it is compared by."""


def on_shared_cases(methods: Sequence[Measured], structure: str) -> list[Sequence[Run]]:
    """Return each method's seeds with value and replicates of its metric over the cases that define all of them.

    The resamples stay those of all cases, and draw the others with a weight of 0. The mean over structures averages
    the structures, each over its own shared cases; without a shared case the metric is undefined. Runs with the same
    defining cases are returned as they are, and so are all runs if one of them does not hold the numbers of its cases,
    such as the counts behind the ECE in runs of earlier versions, or if no case defines its metric.

    Args:
        methods: seeds and metric of each method, all on the same cases.
        structure: structure of the metrics.
    """
    known = _defining_parts(methods, structure)
    if not _differ(known) or not all(all(cases) for cases in known.values()):
        return [runs for runs, _ in methods]
    shared = {name: frozenset.intersection(*cases) for name, cases in known.items()}
    return [[_restricted(run, structure, metric, shared) for run in runs] for runs, metric in methods]


def differing_cases(methods: Sequence[Measured], structure: str) -> str:
    """Return on how many cases methods are compared if not the same define the metric of each, or an empty text.

    Args:
        methods: seeds and metric of each method.
        structure: structure of the metrics.
    """
    counts = [min(run.n_cases(structure, metric) for run in runs) for runs, metric in methods]
    alike = len(set(counts)) == 1
    parts = _defining_parts(methods, structure)
    if not parts:
        return "" if alike else f"defined for {listed([str(count) for count in counts])} cases"
    if not _differ(parts):
        return ""
    shared = frozenset.intersection(*(cases for of_part in parts.values() for cases in of_part))
    if not shared:
        return f"defined for {listed([str(count) for count in counts])} cases, none of them the same"
    text = f"{counts[0]} each" if alike else listed([str(count) for count in counts])
    return f"on the {len(shared)} cases that define it for all, of {text}"


def independent_groups(methods: Sequence[Measured], structure: str) -> int:
    """Return the number of independent groups of cases (patients) that define the metrics of all methods.

    Of the mean over structures it is the smallest of the structures'. Where a run does not hold the numbers of its
    cases, it is that of all groups, and no more than the cases that define each metric.

    Args:
        methods: seeds and metric of each method, all on the same cases.
        structure: structure of the metrics.
    """
    replicates = methods[0][0][0].replicates
    group_of = dict(zip(replicates.case_ids, replicates.groups or replicates.case_ids, strict=True))
    parts = _defining_parts(methods, structure).values()
    shared = [frozenset.intersection(*cases) for cases in parts] or [frozenset(group_of)]
    groups = [len({group_of[case] for case in cases}) for cases in shared]
    return min(*groups, *(run.n_cases(structure, metric) for runs, metric in methods for run in runs))


def _defining_parts(methods: Sequence[Measured], structure: str) -> dict[str, list[frozenset[str]]]:
    """Return the cases that define each run's metric by structure; empty if a run does not hold their numbers."""
    found = {name: _defining(methods, name) for name in _parts(methods, structure)}
    known = {name: cases for name, cases in found.items() if cases is not None}
    return known if len(known) == len(found) else {}


def _differ(parts: Mapping[str, Sequence[frozenset[str]]]) -> bool:
    return any(len(set(cases)) > 1 for cases in parts.values())


def _defining(methods: Sequence[Measured], structure: str) -> list[frozenset[str]] | None:
    """Return the cases that define each run's metric; None if a run does not hold the numbers that define it."""
    found = [run.defining_cases(structure, _needs(metric)) for runs, metric in methods for run in runs]
    return None if None in found else [cases for cases in found if cases is not None]


def _needs(metric: str) -> tuple[str, ...]:
    """Return the numbers of a case behind a metric: a metric from outside is the mean of its column."""
    return METRICS[metric].needs if metric in METRICS else (metric,)


def _parts(methods: Sequence[Measured], structure: str) -> list[str]:
    """Return the structure, or all structures of a mean over them."""
    return [structure] if structure != MEAN_STRUCTURE else list(methods[0][0][0].cases["structure"].unique())


def _restricted(run: Run, structure: str, metric: str, shared: Mapping[str, frozenset[str]]) -> Run:
    """Return a run that holds one metric of one structure, over some cases of the structures that it is made of."""
    ids = run.replicates.case_ids
    groups = run.replicates.groups or None
    resamples = len(run.replicates.arrays.get((structure, metric), ()))
    weights = np.concatenate([np.ones((1, len(ids))), resample_counts(len(ids), resamples, groups=groups)])
    numbers = group_numbers(groups or range(len(ids)))
    settings = _settings(run)
    estimate = METRICS[metric].estimate if metric in METRICS else mean_estimate(metric)
    estimates = []
    for name, cases in shared.items():
        columns = run.case_columns(name, _needs(metric))
        assert columns is not None, "checked"
        kept = np.array([case in cases for case in ids])
        values, defined = np.full(len(weights), np.nan), np.zeros(len(ids), dtype=bool)
        if kept.any():
            own = StructureCases({key: each[kept] for key, each in columns.items()}, settings.poor_dice_of(name))
            found = estimate(own, weights[:, kept])
            values, defined[kept] = found.values, found.defined  # noqa: PD011
        estimates.append(Estimate(values, defined))
    values = np.mean([one.values for one in estimates], axis=0)  # noqa: PD011
    few = next(filter(None, (few_groups(numbers, one) for one in estimates)), "")
    replicates, reason = usable_replicates(values, few)
    n_defined = int(np.logical_and.reduce([one.defined for one in estimates]).sum())
    ends = (np.nan, np.nan) if reason else interval(replicates)
    row = (*run.key, structure, metric, float(values[0]), *ends, n_defined, len(ids) - n_defined, reason)
    return replace(
        run,
        metrics=pd.DataFrame([row], columns=[*METRICS_COLUMNS, "no_interval"]),
        replicates=replace(run.replicates, arrays={(structure, metric): replicates}),
    )


def _settings(run: Run) -> MetricSettings:
    """Return the settings of the run's metrics without those from outside, whose code is not needed here."""
    trained = run.configuration.get(TRAINING) or {}
    node = run.configuration.get("metrics") or trained.get("metrics")
    if node is not None:
        node = {key: value for key, value in node.items() if key != "extra"}
        check_only_ours(node, f"{run.folder}: metrics")
    # settings that name structures name all of the run's, whichever is compared
    return build_metric_settings(node, list(run.cases["structure"].unique()))
