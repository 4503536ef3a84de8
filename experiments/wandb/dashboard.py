"""Dashboard of a W&B project as code: a workspace that shows methods and seeds in the same charts.

    python experiments/wandb/dashboard.py --entity E --project P
    python experiments/wandb/dashboard.py --entity E --project P --dry-run

All keys come from `edue_lightning.evaluation`, `summary_values` and `wandb_results`, which log them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.interface import PanelTypes

from edue_lightning.evaluation.summary_values import cost_key, detection_key, metric_key
from edue_lightning.evaluation.wandb_results import (
    BOX,
    BOX_GROUPS,
    BOXES_TABLE,
    CALIBRATION,
    DETECTION_TABLE,
    DISTORTED_CASES_TABLE,
    PANELS,
    QUALITY_CONTROL,
    QUALITY_CONTROL_TABLE,
    RELIABILITY_TABLE,
    Curve,
    media_key,
)
from edue_lightning.metrics import SCORES
from edue_lightning.metrics.summary import MEAN_STRUCTURE
from edue_lightning.runs.files import DISTORTION_SCORES

SPLIT = "test"
NAME = "Methods compared"
BOX_CHART = "edue-lightning-ood-boxes"
SEGMENTATION = ("dice", "d_soft", "nsd", "hd95")
CALIBRATION_METRICS = ("nll", "ece", "adaptive_ece", "brier", "brier_calibration", "brier_refinement")
DISAGREEMENT = (
    "image_pearson",
    "image_spearman",
    "image_pearson_total",
    "pixel_pearson",
    "pixel_pearson_total",
    "pixel_s_ncc",
)
QUALITY = ("d_auc", "aurc", "e_aurc")
COSTS = ("parameters", "parameter_ratio", "flops", "flop_ratio", "forward_passes", "latency_ratio", "train_seconds")
RELATIVE_COSTS = ("parameter_ratio", "flop_ratio", "latency_ratio")
AXES = {
    "mean_probability": "predicted probability",
    "frequency": "share of raters who marked",
    "flagged": "fraction of cases flagged",
    "missed": "poor segmentations missed, of all cases",
}
ANY = "[^/]+"

# keys that group runs: one method on one data set is a group, its runs are the seeds
METHOD, DATA = "label", "data.name"


def workspace(entity: str, project: str, structures: Sequence[str]) -> ws.Workspace:
    """Return the dashboard without saving it.

    Args:
        entity: user or team.
        project: of the runs.
        structures: whose numbers are shown, each in sections of its own; `mean` is there for all data.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(
                name="Calibration curves",
                panels=[_curve(CALIBRATION, [ANY], "Calibration", 1.0)],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=1, rows=1),
            ),
            ws.Section(
                name="Quality-control curves",
                panels=[
                    _curve(QUALITY_CONTROL, [ANY, score], f"Quality control by {score}", None)
                    for score, _ in SCORES.values()
                ],
                is_open=True,
            ),
            *(section for structure in structures for section in _sections_of(structure)),
            ws.Section(name="Images unlike the training data", panels=_boxes(entity), is_open=True),
            ws.Section(name="Cost", panels=[_bars(cost_key(name), name) for name in COSTS], is_open=True),
            ws.Section(
                name="Disagreement maps",
                panels=[
                    wr.MediaBrowser(
                        title="raters, variances, prediction",
                        media_keys=[media_key(SPLIT, PANELS)],
                        num_columns=1,
                        mode="grid",
                        grid_x_axis="index",
                        grid_y_axis="run",
                    )
                ],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=1, rows=1),
            ),
            ws.Section(
                name="Tables",
                panels=[
                    wr.WeavePanelSummaryTable(table_name=media_key(SPLIT, table))
                    for table in (RELIABILITY_TABLE, QUALITY_CONTROL_TABLE, DETECTION_TABLE, DISTORTED_CASES_TABLE)
                ],
            ),
        ],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config(DATA), ws.Config(METHOD)]),
    )


def box_chart() -> dict[str, Any]:
    """Return the Vega-Lite specification of the box plots, which W&B does not provide."""
    specification: dict[str, Any] = json.loads(Path(__file__).with_name("ood_boxes.json").read_text())
    return specification


