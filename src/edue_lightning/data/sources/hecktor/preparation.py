"""CT and PET on one grid, as two channels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edue_lightning.data.geometry import closest_canonical, grid_of, grid_spacing, overlap_share, resample, respaced
from edue_lightning.data.images import ImageError, ImageFile
from edue_lightning.data.preparation import Preparation, PreparedImage, require_axes
from edue_lightning.data.sample import Grid

MOST_PLAUSIBLE_SUV = 1000.0
"""A PET that exceeds it is not in standardised uptake values: the bladder reaches about 200."""

_AIR = -1024.0


@dataclass(frozen=True)
class PetCt(Preparation):
    """CT and PET on the CT's grid, with axes to the right, anterior and superior.

    Attributes:
        spacing: mm to the right, anterior and superior; None for the CT's own voxels.
        ct_window: Hounsfield units that become 0 and 1; values beyond are clipped.
        suv_window: standardised uptake values that become 0 and 1.
    """

    spacing: Sequence[float] | None = None
    ct_window: Sequence[float] = (-250.0, 250.0)
    suv_window: Sequence[float] = (0.0, 25.0)

    def respaced(self, grid: Grid) -> Grid:
        """Return a grid with the voxel sizes of `spacing`."""
        return grid if self.spacing is None else respaced(grid, self.spacing)

    def channels(self, ct: ImageFile, pet: ImageFile, grid: Grid) -> NDArray[np.float32]:
        """Return `[2, *S]` on a grid, by the affines of CT and PET."""
        ct_values = resample(ct.array[0], affine_of(ct), grid, fill=_AIR)
        pet_values = resample(pet.array[0], affine_of(pet), grid, fill=0.0)
        return np.stack([_windowed(ct_values, self.ct_window), _windowed(pet_values, self.suv_window)])

    def prepare(self, files: Sequence[ImageFile], spatial_dims: int) -> PreparedImage:
        """Prepare CT and PET, in this order, see `Preparation.prepare`."""
        require_axes(files, spatial_dims)
        if len(files) != 2 or any(len(file.array) > 1 for file in files):
            raise ImageError("needs a CT and a PET, each a volume without channels")
        ct, pet = files
        if ct.affine is None or pet.affine is None:
            raise ImageError("has no affine; save CT and PET as NIfTI")
        require_suv(pet)
        ct_grid = file_grid(ct)
        grid = self.respaced(closest_canonical(ct_grid))
        if overlap_share(grid, file_grid(pet)) == 0:
            raise ImageError("CT and PET lie nowhere on each other; correct the affine of one")
        image = torch.from_numpy(self.channels(ct, pet, grid))
        return PreparedImage(image, grid_spacing(grid), grid, ct.shape, ct_grid)


def affine_of(image: ImageFile) -> NDArray[np.float64]:
    """Return a NIfTI file's affine."""
    assert image.affine is not None, "NIfTI has an affine"
    return image.affine


def file_grid(image: ImageFile) -> Grid:
    """Return the grid of a NIfTI file."""
    return grid_of(image.shape, affine_of(image))


def require_suv(pet: ImageFile) -> None:
    """Check that a PET can be in standardised uptake values.

    Raises:
        ImageError: if a value is too large for one.
    """
    if pet.array.max() > MOST_PLAUSIBLE_SUV:
        raise ImageError(f"reaches {pet.array.max():g}, which is no SUV; convert it from Bq/ml")


def _windowed(values: NDArray[np.float32], window: Sequence[float]) -> NDArray[np.float32]:
    low, high = window
    return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
