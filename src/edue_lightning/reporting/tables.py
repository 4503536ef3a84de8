"""Tables of texts in the report beside the comparison: differences, cost and detection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from edue_lightning.reporting.comparison import group_by_subject, interval_text
from edue_lightning.reporting.curves import auroc_by_kind
from edue_lightning.reporting.selection import best_metric, scores_of
from edue_lightning.runs.files import DENSITY, POOLED_KINDS, Run

DIFFERENCE_METRICS = ("dice", "nll", "ece", "image_pearson", "image_spearman_normalised", "pixel_pearson")
_SELECTIVE = {"d_auc": "d-AUC", "aurc": "AURC"}

TIME_RATIO = "time ratio (quartiles)"
NOISY = 0.2
"""Largest distance between the quartiles of a ratio of times, relative to their median, at which it is shown."""

DETECTION_SCORES = ("sv", "model_agreement", "entropy", DENSITY)

# column, key in model.json, divisor, number format
_COSTS = (
    ("parameters", "parameters", 1, ",.0f"),
    ("parameter ratio", "parameter_ratio", 1, ".2f"),
    ("GFLOPs", "flops", 1e9, ",.2f"),
    ("FLOP ratio", "flop_ratio", 1, ".2f"),
    ("networks", "networks", 1, ",.0f"),
    ("forward passes", "forward_passes", 1, ",.0f"),
    ("train seconds", "train_seconds", 1, ",.0f"),
)


def differences_table(differences: pd.DataFrame, data: str, split: str, structure: str) -> pd.DataFrame:
    """Return one row per method, one column per metric, with cells such as `-0.012 [-0.020, -0.004]`; may be empty.

    Args:
        differences: see `paired_differences`.
        data: name of the data set.
        split: split of the data set.
        structure: name of the structure.
    """
    chosen = differences[
        (differences["data"] == data)
        & (differences["split"] == split)
        & (differences["structure"] == structure)
        & differences["metric"].isin(DIFFERENCE_METRICS)
    ]
    table = pd.DataFrame({"method": list(dict.fromkeys(chosen["method"]))})
    for metric in DIFFERENCE_METRICS:
        rows = chosen[chosen["metric"] == metric].set_index("method").reindex(table["method"])
        numbers = rows[["difference", "ci_low", "ci_high"]].to_numpy(dtype=float).tolist()
        notes = [f" ({note})" if note else "" for note in rows["differing_cases"].fillna("")]
        table[metric] = [
            "undefined" if np.isnan(value) else f"{value:+.3f} {interval_text(low, high, '+.3f')}{note}"
            for (value, low, high), note in zip(numbers, notes, strict=True)
        ]
    return table


def cost_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per method and data set with medians over seeds, without columns of no run; may be empty."""
    costs: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.cost:
            costs.setdefault(run.key[:2], []).append(run)
    rows = []
    for (method, data), members in costs.items():
        row = {"method": method, "data": data}
        for column, key, unit, form in _COSTS:
            values = [float(run.cost[key]) / unit for run in members if key in run.cost]
            row[column] = format(float(np.median(values)), form) if values else ""
        row[TIME_RATIO] = _time_ratio(members)
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.loc[:, [bool((table[column] != "").any()) for column in table.columns]]


def _time_ratio(runs: Sequence[Run]) -> str:
    """Return the medians over seeds of a ratio of times and of its quartiles, such as `1.02 (1.01 to 1.05)`.

    Where the quartiles are too far apart, the text says so instead. Runs from before the quartiles were recorded have
    the ratio alone.
    """
    keys = ("latency_ratio", "latency_ratio_low", "latency_ratio_high")
    measured = [run.cost for run in runs if keys[0] in run.cost]
    if not measured:
        return ""
    if not all(key in cost for cost in measured for key in keys):
        return f"{np.median([float(cost[keys[0]]) for cost in measured]):.2f}, without quartiles"
    middle, low, high = (float(np.median([float(cost[key]) for cost in measured])) for key in keys)
    if high - low > NOISY * middle:
        return f"unclear ({low:.2f} to {high:.2f}): the machine was busy"
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def selective_table(runs: Sequence[Run], data: str, split: str, structure: str) -> pd.DataFrame:
    """Return d-AUC and AURC of each method by the score that is best on its validation data, with the score's name.

    Values are means over seeds. The table may be empty: a method without validation data has no row.

    Args:
        runs: see `find_runs`.
        data: name of the data set.
        split: split of the data set.
        structure: name of the structure.
    """
    rows = []
    for (method, of_data, of_split), members in group_by_subject(runs).items():
        if (of_data, of_split) != (data, split):
            continue
        cells: dict[str, str] = {}
        for family, title in _SELECTIVE.items():
            scores = scores_of(family)
            chosen = best_metric(members, structure, list(scores))
            if chosen is not None:
                value = float(np.mean([run.value(structure, chosen) for run in members]))
                cells[f"{title} ↓"] = "undefined" if np.isnan(value) else f"{value:.4f}"
                cells[f"score of {title}"] = scores[chosen]
        if cells:
            rows.append({"method": method, **cells})
    return pd.DataFrame(rows).fillna("undefined")


def detection_table(runs: Sequence[Run], data: str, split: str, structure: str) -> pd.DataFrame:
    """Return the AUROC of distorted images over all severities, one row per method and score, one column per kind.

    The table may be empty.

    Args:
        runs: see `find_runs`.
        data: name of the data set.
        split: split of the data set.
        structure: name of the structure.
    """
    rows = []
    for (method, of_data, of_split), members in group_by_subject(runs).items():
        if (of_data, of_split) != (data, split) or any(run.detection is None for run in members):
            continue
        for score in DETECTION_SCORES:
            areas = auroc_by_kind(members, structure, score)
            if not areas.isna().all():
                cells = {str(kind): "undefined" if np.isnan(area) else f"{area:.3f}" for kind, area in areas.items()}
                rows.append(
                    {"method": method, "score": score, POOLED_KINDS: cells.pop(POOLED_KINDS, "undefined"), **cells}
                )
    return pd.DataFrame(rows).fillna("undefined")
