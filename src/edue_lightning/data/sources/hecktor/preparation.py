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

LEAST_SUV = -5.0
"""A PET below it is not in standardised uptake values: noise and resampling leave values just below 0."""

MOST_WITHOUT_AIR = 1000.0
"""A CT that exceeds it and holds nothing below 0 is not in Hounsfield units: fat is -100, air -1000."""

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
        """Prepare CT and PET, in this order, see `Preparation.prepare`.

        Raises:
            ImageError: if there are not two volumes with affines that overlap, or their values cannot be Hounsfield
                units and standardised uptake values.
        """
        require_axes(files, spatial_dims)
        if len(files) != 2 or any(len(file.array) > 1 for file in files):
            raise ImageError("needs a CT and a PET, each a volume without channels")
        ct, pet = files
        if ct.affine is None or pet.affine is None:
            raise ImageError("has no affine; save CT and PET as NIfTI")
        require_hounsfield(ct, self.ct_window)
        require_suv(pet, self.suv_window)
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


def require_hounsfield(ct: ImageFile, window: Sequence[float]) -> None:
    """Check that a CT can be in Hounsfield units, and is not constant within the window.

    Raises:
        ImageError: if it is not.
    """
    lowest, highest = float(ct.array.min()), float(ct.array.max())
    if lowest >= 0 and highest > MOST_WITHOUT_AIR:
        raise ImageError(
            f"holds values from {lowest:g} to {highest:g}, which are no Hounsfield units, as air is -1000; convert it, "
            "most likely by subtracting 1024"
        )
    _require_contrast(lowest, highest, window, "ct_window")


def require_suv(pet: ImageFile, window: Sequence[float]) -> None:
    """Check that a PET can be in standardised uptake values, and is not constant within the window.

    Raises:
        ImageError: if it is not.
    """
    lowest, highest = float(pet.array.min()), float(pet.array.max())
    if highest > MOST_PLAUSIBLE_SUV:
        raise ImageError(f"reaches {highest:g}, which is no SUV; convert it from Bq/ml")
    if lowest < LEAST_SUV:
        raise ImageError(f"holds values from {lowest:g} to {highest:g}, and no SUV is below 0; convert it to SUV")
    _require_contrast(lowest, highest, window, "suv_window")


def _require_contrast(lowest: float, highest: float, window: Sequence[float], setting: str) -> None:
    if lowest == highest or highest <= window[0] or lowest >= window[1]:
        raise ImageError(
            f"holds values from {lowest:g} to {highest:g}, which data.source.{setting}={list(window)} makes constant; "
            "check their unit, or correct the window"
        )


def _windowed(values: NDArray[np.float32], window: Sequence[float]) -> NDArray[np.float32]:
    low, high = window
    return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
