"""Comparison of methods over their seeds, paired on the same resamples of the same cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edue_lightning.errors import UserError
from edue_lightning.metrics import METRICS, interval
from edue_lightning.reporting.identity import distinguish
from edue_lightning.reporting.out_of_distribution import OOD_AUROC
from edue_lightning.reporting.outcomes import holm, is_degenerate, is_shown, two_sided_p
from edue_lightning.reporting.shared_cases import differing_cases, independent_groups, on_shared_cases
from edue_lightning.runs.files import METRICS_COLUMNS, Run

COMPARISON_COLUMNS = (*METRICS_COLUMNS, "seeds", "better")
DIFFERENCE_COLUMNS = (
    *("method", "reference", "data", "split", "structure", "metric"),
    *("difference", "ci_low", "ci_high", "seeds", "differing_cases"),
)
TABLE_METRICS = (
    "dice",
    "nll",
    "ece",
    "brier",
    "image_pearson",
    "image_spearman",
    "image_spearman_normalised",
    "pixel_pearson",
    "image_pearson_total",
    "pixel_pearson_total",
)

_ARROWS = {"high": "↑", "low": "↓", "neither": ""}

Array = NDArray[np.float64]
Subject = tuple[str, str, str]
"""Method, data set and split; or data set, split and structure."""


@dataclass(frozen=True)
class PairedDifference:
    """A metric of one method and a metric of another, on the same resamples of the same cases.

    Attributes:
        value: value of the first, mean over seeds; NaN where it is undefined.
        other: value of the second.
        difference: the first minus the second.
        ci_low: lower end of the difference's 95 % interval; NaN without an interval.
        ci_high: upper end.
        p_value: two-sided p-value of no difference, see `two_sided_p`; NaN without an interval.
        seeds: the smaller number of seeds.
    """

    value: float
    other: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    seeds: int


def group_by_subject(runs: Sequence[Run]) -> dict[Subject, list[Run]]:
    """Return the seeds of each method, data set and split, under names that `distinguish` gives.

    Raises:
        UserError: if two runs differ in nothing, not even in their seed.
    """
    groups: dict[Subject, list[Run]] = defaultdict(list)
    for run in distinguish(runs):
        groups[run.key].append(run)
    for (method, data, split), members in groups.items():
        of_seed: dict[int, Run] = {}
        for run in members:
            if run.seed in of_seed:
                raise UserError(
                    f"{of_seed[run.seed].folder} and {run.folder}: both are {method} on {data}/{split} with seed "
                    f"{run.seed} and the same settings; remove one, or give one a label of its own (label=NAME)"
                )
            of_seed[run.seed] = run
    return dict(groups)


def compare(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per method, data set, split, structure and metric (`COMPARISON_COLUMNS`).

    The value is the mean over seeds. With one seed the interval is the run's own, over cases; with several it is over
    cases and seeds, see `replicates_over_seeds`.
    """
    rows = []
    for (method, data, split), members in group_by_subject(runs).items():
        tables = [_by_metric(run) for run in members]
        for structure, metric in dict.fromkeys(key for table in tables for key in table):
            present = [table[structure, metric] for table in tables if (structure, metric) in table]
            value = mean_over_seeds(members, structure, metric)
            if len(members) == 1:
                ends = (present[0]["ci_low"], present[0]["ci_high"])
            elif np.isnan(value):
                ends = (np.nan, np.nan)
            else:
                ends = interval(replicates_over_seeds(members, structure, metric))
            counts = (int(min(r["n_cases"] for r in present)), int(max(r["n_undefined"] for r in present)))
            better = _better(present[0])
            rows.append((method, data, split, structure, metric, value, *ends, *counts, len(members), better))
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def paired_differences(runs: Sequence[Run], reference: str) -> pd.DataFrame:
    """Return the differences of every other method from a reference (method minus reference), on the same resamples.

    Methods measured on other data than the reference are left out.

    Args:
        runs: see `find_runs`.
        reference: name of a method.

    Returns:
        `DIFFERENCE_COLUMNS`; `seeds` is the smaller number of the two, `differing_cases` see `differing_cases`.
    """
    groups = group_by_subject(runs)
    rows = []
    for (method, data, split), members in groups.items():
        references = groups.get((reference, data, split))
        if method == reference or references is None:
            continue
        for structure, metric in _by_metric(members[0]):
            found = paired_difference(members, references, structure, metric)
            interval_ends = (found.ci_low, found.ci_high)
            identity = (method, reference, data, split, structure, metric)
            differing = differing_cases([(members, metric), (references, metric)], structure)
            rows.append((*identity, found.difference, *interval_ends, found.seeds, differing))
    return pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))


