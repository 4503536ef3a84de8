"""Charts on distorted images: box plots of the scores, and how well the scores find such images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.cbook import boxplot_stats
from numpy.typing import NDArray

from edue_lightning.reporting.charts.chart import Box, Chart, Plot, Series
from edue_lightning.reporting.charts.names import score_title
from edue_lightning.reporting.charts.styles import Style, guide_style, shade_styles

Groups = Mapping[str, Mapping[str, Mapping[str, NDArray[np.float64]]]]
"""Values by score, method and group."""


def distorted_boxes_chart(groups: Groups, *, name: str, title: str, caption: str = "") -> Chart:
    """Return box plots of the scores as more of the images are distorted (the paper's Fig. 3).

    Args:
        groups: values by score, method and group; a method with undefined values has no box, and a score without any
            box no plot.
        name: name of the files.
        title: heading.
        caption: description.
    """
    plots = []
    for score, by_method in groups.items():
        series = [
            Series(
                name=f"{group} of the images distorted",
                kind="box",
                style=style,
                method=method,
                y=(method,),
                box=_box(values),
            )
            for style, group in zip(shade_styles(), next(iter(by_method.values())), strict=True)
            for method, of_group in by_method.items()
            if len(values := of_group[group])
        ]
        rows = [method for method, of_group in by_method.items() if any(map(len, of_group.values()))]
        if rows:
            label = score_title(score)
            plots.append(Plot(title=label, x_label=label, y_label="", series=series, rows=rows))
    titles = ", ".join(plot.title for plot in plots)
    alt = f"Box plots of {titles} per method, for clean images, for half of them distorted and for all distorted."
    return Chart(name=name, title=title, caption=caption, alt=alt, plots=plots, columns=min(2, len(plots)))


def _box(values: NDArray[np.float64]) -> Box:
    (found,) = boxplot_stats(values)
    low, first, median, third, high = (float(found[key]) for key in ("whislo", "q1", "med", "q3", "whishi"))
    return Box(low=low, first=first, median=median, third=third, high=high)


def detection_chart(
    areas: Mapping[str, Mapping[str, pd.Series]],
    styles: Mapping[str, Style],
    *,
    name: str,
    title: str,
    caption: str = "",
) -> Chart:
    """Return the area under the ROC curve of distorted against clean images, by the severity of the distortion.

    Args:
        areas: AUROC by score and method, indexed by severity; undefined values are left out, and scores without any.
        styles: style of each method.
        name: name of the files.
        title: heading.
        caption: description.
    """
    plots = []
    said = []
    defined = [area.min() for by_method in areas.values() for area in by_method.values() if area.notna().any()]
    lowest = min([0.5, *defined])
    for score, by_method in areas.items():
        series = [
            Series(
                name=method,
                kind="line",
                style=styles[method],
                method=method,
                x=[float(severity) for severity in area.index],
                y=area.to_list(),
            )
            for method, area in sorted(by_method.items(), key=lambda item: styles[item[0]].strong)
            if area.notna().any()
        ]
        if not series:
            continue
        last = [float(one.y[-1]) for one in series if not np.isnan(float(one.y[-1]))]
        if last:
            said.append(f"{score_title(score)} {min(last):.2f} to {max(last):.2f}")
        chance = Series(name="chance", kind="line", style=guide_style("dot"), x=(1, 5), y=(0.5, 0.5))
        plots.append(
            Plot(
                title=score_title(score),
                x_label="severity of the distortion",
                y_label="AUROC of distorted images",
                series=(chance, *series),
                y_range=(lowest - 0.02, 1.02),
            )
        )
    alt = f"AUROC of distorted images by severity, one plot per score. At the highest severity: {'; '.join(said)}."
    return Chart(name=name, title=title, caption=caption, alt=alt, plots=plots, columns=2)
