"""Matrix of the methods against the reference: a word and a colour per quantity, the numbers on hover and focus."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from edue_lightning.reporting.findings import Finding
from edue_lightning.reporting.page.elements import method_name
from edue_lightning.reporting.wording import arrow, details, digits_of, short_title, word_of

MATRIX_KEY = (
    "Each row is a method; a word says how it compares with the reference on the same cases. better, worse: the 95 % "
    "interval of the difference excludes 0, also after Holm's correction over all cells. level: no difference "
    "is shown; "
    "with ≈ it is shown to be within the margin. undefined: a value or its interval is undefined, or the model is "
    "degenerate. Point at a cell, or move to it with Tab and the arrow keys, for the difference and its interval."
)


def matrix_table(findings: Sequence[Finding], caption: str) -> str:
    """Return the matrix of one data set as HTML.

    Args:
        findings: findings of `matrix_findings` on one data set.
        caption: caption of the table.
    """
    reference = findings[0].method
    quantities = [
        quantity
        for quantity in dict.fromkeys(finding.quantity for finding in findings)
        if any(not np.isnan(finding.change) for finding in findings if finding.quantity == quantity)
    ]
    cells = {(finding.baseline, finding.quantity): finding for finding in findings}
    methods = list(dict.fromkeys(finding.baseline for finding in findings))
    metrics = {finding.quantity: finding.metric for finding in findings}
    head = "".join(
        f'<th scope="col" role="columnheader"><button type="button" class="sort">{html.escape(short_title(name))} '
        f"{arrow(metrics[name])}</button></th>"
        for name in quantities
    )
    rows = [_reference_row(reference, quantities, cells, methods)]
    rows += [
        f'<tr role="row" data-method="{html.escape(method)}"><th scope="row" '
        f'role="rowheader">{method_name(method)}</th>'
        + "".join(_cell(cells[method, name]) for name in quantities)
        + "</tr>"
        for method in methods
    ]
    return (
        f'<table class="matrix" role="grid" aria-readonly="true"><caption>{html.escape(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row"><th scope="col" role="columnheader">method</th>{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _reference_row(
    reference: str, quantities: Sequence[str], cells: Mapping[tuple[str, str], Finding], methods: Sequence[str]
) -> str:
    parts = []
    for name in quantities:
        value = next(
            (cells[method, name].value for method in methods if not np.isnan(cells[method, name].value)), np.nan
        )
        label = html.escape(short_title(name))
        parts.append(f'<td role="gridcell" data-label="{label}" class="reference"><b>{_number(value, name)}</b></td>')
    marked = f'<th scope="row" role="rowheader">{method_name(reference)}<small>the reference</small></th>'
    return f'<tr role="row" class="reference" data-method="{html.escape(reference)}">{marked}{"".join(parts)}</tr>'


def _cell(finding: Finding) -> str:
    word = word_of(finding)
    shown = f"{word} ≈" if finding.within_margin and word == "level" else word
    value = _number(finding.baseline_value, finding.quantity)
    label, text = html.escape(short_title(finding.quantity)), html.escape(details(finding))
    return (
        f'<td role="gridcell" class="{word}" data-label="{label}"><b>{shown}</b><small>{value}</small>'
        f'<span class="details">{text}</span></td>'
    )


def _number(value: float, quantity: str) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits_of(quantity)}f}"