def paired_difference(
    first: Sequence[Run], second: Sequence[Run], structure: str, metric: str, other_metric: str | None = None
) -> PairedDifference:
    """Return the difference between two methods, each in a metric of its own, with an interval over cases and seeds.

    Values and interval are over the cases that define the metrics of both, see `on_shared_cases`.

    Args:
        first: seeds of a method.
        second: seeds of another, on the same cases.
        structure: structure of both.
        metric: metric of the first.
        other_metric: metric of the second; None for the same.
    """
    other_metric = other_metric or metric
    groups = independent_groups([(first, metric), (second, other_metric)], structure)
    first, second = on_shared_cases([(first, metric), (second, other_metric)], structure)
    of_seeds = (values_of_seeds(first, structure, metric), values_of_seeds(second, structure, other_metric))
    value, other = (float(values.mean()) for values in of_seeds)
    low = high = p_value = np.nan
    if not np.isnan(value - other):
        own, others = paired_replicates([(first, metric), (second, other_metric)], structure)
        low, high = interval(own - others)
        p_value = two_sided_p(own - others, groups, of_seeds)
    return PairedDifference(value, other, value - other, low, high, p_value, min(len(first), len(second)))


def paired_replicates(methods: Sequence[tuple[Sequence[Run], str]], structure: str) -> list[Array]:
    """Return the replicates of several methods' means over seeds, each in its metric, on the same resamples.

    Runs with different numbers of resamples share the first of them, since the draws of a resample do not depend on
    their number. Runs with different cases or groups share none, nor do runs of earlier
    versions with their cases in different orders.

    Args:
        methods: seeds and metric of each method.
        structure: structure of the metrics.
    """
    drawn = [replicates_over_seeds(runs, structure, metric, draw) for draw, (runs, metric) in enumerate(methods)]
    shared = min(map(len, drawn)) if _in_one_order([run for runs, _ in methods for run in runs]) else 0
    return [values[:shared] for values in drawn]


def mean_over_seeds(runs: Sequence[Run], structure: str, metric: str) -> float:
    """Return a metric's mean over the seeds of a method; NaN if a seed does not define it."""
    return float(values_of_seeds(runs, structure, metric).mean())


def values_of_seeds(runs: Sequence[Run], structure: str, metric: str) -> Array:
    """Return a metric of each seed of a method, `[seeds]`; NaN where it is undefined."""
    return np.array([run.value(structure, metric) for run in runs])


def replicates_over_seeds(runs: Sequence[Run], structure: str, metric: str, draw: int = 0) -> Array:
    """Return the replicates of a method's mean over seeds, `[resamples]`.

    Each averages the replicates of the same cases of n - 1 of the n seeds, drawn with replacement: n draws would have a
    variance between seeds that is too small by the factor (n - 1) / n (Rao and Wu, JASA 83, 1988). A single seed has
    its own replicates.

    Empty if a run has no replicates or no interval of the metric, or the seeds do not have the same resamples.

    Args:
        runs: seeds of the method.
        structure: structure of the metric.
        metric: name of the metric.
        draw: number that differs between methods, whose seeds are drawn independently.
    """
    nothing = np.empty(0)
    found = [
        run.replicates.arrays.get((structure, metric), nothing) if run.has_interval(structure, metric) else nothing
        for run in runs
    ]
    shared = min(map(len, found)) if _in_one_order(runs) else 0
    stacked = np.stack([values[:shared] for values in found])
    seeds, resamples = stacked.shape
    drawn = np.random.default_rng([seeds, draw]).integers(0, seeds, size=(max(seeds - 1, 1), resamples))
    averaged: Array = np.take_along_axis(stacked, drawn, axis=0).mean(axis=0)
    return averaged


