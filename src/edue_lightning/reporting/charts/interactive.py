"""Charts as data of plotly.js, which the page draws, and the library itself."""

from __future__ import annotations

import base64
import gzip
import html
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from edue_lightning.reporting.charts.chart import Plot, Series
from edue_lightning.reporting.charts.styles import Style

_DIGITS = 5
_ROW_PIXELS, _BOX_ROW_PIXELS, _AROUND_PIXELS, _PLOT_PIXELS = 19, 34, 95, 360


@cache
def library() -> str:
    """Return plotly.js, compressed by gzip, in base64: 2 MB instead of 4.8."""
    source = files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    # without a time, so that the same runs give the same file
    return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def plotly_of(plot: Plot) -> dict[str, Any]:
    """Return traces and layout of a plot; each trace names its method in `meta`, and the dark colour of its style.

    Args:
        plot: the plot.
    """
    traces: list[dict[str, Any]] = []
    # plotly draws the first of several boxes at the bottom
    boxes = [series for series in reversed(plot.series) if series.kind == "box"]
    for series in [*boxes, *(series for series in plot.series if series.kind != "box")]:
        meta = {"method": series.method, "dark": series.style.dark, "light": series.style.colour}
        if not np.isnan(series.margin):
            traces.insert(0, _margin(series) | {"showlegend": False, "meta": {"method": series.method}})
        traces.append({"name": _text(series.name), "showlegend": False, "meta": meta, **_TRACES[series.kind](series)})
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": _text(plot.x_label)}},
        "yaxis": {"title": {"text": _text(plot.y_label)}},
        "height": _height(plot),
        "meta": {"title": plot.title, "method": plot.method},
    }
    if plot.x_range:
        layout["xaxis"]["range"] = [_number(end) for end in plot.x_range]
    if plot.y_range:
        layout["yaxis"]["range"] = [_number(end) for end in plot.y_range]
    if plot.log_y:
        layout["yaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1}
    if plot.rows:
        # plotly draws the first category at the bottom
        rows = [_text(row) for row in reversed(plot.rows)]
        layout["yaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": rows, "automargin": True}
    if plot.zero:
        ends = {"x0": 0, "x1": 0, "y0": 0, "y1": 1}
        layout["shapes"] = [{"type": "line", "yref": "paper", "layer": "below", "line": {"width": 1}, **ends}]
    if any(series.kind == "box" for series in plot.series):
        layout["boxmode"] = "group"
    return {"data": traces, "layout": layout}


def _height(plot: Plot) -> int:
    if not plot.rows:
        return round(_PLOT_PIXELS * plot.height)
    row = _BOX_ROW_PIXELS if any(series.kind == "box" for series in plot.series) else _ROW_PIXELS
    return _AROUND_PIXELS + row * len(plot.rows)


def _line(series: Series) -> dict[str, Any]:
    style = series.style
    width = (3.2 if style.strong else 1.5) if series.method else 1.2
    drawn: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if style.marker[1] else "lines",
        "x": _numbers(series.x),
        "y": _numbers(series.y),
        "line": {"color": style.colour, "width": width, "dash": style.dash},
    }
    if style.marker[1]:
        drawn["marker"] = {"symbol": style.marker[1], "size": 6, "color": style.colour}
        if len(series.x) > 20:
            drawn["marker"]["maxdisplayed"] = 10
    return drawn | ({} if series.method else {"hoverinfo": "skip"})


def _points(series: Series) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": _numbers(series.x),
        "y": _numbers(series.y),
        "marker": {"size": 5, "opacity": 0.65, "color": series.style.colour},
    } | _hover(series)


def _margin(series: Series) -> dict[str, Any]:
    """Return the margin around 0 as a broad bar behind the interval."""
    error = {"type": "data", "array": [_number(series.margin)], "thickness": _ROW_PIXELS + 4, "width": 0}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [0],
        "y": [_text(str(row)) for row in series.y],
        "error_x": error,
        "marker": {"size": 0.1},
        "hoverinfo": "skip",
    }


def _interval(series: Series) -> dict[str, Any]:
    (value,) = series.x
    error: dict[str, Any] = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 3, "visible": False}
    if not np.isnan([series.low, series.high]).any():
        error |= {"array": [_number(series.high - value)], "arrayminus": [_number(value - series.low)], "visible": True}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": _numbers(series.x),
        "y": [_text(str(row)) for row in series.y],
        "error_x": {**error, "color": series.style.colour},
        "marker": {"size": 8, "symbol": series.style.marker[1], "color": series.style.colour},
    } | _hover(series)


def _box(series: Series) -> dict[str, Any]:
    box = series.box
    names = ("lowerfence", "q1", "median", "q3", "upperfence")
    numbers = () if box is None else (box.low, box.first, box.median, box.third, box.high)
    return {
        "type": "box",
        "orientation": "h",
        "y": [_text(str(row)) for row in series.y],
        **{name: [_number(value)] for name, value in zip(names, numbers, strict=False)},
        "offsetgroup": _text(series.name),
        "fillcolor": series.style.colour,
        "line": {"width": 1},
    }


_TRACES = {"line": _line, "points": _points, "interval": _interval, "box": _box}


def style_swatch(style: Style, kind: str) -> str:
    """Return a small picture of a style as SVG, for a legend."""
    dashes = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2"}[style.dash]
    variables = f"--light:{style.colour};--dark:{style.dark}"
    line = "" if kind in ("points", "box") else f'<line x1="1" y1="7" x2="33" y2="7" stroke-dasharray="{dashes}"/>'
    marker = '<rect x="8" y="2" width="18" height="10"/>' if kind == "box" else _SHAPES.get(style.marker[1], "")
    return f'<svg class="swatch" style="{variables}" viewBox="0 0 34 14" aria-hidden="true">{line}{marker}</svg>'


_SHAPES = {
    "circle": '<circle cx="17" cy="7" r="4"/>',
    "square": '<rect x="13" y="3" width="8" height="8"/>',
    "triangle-up": '<path d="M17 2l5 9h-10z"/>',
    "triangle-down": '<path d="M17 12l5-9h-10z"/>',
    "diamond": '<path d="M17 2l5 5-5 5-5-5z"/>',
    "cross": '<path d="M15 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    "x": '<path d="M13 4l1-1 3 3 3-3 1 1-3 3 3 3-1 1-3-3-3 3-1-1 3-3z"/>',
}


def _hover(series: Series) -> dict[str, Any]:
    if not series.notes:
        return {}
    return {"text": [_text(note) for note in series.notes], "hovertemplate": "%{text}<extra></extra>"}


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in np.asarray(values, dtype=float).tolist()]


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None


def _text(text: str) -> str:
    """Return a text that plotly.js shows as it is; it takes tags and links for such."""
    return html.escape(text, quote=False)