def specification(dashboard: ws.Workspace) -> dict[str, Any]:
    """Return the data that saving sends to the server."""
    content: dict[str, Any] = dashboard._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return content


def _sections_of(structure: str) -> list[ws.Section]:
    groups = {
        "Segmentation": SEGMENTATION,
        "Calibration": CALIBRATION_METRICS,
        "Raters' disagreement": DISAGREEMENT,
        "Poor segmentations found": QUALITY,
    }
    sections = [
        ws.Section(
            name=f"{name}, {structure}",
            panels=[_bars(metric_key(SPLIT, structure, metric), metric) for metric in metrics],
            is_open=structure == MEAN_STRUCTURE,
        )
        for name, metrics in groups.items()
    ]
    detection: list[PanelTypes] = [
        _bars(detection_key(SPLIT, structure, score), f"AUROC of {score}, distorted against clean")
        for score, _ in SCORES.values()
    ]
    scatter: list[PanelTypes] = [
        wr.ScatterPlot(
            title=f"{metric} against {cost}",
            x=wr.SummaryMetric(cost_key(cost)),
            y=wr.SummaryMetric(metric_key(SPLIT, structure, metric)),
            log_x=True,
        )
        for cost in RELATIVE_COSTS
        for metric in ("nll", "image_pearson")
    ]
    return [
        *sections,
        ws.Section(name=f"Out of distribution, {structure}", panels=detection, is_open=structure == MEAN_STRUCTURE),
        ws.Section(name=f"Worth its cost, {structure}", panels=scatter, is_open=structure == MEAN_STRUCTURE),
    ]


def _curve(curve: Curve, line: Sequence[str], title: str, largest: float | None) -> wr.LinePlot:
    # seeds have points at different places, so a mean over seeds would have few points: draw each run
    return wr.LinePlot(
        title=title,
        x=curve.x(SPLIT),
        metric_regex=f"^{curve.y(SPLIT, *line)}$",
        range_x=(0.0, 1.0),
        range_y=(0.0, largest),
        title_x=AXES[curve.axis],
        title_y=AXES[curve.value],
        groupby="None",
        smoothing_type="none",
        max_runs_to_show=100,
    )


def _bars(key: str, title: str) -> wr.BarPlot:
    # panels use the groups of the workspace, so a bar is a mean over seeds, not over data sets
    return wr.BarPlot(
        title=title,
        metrics=[wr.SummaryMetric(key)],
        orientation="h",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_bars_to_show=50,
    )


def _boxes(entity: str) -> list[PanelTypes]:
    table = media_key(SPLIT, BOXES_TABLE)
    charts: list[PanelTypes] = []
    for score in DISTORTION_SCORES:
        chart = wr.CustomChart.from_table(
            table,
            chart_fields={column: column for column in ("run", *BOX_GROUPS, *BOX)},
            chart_strings={"title": f"{score}, by distortion", "score": score},
        )
        chart.chart_name = f"{entity}/{BOX_CHART}"
        charts.append(chart)
    return charts


def main() -> None:
    """Save the dashboard, or print it."""
    parser = argparse.ArgumentParser(description="Build the W&B dashboard that compares methods and seeds.")
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", required=True, help="project of the runs")
    parser.add_argument(
        "--structures", nargs="+", default=[MEAN_STRUCTURE], help="structures shown (default: their mean)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the specification as JSON; needs no server")
    arguments = parser.parse_args()
    dashboard = workspace(arguments.entity, arguments.project, arguments.structures)
    if arguments.dry_run:
        print(json.dumps(specification(dashboard), indent=2))
        return
    dashboard.save()
    try:
        wandb.Api().create_custom_chart(
            entity=arguments.entity,
            name=BOX_CHART,
            display_name="Scores under distortions",
            spec_type="vega2",
            access="private",
            spec=box_chart(),
        )
    # the chart exists already if the entity has a dashboard; the client has no separate error class for this
    except Exception as error:
        print(f"warning: the chart {BOX_CHART} was not created, which is fine if it exists: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
