"""Matrix of a method's outcomes against every other method, in every quantity and on every data set, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edue_lightning.metrics import MEAN_STRUCTURE
from edue_lightning.reporting.comparison import group_by_subject, mean_over_seeds, paired_difference
from edue_lightning.reporting.findings import TEST, Finding
from edue_lightning.reporting.outcomes import is_degenerate
from edue_lightning.reporting.selection import best_metric
from edue_lightning.reporting.shared_cases import differing_cases
from edue_lightning.reporting.verdict import measured_quantities, with_difference, with_outcomes
from edue_lightning.reporting.verdict_text import TITLES
from edue_lightning.runs.files import Run

LETTERS = {
    "nll": "N",
    "ece": "E",
    "image_pearson": "I",
    "image_spearman_normalised": "S",
    "pixel_pearson": "P",
    "aurc": "R",
    "normalised_aurc": "A",
    "d_soft": "F",
    "ged2": "G",
    "dice": "D",
    "ood_auroc": "O",
    "ood_auroc_uncertainty": "U",
}
"""Quantities of the matrix, by the letters at the head of their columns."""

SIGNS = {"better": "+", "worse": "-", "undefined": " "}
WITHIN_MARGIN, NOT_SHOWN = "=", "."
LEGEND = (
    "+ better, - worse, = not distinguishable and within the margin, . not distinguishable, blank: undefined. "
    + ", ".join(f"{letter} {TITLES[name]}" for name, letter in LETTERS.items())
)


def matrix_findings(runs: Sequence[Run], candidate: str) -> list[Finding]:
    """Return one finding per other method, data set and quantity, with Holm's correction over all of them.

    Each method has the read-out that is best on validation data, see `selection.best_metric`. Several structures are
    compared by their mean.

    Args:
        runs: see `find_runs`.
        candidate: name of a method.
    """
    by_data: dict[str, dict[str, list[Run]]] = {}
    for (method, data, split), members in group_by_subject(runs).items():
        if split == TEST:
            by_data.setdefault(data, {})[method] = members
    findings = []
    for data, methods in by_data.items():
        own = methods.get(candidate)
        if own is None or any(run.validation is None for run in own):
            continue
        structures = set(own[0].metrics["structure"])
        structure = MEAN_STRUCTURE if MEAN_STRUCTURE in structures else next(iter(structures))
        for name, others in methods.items():
            if name == candidate or any(run.validation is None for run in others):
                continue
            for quantity in measured_quantities(own, others, structure):
                if quantity.name not in LETTERS:
                    continue
                findings.append(_finding(data, structure, quantity.name, quantity.metrics, own, name, others))
    return with_outcomes(findings)


def _finding(
    data: str,
    structure: str,
    quantity: str,
    metrics: Sequence[str],
    own: Sequence[Run],
    name: str,
    others: Sequence[Run],
) -> Finding:
    metric, read_out = (best_metric(runs, structure, metrics) for runs in (own, others))
    nothing = Finding(
        part="best baseline",
        method=own[0].method,
        data=data,
        structure=structure,
        quantity=quantity,
        metric=metric or metrics[0],
        baseline=name,
        measure="difference",
        reason="undefined on validation data",
        seeds=len(own),
    )
    if metric is None or read_out is None:
        return nothing
    degenerate = quantity != "dice" and any(
        is_degenerate(mean_over_seeds(runs, structure, "dice")) for runs in (own, others)
    )
    reason = "degenerate model" if degenerate else differing_cases([(own, metric), (others, read_out)], structure)
    found = paired_difference(own, others, structure, metric, read_out)
    return replace(with_difference(nothing, name, read_out, found), reason=reason)


def matrix_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the matrix as lines of equal letters: one per method, one group of columns per data set.

    Args:
        findings: see `matrix_findings`.
    """
    if not findings:
        return []
    cells: Mapping[tuple[str, str, str], str] = {
        (finding.baseline, finding.data, finding.quantity): _sign(finding) for finding in findings
    }
    methods = list(dict.fromkeys(finding.baseline for finding in findings))
    data_sets = list(dict.fromkeys(finding.data for finding in findings))
    width = max(map(len, (*methods, f"{findings[0].method} against")))
    group = max(len(LETTERS), *map(len, data_sets))
    lines = [
        "  ".join([f"{findings[0].method} against".ljust(width), *(data.ljust(group) for data in data_sets)]),
        "  ".join([" " * width, *("".join(LETTERS.values()).ljust(group) for _ in data_sets)]),
    ]
    for method in methods:
        signs = ("".join(cells.get((method, data, name), " ") for name in LETTERS).ljust(group) for data in data_sets)
        lines.append("  ".join([method.ljust(width), *signs]))
    return [line.rstrip() for line in lines]


def _sign(finding: Finding) -> str:
    if finding.outcome == "not distinguishable":
        return WITHIN_MARGIN if finding.within_margin else NOT_SHOWN
    return SIGNS[finding.outcome]
