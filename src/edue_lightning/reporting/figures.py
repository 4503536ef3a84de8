"""Calibration curves, disagreement heatmaps and scatter plots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edue_lightning.reporting.panels import Panel

# Okabe and Ito's palette, which readers with colour-blindness can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LARGEST_VARIANCE = 0.25
_CELL = 2.5


def reliability_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw calibration curves of one structure over each other, and below how many predictions each bin holds.

    Args:
        curves: rows of `reliability.csv` by method.
    """
    figure = Figure(figsize=(5.2, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect calibration")
    for colour, (label, curve) in zip(itertools.cycle(COLOURS), curves.items(), strict=False):
        filled = curve[curve["count"] > 0]
        above.plot(filled["mean_probability"], filled["frequency"], "o-", color=colour, markersize=4, label=label)
        below.plot(filled["mean_probability"], filled["count"], "o-", color=colour, markersize=3, linewidth=1)
    above.set(ylabel="share of raters who marked", xlim=(0, 1), ylim=(0, 1))
    above.set_aspect("equal")
    above.legend(fontsize=8, loc="lower right")
    below.set(xlabel="predicted probability", ylabel="voxel-rater pairs", yscale="log")
    for axes in (above, below):
        axes.grid(color="0.9")
    return figure


def quality_control_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw quality-control curves over each other, each with its ideal and its random line (the paper's Fig. 2).

    Args:
        curves: rows of `quality_control.csv`, by method or structure.
    """
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for colour, (label, curve) in zip(itertools.cycle(COLOURS), curves.items(), strict=False):
        axes.plot(curve["flagged"], curve["missed"], color=colour, label=label)
        poor = float(curve["missed"].iloc[0])
        axes.plot([0, poor], [poor, 0], color=colour, linestyle="--", linewidth=0.8)
        axes.plot([0, 1], [poor, 0], color=colour, linestyle=":", linewidth=0.8)
    # what the line styles mean, whatever the colour
    axes.plot([], [], color="0.4", linestyle="--", linewidth=0.8, label="ideal")
    axes.plot([], [], color="0.4", linestyle=":", linewidth=0.8, label="random")
    axes.set(xlabel="fraction of cases flagged", ylabel="poor segmentations missed, of all cases", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(color="0.9")
    return figure


def panel_figure(panel: Panel, note: str | None = None) -> Figure:
    """Draw one case of one method in a row: contours, V*, V, prediction and consensus.

    Args:
        panel: the case.
        note: what a reader must be told of the images, drawn below them.
    """
    figure = Figure(figsize=(5 * _CELL, _CELL + 0.6), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 5)
    _draw_contours(axes[0], panel)
    _draw_variance(axes[1], panel.rater_variance, f"raters' variance, SV* {panel.sv_star:.1f}")
    shown = _draw_variance(axes[2], panel.member_variance, f"model's variance, SV {panel.sv:.1f}")
    _draw_mask(axes[3], panel.mean_probability >= 0.5, "prediction")
    _draw_mask(axes[4], _consensus(panel), "soft majority")
    figure.colorbar(shown, ax=list(axes[1:3]), shrink=0.8)
    figure.suptitle(f"{panel.case_id}, {panel.structure}", fontsize=10)
    _write_note(figure, note)
    return figure


def comparison_panel_figure(panels: Mapping[str, Panel], note: str | None = None) -> Figure:
    """Draw one case for many methods: above the variances on one scale, below the predictions.

    Args:
        panels: of the same case and structure, by method.
        note: what a reader must be told of the images, drawn below them.
    """
    first = next(iter(panels.values()))
    columns = 2 + len(panels)
    figure = Figure(figsize=(columns * _CELL, 2 * _CELL + 0.8), layout="constrained")
    axes: NDArray[Any] = figure.subplots(2, columns)
    _draw_contours(axes[0, 0], first)
    axes[1, 0].axis("off")
    shown = _draw_variance(axes[0, 1], first.rater_variance, f"raters\nSV* {first.sv_star:.1f}")
    _draw_mask(axes[1, 1], _consensus(first), "soft majority")
    for column, (label, panel) in enumerate(panels.items(), start=2):
        _draw_variance(axes[0, column], panel.member_variance, f"{_broken(label)}\nSV {panel.sv:.1f}")
        _draw_mask(axes[1, column], panel.mean_probability >= 0.5, "prediction")
    figure.colorbar(shown, ax=list(axes[0]), shrink=0.8, label="variance")
    figure.suptitle(f"{first.case_id}, {first.structure}", fontsize=10)
    _write_note(figure, note)
    return figure


def disagreement_scatter_figure(cases: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each case's SV against the raters' SV*, a plot a method on common axes.

    Args:
        cases: rows of `cases.csv` of one structure, by method.
    """
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    largest = max(np.nanmax(frame[["sv", "sv_star"]].to_numpy(dtype=float)) for frame in cases.values()) * 1.05 or 1.0
    for drawn, (label, frame) in zip(axes, cases.items(), strict=False):
        drawn.plot([0, largest], [0, largest], color="0.7", linestyle="--", linewidth=1)
        drawn.scatter(frame["sv_star"], frame["sv"], s=9, alpha=0.6, color=COLOURS[0], linewidths=0)
        defined = frame[["sv", "sv_star"]].dropna()
        varies = len(defined) >= 3 and bool((defined.max() > defined.min()).all())
        correlation = f"Pearson {defined['sv'].corr(defined['sv_star']):.2f}" if varies else "Pearson undefined"
        drawn.set_title(f"{_broken(label)}\n{correlation}", fontsize=9)
        drawn.grid(color="0.9")
    for unused in axes[len(cases) :]:
        unused.axis("off")
    figure.supxlabel("raters' sum of variances SV*", fontsize=9)
    figure.supylabel("model's sum of variances SV", fontsize=9)
    return figure


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


def _broken(label: str) -> str:
    return label.replace("_rater_per_member", "\nrater per member").replace("_", " ")
