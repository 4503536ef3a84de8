"""Results of a run as single values, for trackers, under keys that do not depend on method, seed or case."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from edue_lightning.evaluation.result import Evaluation
from edue_lightning.metrics.summary import MEAN_STRUCTURE
from edue_lightning.runs.files import POOLED_KINDS, POOLED_SEVERITY


def metric_key(split: str, structure: str, metric: str) -> str:
    """Return the key of a metric in the run's summary."""
    return f"{split}/{structure}/{metric}"


def detection_key(split: str, structure: str, score: str) -> str:
    """Return the key in the run's summary of how well a score separates distorted from clean images."""
    return f"{split}/{structure}/ood_auroc/{score}"


def cost_key(name: str) -> str:
    """Return the key of a cost in the run's summary."""
    return f"cost/{name}"


def summary_values(
    evaluation: Evaluation, detection: pd.DataFrame | None, cost: Mapping[str, float | str]
) -> dict[str, float | str]:
    """Return metrics, detection of distortions and costs of a run; undefined ones are NaN, as in the tables.

    The structure `mean` exists in every run, also with a single structure, so that a dashboard needs one key for all
    data sets.

    Args:
        evaluation: evaluation of one split.
        detection: content of `detection.csv`; None if no distortions were measured.
        cost: content of `model.json`.
    """
    detected = {} if detection is None else _detection(evaluation.split, detection)
    return {**_metrics(evaluation), **{cost_key(name): value for name, value in cost.items()}, **detected}


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    split, summary = evaluation.split, evaluation.summary
    own = {metric_key(split, row.structure, row.metric): row.value for row in summary.rows}
    return own | {metric_key(split, MEAN_STRUCTURE, metric): value for metric, value in summary.means().items()}


def _detection(split: str, detection: pd.DataFrame) -> dict[str, float]:
    pooled = detection[(detection["distortion"] == POOLED_KINDS) & (detection["severity"] == POOLED_SEVERITY)]
    areas = pooled.pivot_table(index="structure", columns="score", values="auroc", dropna=False)
    if MEAN_STRUCTURE not in areas.index:
        # as in the table of metrics, undefined if one structure's is
        areas.loc[MEAN_STRUCTURE] = areas.mean(skipna=False)
    return {
        detection_key(split, str(structure), str(score)): float(area)
        for structure, row in areas.iterrows()
        for score, area in row.items()
    }
