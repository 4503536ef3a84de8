"""Tables for papers: LaTeX with the rules of `booktabs`."""

from __future__ import annotations

import re

import pandas as pd

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "²": r"$^2$",
    "≥": r"$\geq$",
    "<": r"$<$",
    ">": r"$>$",
}
_ANY = re.compile("|".join(map(re.escape, _SPECIAL)))


def latex_text(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return _ANY.sub(lambda found: _SPECIAL[found.group()], text)


def latex_table(frame: pd.DataFrame, caption: str, label: str) -> str:
    r"""Return a table with one row per method, each interval on a second line in smaller letters.

    It needs `\usepackage{booktabs}`.

    Args:
        frame: texts such as `**0.842** [0.801, 0.871]`, in which `**` marks bold; the first column names the rows.
        caption: caption, plain text.
        label: label of the table.
    """
    columns = [str(column) for column in frame.columns]
    lines = []
    for row in frame.astype(str).to_numpy().tolist():
        values, intervals = zip(*[_split(text) for text in row[1:]], strict=True) if len(row) > 1 else ((), ())
        lines.append(" & ".join([latex_text(row[0]), *map(_value, values)]) + r" \\")
        if any(intervals):
            lines.append(" & ".join(["", *(_small(text) for text in intervals)]) + r" \\[2pt]")
    head = " & ".join(map(latex_text, columns))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _split(text: str) -> tuple[str, str]:
    value, _, rest = text.partition(" ")
    return (value, rest) if rest.startswith(("[", "(")) else (text, "")


def _value(text: str) -> str:
    bold = text.startswith("**")
    shown = latex_text(text.replace("**", ""))
    return rf"\textbf{{{shown}}}" if bold else shown


def _small(text: str) -> str:
    return rf"{{\scriptsize {latex_text(text)}}}" if text else ""
