"""The verdict in words: plain sentences a data set, and a table a part."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edue_lightning.metrics import LOWER_IS_BETTER, SCORES
from edue_lightning.reporting.findings import OVER_DATA, UNDEFINED, Finding, Part, Verdict

TITLES = {
    "image_pearson": "image-level correlation",
    "image_spearman": "image-level rank correlation",
    "pixel_pearson": "pixel-level correlation",
    "nll": "NLL",
    "ece": "ECE",
    "d_auc": "d-AUC",
    "dice": "Dice",
    "forward_passes": "forward passes",
    "parameter_ratio": "parameters over those of one plain U-Net",
}
"""Names of the quantities in sentences."""

PARTS: dict[Part, str] = {
    "usual": "Against the usual ensembles",
    "best baseline": "Against the best baseline",
    "cost": "Cost",
}

_ENDS = {"yes": "holds", "no": "does not hold", "not shown": "not shown to hold", "undefined": "undefined"}
_COUNTED = {"yes": "hold", "not shown": "not shown to hold", "no": "do not hold", "undefined": "undefined"}
_SMALL = 0.001


def sentences(verdict: Verdict) -> dict[str, list[str]]:
    """Return a sentence a finding, by data set; those on the average over data sets last."""
    by_data: dict[str, list[str]] = {}
    for finding in sorted(verdict.findings, key=lambda finding: finding.data == OVER_DATA):
        by_data.setdefault(finding.data, []).append(sentence(finding))
    return by_data


def summary(verdict: Verdict) -> str:
    """Return one sentence on how many findings hold."""
    answers = [finding.holds for finding in verdict.findings if finding.part == "best baseline"]
    if not answers:
        return f"Nothing was compared with a best baseline for {verdict.candidate}."
    counts = [f"{word}: {answers.count(answer)}" for answer, word in _COUNTED.items() if answer in answers]
    return f"Of {len(answers)} comparisons of {verdict.candidate} with the best baseline {', '.join(counts)}."


def sentence(finding: Finding) -> str:
    """Return a finding as a plain sentence."""
    where = ", ".join(filter(None, (finding.data, finding.structure)))
    if finding.data == OVER_DATA:
        where = "all data sets"
    title = TITLES[finding.quantity]
    if finding.part == "cost":
        value = UNDEFINED if np.isnan(finding.value) else f"{finding.value:.4g}"
        return f"{where}: {title} {value}, of at most {finding.target:g}; {_ENDS[finding.holds]}."
    if finding.part == "usual":
        return f"{where}: {title} {_usual(finding)}; {'undefined' if finding.holds == UNDEFINED else finding.outcome}."
    if finding.holds == UNDEFINED:
        return f"{where}: {title} is undefined for {finding.method} or for every baseline."
    digits = _digits(finding)
    sign = -1 if finding.change < 0 else 1
    low, high = sorted((sign * finding.ci_low, sign * finding.ci_high))
    remark = f"[{low:.{digits}f}, {high:.{digits}f}], which {'excludes' if low > 0 or high < 0 else 'contains'} 0"
    if np.isnan(low):
        remark = "without an interval"
    if finding.quantity == "dice":
        remark += f"; {finding.outcome}"
    against = f"{finding.value:.{digits}f}{read_out(finding.metric)} against {finding.baseline_value:.{digits}f}"
    amount = f"{'lower' if sign < 0 else 'higher'} by {abs(finding.change):.{digits}f}"
    return (
        f"{where}: {title} {against}{read_out(finding.baseline_metric)} of {finding.baseline}, the best baseline on "
        f"validation data: {amount} {remark}; {_ENDS[finding.holds]}."
    )


def read_out(metric: str) -> str:
    """Return the read-out of a metric in brackets, after a space; nothing for a metric that has one alone."""
    if metric.startswith("d_auc"):
        return f" ({SCORES[metric.removeprefix('d_auc')][0]})"
    if metric.startswith(("image_", "pixel_")):
        return " (p(1 - p))" if metric.endswith("_total") else " (variance between members)"
    return ""


def table(verdict: Verdict, part: Part) -> pd.DataFrame:
    """Return the findings of a part as a table of texts."""
    rows = []
    for finding in verdict.findings:
        if finding.part != part:
            continue
        digits = _digits(finding)
        percent = finding.measure in ("relative gain", "distance closed")
        row = {"data": finding.data, "structure": finding.structure, "quantity": TITLES[finding.quantity]}
        if part == "cost":
            row |= {verdict.candidate: _number(finding.value, 2), "at most": f"{finding.target:g}"}
        else:
            low, high = (_signed(end, digits, percent) for end in (finding.ci_low, finding.ci_high))
            row |= {
                verdict.candidate: _valued(finding.value, finding.metric, digits, finding.data),
                "baseline": finding.baseline,
                "its value": _valued(finding.baseline_value, finding.baseline_metric, digits, finding.data),
                "change": f"{_signed(finding.change, digits, percent)} [{low}, {high}]",
            }
        if part == "usual":
            row |= {"change is": finding.measure, "target": _signed(finding.target, digits, percent)}
        rows.append(row | {"outcome": finding.outcome, "holds": finding.holds})
    return pd.DataFrame(rows)


def _valued(value: float, metric: str, digits: int, data: str) -> str:
    # an average over data sets has no value of its own
    return "" if data == OVER_DATA else _number(value, digits) + (read_out(metric) if metric else "")


def _usual(finding: Finding) -> str:
    change, target = (_signed(value, 0, True) for value in (finding.change, finding.target))
    ends = f"[{_signed(finding.ci_low, 0, True)}, {_signed(finding.ci_high, 0, True)}]"
    if finding.data == OVER_DATA:
        if np.isnan(finding.change):
            return "has no relative gain on any data set"
        return f"{change} {ends} on average, of a target of {target}, the mean of those of the data sets"
    against = (
        f"{_number(finding.value, 3)}{read_out(finding.metric)} against {_number(finding.baseline_value, 3)}, "
        f"the mean of {finding.baseline}"
    )
    if np.isnan(finding.change):
        return against
    if finding.measure == "distance closed":
        return (
            f"{against}: there is no relative gain over a baseline that is not positive, and of its distance to 1 "
            f"{change.lstrip('+')} {ends} is closed, of a target of {target.lstrip('+')}"
        )
    return f"{against}: {change} {ends}, of a target of {target}{_halved(finding)}"


def _halved(finding: Finding) -> str:
    halving = (1 - finding.baseline_value) / (2 * finding.baseline_value)
    return ", which halves the baseline's distance to 1" if np.isclose(finding.target, halving) else ""


def _digits(finding: Finding) -> int:
    small = finding.measure == "difference" and abs(finding.change) < _SMALL
    return 4 if small and finding.quantity in LOWER_IS_BETTER else 3


def _number(value: float, digits: int) -> str:
    return UNDEFINED if np.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float, digits: int, percent: bool) -> str:
    if np.isnan(value):
        return UNDEFINED
    return f"{100 * value:+.1f}".removesuffix(".0") + " %" if percent else f"{value:+.{digits}f}"
