"""Maps of one prediction, and their picture over the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edue_lightning.reporting.figures import COLOURS, LARGEST_VARIANCE
from edue_lightning.reporting.panels import most_disputed_slice
from edue_lightning.uncertainty import reached

_CELL = 3.6
_TITLES = {"disagreement": "variance between members", "total_variance": "p(1 - p) of a single network"}


@dataclass(frozen=True)
class CaseMaps:
    """A picture, or a volume in radiological orientation, with its prediction.

    Attributes:
        image: `[H, W]` or `[H, W, 3]` in [0, 1]; of a volume `[D, H, W]` or `[D, H, W, 3]`, slices from the feet up.
        probability: p, `[H, W]` or `[D, H, W]`.
        disagreement: variance, likewise.
        decision: map that the mask is taken from, likewise.
        threshold: value from which on it is in the mask.
        aspect: height of a pixel over its width.
    """

    image: NDArray[np.float32]
    probability: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    decision: NDArray[np.float32]
    threshold: float
    aspect: float

    @property
    def slices(self) -> int:
        """Number of slices of a volume; 0 for a picture."""
        return len(self.probability) if self.probability.ndim == 3 else 0

    @property
    def most_disputed(self) -> int:
        """Position of a volume's slice with the most disagreement."""
        return most_disputed_slice(self.disagreement)

    def slice(self, position: int) -> CaseMaps:
        """Return a slice of a volume, as maps of a picture."""
        return CaseMaps(
            self.image[position],
            self.probability[position],
            self.disagreement[position],
            self.decision[position],
            self.threshold,
            self.aspect,
        )


def overlay_figure(overlay: CaseMaps, title: str, variance: str) -> Figure:
    """Draw the image with the mask's outline, the mean probability, and the disagreement over the image.

    Args:
        overlay: the picture to draw, or the volume whose most disputed slice is drawn.
        title: line above the figure.
        variance: `disagreement` between members, or `total_variance` of a single network.
    """
    where = ""
    if overlay.slices:
        shown_slice = overlay.most_disputed
        where = f"slice {shown_slice + 1} of {overlay.slices} from the feet, the most disputed one"
        overlay = overlay.slice(shown_slice)
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
    figure.suptitle(title + (f"\n{where}" if where else ""), fontsize=9, parse_math=False)
    return figure
