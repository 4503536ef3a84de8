"""Calibration curves, disagreement heatmaps and scatter plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edue_lightning.reporting.panels import Panel

# Okabe and Ito's palette, distinguishable for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LARGEST_VARIANCE = 0.25
_LINE_STYLES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)))
_MARKERS = ("o", "s", "^")
_CELL = 2.5
_MOST_ABREAST = 5
# height of a legend's line, widths of its handle and of one letter
_LEGEND_LINE_INCHES, _LEGEND_HANDLE_INCHES, _LEGEND_LETTER_INCHES = 0.21, 0.75, 0.062


def line_styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour, line style and marker per label; labels beyond the colours differ by style and marker."""
    styles = {}
    for number, label in enumerate(labels):
        again = number // len(COLOURS) % len(_LINE_STYLES)
        styles[label] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": _LINE_STYLES[again],
            "marker": _MARKERS[again],
        }
    return styles


def add_legend(figure: Figure, axes: Axes) -> None:
    """Add the legend of some axes below the figure, in as many columns as fit; the figure grows by its height."""
    handles, labels = axes.get_legend_handles_labels()
    width = _LEGEND_HANDLE_INCHES + _LEGEND_LETTER_INCHES * max(map(len, labels))
    columns = max(1, int(figure.get_figwidth() / width))
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE_INCHES * -(-len(labels) // columns))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False, handlelength=3.2
    )


def broken_label(label: str) -> str:
    """Return a method's label with blanks between its words; long labels on two lines."""
    for ending in ("_rater_per_member", "_random_rater", "_soft_majority"):
        if label.endswith(ending):
            label = f"{label.removesuffix(ending)}\n{ending[1:]}"
    return label.replace("_", " ")


