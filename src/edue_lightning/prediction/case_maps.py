"""Maps of one predicted case and structure, as a viewer shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.preparation import PreparedImage
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.reporting.panels import displayable, most_disputed_slice, radiological, radiological_spacing


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

    @classmethod
    def of(cls, prepared: PreparedImage, estimate: Estimate, structure: int) -> CaseMaps:
        """Return the maps of one structure.

        Args:
            prepared: image as the network saw it.
            estimate: prediction for it.
            structure: position of the structure.
        """
        image = prepared.image.numpy()
        maps = [
            of_all[structure].numpy() for of_all in (estimate.probability, estimate.disagreement, estimate.decision)
        ]
        spacing = tuple(prepared.spacing or (1.0,) * (image.ndim - 1))
        if len(spacing) == 3 and prepared.grid is not None:
            affine = prepared.grid.affine.numpy()
            image, *maps = (radiological(values, affine) for values in (image, *maps))
            spacing = radiological_spacing(spacing, affine)
        # rows of all slices below each other, so that the slices have one range of greys
        shown = displayable(image.reshape(len(image), -1, image.shape[-1]))
        picture = shown.reshape(*image.shape[1:], *shown.shape[2:])
        probability, disagreement, decision = maps
        threshold = float(estimate.thresholds[structure])
        return cls(picture, probability, disagreement, decision, threshold, spacing[-2] / spacing[-1])

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
