"""Tables of the verdict on the reference, the outcome beside the quantity."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping

from edue_lightning.reporting.findings import Finding, Verdict
from edue_lightning.reporting.outcomes import Outcome
from edue_lightning.reporting.page.elements import cards_table, method_name
from edue_lightning.reporting.verdict_text import PARTS, outcome_text, table

_CLASSES: Mapping[Outcome, str] = {
    "better": "better",
    "worse": "worse",
    "not distinguishable": "level",
    "undefined": "undefined",
}


def verdict_cards(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield heading and HTML of the tables of a verdict that compare methods.

    Args:
        verdict: the verdict.
    """
    for part in ("best baseline", "usual"):
        findings = [finding for finding in verdict.findings if finding.part == part]
        texts = table(verdict, part).to_dict("records")
        rows = [
            _row(finding, {str(name): str(value) for name, value in row.items()}, verdict.candidate)
            for finding, row in zip(findings, texts, strict=True)
        ]
        if rows:
            yield PARTS[part], cards_table(rows, f"{verdict.candidate}, {PARTS[part].lower()}, on the test cases")


def _row(finding: Finding, texts: Mapping[str, str], candidate: str) -> dict[str, str]:
    place = ", ".join(filter(None, (texts["data"], texts["structure"])))
    word = html.escape(finding.outcome)
    outcome = f'<span class="word {_CLASSES[finding.outcome]}">{word}</span>'
    further = outcome_text(finding).removeprefix(finding.outcome).lstrip(" ,")
    if finding.part == "usual":
        # the words for a target
        outcome = f'<span class="word {_CLASSES[finding.outcome]}">{html.escape(outcome_text(finding))}</span>'
        further = ""
    change, _, interval = texts["change"].partition(" [")
    row = {
        "quantity": f"{html.escape(texts['quantity'])}<small>{html.escape(place)}</small>",
        "outcome": outcome + (f"<small>{html.escape(further)}</small>" if further else ""),
        "difference": html.escape(change) + (f"<small>[{html.escape(interval)}</small>" if interval else ""),
        candidate: _valued(texts[candidate]),
        "baseline": f"{_valued(texts['its value'])}<small>{method_name(texts['baseline'])}</small>",
        "Holm's p": html.escape(texts["Holm's p"]),
    }
    if finding.part == "usual":
        row["target"] = f"{html.escape(texts['target'])}<small>{html.escape(texts['change is'])}</small>"
    return row


def _valued(text: str) -> str:
    value, _, rest = text.partition(" ")
    return html.escape(value) + (f"<small>{html.escape(rest)}</small>" if rest else "")


def cost_cards(verdict: Verdict) -> str:
    """Return the table of the limits on costs as HTML; an empty text without any.

    Args:
        verdict: the verdict.
    """
    findings = [finding for finding in verdict.findings if finding.part == "cost"]
    rows = [
        {
            "quantity": f"{html.escape(row['quantity'])}<small>{html.escape(row['data'])}</small>",
            "outcome": f'<span class="word '
            f'{"level" if finding.within_margin else "worse"}">{html.escape(row["outcome"])}</span>',
            verdict.candidate: html.escape(row[verdict.candidate]),
            "at most": html.escape(row["at most"]),
        }
        for finding, row in zip(findings, table(verdict, "cost").to_dict("records"), strict=True)
    ]
    return cards_table(rows, f"Costs of {verdict.candidate}, and their limits") if rows else ""
