"""Picture of one prediction over its image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edue_lightning.reporting.figures import COLOURS, LARGEST_VARIANCE
from edue_lightning.uncertainty import reached

_CELL = 3.6
_TITLES = {"disagreement": "variance between members", "total_variance": "p(1 - p) of a single network"}


@dataclass(frozen=True)
class Overlay:
    """A picture or a slice of a volume, with its prediction.

    Attributes:
        image: `[H, W]` or `[H, W, 3]` in [0, 1].
        probability: p, `[H, W]`.
        disagreement: variance, `[H, W]`.
        decision: map that the mask is taken from, `[H, W]`.
        threshold: threshold of the decision.
        aspect: height of a pixel over its width.
        where: description of the slice; empty for a picture.
    """

    image: NDArray[np.float32]
    probability: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    decision: NDArray[np.float32]
    threshold: float
    aspect: float
    where: str


def overlay_figure(overlay: Overlay, title: str, variance: str) -> Figure:
    """Draw the image with the mask's outline, the mean probability, and the disagreement over the image.

    Args:
        overlay: the picture or slice to draw.
        title: line above the figure.
        variance: `disagreement` between members, or `total_variance` of a single network.
    """
    height, width = overlay.probability.shape
    edge = _CELL * min(max(height * overlay.aspect / width, 0.4), 2.5)
    figure = Figure(figsize=(3 * _CELL + 1.2, edge + 0.9), layout="constrained")
    axes = figure.subplots(1, 3)
    for one in axes:
        one.imshow(overlay.image, cmap="gray", vmin=0, vmax=1, aspect=overlay.aspect, interpolation="nearest")
        one.set_xticks([])
        one.set_yticks([])
    mask = reached(overlay.decision, overlay.threshold)
    if mask.any() and not mask.all():
        axes[0].contour(mask, levels=[0.5], colors=COLOURS[1], linewidths=1.2)
    axes[0].set_title("mask" if mask.any() else "mask: empty here", fontsize=9)
    shown = (
        (axes[1], overlay.probability, 1.0, "viridis", "mean probability"),
        (axes[2], overlay.disagreement, LARGEST_VARIANCE, "magma", _TITLES[variance]),
    )
    for one, values, largest, colours, name in shown:
        # the image stays visible where the values are small
        drawn = one.imshow(
            values,
            cmap=colours,
            vmin=0,
            vmax=largest,
            alpha=np.clip(values / (0.2 * largest), 0, 0.85),
            aspect=overlay.aspect,
            interpolation="nearest",
        )
        one.set_title(name, fontsize=9)
        figure.colorbar(drawn, ax=one, shrink=0.8)
    # a case id may hold characters of formulas, which are shown as they are
    figure.suptitle(title + (f"\n{overlay.where}" if overlay.where else ""), fontsize=9, parse_math=False)
    return figure
