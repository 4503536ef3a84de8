"""Curves and groups of cases over all seeds of a method, as the figures draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edue_lightning.reporting.selection import best_metric, scores_of
from edue_lightning.runs.files import CLEAN, POOLED_KINDS, POOLED_SEVERITY, Run

Array = NDArray[np.float64]

DRAWN_SEVERITY = 3
DISTORTED_SHARES = {"0 %": 0.0, "50 %": 0.5, "100 %": 1.0}
"""Share of distorted images in each group of the box plots."""


class ScoreCurve(NamedTuple):
    """A quality-control curve and the score that orders its cases.

    Attributes:
        score: name of the statistic.
        curve: columns `flagged` and `missed`.
    """

    score: str
    curve: pd.DataFrame


def pooled_reliability(runs: Sequence[Run], structure: str) -> pd.DataFrame:
    """Return the calibration curve over all seeds of a method, as if their voxel-rater pairs were one set.

    Args:
        runs: seeds of the method.
        structure: name of the structure.

    Returns:
        columns `bin_low`, `bin_high`, `count`, `mean_probability` and `frequency`; the last two NaN in an empty bin.
    """
    rows = pd.concat([_of(run.reliability, structure=structure) for run in runs])
    weighted = rows[["mean_probability", "frequency"]].mul(rows["count"], axis=0)
    sums = weighted.assign(count=rows["count"]).groupby([rows["bin_low"], rows["bin_high"]]).sum()
    means = sums[["mean_probability", "frequency"]].div(sums["count"].where(sums["count"] > 0), axis=0)
    return means.assign(count=sums["count"]).reset_index()


def quality_control(runs: Sequence[Run], structure: str) -> ScoreCurve | None:
    """Return the quality-control curve of a method by the score with the smallest d-AUC on validation data.

    Where validation data define no d-AUC, the score is the first of `SCORES` that has a curve: the variance between
    members, or the total variance of a single network. The curve is the mean over seeds of the missed cases at each
    fraction flagged.

    Args:
        runs: seeds of the method.
        structure: name of the structure.

    Returns:
        None if there is no score of which each seed has a curve.
    """
    tables = [_of(run.quality_control, structure=structure) for run in runs]
    present = {
        metric: score
        for metric, score in scores_of("d_auc").items()
        if all((table["score"] == score).any() for table in tables)
    }
    if not present:
        return None
    score = present[best_metric(runs, structure, list(present)) or next(iter(present))]
    curves = [_of(table, score=score) for table in tables]
    flagged = np.unique(np.concatenate([curve["flagged"] for curve in curves]))
    missed = np.mean([np.interp(flagged, curve["flagged"], curve["missed"]) for curve in curves], axis=0)
    return ScoreCurve(score, pd.DataFrame({"flagged": flagged, "missed": missed}))


def distorted_groups(runs: Sequence[Run], structure: str, score: str) -> dict[str, Array]:
    """Return a score's defined values with none, half and all of the cases distorted.

    Args:
        runs: seeds of a method, all with distorted cases; their values are pooled.
        structure: name of the structure.
        score: name of the statistic.

    Returns:
        values by the names of `DISTORTED_SHARES`; distorted cases have the severity `DRAWN_SEVERITY`.
    """
    groups: dict[str, list[Array]] = {name: [] for name in DISTORTED_SHARES}
    for run in runs:
        if run.distorted_cases is None:
            continue
        own = _of(run.distorted_cases, structure=structure)
        clean = _of(own, distortion=CLEAN).set_index("case_id")[score]
        distorted = _of(own, severity=DRAWN_SEVERITY).set_index("case_id")[score].reindex(clean.index)
        order = np.arange(len(clean))
        for name, share in DISTORTED_SHARES.items():
            # spread evenly over the order of the file: every second case for a half
            replaced = np.floor((order + 1) * share) > np.floor(order * share)
            groups[name].append(np.where(replaced, distorted, clean).astype(float))
    joined = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in groups.items()}
    return {name: values[~np.isnan(values)] for name, values in joined.items()}


def auroc_by_severity(runs: Sequence[Run], structure: str, score: str) -> pd.Series:
    """Return the AUROC of a score for distorted images by severity, over all kinds, see `_mean_over_seeds`."""
    tables = [_of(run.detection, structure=structure, score=score, distortion=POOLED_KINDS) for run in runs]
    means = _mean_over_seeds(tables, "severity")
    return means[means.index != POOLED_SEVERITY].sort_index()


def auroc_by_kind(runs: Sequence[Run], structure: str, score: str) -> pd.Series:
    """Return the AUROC of a score for distorted images by kind, all kinds first, see `_mean_over_seeds`."""
    tables = [_of(run.detection, structure=structure, score=score, severity=POOLED_SEVERITY) for run in runs]
    return _mean_over_seeds(tables, "distortion")


def _mean_over_seeds(tables: Sequence[pd.DataFrame], column: str) -> pd.Series:
    """Return the mean AUROC over seeds by the values of a column; NaN where a seed does not define it or has no row."""
    found = pd.concat(tables).groupby(column, sort=False)["auroc"]
    # without this, seeds that lack a score would leave the mean of the others
    return found.mean().where(found.count() == len(tables))


def _of(frame: pd.DataFrame | None, **wanted: str | int) -> pd.DataFrame:
    chosen = pd.DataFrame() if frame is None else frame
    for column, value in wanted.items():
        if len(chosen):
            chosen = chosen[chosen[column] == value]
    return chosen
