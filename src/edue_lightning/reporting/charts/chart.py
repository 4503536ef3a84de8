"""Description of a chart: what is drawn, apart from how a file or the page draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edue_lightning.reporting.charts.styles import Style
from edue_lightning.runs.files import Run

Kind = Literal["line", "points", "interval", "box"]


@dataclass(frozen=True, kw_only=True)
class Box:
    """Five numbers of a box plot: quartiles, and the last values within 1.5 times their distance.

    Attributes:
        low: lower end of the whisker.
        first: first quartile.
        median: median.
        third: third quartile.
        high: upper end of the whisker.
    """

    low: float
    first: float
    median: float
    third: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """Line, points, interval or box of one plot.

    Attributes:
        name: name in the legend.
        kind: line with markers, points, point with a horizontal interval, or horizontal box.
        style: colour, marker and dashes.
        method: name of the method, which a reader of the page can hide; None for a line that guides the eye.
        x: positions; empty for a box.
        y: values; of an interval and a box the name of its row.
        low: lower end of an interval.
        high: upper end of an interval.
        margin: largest difference from 0 that does not matter, drawn behind an interval.
        box: numbers of a box.
        notes: text for each point, shown beside it when the reader points at it.
    """

    name: str
    kind: Kind
    style: Style
    method: str | None = None
    x: Sequence[float] = ()
    y: Sequence[float] | Sequence[str] = ()
    low: float = float("nan")
    high: float = float("nan")
    margin: float = float("nan")
    box: Box | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One pair of axes.

    Attributes:
        x_label: title of the horizontal axis.
        y_label: title of the vertical axis.
        series: contents, those of the reference last so that they lie on top.
        title: heading, or nothing.
        x_range: ends of the horizontal axis; None for those of the values.
        y_range: ends of the vertical axis.
        log_y: whether the vertical axis is logarithmic.
        zero: whether a line marks 0.
        rows: names of the rows from the top, if the vertical axis has names.
        method: method that the whole plot is about, or None.
        height: height relative to the other plots of its column.
    """

    x_label: str
    y_label: str
    series: Sequence[Series]
    title: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log_y: bool = False
    zero: bool = False
    rows: Sequence[str] = ()
    method: str | None = None
    height: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure of a report.

    Attributes:
        name: name of its files, without ending.
        title: heading.
        caption: what is drawn, and of which seeds.
        alt: content in words, for readers who do not see it.
        plots: pairs of axes.
        columns: largest number of plots side by side.
        runs: runs it is drawn from.
    """

    name: str
    title: str
    caption: str
    alt: str
    plots: Sequence[Plot]
    columns: int = 1
    runs: Sequence[Run] = field(default=(), repr=False)

    def of(self, runs: Sequence[Run]) -> Chart:
        """Return the chart with the runs it is drawn from."""
        return replace(self, runs=runs)

    def legend(self) -> list[Series]:
        """Return one series per name, those that guide the eye last; none of points, which have a plot of their own."""
        found: dict[str, Series] = {}
        for plot in self.plots:
            for series in plot.series:
                if series.kind != "points":
                    found.setdefault(series.name, series)
        return sorted(found.values(), key=lambda series: (series.method is None, not series.style.strong))
