"""Tables in LaTeX."""

from __future__ import annotations

import pandas as pd

from edue_lightning.reporting.latex import latex_table, latex_text


def test_special_characters_are_escaped() -> None:
    assert latex_text(r"a_b & 5 % of \x{1} ~ ^ # $") == (
        r"a\_b \& 5 \% of \textbackslash{}x\{1\} \textasciitilde{} \textasciicircum{} \# \$"
    )
    assert latex_text("GED² ↓") == r"GED$^2$ $\downarrow$"


def test_a_table_has_rules_bold_values_and_intervals_on_a_second_line() -> None:
    frame = pd.DataFrame(
        {
            "method": ["edue", "single_cross_entropy"],
            "nll ↓": ["**0.023** [0.018, 0.030]", "0.026 (no interval)"],
            "sv": ["undefined", "0.1 [0.0, 0.2]"],
        }
    )
    text = latex_table(frame, "lidc_four: 5 % better", "tab:a")
    assert text.splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\caption{lidc\_four: 5 \% better}",
        r"\label{tab:a}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & nll $\downarrow$ & sv \\",
        r"\midrule",
        r"edue & \textbf{0.023} & undefined \\",
        r" & {\scriptsize [0.018, 0.030]} &  \\[2pt]",
        r"single\_cross\_entropy & 0.026 & 0.1 \\",
        r" & {\scriptsize (no interval)} & {\scriptsize [0.0, 0.2]} \\[2pt]",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