def reliability_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw calibration curves of one structure, and below them the number of predictions per bin.

    Args:
        curves: rows of `reliability.csv` by method.
    """
    figure = Figure(figsize=(5.8, 6.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect calibration")
    styles = line_styles(list(curves))
    for label, curve in curves.items():
        filled = curve[curve["count"] > 0]
        position, style = filled["mean_probability"], styles[label]
        above.plot(position, filled["frequency"], markersize=4, label=label, **style)
        below.plot(position, filled["count"], markersize=3, linewidth=1, **style)
    above.set(ylabel="share of raters who marked", xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="predicted probability", ylabel="voxel-rater pairs", yscale="log")
    for axes in (above, below):
        axes.grid(color="0.9")
    add_legend(figure, above)
    return figure


def quality_control_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw quality-control curves, each with its ideal and its random line (the paper's Fig. 2).

    Args:
        curves: rows of `quality_control.csv`, by method or structure.
    """
    figure = Figure(figsize=(6.8, 4.8), layout="constrained")
    axes = figure.subplots()
    styles = line_styles(list(curves))
    for label, curve in curves.items():
        axes.plot(curve["flagged"], curve["missed"], label=label, markersize=4, markevery=0.12, **styles[label])
        poor, colour = float(curve["missed"].iloc[0]), styles[label]["color"]
        axes.plot([0, poor], [poor, 0], color=colour, linestyle="--", linewidth=0.8)
        axes.plot([0, 1], [poor, 0], color=colour, linestyle=":", linewidth=0.8)
    # legend of the line styles
    axes.plot([], [], color="0.4", linestyle="--", linewidth=0.8, label="ideal")
    axes.plot([], [], color="0.4", linestyle=":", linewidth=0.8, label="random")
    axes.set(xlabel="fraction of cases flagged", ylabel="poor segmentations missed, of all cases", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    add_legend(figure, axes)
    return figure


def panel_figure(panel: Panel, note: str | None = None) -> Figure:
    """Draw one case of one method in a row: contours, V*, V (p(1 - p) of a single network), prediction and consensus.

    Args:
        panel: the case.
        note: caveat on the images, drawn below them.
    """
    figure = Figure(figsize=(5 * _CELL, _CELL + 0.6), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 5)
    _draw_contours(axes[0], panel)
    _draw_variance(axes[1], panel.rater_variance, f"raters' variance, SV* {panel.sv_star:.1f}")
    of_model = "variance between members" if panel.has_members else "single network"
    shown = _draw_variance(axes[2], panel.model_variance, f"{of_model}, {panel.model_variance_title}")
    _draw_mask(axes[3], panel.mask, "prediction")
    _draw_mask(axes[4], _consensus(panel), "soft majority")
    figure.colorbar(shown, ax=list(axes[1:3]), shrink=0.8)
    figure.suptitle(f"{panel.case_id}, {panel.structure}", fontsize=10)
    _write_note(figure, note)
    return figure


def comparison_panel_figure(panels: Mapping[str, Panel], note: str | None = None) -> Figure:
    """Draw one case for many methods: the variance of each on one scale, and its prediction below.

    The variance is V, or p(1 - p) of a single network, which has no variance between members; the title says which.
    Many methods wrap into several rows; the raters come first.

    Args:
        panels: panels of the same case and structure, by method.
        note: caveat on the images, drawn below them.
    """
    first = next(iter(panels.values()))
    cells = 2 + len(panels)
    columns = min(cells, 2 + _MOST_ABREAST)
    rows = -(-cells // columns)
    figure = Figure(figsize=(columns * _CELL, rows * (2 * _CELL + 0.4) + 0.4), layout="constrained")
    axes: NDArray[Any] = figure.subplots(2 * rows, columns)
    # one pair of axes per cell, one above the other
    pairs = axes.reshape(rows, 2, columns).transpose(0, 2, 1).reshape(-1, 2)
    _draw_contours(pairs[0, 0], first)
    shown = _draw_variance(pairs[1, 0], first.rater_variance, f"raters\nSV* {first.sv_star:.1f}")
    _draw_mask(pairs[1, 1], _consensus(first), "soft majority")
    for (above, below), (label, panel) in zip(pairs[2:], panels.items(), strict=False):
        _draw_variance(above, panel.model_variance, f"{broken_label(label)}\n{panel.model_variance_title}")
        _draw_mask(below, panel.mask, "prediction")
    for empty in (pairs[0, 1], *pairs[cells:].ravel()):
        empty.axis("off")
    figure.colorbar(shown, ax=list(axes.ravel()), shrink=0.4 / rows, anchor=(0, 1), label="variance")
    figure.suptitle(f"{first.case_id}, {first.structure}", fontsize=10)
    _write_note(figure, note)
    return figure


def disagreement_scatter_figure(cases: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each case's SV against the raters' SV*, one plot per method, on common axes.

    A single network has no SV; its sum of p(1 - p) is drawn, and the title says so.

    Args:
        cases: rows of `cases.csv` of one structure, by method.
    """
    columns = min(4, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    points = {label: _disagreement(frame) for label, frame in cases.items()}
    values = np.concatenate([frame.to_numpy(dtype=float).ravel() for frame in points.values()])
    largest = float(np.max(values[~np.isnan(values)], initial=0)) * 1.05 or 1.0
    for drawn, (label, frame) in zip(axes, points.items(), strict=False):
        drawn.plot([0, largest], [0, largest], color="0.7", linestyle="--", linewidth=1)
        score, raters = frame.columns
        drawn.scatter(frame[raters], frame[score], s=9, alpha=0.6, color=COLOURS[0], linewidths=0)
        defined = frame.dropna()
        varies = len(defined) >= 3 and bool((defined.max() > defined.min()).all())
        correlation = f"Pearson {defined[score].corr(defined[raters]):.2f}" if varies else "Pearson undefined"
        of = "" if score == "sv" else " of p(1 - p)"
        drawn.set_title(f"{broken_label(label)}\n{correlation}{of}", fontsize=9)
        drawn.grid(color="0.9")
    for unused in axes[len(cases) :]:
        unused.axis("off")
    # also above an unused cell
    for lowest in axes[max(len(cases) - columns, 0) : len(cases)]:
        lowest.tick_params(labelbottom=True)
    figure.supxlabel("raters' sum of variances SV*", fontsize=9)
    figure.supylabel("model's sum of variances SV", fontsize=9)
    return figure


def _disagreement(cases: pd.DataFrame) -> pd.DataFrame:
    """Return SV, or the sum of p(1 - p) where no case defines SV, and SV*."""
    score = "sv_total" if cases["sv"].isna().all() and "sv_total" in cases else "sv"
    return cases[[score, "sv_star"]].astype(float)


def _write_note(figure: Figure, note: str | None) -> None:
    if note:
        figure.supxlabel(note, fontsize=7)


def _draw_contours(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1)
    for number, mask in enumerate(panel.masks):
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[COLOURS[number % len(COLOURS)]], linewidths=1.2)
    axes.set_title(f"{len(panel.masks)} raters", fontsize=9)
    axes.axis("off")


def _draw_variance(axes: Axes, variance: NDArray[np.float32], title: str) -> Any:
    shown = axes.imshow(variance, cmap="inferno", vmin=0, vmax=LARGEST_VARIANCE)
    axes.set_title(title, fontsize=9)
    axes.axis("off")
    return shown


def _draw_mask(axes: Axes, mask: NDArray[np.bool_], title: str) -> None:
    axes.imshow(mask, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def _consensus(panel: Panel) -> NDArray[np.bool_]:
    consensus: NDArray[np.bool_] = panel.masks.mean(axis=0) >= 0.5
    return consensus
