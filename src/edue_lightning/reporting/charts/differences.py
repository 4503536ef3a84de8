"""Forest plots: paired differences of each method from the reference, with the margin that does not matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edue_lightning.metrics import LOWER_IS_BETTER
from edue_lightning.reporting.charts.chart import Chart, Plot, Series
from edue_lightning.reporting.charts.styles import OUTCOME_STYLES
from edue_lightning.reporting.findings import Finding
from edue_lightning.reporting.wording import details, number_of_words, short_title, word_of


def forest_chart(findings: Sequence[Finding], *, name: str, title: str, caption: str = "") -> Chart | None:
    """Return one plot per quantity, with one row per method: its value minus the reference's, with the 95 % interval.

    Args:
        findings: findings of `matrix_findings` on one data set.
        name: name of the files.
        title: heading.
        caption: description.

    Returns:
        None if no difference is defined.
    """
    plots, said = [], []
    for quantity in dict.fromkeys(finding.quantity for finding in findings):
        rows = [finding for finding in findings if finding.quantity == quantity and not np.isnan(finding.change)]
        if rows:
            plots.append(_plot(rows))
            said.append(f"{short_title(quantity)}: {number_of_words(rows)}")
    if not plots:
        return None
    alt = f"Forest plots: the difference of each method from {findings[0].method}. {'; '.join(said)}."
    return Chart(name=name, title=title, caption=caption, alt=alt, plots=plots, columns=3)


def _plot(findings: Sequence[Finding]) -> Plot:
    series = [
        Series(
            name=word_of(finding),
            kind="interval",
            style=OUTCOME_STYLES[word_of(finding)],
            method=finding.baseline,
            # the finding is the reference minus the method
            x=(-finding.change,),
            y=(finding.baseline,),
            low=-finding.ci_high,
            high=-finding.ci_low,
            margin=finding.margin,
            notes=(f"{finding.baseline}: {word_of(finding)}. {details(finding)}",),
        )
        for finding in findings
    ]
    lower = findings[0].metric in LOWER_IS_BETTER
    return Plot(
        title=f"{short_title(findings[0].quantity)}\n{'← better, worse →' if lower else '← worse, better →'}",
        x_label="difference",
        y_label="",
        series=series,
        rows=[finding.baseline for finding in findings],
        zero=True,
    )
