"""Results of a run, logged to Weights & Biases under keys that do not depend on method, seed or case.

The dashboard in `experiments/wandb` uses these keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import wandb

from edue_lightning.evaluation.result import Evaluation
from edue_lightning.evaluation.summary_values import summary_values
from edue_lightning.reporting.figures import panel_figure
from edue_lightning.runs.files import DISTORTION_SCORES, IDENTITY

RELIABILITY_TABLE = "reliability"
QUALITY_CONTROL_TABLE = "quality_control"
DISTORTED_CASES_TABLE = "distorted_cases"
DETECTION_TABLE = "detection"
BOXES_TABLE = "ood_boxes"
PANELS = "panels"

BOX = {"low": 0.05, "lower": 0.25, "median": 0.5, "upper": 0.75, "high": 0.95}
"""Quantiles that a box plot shows, by their columns in the table of boxes."""

BOX_GROUPS = (*IDENTITY, "structure", "score", "distortion", "severity")


@dataclass(frozen=True)
class Curve:
    """The curves of a table, logged as rows of the run's history.

    A workspace overlays lines of the history over a common axis by itself: all selected runs, with their grouping and
    colours. `wandb.plot.line_series` would fix one run's lines in a chart, whose table a dashboard must query and
    colour itself. All lines share the axis, so that a dashboard selects them by a pattern without the names of the
    structures; a row has x and the points of all lines at x.

    Attributes:
        name: name of the curves.
        lines: columns that distinguish the lines.
        axis: column of x.
        value: column of y.
    """

    name: str
    lines: tuple[str, ...]
    axis: str
    value: str

    def x(self, split: str) -> str:
        """Return the key of the axis."""
        return f"{split}/{self.name}/{self.axis}"

    def y(self, split: str, *line: str) -> str:
        """Return the key of a line, given by its values of `lines`."""
        return "/".join((split, self.name, *line, self.value))


CALIBRATION = Curve("calibration", ("structure",), "mean_probability", "frequency")
QUALITY_CONTROL = Curve("quality_control", ("structure", "score"), "flagged", "missed")


def media_key(split: str, name: str) -> str:
    """Return the key of a table or of the panels."""
    return f"{split}/{name}"


def log_results(
    run: wandb.Run,
    evaluation: Evaluation,
    detection: pd.DataFrame | None,
    distorted_cases: pd.DataFrame | None,
    cost: Mapping[str, float | str],
) -> None:
    """Log summary, tables, curves and panels.

    Undefined values of the summary are NaN, as in the tables; undefined points of a curve are left out.

    Args:
        run: run to log to.
        evaluation: evaluation of one split.
        detection: content of `detection.csv`; None if no distortions were measured.
        distorted_cases: content of `distorted_cases.csv`; None as above.
        cost: content of `model.json`.
    """
    split = evaluation.split
    run.summary.update(summary_values(evaluation, detection, cost))
    reliability, quality_control = evaluation.reliability_frame(), evaluation.quality_control_frame()
    tables = {RELIABILITY_TABLE: reliability, QUALITY_CONTROL_TABLE: quality_control}
    if detection is not None:
        tables[DETECTION_TABLE] = detection
    if distorted_cases is not None:
        tables[DISTORTED_CASES_TABLE] = distorted_cases
        tables[BOXES_TABLE] = distortion_boxes(distorted_cases, run.name or run.id)
    logged: dict[str, Any] = {
        media_key(split, name): wandb.Table(dataframe=frame.reset_index(drop=True)) for name, frame in tables.items()
    }
    # one key for all panels: their cases are the same for all methods, but not known to a dashboard
    logged[media_key(split, PANELS)] = [
        wandb.Image(
            panel_figure(panel),
            caption=", ".join(filter(None, (panel.case_id, panel.structure, evaluation.note))),
        )
        for panel in evaluation.panels
    ]
    run.log(logged)
    _log_curve(run, split, CALIBRATION, reliability)
    _log_curve(run, split, QUALITY_CONTROL, quality_control)


def distortion_boxes(distorted_cases: pd.DataFrame, run_name: str) -> pd.DataFrame:
    """Return the box of every score under every distortion, a table small enough to draw for many runs at once.

    Args:
        distorted_cases: content of `distorted_cases.csv`.
        run_name: name of the run, which distinguishes the seeds of a method.

    Returns:
        columns `run`, `BOX_GROUPS`, those of `BOX`, and `n_cases`, the number of cases that define the score; no row if
            it is 0.
    """
    groups = list(BOX_GROUPS)
    scores = distorted_cases.melt(
        id_vars=[column for column in groups if column != "score"],
        value_vars=list(DISTORTION_SCORES),
        var_name="score",
        value_name="value",
    ).dropna(subset=["value"])
    values = scores.groupby(groups, sort=False)["value"]
    boxes = pd.DataFrame({name: values.quantile(share) for name, share in BOX.items()} | {"n_cases": values.size()})
    boxes = boxes.reset_index()
    boxes.insert(0, "run", run_name)
    return boxes


def _log_curve(run: wandb.Run, split: str, curve: Curve, points: pd.DataFrame) -> None:
    x = curve.x(split)
    # without a summary, which would be the curve's last point
    run.define_metric(x, hidden=True, summary="none")
    rows: dict[float, dict[str, float]] = {}
    for line, own in points.dropna(subset=[curve.axis, curve.value]).groupby(list(curve.lines), sort=False):
        y = curve.y(split, *map(str, line))
        run.define_metric(y, step_metric=x, summary="none")
        for position, value in zip(own[curve.axis].tolist(), own[curve.value].tolist(), strict=True):
            rows.setdefault(position, {})[y] = value
    for position in sorted(rows):
        run.log({x: position, **rows[position]})
