"""Charts of the disagreement of a model with its raters' disagreement, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from edue_lightning.metrics.correlation import weighted_pearson, weighted_spearman
from edue_lightning.metrics.ties import tied
from edue_lightning.reporting.charts.chart import Chart, Plot, Series
from edue_lightning.reporting.charts.names import some_of
from edue_lightning.reporting.charts.styles import Style, guide_style


class Disagreement(NamedTuple):
    """Scores of the cases of a method.

    Attributes:
        score: `sv`, or `sv_total` for a single network, which has no variance between members.
        cases: columns `model` and `raters`, by case; NaN where one is undefined.
    """

    score: str
    cases: pd.DataFrame

    def correlation(self, method: str) -> float:
        """Return the Pearson or Spearman correlation, as in the table of metrics."""
        defined = self.cases.dropna()
        model, raters = (defined[side].to_numpy() for side in ("model", "raters"))
        correlation = weighted_spearman if method == "spearman" else weighted_pearson
        return float(correlation(model, raters, np.ones((1, len(defined))))[0])


def disagreement_of(cases: pd.DataFrame) -> Disagreement:
    """Return SV, or the sum of p(1 - p) where no case defines SV, beside the raters' SV*.

    Args:
        cases: rows of `cases.csv` of one structure.
    """
    score = "sv_total" if cases["sv"].isna().all() and "sv_total" in cases else "sv"
    columns = {"model": cases[score], "raters": cases["sv_star"]}
    found = pd.DataFrame(columns).astype(float)
    return Disagreement(score, found.set_axis(cases["case_id"].astype(str), axis=0))


def disagreement_charts(
    cases: Mapping[str, pd.DataFrame],
    styles: Mapping[str, Style],
    unit: str,
    *,
    name: str,
    title: str,
    caption: str = "",
) -> list[Chart]:
    """Return scatter plots of each case's SV against the raters' SV*, by value and by rank; one plot per method.

    Args:
        cases: rows of `cases.csv` of one structure, by method.
        styles: style of each method.
        unit: unit of the sums of variances; empty where it is unknown.
        name: name of the files.
        title: heading.
        caption: description.
    """
    found = {label: disagreement_of(table) for label, table in cases.items()}
    values = np.concatenate([one.cases.to_numpy().ravel() for one in found.values()])
    largest = float(np.max(values[~np.isnan(values)], initial=0)) * 1.05 or 1.0
    charts = []
    for kind, correlation, suffix in (("value", "pearson", ""), ("rank", "spearman", "_ranks")):
        plots = [_plot(label, one, styles[label], kind, correlation, unit, largest) for label, one in found.items()]
        correlations = {label: one.correlation(correlation) for label, one in found.items()}
        charts.append(
            Chart(
                name=f"{name}{suffix}",
                title=f"{title}, by {kind}",
                caption=caption,
                alt=_alt(correlations, correlation, kind),
                plots=plots,
                columns=4,
            )
        )
    return charts


def _plot(
    label: str, found: Disagreement, style: Style, kind: str, correlation: str, unit: str, largest: float
) -> Plot:
    cases = found.cases.dropna()
    numbers = cases.apply(tied).rank() if kind == "rank" else cases
    end = largest if kind == "value" else len(cases) + 1.0
    of = "SV" if found.score == "sv" else "sum of p(1 - p)"
    within = f" in {unit}" if kind == "value" and unit else "" if kind == "value" else ", rank"
    notes = [
        f"{case}: {of} {row.model:.4g}, raters {row.raters:.4g}"
        for case, row in zip(cases.index, cases.itertuples(index=False), strict=True)
    ]
    points = Series(
        name=label,
        kind="points",
        style=style,
        method=label,
        x=numbers["raters"].tolist(),
        y=numbers["model"].tolist(),
        notes=notes,
    )
    diagonal = Series(name="equal", kind="line", style=guide_style("dash"), x=(0, end), y=(0, end))
    value = found.correlation(correlation)
    said = "undefined" if np.isnan(value) else f"{value:.2f}"
    return Plot(
        title=f"{label}\n{correlation.capitalize()} {said}" + ("" if found.score == "sv" else " of p(1 - p)"),
        x_label=f"raters' SV*{within}",
        y_label=f"{of}{within}",
        series=(diagonal, points),
        x_range=(-0.02 * end, end),
        y_range=(-0.02 * end, end),
        method=label,
        height=0.8,
    )


def _alt(correlations: Mapping[str, float], name: str, kind: str) -> str:
    defined = {label: value for label, value in correlations.items() if not np.isnan(value)}
    text = f"One scatter plot per method: the model's disagreement of each case against the raters', by {kind}."
    if not defined:
        return f"{text} No correlation is defined."
    ordered = sorted(defined, key=lambda label: -defined[label])
    best = some_of([f"{label} ({defined[label]:.2f})" for label in ordered[:2]])
    text = f"{text} The {name.capitalize()} correlation is highest for {best}"
    return f"{text} and lowest for {ordered[-1]} ({defined[ordered[-1]]:.2f})." if len(ordered) > 2 else f"{text}."
