"""Parts of the page as HTML: tables, figures, boxes."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from edue_lightning.reporting.charts.chart import Chart, Series
from edue_lightning.reporting.charts.interactive import plotly_of, style_swatch
from edue_lightning.reporting.wording import METRIC_TITLES

_LONG_NAME, _COLOURS = 16, 48


def method_name(label: str) -> str:
    """Return a method's name as HTML that may break at its underscores."""
    return html.escape(label).replace("_", "_<wbr>")


def script_json(value: object) -> str:
    """Return a value as JSON that ends no script and begins no tag."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def warnings_box(texts: Sequence[str]) -> str:
    """Return warnings as a box, or an empty text without any."""
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text.rstrip('.'))}.</li>" for text in texts)
    count = "One warning" if len(texts) == 1 else f"{len(texts)} warnings"
    opened = " open" if len(texts) <= 4 else ""
    return (
        f'<aside class="warnings" aria-label="Warnings"><details{opened}><summary>{count}: read before the numbers'
        f"</summary><ul>{items}</ul></details></aside>"
    )


def metrics_table(frame: pd.DataFrame, caption: str, reference: str = "", rows: Mapping[str, str] | None = None) -> str:
    """Return a table with metrics as rows and methods as columns, the reference first.

    A cell such as `0.842 [0.801, 0.871]` shows its interval on a second line. On a narrow screen each row is a card.

    Args:
        frame: texts, one row per method with its name in the column `method`; `**` marks bold.
        caption: caption of the table.
        reference: method of the first column.
        rows: titles of the rows by column of the frame, where they differ.
    """
    methods = frame["method"].tolist()
    order = sorted(range(len(methods)), key=lambda number: methods[number] != reference)
    head = "".join(
        f'<th scope="col" role="columnheader" data-method="{html.escape(methods[n])}"'
        f"{' class=reference' if methods[n] == reference else ''}>{method_name(methods[n])}</th>"
        for n in order
    )
    body = []
    for column in (name for name in frame.columns if name != "method"):
        cells = "".join(
            f'<td role="cell" data-method="{html.escape(methods[n])}" data-label="{html.escape(methods[n])}"'
            f"{' class=reference' if methods[n] == reference else ''}>{_cell(str(frame[column].iloc[n]))}</td>"
            for n in order
        )
        title = (rows or {}).get(column) or _row_title(str(column))
        sort = f'<button type="button" class="sort" title="Sort the methods by this row">{title}</button>'
        body.append(f'<tr role="row"><th scope="row" role="rowheader">{sort}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f'<table class="metrics" role="table"><caption>{html.escape(caption)}</caption><thead '
        'role="rowgroup"><tr role="row">'
        f'<th scope="col" role="columnheader">metric</th>{head}</tr></thead><tbody '
        f'role="rowgroup">{"".join(body)}</tbody>'
        "</table></div>"
    )


def _row_title(column: str) -> str:
    """Return the title of a row: the name that readers say, and the name in tables where it is another."""
    metric, _, arrow = column.partition(" ")
    if metric in METRIC_TITLES and arrow in ("↑", "↓", ""):
        return f"{html.escape(METRIC_TITLES[metric])} {arrow}"
    return html.escape(column)


def _cell(text: str) -> str:
    """Return a value, and what follows it on a second line; words without a value stay together."""
    bold = text.startswith("**")
    value, _, rest = text.replace("**", "").partition(" ")
    if not _is_number(value):
        value, rest = text.replace("**", ""), ""
    value = html.escape(value.rstrip(","))
    value = f"<b>{value}</b>" if bold else f"<span>{value}</span>"
    return value + (f"<small>{html.escape(rest)}</small>" if rest else "")


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def cards_table(rows: Sequence[Mapping[str, str]], caption: str) -> str:
    """Return a table with one row per finding; on a narrow screen each row is a card.

    Args:
        rows: HTML of the cells by column, the same columns in every row.
        caption: caption of the table.
    """
    columns = list(rows[0])
    head = "".join(f'<th scope="col" role="columnheader">{html.escape(column)}</th>' for column in columns)
    body = ""
    for row in rows:
        first, *others = columns
        cells = f'<th scope="row" role="rowheader">{row[first]}</th>'
        cells += "".join(
            f'<td role="cell" data-label="{html.escape(name)}"><div>{row[name]}</div></td>' for name in others
        )
        body += f'<tr role="row">{cells}</tr>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f'<table class="cards" role="table"><caption>{html.escape(caption)}</caption><thead '
        'role="rowgroup"><tr role="row">'
        f'{head}</tr></thead><tbody role="rowgroup">{body}</tbody></table></div>'
    )


def figure(chart: Chart, picture: Path) -> str:
    """Return a figure of the page: its picture, which the page replaces by interactive plots, a legend and a caption.

    Args:
        chart: the chart.
        picture: PNG file of the chart, for readers without scripts and for print.
    """
    encoded = _embedded(picture)
    plots = "".join(_plot(plotly_of(plot), chart.alt) for plot in chart.plots)
    # names of rows take their width from the plots
    wide = any(len(row) > _LONG_NAME for plot in chart.plots for row in plot.rows)
    size = ("narrow", "two", "two" if wide else "three", "four")[min(chart.columns, 4) - 1]
    legend = chart.legend()
    entries = "".join(map(_legend_entry, legend)) if len(legend) > 1 else ""
    caption = html.escape(chart.caption)
    return (
        f'<figure class="chart" id="{html.escape(chart.name)}" aria-label="{html.escape(chart.title)}">'
        f'<p class="figure-title">{html.escape(chart.title)}</p><img class="static" '
        f'alt="{html.escape(chart.alt)}" src="data:image/png;base64,{encoded}">'
        f'<div class="plots {size}" hidden>{plots}</div><div class="legend" hidden>{entries}</div>'
        f'<figcaption>{caption} <span class="zooms" hidden>{_ZOOMS}</span></figcaption></figure>'
    )


def _embedded(picture: Path) -> str:
    """Return a picture of few colours in base64, a third of the size of its file."""
    buffer = io.BytesIO()
    with Image.open(picture) as opened:
        opened.convert("RGB").quantize(_COLOURS).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


_ZOOMS = "".join(
    f'<button type="button" class="plain" data-zoom="{factor}">{name}</button>'
    for factor, name in (("0.7", "Zoom in"), ("1.4286", "Zoom out"), ("0", "Reset"))
)


def _plot(data: Mapping[str, Any], alt: str) -> str:
    layout = data["layout"]
    title = str(layout["meta"]["title"])
    method = layout["meta"]["method"]
    marked = f' data-method="{html.escape(method)}"' if method else ""
    heading, _, second = title.partition("\n")
    lines = f"<b>{method_name(heading)}</b>" + (f"<small>{html.escape(second)}</small>" if second else "")
    label = f"{heading}: {second}" if second else heading or alt
    return (
        f'<div class="plot"{marked}>{f"<p>{lines}</p>" if title else ""}'
        f'<div class="canvas" role="img" aria-label="{html.escape(label)}" '
        f'style="min-height:{layout["height"]}px"></div>'
        f'<script type="application/json">{script_json(data)}</script></div>'
    )


def _legend_entry(series: Series) -> str:
    swatch = style_swatch(series.style, series.kind)
    name = f"<span>{html.escape(series.name)}</span>"
    if series.kind != "line" or series.method is None:
        return f'<span class="entry">{swatch}{name}</span>'
    method = html.escape(series.method)
    return f'<button type="button" class="entry" aria-pressed="true" data-toggle="{method}">{swatch}{name}</button>'
