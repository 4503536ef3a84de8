"""Verdict in words: sentences per data set, and one table per part."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edue_lightning.metrics import LOWER_IS_BETTER
from edue_lightning.reporting.findings import OVER_DATA, UNDEFINED, Finding, Part, Verdict
from edue_lightning.reporting.out_of_distribution import PREFIX
from edue_lightning.reporting.selection import scores_of

TITLES = {
    "image_pearson": "image-level correlation",
    "image_spearman": "image-level rank correlation",
    "image_spearman_normalised": "image-level rank correlation by size",
    "pixel_pearson": "pixel-level correlation",
    "nll": "NLL",
    "ece": "ECE",
    "aurc": "AURC",
    "normalised_aurc": "normalised AURC",
    "dice": "Dice",
    "d_soft": "soft Dice over thresholds",
    "ged2": "GED²",
    "ood_auroc": "AUROC for distorted images",
    "ood_auroc_uncertainty": "AUROC for distorted images, by uncertainty",
    "forward_passes": "forward passes",
    "parameter_ratio": "parameters over those of one plain U-Net",
}
"""Names of the quantities in sentences."""

PARTS: dict[Part, str] = {
    "usual": "Against the usual ensembles",
    "best baseline": "Against the best baseline",
    "cost": "Cost",
}

_MASK_RULES = {
    "_by_raters": " (mask at the threshold for the number of raters)",
    "_by_expected_dice": " (mask of the largest expected Dice)",
}
_SELECTIVE = scores_of("aurc") | scores_of("normalised_aurc")
_SMALL = 0.001


def summary(verdict: Verdict) -> str:
    """Return one sentence with the number of comparisons of each outcome."""
    findings = [finding for finding in verdict.findings if finding.part == "best baseline"]
    if not findings:
        return f"Nothing was compared with a best baseline for {verdict.candidate}."
    outcomes = [finding.outcome for finding in findings]
    small = sum(finding.within_margin for finding in findings)
    counts = {
        "better": f"{outcomes.count('better')} better",
        "not distinguishable": f"{outcomes.count('not distinguishable')} not distinguishable ({small} of them within "
        "the margin)",
        "worse": f"{outcomes.count('worse')} worse",
        "undefined": f"{outcomes.count('undefined')} undefined",
    }
    shown = ", ".join(text for name, text in counts.items() if name in outcomes)
    return f"{len(findings)} comparisons of {verdict.candidate} with the best baseline: {shown}."


def outcome_text(finding: Finding) -> str:
    """Return the outcome of a finding, with its margin or its reason."""
    if finding.part == "cost":
        return _limit(finding)
    text: str = finding.outcome
    if finding.part == "usual" and finding.outcome != UNDEFINED:
        text = {"better": "above", "not distinguishable": "not distinguishable from", "worse": "below"}[finding.outcome]
        text += " the target"
    elif finding.within_margin:
        text += f", within {finding.margin:.2g}"
    elif finding.outcome == "not distinguishable" and (finding.ci_low > 0 or finding.ci_high < 0):
        text += f" after Holm's correction (p {finding.adjusted_p:.2f})"
    return f"{text} ({finding.reason})" if finding.reason else text


def read_out(metric: str) -> str:
    """Return the read-out of a metric in brackets, after a space; nothing for a metric with a single read-out."""
    if metric in _SELECTIVE:
        return f" ({_SELECTIVE[metric]})"
    if metric.startswith(PREFIX):
        return f" ({metric.removeprefix(PREFIX)})"
    if metric == "image_spearman_normalised":
        return ""
    if metric.startswith(("image_", "pixel_")):
        return " (p(1 - p))" if metric.endswith("_total") else " (variance between members)"
    return next((text for ending, text in _MASK_RULES.items() if metric.endswith(ending)), "")


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
            row |= {
                verdict.candidate: _valued(finding.value, finding.metric, digits, finding.data),
                "baseline": finding.baseline,
                "its value": _valued(finding.baseline_value, finding.baseline_metric, digits, finding.data),
                "change": f"{_signed(finding.change, digits, percent)} {_interval(finding, digits, percent)}",
            }
        if part == "usual":
            row |= {"change is": finding.measure, "target": _signed(finding.target, digits, percent)}
        if part != "cost":
            row["Holm's p"] = _number(finding.adjusted_p, 3)
        rows.append(row | {"outcome": outcome_text(finding)})
    return pd.DataFrame(rows)


def _limit(finding: Finding) -> str:
    return finding.reason or ("within the limit" if finding.within_margin else "above the limit")


def _valued(value: float, metric: str, digits: int, data: str) -> str:
    # an average over data sets has no value of its own
    if data == OVER_DATA or np.isnan(value):
        return "" if data == OVER_DATA else UNDEFINED
    return _number(value, digits) + read_out(metric)


def _interval(finding: Finding, digits: int, percent: bool) -> str:
    if np.isnan(finding.ci_low):
        return "(no interval)"
    return f"[{_signed(finding.ci_low, digits, percent)}, {_signed(finding.ci_high, digits, percent)}]"


def _digits(finding: Finding) -> int:
    small = finding.measure == "difference" and abs(finding.change) < _SMALL
    return 4 if small and finding.quantity in LOWER_IS_BETTER else 3


def _number(value: float, digits: int) -> str:
    return UNDEFINED if np.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float, digits: int, percent: bool) -> str:
    if np.isnan(value):
        return UNDEFINED
    return f"{100 * value:+.1f}".removesuffix(".0") + " %" if percent else f"{value:+.{digits}f}"
