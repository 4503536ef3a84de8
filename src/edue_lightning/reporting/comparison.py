"""Runs of several methods and seeds side by side, compared on the same resamples of the same cases."""

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
from edue_lightning.runs.files import METRICS_COLUMNS, Run

COMPARISON_COLUMNS = (*METRICS_COLUMNS, "seeds", "better")
DIFFERENCE_COLUMNS = (
    *("method", "reference", "data", "split", "structure", "metric"),
    *("difference", "ci_low", "ci_high", "seeds"),
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
"""Method, data set and split."""


@dataclass(frozen=True)
class PairedDifference:
    """A metric of one method and a metric of another, on the same resamples of the same cases.

    Attributes:
        value: of the first, mean over seeds; NaN where it is undefined.
        other: of the second.
        difference: the first minus the second.
        ci_low: lower end of the difference's 95 % interval.
        ci_high: upper end.
        seeds: the smaller number of the two.
    """

    value: float
    other: float
    difference: float
    ci_low: float
    ci_high: float
    seeds: int


def group_by_subject(runs: Sequence[Run]) -> dict[Subject, list[Run]]:
    """Return the runs of each method, data set and split, which differ by their seed.

    Raises:
        UserError: if two of them have the same seed, or they were measured on different cases.
    """
    groups: dict[Subject, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.key].append(run)
    for (method, data, split), members in groups.items():
        of_seed: dict[int, Run] = {}
        for run in members:
            if run.seed in of_seed:
                raise UserError(
                    f"{of_seed[run.seed].folder} and {run.folder}: both are {method} on {data}/{split} with seed "
                    f"{run.seed}; remove one, or train one with a label of its own (label=NAME)"
                )
            of_seed[run.seed] = run
            if run.replicates.case_ids != members[0].replicates.case_ids:
                raise UserError(
                    f"{members[0].folder} and {run.folder}: seeds of {method} on {data}/{split} were measured on "
                    "different cases; evaluate both on the same data"
                )
    return dict(groups)


def compare(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a method, data set, split, structure and metric (`COMPARISON_COLUMNS`).

    The value is the mean over seeds. With one seed the interval is the run's own, over cases; with several it is over
    cases and seeds: each replicate draws seeds with replacement and averages their replicate of the same cases.
    """
    rows = []
    for (method, data, split), members in group_by_subject(runs).items():
        tables = [_by_metric(run) for run in members]
        for structure, metric in tables[0]:
            found = [table.get((structure, metric)) for table in tables]
            present = [row for row in found if row is not None]
            low, high = interval(replicates_over_seeds(members, structure, metric))
            value = float(np.mean([row["value"] for row in present]))
            counts = (int(min(r["n_cases"] for r in present)), int(max(r["n_undefined"] for r in present)))
            ends = (low, high) if not np.isnan(value) else (np.nan, np.nan)
            better = _better(present[0])
            rows.append((method, data, split, structure, metric, value, *ends, *counts, len(members), better))
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def paired_differences(runs: Sequence[Run], reference: str) -> pd.DataFrame:
    """Return how every other method differs from a reference (method minus reference), on the same resamples.

    Methods that were measured on other cases than the reference are left out: nothing pairs them.

    Args:
        runs: see `find_runs`.
        reference: label of a method.

    Returns:
        `DIFFERENCE_COLUMNS`; `seeds` is the smaller number of the two.
    """
    groups = group_by_subject(runs)
    rows = []
    for (method, data, split), members in groups.items():
        references = groups.get((reference, data, split))
        if method == reference or references is None or not on_same_cases(members, references):
            continue
        for structure, metric in _by_metric(members[0]):
            found = paired_difference(members, references, structure, metric)
            interval_ends = (found.ci_low, found.ci_high)
            identity = (method, reference, data, split, structure, metric)
            rows.append((*identity, found.difference, *interval_ends, found.seeds))
    return pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))


def on_same_cases(first: Sequence[Run], second: Sequence[Run]) -> bool:
    """Return whether two methods were measured on the same cases, so that their resamples pair."""
    return first[0].replicates.case_ids == second[0].replicates.case_ids


def paired_difference(
    first: Sequence[Run], second: Sequence[Run], structure: str, metric: str, other_metric: str | None = None
) -> PairedDifference:
    """Return how two methods differ, each in a metric of its own, with an interval over cases and seeds.

    Args:
        first: seeds of a method.
        second: seeds of another, on the same cases.
        structure: of both.
        metric: of the first.
        other_metric: of the second; None for the same.

    Raises:
        UserError: if a run has no replicates of its metric.
    """
    other_metric = other_metric or metric
    value, other = mean_over_seeds(first, structure, metric), mean_over_seeds(second, structure, other_metric)
    own, others = (
        replicates_over_seeds(first, structure, metric),
        replicates_over_seeds(second, structure, other_metric, 1),
    )
    ends = interval(own - others) if not np.isnan(value - other) else (np.nan, np.nan)
    return PairedDifference(value, other, value - other, *ends, min(len(first), len(second)))


def mean_over_seeds(runs: Sequence[Run], structure: str, metric: str) -> float:
    """Return a metric's mean over the seeds of a method; NaN if one of them does not define it."""
    return float(np.mean([run.value(structure, metric) for run in runs]))


def replicates_over_seeds(runs: Sequence[Run], structure: str, metric: str, draw: int = 0) -> Array:
    """Return the replicates of a method's mean over seeds, `[resamples]`, the seeds drawn with replacement for each.

    Args:
        runs: seeds of the method.
        structure: of the metric.
        metric: its name.
        draw: distinguishes the draws of two methods, whose seeds have nothing to do with each other.

    Raises:
        UserError: if a run has no replicates of the metric.
    """
    stacked = np.stack([_replicates(run, structure, metric) for run in runs])
    seeds, resamples = stacked.shape
    drawn = np.random.default_rng([seeds, draw]).integers(0, seeds, size=(seeds, resamples))
    averaged: Array = np.take_along_axis(stacked, drawn, axis=0).mean(axis=0)
    return averaged


def comparison_table(
    comparison: pd.DataFrame, data: str, split: str, structure: str, bold: Callable[[str], str]
) -> pd.DataFrame:
    """Return a table to read: a row a method, a column a metric, cells such as `0.842 [0.801, 0.871]`.

    Args:
        comparison: see `compare`.
        data: data set.
        split: of it.
        structure: of it.
        bold: marks the best value of a column.
    """
    chosen = comparison[
        (comparison["data"] == data) & (comparison["split"] == split) & (comparison["structure"] == structure)
    ]
    table: dict[str, list[str]] = {"method": list(dict.fromkeys(chosen["method"]))}
    own = [metric for metric in dict.fromkeys(chosen["metric"]) if metric not in METRICS]
    for metric in (*TABLE_METRICS, *own):
        better = next(iter(chosen.loc[chosen["metric"] == metric, "better"]), _better({"metric": metric}))
        rows = chosen[chosen["metric"] == metric].set_index("method").reindex(table["method"])
        numbers = rows[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
        defined = numbers[~np.isnan(numbers[:, 0]), 0]
        best = {"low": np.min, "high": np.max}[better](defined) if len(defined) and better != "neither" else np.nan
        table[f"{metric} {_ARROWS[better]}".strip()] = [
            _cell(value, low, high, bold if value == best else None) for value, low, high in numbers.tolist()
        ]
    return pd.DataFrame(table)


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table of texts in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _cell(value: float, low: float, high: float, bold: Callable[[str], str] | None) -> str:
    if np.isnan(value):
        return "undefined"
    text = f"{value:.3f}"
    return f"{bold(text) if bold else text} [{low:.3f}, {high:.3f}]"


def _better(row: Mapping[str, Any]) -> str:
    """Return the direction of a row's metric; tables of earlier versions do not hold it."""
    definition = METRICS.get(row["metric"])
    return str(row.get("better", definition.better if definition else "high"))


def _by_metric(run: Run) -> dict[tuple[str, str], Mapping[str, Any]]:
    rows = run.metrics.to_dict("records")
    return {(str(row["structure"]), str(row["metric"])): row for row in rows}  # type: ignore[misc]


def _replicates(run: Run, structure: str, metric: str) -> Array:
    found = run.replicates.arrays.get((structure, metric))
    if found is None:
        raise UserError(f"{run.folder}: has no bootstrap replicates of {structure}/{metric}; evaluate it again")
    return found
