"""Charts as files: in the size of a screen, or of a journal's column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.lines
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edue_lightning.reporting.charts.chart import Chart, Plot, Series

FigureForm = Literal["screen", "paper"]

_MM = 1 / 25.4
_DASHES: Mapping[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 1.5)),
    "dot": (0, (1, 1.2)),
    "dashdot": (0, (5, 1.5, 1, 1.5)),
}
# shares of a font's size: height of a row of names, width of a letter, line of a legend
_ROW, _LETTER, _LEGEND_LINE = 1.9, 0.55, 1.65
_BOX_ROW = 3.0


@dataclass(frozen=True)
class Form:
    """Sizes of a figure.

    Attributes:
        single: width of a figure with one plot abreast, in inches.
        double: width of a figure with several.
        font: size of the letters in points.
        line: width of a line in points.
        marker: size of a marker in points.
        endings: file formats.
        dpi: pixels per inch of a PNG.
        settings: further settings of matplotlib.
    """

    single: float
    double: float
    font: float
    line: float
    marker: float
    endings: Sequence[str]
    dpi: int
    settings: Mapping[Any, Any] = field(default_factory=dict)


FORMS: Mapping[FigureForm, Form] = {
    "screen": Form(6.4, 10.5, 9, 1.4, 4, ("png", "svg"), 110),
    # one and two columns of a page, letters that are kept as letters
    "paper": Form(
        *(89 * _MM, 183 * _MM, 7, 0.9, 2.4, ("pdf", "svg", "png"), 300),
        settings={
            "font.family": "sans-serif",
            "font.sans-serif": ["Arial", "Helvetica", "Liberation Sans", "DejaVu Sans"],
            "axes.linewidth": 0.5,
            "xtick.major.width": 0.5,
            "ytick.major.width": 0.5,
            "pdf.fonttype": 42,
        },
    ),
}
"""`paper`: columns of 89 and 183 mm, 7 pt sans-serif, with PDF files."""


def draw(chart: Chart, form: FigureForm = "screen") -> Figure:
    """Draw a chart, with one legend for all of its plots.

    Args:
        chart: the chart.
        form: size and fonts.
    """
    look = FORMS[form]
    columns = min(chart.columns, len(chart.plots))
    rows = -(-len(chart.plots) // columns)
    width = look.double if columns > 1 else look.single
    with matplotlib.rc_context({"font.size": look.font, **look.settings}):
        heights = [
            max(_height(plot, width / columns, look) for plot in chart.plots[row * columns : (row + 1) * columns])
            for row in range(rows)
        ]
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, height_ratios=heights, squeeze=False)).ravel()
        for number, (one, plot) in enumerate(zip(axes, chart.plots, strict=False)):
            _draw_plot(one, plot, look, with_rows=number % columns == 0)
        for empty in axes[len(chart.plots) :]:
            empty.axis("off")
        _add_legend(figure, chart, look)
    return figure


def write_files(figure: Figure, name: str, folder: Path, form: FigureForm = "screen") -> Path:
    """Write a figure in all file formats of a form, and return the path of its PNG.

    Args:
        figure: the figure.
        name: name of the files, without ending.
        folder: folder of the files.
        form: size and fonts.
    """
    look = FORMS[form]
    # arranged once for all formats: with many plots this takes longer than drawing
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # without a date or random names, so that the same runs give the same file
    with matplotlib.rc_context({"svg.hashsalt": name, **look.settings}):
        for ending in look.endings:
            dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending)
            figure.savefig(folder / f"{name}.{ending}", dpi=look.dpi, metadata=dated)
    return folder / f"{name}.png"


def _height(plot: Plot, width: float, look: Form) -> float:
    if not plot.rows:
        return plot.height * min(width * 0.8, 0.62 * look.single)
    lines = _BOX_ROW if any(series.kind == "box" for series in plot.series) else _ROW
    return look.font / 72 * (lines * len(plot.rows) + 6)


def _draw_plot(axes: Axes, plot: Plot, look: Form, with_rows: bool) -> None:
    place = {name: len(plot.rows) - 1 - number for number, name in enumerate(plot.rows)}
    if plot.zero:
        axes.axvline(0, color="0.4", linewidth=0.8)
    for series in plot.series:
        _DRAW[series.kind](axes, series, look, place)
    for box, offset in _box_offsets(plot):
        _draw_box(axes, box, place[str(box.y[0])] + offset)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if plot.title:
        axes.set_title(plot.title, fontsize=look.font)
    if plot.x_range:
        axes.set_xlim(plot.x_range)
    if plot.y_range:
        axes.set_ylim(plot.y_range)
    if plot.log_y:
        axes.set_yscale("log")
    if plot.rows:
        axes.set_yticks(list(place.values()), list(place) if with_rows else [""] * len(place))
        axes.set_ylim(-0.6, len(place) - 0.4)
    axes.grid(color="0.9", axis="x" if plot.rows else "both")
    axes.set_axisbelow(True)


def _draw_line(axes: Axes, series: Series, look: Form, place: Mapping[str, int]) -> None:  # noqa: ARG001
    style = series.style
    strong = 1.8 if style.strong else 1.0
    axes.plot(
        series.x,
        np.asarray(series.y, dtype=float),
        color=style.colour,
        linestyle=_DASHES[style.dash],
        linewidth=look.line * strong if series.method else 0.7 * look.line,
        marker=style.marker[0] or None,
        markersize=look.marker,
        markevery=0.12 if len(series.x) > 20 else None,
        zorder=3 if style.strong else 2,
    )


def _draw_points(axes: Axes, series: Series, look: Form, place: Mapping[str, int]) -> None:  # noqa: ARG001
    colour = series.style.colour
    axes.scatter(
        series.x, np.asarray(series.y, dtype=float), s=look.marker**2 / 2, color=colour, alpha=0.6, linewidths=0
    )


def _draw_interval(axes: Axes, series: Series, look: Form, place: Mapping[str, int]) -> None:
    row, colour = place[str(series.y[0])], series.style.colour
    if not np.isnan(series.margin):
        axes.barh(row, 2 * series.margin, left=-series.margin, height=1, color="0.85", linewidth=0, zorder=0)
    axes.plot([series.low, series.high], [row, row], color=colour, linewidth=look.line)
    axes.plot(series.x, [row], color=colour, marker=series.style.marker[0], markersize=look.marker, linestyle="")


def _draw_nothing(axes: Axes, series: Series, look: Form, place: Mapping[str, int]) -> None:
    """Boxes are drawn later, since their offsets depend on each other."""


_DRAW = {"line": _draw_line, "points": _draw_points, "interval": _draw_interval, "box": _draw_nothing}


def _box_offsets(plot: Plot) -> list[tuple[Series, float]]:
    """Return the boxes of a plot, each with its distance from the middle of its row."""
    boxes = [series for series in plot.series if series.kind == "box"]
    names = list(dict.fromkeys(series.name for series in boxes))
    step = 0.8 / max(len(names), 1)
    return [(series, (len(names) - 1) / 2 * step - names.index(series.name) * step) for series in boxes]


def _draw_box(axes: Axes, series: Series, position: float) -> None:
    box = series.box
    if box is None:
        return
    numbers = {"whislo": box.low, "q1": box.first, "med": box.median, "q3": box.third, "whishi": box.high, "fliers": []}
    axes.bxp(
        [numbers],
        positions=[position],
        widths=0.22,
        orientation="horizontal",
        patch_artist=True,
        manage_ticks=False,
        showfliers=False,
        boxprops={"facecolor": series.style.colour, "linewidth": 0.5},
        medianprops={"color": "#d55e00", "linewidth": 1.4},
        whiskerprops={"linewidth": 0.5},
        capprops={"linewidth": 0.5},
    )


def _add_legend(figure: Figure, chart: Chart, look: Form) -> None:
    """Add the legend below the figure, in as many columns as fit; the figure grows by its height."""
    shown = chart.legend()
    if len(shown) < 2:
        return
    handles = [_handle(series, look) for series in shown]
    labels = [series.name for series in shown]
    size = 0.9 * look.font
    width = size / 72 * (5 + _LETTER * max(map(len, labels)))
    columns = max(1, int(figure.get_figwidth() / width))
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + size / 72 * (_LEGEND_LINE * lines + 1))
    # matplotlib fills a legend column by column, a reader goes row by row
    order = [start + columns * line for start in range(columns) for line in range(lines)]
    chosen = [number for number in order if number < len(labels)]
    figure.legend(
        [handles[number] for number in chosen],
        [labels[number] for number in chosen],
        loc="outside lower center",
        ncols=columns,
        fontsize=size,
        frameon=False,
        handlelength=3,
    )


def _handle(series: Series, look: Form) -> Any:
    if series.kind == "box":
        return Patch(facecolor=series.style.colour, edgecolor="0.3", label=series.name)
    return matplotlib.lines.Line2D(
        [],
        [],
        color=series.style.colour,
        linestyle=_DASHES[series.style.dash] if series.kind == "line" else "",
        marker=series.style.marker[0] or None,
        markersize=look.marker,
        linewidth=look.line,
    )
