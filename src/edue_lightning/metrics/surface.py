"""Distances between the surfaces of two masks, those of MONAI, whose cropping costs small images ten times as much."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
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
    masks = predicted.cpu().numpy(), reference.cpu().numpy()
    # no surface lies outside the box of both
    (box,) = ndimage.find_objects((masks[0] | masks[1]).astype(np.uint8))
    surfaces = [_surface(mask[box]) for mask in masks]
    away = [ndimage.distance_transform_edt(~surface, sampling=spacing.tolist()) for surface in surfaces]
    found = away[1][surfaces[0]], away[0][surfaces[1]]
    return SurfaceDistances(*(torch.from_numpy(part).to(predicted.device) for part in found))


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # what lies beyond the array counts as outside the mask
    inner: NDArray[np.bool_] = ndimage.binary_erosion(mask)
    return mask & ~inner


def hausdorff_distance_95(distances: SurfaceDistances) -> Tensor:
    """Return the larger of the two 95th percentiles of the distances, mm."""
    return torch.stack([part.quantile(HAUSDORFF_PERCENTILE) for part in distances]).max()


def normalised_surface_dice(distances: SurfaceDistances, tolerance: float) -> Tensor:
    """Return the share of both surfaces' voxels that lie within a tolerance (mm) of the other (Nikolov et al. 2018)."""
    return (torch.cat(distances) <= tolerance).double().mean()
