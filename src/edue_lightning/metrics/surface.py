"""Distances between the surfaces of two masks, by MONAI."""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.metrics.utils import get_edge_surface_distance
from torch import Tensor

HAUSDORFF_PERCENTILE = 0.95


class SurfaceDistances(NamedTuple):
    """Distances in mm from each surface voxel of one mask to the surface of the other, `[n]`; empty for no surface."""

    to_reference: Tensor
    from_reference: Tensor


def surface_distances(predicted: Tensor, reference: Tensor, spacing: Tensor) -> SurfaceDistances | None:
    """Return the distances between two surfaces (voxels of the mask with a neighbour outside), or None if one is empty.

    Args:
        predicted: `[*S]` bool.
        reference: `[*S]` bool.
        spacing: `[n]`, mm along each axis.
    """
    if not (predicted.any() and reference.any()):
        return None
    _, distances, _ = get_edge_surface_distance(predicted, reference, spacing=spacing.tolist(), symmetric=True)
    return SurfaceDistances(*(part.double() for part in distances))


def hausdorff_distance_95(distances: SurfaceDistances) -> Tensor:
    """Return the larger of the two 95th percentiles of the distances, mm."""
    return torch.stack([part.quantile(HAUSDORFF_PERCENTILE) for part in distances]).max()


def normalised_surface_dice(distances: SurfaceDistances, tolerance: float) -> Tensor:
    """Return the share of both surfaces' voxels that lie within a tolerance (mm) of the other (Nikolov et al. 2018)."""
    return (torch.cat(distances) <= tolerance).double().mean()
