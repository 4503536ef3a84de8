"""HTML of a report: a self-contained page that fits a phone, tables, and figures with captions."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

_DPI = 110
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 70rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1.05rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; white-space: nowrap; }
th[aria-sort=ascending]::after { content: " \\25B2"; } th[aria-sort=descending]::after { content: " \\25BC"; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { font-size: .8rem; color: #555; }
.note { background: #fff6dd; border-left: 4px solid #e69f00; padding: .6rem 1rem; }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
"""

# a click on a header sorts by the number at the start of each cell, else by its text; cells without a number come last
_SCRIPT = """
document.querySelectorAll("table").forEach(table => table.querySelectorAll("th").forEach((head, column) => {
  head.style.cursor = "pointer";
  head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0], rows = [...body.rows];
    const text = row => row.cells[column].textContent.trim();
    const number = row => parseFloat(text(row).replace(/,/g, ""));
    const numeric = rows.some(row => !isNaN(number(row)));
    rows.sort((a, b) => {
      if (!numeric) return (up ? 1 : -1) * text(a).localeCompare(text(b));
      const [x, y] = [number(a), number(b)];
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : (up ? 1 : -1) * (x - y);
    });
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  });
}));
"""


def page(body: str) -> str:
    """Return a complete HTML page without references to other files."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>edue-lightning report</title><style>{_STYLE}</style></head><body>\n{body}\n"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def html_table(table: pd.DataFrame) -> str:
    """Return a sortable HTML table from a table of texts, in which `**` marks bold."""

    def cell(text: object) -> str:
        escaped = html.escape(str(text))
        for tag in ("<b>", "</b>"):
            escaped = escaped.replace("**", tag, 1)
        return f"<td>{escaped}</td>"

    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.to_numpy().tolist())
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def html_list(texts: Sequence[str]) -> str:
    """Return texts as a bulleted list."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def write_figure(figure: Figure, name: str, caption: str, folder: Path) -> str:
    """Write a figure as PNG and SVG, and return it as HTML that needs neither file.

    Args:
        figure: the figure.
        name: name of the files, without ending.
        caption: HTML below the figure.
        folder: folder of the files.
    """
    picture = folder / f"{name}.png"
    figure.savefig(picture, dpi=_DPI)
    # without a date or random names, so that the same runs give the same file
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    encoded = base64.b64encode(picture.read_bytes()).decode()
    image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
