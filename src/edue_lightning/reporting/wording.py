"""Words of the report on how a method compares with the reference, from findings on the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from edue_lightning.metrics import LOWER_IS_BETTER
from edue_lightning.reporting.findings import Finding, Verdict
from edue_lightning.reporting.outcomes import Outcome
from edue_lightning.reporting.verdict_text import TITLES, read_out
from edue_lightning.text import listed

Word = Literal["better", "level", "worse", "undefined"]

# the findings judge the reference, a reader looks at the other method
_WORDS: dict[Outcome, Word] = {
    "better": "worse",
    "worse": "better",
    "not distinguishable": "level",
    "undefined": "undefined",
}

METRIC_TITLES = {
    "dice": "Dice",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier score",
    "image_pearson": "image-level correlation, V",
    "image_spearman": "image-level rank correlation, V",
    "image_spearman_normalised": "image-level rank correlation by size, V",
    "pixel_pearson": "pixel-level correlation, V",
    "image_pearson_total": "image-level correlation, p(1 - p)",
    "pixel_pearson_total": "pixel-level correlation, p(1 - p)",
}
"""Names of the metrics of tables; V is the variance between members."""

_SHORT_TITLES = {
    "image_pearson": "image-level correlation",
    "image_spearman_normalised": "rank correlation by size",
    "pixel_pearson": "pixel-level correlation",
    "d_soft": "soft Dice",
    "normalised_aurc": "normalised AURC",
    "ood_auroc": "distorted images",
    "ood_auroc_uncertainty": "distorted images, by uncertainty",
}


def short_title(quantity: str) -> str:
    """Return the name of a quantity at the head of a narrow column."""
    return _SHORT_TITLES.get(quantity, TITLES.get(quantity, quantity))


def arrow(metric: str) -> str:
    """Return the arrow that points to the better values of a metric."""
    return "↓" if metric in LOWER_IS_BETTER else "↑"


def word_of(finding: Finding) -> Word:
    """Return how the other method compares with the reference, which is the candidate of the finding."""
    return _WORDS[finding.outcome]


def number_of_words(findings: Sequence[Finding]) -> str:
    """Return how many methods are better, level and worse than the reference."""
    counts = Counter(word_of(finding) for finding in findings)
    return ", ".join(f"{counts[word]} {word}" for word in ("better", "level", "worse", "undefined") if counts[word])


def details(finding: Finding) -> str:
    """Return values, difference and interval of the other method against the reference, in one sentence."""
    if np.isnan(finding.change):
        return f"{short_title(finding.quantity)} is undefined ({finding.reason or 'no value'})."
    digits = digits_of(finding.quantity)
    low, high = sorted((-finding.ci_low, -finding.ci_high))
    interval = "without an interval" if np.isnan(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    p_value = "" if np.isnan(finding.adjusted_p) else f", p {_p_value(finding.adjusted_p)} after Holm's correction"
    margin = f", within the margin of {finding.margin:.2g}" if finding.within_margin else ""
    reason = f" ({finding.reason})" if finding.reason else ""
    return (
        f"{short_title(finding.quantity)} "
        f"{finding.baseline_value:.{digits}f}{read_out(finding.baseline_metric)} against "
        f"{finding.value:.{digits}f}{read_out(finding.metric)} of {finding.method}: difference "
        f"{-finding.change:+.{digits}f} {interval}{p_value}{margin}{reason}."
    )


def digits_of(quantity: str) -> int:
    """Return the number of decimals of a quantity's values."""
    return 4 if quantity in ("nll", "ece") else 3


def _p_value(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def headline(verdict: Verdict) -> str:
    """Return the verdict in one sentence: in what the candidate is better than the best baseline, and in what not."""
    findings = [finding for finding in verdict.findings if finding.part == "best baseline"]
    if not findings:
        return f"There is no verdict on {verdict.candidate}."
    several = len({(finding.data, finding.structure) for finding in findings}) > 1
    named: dict[Outcome, list[str]] = {}
    for finding in findings:
        where = f" on {finding.data}, {finding.structure}" if several else ""
        named.setdefault(finding.outcome, []).append(f"{TITLES[finding.quantity]}{where}")
    better, worse = named.get("better", []), named.get("worse", [])
    parts = [
        f"is better than the best baseline in {len(better) or 'none'} of {len(findings)} comparisons"
        f"{_in_brackets(better)}",
        f"worse in {len(worse)}{_in_brackets(worse)}" if worse else "worse in none",
        f"level in {len(named.get('not distinguishable', []))}",
    ]
    if "undefined" in named:
        parts.append(f"undefined in {len(named['undefined'])}")
    return f"{verdict.candidate} {', '.join(parts[:-1])} and {parts[-1]}."


def _in_brackets(names: Sequence[str]) -> str:
    return f" ({listed(names, most=5)})" if names else ""
