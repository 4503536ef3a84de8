"""Verdict of the committed study by today's rule, from the differences and intervals of its report.

python experiments/comparison/recount.py

The runs themselves are not committed. `results/verdict_as_run.csv` has what their report found: each difference from
the best baseline with its 95 % interval. Outcomes, margins and Holm's correction follow from these. What would need the
runs (other quantities, other baselines) stays undefined, with the reason.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pandas as pd

from edue_lightning.reporting.comparison import PairedDifference
from edue_lightning.reporting.findings import Finding, Verdict
from edue_lightning.reporting.outcomes import MARGINS, interval_p
from edue_lightning.reporting.report import verdict_markdown
from edue_lightning.reporting.verdict import cost_finding, with_difference, with_outcomes
from edue_lightning.runs.files import write_table

RESULTS = Path(__file__).resolve().parent / "results"
AS_RUN, VERDICT, TABLES = (RESULTS / name for name in ("verdict_as_run.csv", "verdict.csv", "comparison.md"))
NOT_COMMITTED = "not recounted: its paired replicates are not committed"
REMARKS = (
    "Recounted from the differences and intervals of the report at the time: 24 of the 28 comparisons with the best "
    "baseline. The four of d-AUC are left out, since its scale depends on a method's own share of poor cases; the "
    "correlation by size, the AURC and the normalised AURC, which are compared today, need the runs, which are not "
    "committed.",
    "The margins were fixed after these results were known, and before any other comparison.",
)
CAPTION = "mean over seeds, with 95 % bootstrap intervals; nothing is in bold, since that needs paired differences"


def recounted(as_run: pd.DataFrame) -> list[Finding]:
    """Return the findings of the study by today's rule.

    Args:
        as_run: content of `verdict_as_run.csv`.
    """
    known = [field.name for field in fields(Finding) if field.name in as_run.columns and field.name != "outcome"]
    findings: dict[str, list[Finding]] = {"usual": [], "best baseline": [], "cost": []}
    for row in as_run.astype(object).where(as_run.notna(), None).to_dict("records"):
        finding = Finding(**{name: row[name] for name in known if row[name] is not None})
        if finding.part == "cost":
            finding = cost_finding(finding.method, finding.data, finding.quantity, finding.value, finding.seeds)
        elif finding.part == "usual":
            low, high = finding.ci_low - finding.target, finding.ci_high - finding.target
            finding = replace(finding, p_value=interval_p(low, high))
        elif finding.quantity in MARGINS:
            ends = (finding.ci_low, finding.ci_high)
            values = (finding.value, finding.baseline_value, finding.change)
            difference = PairedDifference(*values, *ends, interval_p(*ends), finding.seeds)
            finding = with_difference(finding, finding.baseline, finding.baseline_metric, difference)
        else:
            # d-AUC
            continue
        findings[finding.part].append(finding)
    findings["best baseline"] += _not_committed(findings["best baseline"])
    return with_outcomes([finding for part in findings.values() for finding in part])


def _not_committed(findings: list[Finding]) -> list[Finding]:
    """Return one undefined finding per structure and quantity that the study's report did not compare."""
    places = dict.fromkeys((finding.method, finding.data, finding.structure, finding.seeds) for finding in findings)
    return [
        Finding(
            part="best baseline",
            method=method,
            data=data,
            structure=structure,
            quantity=quantity,
            metric=quantity,
            measure="difference",
            reason=NOT_COMMITTED,
            seeds=seeds,
        )
        for method, data, structure, seeds in places
        for quantity in ("image_spearman_normalised", "aurc", "normalised_aurc")
    ]


def tables(markdown: str) -> str:
    """Return the tables of a report in Markdown, without its verdict and without bold values."""
    start = markdown.index("\n", markdown.index(" cases; mean over seeds"))
    heading = markdown.rindex("### ", 0, start)
    lines = markdown[heading:].replace("**", "").splitlines()
    return "\n".join(
        line.split(" cases;")[0] + f" cases; {CAPTION}" if " cases; mean over seeds" in line else line for line in lines
    )


def main() -> None:
    """Write `verdict.csv`, and the verdict in `comparison.md`."""
    as_run = pd.read_csv(AS_RUN)
    findings = recounted(as_run)
    verdict = Verdict(findings[0].method, findings, REMARKS)
    frame = verdict.frame()
    write_table(frame, list(frame.columns), VERDICT)
    TABLES.write_text("\n".join([*verdict_markdown(verdict), tables(TABLES.read_text())]) + "\n")
    shown = frame[frame["part"] == "best baseline"]
    print(shown.groupby(["outcome", "within_margin"]).size().to_string())


if __name__ == "__main__":
    main()
