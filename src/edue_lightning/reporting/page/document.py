"""The page as a whole: head, table of contents, sections, scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from edue_lightning.reporting.charts.interactive import library
from edue_lightning.reporting.page.elements import method_name

# the page may load nothing, wherever it is opened
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline' "
    "'unsafe-eval' blob:; font-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Section:
    """Part of the page with a heading.

    Attributes:
        title: heading.
        body: HTML below it.
        parts: sections within.
        closed: whether a reader has to open it.
    """

    title: str
    body: str = ""
    parts: Sequence[Section] = field(default_factory=tuple)
    closed: bool = False


def document(title: str, lead: str, sections: Sequence[Section], methods: Sequence[str]) -> str:
    """Return a complete HTML page that needs no other file.

    Args:
        title: heading of the page.
        lead: HTML before the first section.
        sections: sections in their order.
        methods: names of the methods, each of which a reader can hide.
    """
    contents, body = [], []
    for number, section in enumerate(sections, start=1):
        shown, entry = _shown(section, f"s{number}", 2)
        body.append(shown)
        contents.append(entry)
    boxes = "".join(
        f'<label><input type="checkbox" checked data-toggle="{html.escape(method)}"> {method_name(method)}</label>'
        for method in methods
    )
    parts = {
        "TITLE": html.escape(title),
        "POLICY": html.escape(_POLICY),
        "STYLE": _asset("page.css"),
        "LEAD": lead,
        "CONTENTS": "".join(contents),
        "METHODS": boxes,
        "BODY": "\n".join(body),
        "LIBRARY": library(),
        "SCRIPT": _asset("page.js"),
    }
    before, *pieces = _asset("page.html").split("@@")
    # names and values alternate with the text between them, so a text that looks like a place is left as it is
    return before + "".join(parts[piece] if number % 2 == 0 else piece for number, piece in enumerate(pieces))


def _shown(section: Section, name: str, level: int) -> tuple[str, str]:
    """Return a section as HTML, and its entry in the table of contents."""
    inner, entries = [], []
    for number, part in enumerate(section.parts, start=1):
        shown, entry = _shown(part, f"{name}-{number}", level + 1)
        inner.append(shown)
        entries.append(entry)
    title = html.escape(section.title)
    within = section.body + "".join(inner)
    entry = f'<li><a href="#{name}">{title}</a>{f"<ul>{chr(10).join(entries)}</ul>" if entries else ""}</li>'
    if section.closed:
        heading = f'<summary><h{level} id="{name}">{title}</h{level}></summary>'
        return f"<details>{heading}{within}</details>", entry
    return f'<section aria-labelledby="{name}"><h{level} id="{name}">{title}</h{level}>{within}</section>', entry


def _asset(name: str) -> str:
    return files("edue_lightning.reporting.page").joinpath(name).read_text(encoding="utf-8")
