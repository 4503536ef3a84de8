"""Charts of calibration and of quality control."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from edue_lightning.reporting.charts.chart import Chart, Plot, Series
from edue_lightning.reporting.charts.styles import Style, guide_style

_RANGE = (-0.02, 1.02)


def calibration_chart(
    curves: Mapping[str, pd.DataFrame],
    styles: Mapping[str, Style],
    *,
    name: str = "calibration",
    title: str = "Calibration",
    caption: str = "",
    alt: str = "",
) -> Chart:
    """Return calibration curves, and below them the number of predictions per bin.

    Args:
        curves: rows of `reliability.csv` of one structure, by method or structure.
        styles: style of each.
        name: name of the files.
        title: heading.
        caption: description.
        alt: content in words.
    """
    above: list[Series] = []
    below: list[Series] = []
    for label in _strong_last(curves, styles):
        filled = curves[label][curves[label]["count"] > 0]
        positions = filled["mean_probability"].tolist()
        for series, column in ((above, "frequency"), (below, "count")):
            series.append(
                Series(
                    name=label, kind="line", style=styles[label], method=label, x=positions, y=filled[column].tolist()
                )
            )
    diagonal = Series(name="perfect calibration", kind="line", style=guide_style("dash"), x=(0, 1), y=(0, 1))
    probability = "predicted probability"
    plots = (
        Plot(
            x_label=probability,
            y_label="share of raters who marked",
            series=(diagonal, *above),
            x_range=_RANGE,
            y_range=_RANGE,
        ),
        Plot(x_label=probability, y_label="voxel-rater pairs", series=below, x_range=_RANGE, log_y=True, height=0.5),
    )
    return Chart(name=name, title=title, caption=caption, alt=alt, plots=plots)


def found_share(curve: pd.DataFrame) -> pd.Series:
    """Return the share of the poor segmentations that is found at each point of a quality-control curve.

    Args:
        curve: columns `flagged` and `missed`, from its start at (0, share of poor segmentations).

    Returns:
        1 - missed / poor; NaN if there are no poor segmentations.
    """
    poor = float(curve["missed"].iloc[0])
    return 1 - curve["missed"] / (poor if poor > 0 else np.nan)


def quality_control_chart(
    curves: Mapping[str, pd.DataFrame],
    styles: Mapping[str, Style],
    *,
    reference: str = "",
    names: Mapping[str, str] | None = None,
    name: str = "quality_control",
    title: str = "Quality control",
    caption: str = "",
    alt: str = "",
) -> Chart:
    """Return the share of poor segmentations found against the share of cases flagged (the paper's Fig. 2).

    One ideal line is drawn, of the reference's share of poor segmentations, and one of a random order.

    Args:
        curves: columns `flagged` and `missed`, by method or structure.
        styles: style of each.
        reference: label whose ideal line is drawn; the first if no label has that name.
        names: names in the legend, where they are not the labels.
        name: name of the files.
        title: heading.
        caption: description.
        alt: content in words.
    """
    drawn = {label: curve for label, curve in curves.items() if float(curve["missed"].iloc[0]) > 0}
    series = [
        Series(
            name=(names or {}).get(label, label),
            kind="line",
            style=styles[label],
            method=label,
            x=drawn[label]["flagged"].tolist(),
            y=found_share(drawn[label]).tolist(),
        )
        for label in _strong_last(drawn, styles)
    ]
    guides = [Series(name="random order", kind="line", style=guide_style("dot"), x=(0, 1), y=(0, 1))]
    if drawn:
        of = drawn.get(reference, next(iter(drawn.values())))
        poor = float(of["missed"].iloc[0])
        guides.append(Series(name="ideal order", kind="line", style=guide_style("dash"), x=(0, poor, 1), y=(0, 1, 1)))
    plot = Plot(
        x_label="share of the cases flagged",
        y_label="share of the poor segmentations found",
        series=(*guides, *series),
        x_range=_RANGE,
        y_range=(-0.02, 1.04),
    )
    return Chart(name=name, title=title, caption=caption, alt=alt, plots=(plot,))


def _strong_last(labels: Mapping[str, object], styles: Mapping[str, Style]) -> list[str]:
    return sorted(labels, key=lambda label: styles[label].strong)
