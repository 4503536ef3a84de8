"""Maps of one predicted case, as a viewer shows them."""

from __future__ import annotations

from edue_lightning.data.preparation import PreparedImage
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.reporting.overlay import CaseMaps
from edue_lightning.reporting.panels import (
    displayable,
    radiological,
    radiological_slice,
    radiological_slice_spacing,
    radiological_spacing,
)
from edue_lightning.uncertainty import largest_alone


def case_maps(prepared: PreparedImage, estimate: Estimate) -> list[CaseMaps]:
    """Return the maps of each structure, with one image for all.

    Args:
        prepared: image as the network saw it.
        estimate: prediction for it.
    """
    image = prepared.image.numpy()
    # each `[K, *S]`
    decision = largest_alone(estimate.decision, dim=0) if estimate.exclusive else estimate.decision
    maps = [of_all.numpy() for of_all in (estimate.probability, estimate.disagreement, decision)]
    spacing = tuple(prepared.spacing or (1.0,) * (image.ndim - 1))
    if len(spacing) == 3 and prepared.grid is not None:
        affine = prepared.grid.affine.numpy()
        image, *maps = (radiological(values, affine) for values in (image, *maps))
        spacing = radiological_spacing(spacing, affine)
    if len(spacing) == 2:
        image, *maps = (radiological_slice(values, prepared.storage) for values in (image, *maps))
        spacing = radiological_slice_spacing(spacing, prepared.storage)
    # rows of all slices below each other, so that the slices have one range of greys
    shown = displayable(image.reshape(len(image), -1, image.shape[-1]))
    picture = shown.reshape(*image.shape[1:], *shown.shape[2:])
    aspect = spacing[-2] / spacing[-1]
    probability, disagreement, decided = maps
    thresholds = estimate.thresholds.tolist()
    return [
        CaseMaps(picture, probability[k], disagreement[k], decided[k], threshold, aspect)
        for k, threshold in enumerate(thresholds)
    ]
