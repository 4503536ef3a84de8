"""Figures on distorted images: box plots of the uncertainty scores, and how well the scores find such images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from edue_lightning.reporting.figures import add_legend, broken_label, line_styles

SCORE_TITLES = {
    "sv": "sum of variances SV",
    "model_agreement": "model agreement",
    "layer_agreement": "layer agreement",
    "entropy": "entropy",
    "density": "density",
}

_METHOD_INCHES = 0.75
_MOST_LEVEL_LABELS = 5
# from few distorted images to many
_GROUP_COLOURS = ("#9ecae1", "#4292c6", "#08306b")
_BOX_WIDTH = 0.24


def distorted_boxes_figure(groups: Mapping[str, Mapping[str, Mapping[str, NDArray[np.float64]]]]) -> Figure:
    """Draw the scores as more of the images are distorted (the paper's Fig. 3).

    Args:
        groups: values by score, method and group; a method with undefined values has no box.
    """
    labels = list(next(iter(groups.values())))
    figure = Figure(figsize=(_METHOD_INCHES * len(labels) + 2.5, 2.3 * len(groups) + 1.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(groups), 1, sharex=True)).ravel()
    names: Sequence[str] = list(next(iter(next(iter(groups.values())).values())))
    for drawn, (score, by_method) in zip(axes, groups.items(), strict=True):
        for number, (colour, name) in enumerate(zip(_GROUP_COLOURS, names, strict=True)):
            offset = (number - (len(names) - 1) / 2) * (_BOX_WIDTH + 0.03)
            filled = [position for position, label in enumerate(labels) if len(by_method[label][name])]
            if filled:
                drawn.boxplot(
                    [by_method[labels[position]][name] for position in filled],
                    positions=[position + offset for position in filled],
                    widths=_BOX_WIDTH,
                    patch_artist=True,
                    manage_ticks=False,
                    boxprops={"facecolor": colour, "linewidth": 0.6},
                    medianprops={"color": "#d55e00", "linewidth": 1.4},
                    whiskerprops={"linewidth": 0.6},
                    capprops={"linewidth": 0.6},
                    flierprops={"markersize": 1.5, "markeredgewidth": 0.4},
                )
        drawn.set_ylabel(SCORE_TITLES[score], fontsize=9)
        drawn.grid(axis="y", color="0.9")
        drawn.set_axisbelow(True)
    upright = len(labels) > _MOST_LEVEL_LABELS
    axes[-1].set_xticks(range(len(labels)), [broken_label(label) for label in labels], fontsize=8)
    axes[-1].tick_params(axis="x", rotation=60 if upright else 0)
    axes[-1].set_xlim(-0.5, len(labels) - 0.5)
    patches = [Patch(facecolor=colour, label=name) for colour, name in zip(_GROUP_COLOURS, names, strict=True)]
    figure.legend(
        handles=patches, title="images distorted", loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return figure


def detection_figure(areas: Mapping[str, Mapping[str, pd.Series]]) -> Figure:
    """Draw the area under the ROC curve of distorted against clean images, by the severity of the distortion.

    Args:
        areas: AUROC by score and method, indexed by severity; undefined values are left out.
    """
    figure = Figure(figsize=(3.4 * len(areas) + 0.6, 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(areas), sharex=True, sharey=True)).ravel()
    for drawn, (score, by_method) in zip(axes, areas.items(), strict=True):
        styles = line_styles(list(by_method))
        for label, series in by_method.items():
            drawn.plot(series.index, series, markersize=4, label=label, **styles[label])
        drawn.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
        drawn.set(title=SCORE_TITLES[score], xlabel="severity")
        drawn.title.set_size(10)
        drawn.grid(color="0.9")
    axes[0].set_ylabel("AUROC of distorted images")
    add_legend(figure, axes[0])
    return figure
