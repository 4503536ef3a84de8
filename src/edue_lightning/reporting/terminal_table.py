"""Short tables of a comparison for the terminal: a few metrics per method, without intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edue_lightning.metrics import LOWER_IS_BETTER, MEAN_STRUCTURE
from edue_lightning.text import counted

TERMINAL_WIDTH = 100
"""Longest line in characters."""

TERMINAL_METRICS = {
    "dice": "Dice",
    "nll": "NLL",
    "ece": "ECE",
    "image_pearson": "image",
    "image_spearman_normalised": "by size",
    "pixel_pearson": "pixel",
    "pixel_pearson_total": "p(1-p)",
}
"""Column titles by metric."""

_LEGEND = "image, by size, pixel, p(1-p): correlations with the variance between raters"
_GAP = "  "


def terminal_tables(comparison: pd.DataFrame) -> str:
    """Return one table per data set and split, over the mean of the structures where there are several.

    No line is longer than `TERMINAL_WIDTH`; a label that does not fit loses its beginning.

    Args:
        comparison: see `compare`.
    """
    tables = []
    for (data, split), rows in comparison.groupby(["data", "split"], sort=False):
        structures = list(dict.fromkeys(rows["structure"]))
        structure = MEAN_STRUCTURE if MEAN_STRUCTURE in structures else structures[0]
        chosen = rows[rows["structure"] == structure]
        cases = (chosen["n_cases"] + chosen["n_undefined"]).max()
        counts = f"{counted(int(cases), 'case')}, {_seeds(chosen['seeds'])}"
        title = f"{data}, {split}, {structure}: {counts}"
        tables.append("\n".join([_shortened(title, TERMINAL_WIDTH), *_lines(chosen)]))
    return "\n\n".join([*tables, _LEGEND])


def _lines(rows: pd.DataFrame) -> list[str]:
    """Return the header and one line per method."""
    values = rows.pivot_table(index="method", columns="metric", values="value", sort=False, dropna=False)
    titles = {
        metric: f"{title} {'↓' if metric in LOWER_IS_BETTER else '↑'}" for metric, title in TERMINAL_METRICS.items()
    }
    width = TERMINAL_WIDTH - sum(len(_GAP) + len(title) for title in titles.values())
    width = min(width, max(map(len, ["method", *map(str, values.index)])))
    lines = [_GAP.join([f"{'method':<{width}}", *titles.values()])]
    for method, row in values.iterrows():
        cells = [_cell(row.get(metric, np.nan)).rjust(len(title)) for metric, title in titles.items()]
        lines.append(_GAP.join([f"{_shortened(str(method), width):<{width}}", *cells]))
    return lines


def _cell(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _seeds(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return counted(high, "seed") if low == high else f"{low} to {counted(high, 'seed')}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[len(text) - width + 1 :]}"
