"""Colours, markers and dashes of a report's charts, distinguishable without seeing colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito's palette, distinguishable for colour-blind readers; each colour with a lighter one for dark pages
_REFERENCE = ("#0072B2", "#4DB2FF")
_OTHERS = (
    ("#D55E00", "#FF9A4D"),
    ("#009E73", "#3FD9A8"),
    ("#CC79A7", "#F0A6CF"),
    ("#B37A00", "#FFC24D"),
    ("#1A1A1A", "#FFFFFF"),
)
_GREY = ("#7A7A7A", "#9C9C9C")
_GUIDE = ("#6B6B6B", "#A8A8A8")

MOST_COLOURED = 10
"""Number of methods up to which each has a colour; among more, only the reference has one."""

# names of matplotlib and of the page
_MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
)
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Style:
    """Look of a series.

    Attributes:
        colour: colour on a light page and in files.
        dark: colour on a dark page.
        marker: matplotlib's and the page's name of the marker; empty for none.
        dash: solid, dash, dot or dashdot.
        strong: whether it is drawn thicker and on top.
    """

    colour: str
    dark: str
    marker: tuple[str, str] = ("", "")
    dash: str = "solid"
    strong: bool = False


def method_styles(methods: Sequence[str], reference: str) -> dict[str, Style]:
    """Return the style of each method; no two are alike in marker and dashes, up to 28 methods.

    Up to `MOST_COLOURED` methods have colours; of more, all but the reference are grey.

    Args:
        methods: names of the methods.
        reference: name of the method to stand out; the first if no method has that name.
    """
    first = reference if reference in methods else next(iter(methods), "")
    styles = {first: Style(*_REFERENCE, _MARKERS[0], "solid", strong=True)}
    few = len(methods) <= MOST_COLOURED
    # the first combination is the reference's
    for number, method in enumerate((name for name in methods if name != first), start=1):
        colour = _OTHERS[(number - 1) % len(_OTHERS)] if few else _GREY
        dash = _DASHES[number // len(_MARKERS) % len(_DASHES)] if not few else _DASHES[number % len(_DASHES)]
        styles[method] = Style(*colour, _MARKERS[number % len(_MARKERS)], dash)
    return {method: styles[method] for method in methods}


def guide_style(dash: str) -> Style:
    """Return the style of a line that guides the eye, such as a diagonal."""
    return Style(*_GUIDE, dash=dash)


def shade_styles() -> tuple[Style, Style, Style]:
    """Return the styles of three groups from few to many, in shades of blue."""
    return (
        Style("#BBD7EC", "#24405C"),
        Style("#4292C6", "#4292C6"),
        Style("#08306B", "#BBD7EC"),
    )


OUTCOME_STYLES = {
    "better": Style("#0072B2", "#4DB2FF", _MARKERS[0]),
    "level": Style("#6B6B6B", "#A8A8A8", _MARKERS[3]),
    "worse": Style("#C44E00", "#FF9A4D", _MARKERS[1]),
    "undefined": Style("#8C8C8C", "#8C8C8C", _MARKERS[6]),
}
"""Styles of the words that say how a method compares with the reference."""
