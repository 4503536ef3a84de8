"""Figures of single runs and of single cases: calibration, quality control, panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edue_lightning.reporting.charts.calibration import calibration_chart, quality_control_chart
from edue_lightning.reporting.charts.draw import draw
from edue_lightning.reporting.charts.styles import method_styles
from edue_lightning.reporting.panels import Panel, cropped

# Okabe and Ito's palette, distinguishable for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LARGEST_VARIANCE = 0.25
PREDICTION_COLOUR, CONSENSUS_COLOUR = "#E69F00", "#56B4E9"
_CELL = 2.3
_MOST_ABREAST = 6


def broken_label(label: str) -> str:
    """Return a method's label with blanks between its words; long labels on two lines."""
    for ending in ("_rater_per_member", "_random_rater", "_soft_majority"):
        if label.endswith(ending):
            label = f"{label.removesuffix(ending)}\n{ending[1:]}"
    return label.replace("_", " ")


def reliability_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw calibration curves of one structure or method each, and below them the number of predictions per bin.

    Args:
        curves: rows of `reliability.csv` by method or structure.
    """
    return draw(calibration_chart(curves, method_styles(list(curves), "")))


def quality_control_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the share of poor segmentations found against the share of cases flagged, see `quality_control_chart`.

    Args:
        curves: rows of `quality_control.csv` of one score each, by method or structure.
    """
    return draw(quality_control_chart(curves, method_styles(list(curves), "")))


def panel_figure(panel: Panel, note: str | None = None) -> Figure:
    """Draw one case of one method in a row: raters, V*, V (p(1 - p) of a single network), p(1 - p), and the prediction.

    The maps are cropped to the structure; the prediction is an outline on the image, beside that of the consensus.

    Args:
        panel: the case.
        note: caveat on the images, drawn below them.
    """
    panel = cropped(panel)
    figure = Figure(figsize=(5 * _CELL, _CELL + 0.8), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 5)
    _draw_contours(axes[0], panel)
    _draw_variance(axes[1], panel.rater_variance, f"raters' variance\nSV* {panel.sv_star:.1f}")
    of_model = "variance between members" if panel.has_members else "single network"
    shown = _draw_variance(axes[2], panel.model_variance, f"{of_model}\n{panel.model_variance_title}")
    _draw_variance(
        axes[3], panel.total_variance, "p(1 - p)" if np.isnan(panel.sv_total) else f"p(1 - p)\nsum {panel.sv_total:.1f}"
    )
    _draw_prediction(axes[4], panel, "prediction (solid) and\nsoft majority (dashed)")
    figure.colorbar(shown, ax=list(axes[1:4]), shrink=0.8)
    figure.suptitle(f"{panel.case_id}, {panel.structure}", fontsize=10, parse_math=False)
    _write_note(figure, note)
    return figure


def comparison_panel_figure(panels: Mapping[str, Panel], note: str | None = None) -> Figure:
    """Draw one case for many methods: prediction on the image, variance V and p(1 - p), one column per method.

    All are cropped to the structure. A single network has no variance between members. Many methods wrap into several
    rows; the raters come first.

    Args:
        panels: panels of the same case and structure, by method.
        note: caveat on the images, drawn below them.
    """
    shown_panels = {label: cropped(panel) for label, panel in panels.items()}
    first = next(iter(shown_panels.values()))
    cells = 1 + len(panels)
    columns = min(cells, 1 + _MOST_ABREAST)
    rows = -(-cells // columns)
    figure = Figure(figsize=(columns * _CELL, rows * (3 * _CELL + 0.5) + 0.4), layout="constrained")
    axes: NDArray[Any] = figure.subplots(3 * rows, columns, squeeze=False)
    # three pairs of axes per cell, one above the other
    triples = axes.reshape(rows, 3, columns).transpose(0, 2, 1).reshape(-1, 3)
    _draw_contours(triples[0, 0], first)
    shown = _draw_variance(triples[0, 1], first.rater_variance, f"raters\nSV* {first.sv_star:.1f}")
    triples[0, 2].axis("off")
    for (above, middle, below), (label, panel) in zip(triples[1:], shown_panels.items(), strict=False):
        _draw_prediction(above, panel, broken_label(label))
        if panel.has_members:
            _draw_variance(middle, panel.member_variance, f"V, {panel.model_variance_title}")
        else:
            middle.set_title("single network: no V", fontsize=9)
            middle.axis("off")
        total = "" if np.isnan(panel.sv_total) else f" {panel.sv_total:.1f}"
        _draw_variance(below, panel.total_variance, f"p(1 - p){total}")
    for empty in triples[cells:].ravel():
        empty.axis("off")
    figure.colorbar(shown, ax=list(axes.ravel()), shrink=0.4 / rows, anchor=(0, 1), label="variance")
    figure.suptitle(f"{first.case_id}, {first.structure}", fontsize=10, parse_math=False)
    _write_note(figure, note)
    return figure


def _write_note(figure: Figure, note: str | None) -> None:
    if note:
        figure.supxlabel(note, fontsize=7, parse_math=False)


def _draw_contours(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1)
    for number, mask in enumerate(panel.masks):
        _outline(axes, mask, COLOURS[number % len(COLOURS)])
    axes.set_title(f"{len(panel.masks)} raters", fontsize=9)
    axes.axis("off")


def _draw_variance(axes: Axes, variance: NDArray[np.float32], title: str) -> Any:
    shown = axes.imshow(variance, cmap="inferno", vmin=0, vmax=LARGEST_VARIANCE)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.axis("off")
    return shown


def _draw_prediction(axes: Axes, panel: Panel, title: str) -> None:
    """Draw the outlines of the prediction and of the soft majority of the raters on the image."""
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1)
    _outline(axes, panel.consensus, CONSENSUS_COLOUR, linestyle="dashed")
    _outline(axes, panel.mask, PREDICTION_COLOUR)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.axis("off")


def _outline(axes: Axes, mask: NDArray[Any], colour: str, linestyle: str = "solid") -> None:
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=linestyle)