def best_methods(methods: Mapping[str, Sequence[Run]], structure: str, metric: str) -> frozenset[str]:
    """Return the methods that are not distinguishable from the one with the best value of a metric.

    A method is distinguishable if the interval of its difference from the best excludes 0 and so does Holm's correction
    over the methods, which accounts for the choice of the best among them. Degenerate methods (`is_degenerate`) and
    methods without an interval are left out, so the best of the rest leads; the result is empty for fewer than two.

    Args:
        methods: seeds of each method, all on the same data.
        structure: name of the structure.
        metric: name of the metric.
    """
    table = next(iter(methods.values()))[0].metrics
    rows = table[table["metric"] == metric].to_dict("records")
    better = _better(rows[0] if rows else {"metric": metric})  # type: ignore[arg-type]
    if better == "neither":
        return frozenset()
    sign = -1 if better == "low" else 1
    values = {name: sign * mean_over_seeds(runs, structure, metric) for name, runs in methods.items()}
    compared = {
        name: value
        for name, value in values.items()
        if not np.isnan(value) and not is_degenerate(mean_over_seeds(methods[name], structure, "dice"))
    }
    if len(compared) < 2:
        return frozenset()
    for best in sorted(compared, key=lambda name: -compared[name]):
        others = [name for name in compared if name != best]
        found = {name: paired_difference(methods[name], methods[best], structure, metric) for name in others}
        found = {name: difference for name, difference in found.items() if not np.isnan(difference.p_value)}
        if not found:
            # no interval, so the next best leads
            continue
        adjusted = holm([difference.p_value for difference in found.values()])
        alike = {
            name
            for (name, difference), p_value in zip(found.items(), adjusted, strict=True)
            # on the cases that define both, another method may have the better value
            if not is_shown(difference.ci_low, difference.ci_high, p_value) or sign * difference.difference > 0
        }
        return frozenset({best, *alike})
    return frozenset()


def comparison_table(
    comparison: pd.DataFrame,
    subject: Subject,
    best: Mapping[str, frozenset[str]],
    bold: Callable[[str], str],
) -> pd.DataFrame:
    """Return a table to read: one row per method, one column per metric, cells such as `0.842 [0.801, 0.871]`.

    Args:
        comparison: see `compare`.
        subject: data set, split and structure.
        best: names of the methods to mark by metric, see `best_methods`.
        bold: marker of the best values.
    """
    chosen = comparison[(comparison[["data", "split", "structure"]] == list(subject)).all(axis=1)]
    table: dict[str, list[str]] = {"method": list(dict.fromkeys(chosen["method"]))}
    for metric in shown_metrics(chosen):
        better = next(iter(chosen.loc[chosen["metric"] == metric, "better"]), _better({"metric": metric}))
        rows = chosen[chosen["metric"] == metric].set_index("method").reindex(table["method"])
        numbers = rows[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
        table[f"{metric} {_ARROWS[better]}".strip()] = [
            _cell(value, low, high, bold if method in best.get(metric, ()) else None)
            for method, (value, low, high) in zip(table["method"], numbers.tolist(), strict=True)
        ]
    return pd.DataFrame(table)


def shown_metrics(comparison: pd.DataFrame) -> list[str]:
    """Return the metrics of a table to read: `TABLE_METRICS`, and those from outside the package."""
    ours = {*METRICS, *OOD_AUROC}
    return [*TABLE_METRICS, *(metric for metric in dict.fromkeys(comparison["metric"]) if metric not in ours)]


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table of texts in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _cell(value: float, low: float, high: float, bold: Callable[[str], str] | None) -> str:
    if np.isnan(value):
        return "undefined"
    text = f"{value:.3f}"
    return f"{bold(text) if bold else text} {interval_text(low, high)}"


def interval_text(low: float, high: float, form: str = ".3f") -> str:
    """Return an interval in brackets, or the words `no interval`."""
    return "(no interval)" if np.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def _better(row: Mapping[str, Any]) -> str:
    """Return the direction of a row's metric; tables of earlier versions do not hold it."""
    definition = METRICS.get(row["metric"])
    return str(row.get("better") or (definition.better if definition else "high"))


def _by_metric(run: Run) -> dict[tuple[str, str], Mapping[str, Any]]:
    rows = run.metrics.to_dict("records")
    return {(str(row["structure"]), str(row["metric"])): row for row in rows}  # type: ignore[misc]


def _in_one_order(runs: Sequence[Run]) -> bool:
    return all(run.replicates.pairs_with(runs[0].replicates) for run in runs)
