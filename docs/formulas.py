"""Turns the formulas of a page into MathML when the site is built; a browser needs no script for them."""

from __future__ import annotations

import html
import re
from typing import Any

_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\s*\\[(\[](?P<tex>.*?)\\[)\]]\s*</(?P=tag)>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what `pymdownx.arithmatex` marked as formulas (called by MkDocs)."""
    # the tests collect this file too, and need none of it
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        tex = html.unescape(found["tex"]).strip()
        formula: str = convert(tex, display="block" if found["tag"] == "div" else "inline")
        return f"<{found['tag']}>{formula}</{found['tag']}>"

    return _FORMULA.sub(mathml, content)
