"""Slices of volumes, as the 2D images that a network was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from torch import Tensor

from edue_lightning.data.geometry import PICTURE, grid_of, slice_directions
from edue_lightning.data.images import ImageError, ImageFile
from edue_lightning.data.preparation import Preparation, PreparedImage, Stacked
from edue_lightning.data.sample import Grid

Plane = Literal["axial", "coronal", "sagittal"]

_NORMALS: dict[Plane, str] = {"axial": "S", "coronal": "A", "sagittal": "R"}
# rows and columns of a picture as radiologists see it
_RADIOLOGICAL: dict[Plane, str] = {"axial": "PL", "coronal": "IL", "sagittal": "IP"}
_CANONICAL = "RAS"
_OPPOSITES = {"R": "R", "L": "R", "A": "A", "P": "A", "S": "S", "I": "S"}
_OPPOSITE_LETTERS = dict(zip("RLAPSI", "LRPAIS", strict=True))

HOW_TO_SLICE = "for a volume, set slice_axis=axial, coronal or sagittal"
"""Advice where a model of 2D images meets a volume."""


@dataclass(frozen=True)
class Slicing:
    """Slices that a volume is cut into, after its axes were turned to the right, anterior and superior.

    Attributes:
        axis: plane of the slices, or the number of the volume's axis across them, 0 to 2.
        directions: directions in which the first index (rows of a picture) and the second one (columns) of a slice
            grow, two of the letters R, L, A, P, S, I; None for those of the training, see `layout`.
        window: values of a volume that become 0 and 1, as in pictures made with a window; values beyond become 0 or 1.
            None to take the values as they are.
        batch_size: number of slices per forward pass.

    Raises:
        ValueError: if a value is invalid.
    """

    axis: Plane | int
    directions: str | None = None
    window: Sequence[float] | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.axis not in (*_NORMALS, 0, 1, 2) or isinstance(self.axis, bool):
            raise ValueError(f"slice_axis={self.axis}: must be axial, coronal or sagittal, or an array axis 0, 1 or 2")
        if self.window is not None:
            ends = [float(end) for end in self.window]
            if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
                raise ValueError(f"slice_window={list(self.window)}: must be two numbers, the lower one first")
        if self.batch_size < 1:
            raise ValueError(f"slice_batch must be at least 1, not {self.batch_size}")
        if self.directions is not None and self._problem(self.directions):
            plane = "".join(letter for letter in _CANONICAL if letter != self._normal)
            raise ValueError(
                f"slice_directions={self.directions}: must be two letters, one for each of the axes {plane[0]} and "
                f"{plane[1]} of the slices or the opposite direction, such as {plane}"
            )

    @property
    def _normal(self) -> str:
        """Direction across the slices."""
        return _CANONICAL[self.axis] if isinstance(self.axis, int) else _NORMALS[self.axis]

    def _problem(self, directions: str) -> bool:
        axes = [_OPPOSITES.get(letter, "") for letter in (self._normal, *directions)]
        return sorted(axes) != sorted(_CANONICAL)

    def layout(self, storage: str | None) -> SliceLayout:
        """Return how the slices lie in the volume.

        `directions` come first; then those of NIfTI slices of the training, as their headers gave them. Pictures say
        nothing of their place: by the name of a plane, slices lie as radiologists see them (axial: rows to posterior,
        columns to the left); by the number of an axis, the other two axes are rows and columns in their order.

        Args:
            storage: how the files of the training's images store their axes, see `geometry.slice_storage`; None if it
                is unknown.

        Raises:
            ValueError: if the training's slices have other axes, or it is unknown how they lie.
        """
        if self.directions is not None:
            return SliceLayout(self._normal + self.directions)
        found = slice_directions(storage)
        if found is not None:
            if self._problem(found):
                raise ValueError(
                    f"slice_axis={self.axis}: the slices of the training have the axes {found}, which do not lie in "
                    "this plane; choose the plane of the training, or set slice_directions if their headers are wrong"
                )
            return SliceLayout(self._normal + found)
        if isinstance(self.axis, int):
            return SliceLayout(self._normal + "".join(letter for letter in _CANONICAL if letter != self._normal))
        if storage != PICTURE:
            raise ValueError(
                f"slice_axis={self.axis}: the checkpoint does not say how the axes of its 2D images run; set "
                f"slice_directions, such as {_RADIOLOGICAL[self.axis]} for pictures as radiologists see them"
            )
        return SliceLayout(self._normal + _RADIOLOGICAL[self.axis])

    def assumes_view(self, storage: str | None) -> bool:
        """Return whether `layout` assumes that the training's pictures show slices as radiologists see them."""
        return self.directions is None and storage == PICTURE and not isinstance(self.axis, int)

    def shown(self, volume: Tensor) -> Tensor:
        """Return the values of a volume through the window."""
        if self.window is None:
            return volume
        low, high = map(float, self.window)
        return ((volume - low) / (high - low)).clamp(0, 1)

    def require_scale(self, volume: Tensor, preparation: Preparation, storage: str | None) -> None:
        """Check that a volume's values are on the scale of the pictures of the training, which is 0 to 1.

        Args:
            volume: values after `shown`.
            preparation: preparation of the training's images.
            storage: see `layout`.

        Raises:
            ImageError: if the network was trained on pictures as they are, and a value lies beyond 0 to 1.
        """
        if storage != PICTURE or (isinstance(preparation, Stacked) and preparation.standardise):
            return
        low, high = float(volume.min()), float(volume.max())
        if low < 0 or high > 1:
            raise ImageError(
                f"has values from {low:g} to {high:g}, but the pictures of the training from 0 to 1; set "
                "slice_window=[LOW,HIGH], the values that these pictures show as black and white"
            )


def assumed_view(layout: SliceLayout) -> str:
    """Return the warning on slices that are laid out as radiologists see them, see `Slicing.assumes_view`."""
    rows, columns = (f"{_OPPOSITE_LETTERS[letter]} to {letter}" for letter in layout.codes[1:])
    return (
        "was trained on pictures, which do not say how they lie in the body: slices are taken as radiologists see "
        f"them, rows from {rows} and columns from {columns}; set slice_directions if the pictures of the training lie "
        "in another way"
    )


@dataclass(frozen=True)
class SliceLayout:
    """Order and directions of a volume's axes when its slices come one after the other.

    Attributes:
        codes: directions across the slices, along rows and along columns, such as `SPL`.
    """

    codes: str

    @property
    def order(self) -> list[int]:
        """Axis of the volume (right, anterior, superior) for each axis of the slices."""
        return [_CANONICAL.index(_OPPOSITES[letter]) for letter in self.codes]

    def turned(self, volume: Tensor) -> Tensor:
        """Return a volume slice by slice, `[..., I, J, K]` to `[..., D, H, W]`."""
        first = volume.ndim - 3
        moved = volume.permute(*range(first), *(first + axis for axis in self.order))
        return moved.flip(self._flipped(first))

    def back(self, slices: Tensor) -> Tensor:
        """Return slices as a volume again, `[..., D, H, W]` to `[..., I, J, K]`."""
        first = slices.ndim - 3
        return slices.flip(self._flipped(first)).permute(
            *range(first), *(first + self.order.index(axis) for axis in range(3))
        )

    def _flipped(self, first: int) -> list[int]:
        return [first + axis for axis, letter in enumerate(self.codes) if letter not in _CANONICAL]

    def grid(self, grid: Grid) -> Grid:
        """Return the grid of `turned`, for the grid of a volume in the canonical orientation."""
        turn = ornt_transform(axcodes2ornt(_CANONICAL), axcodes2ornt(self.codes))
        affine = grid.affine.numpy() @ inv_ornt_aff(turn, grid.shape)
        return grid_of([grid.shape[axis] for axis in self.order], affine)

    def spacing(self, spacing: Sequence[float]) -> tuple[float, ...]:
        """Return the voxel size along the axes of `turned`."""
        return tuple(spacing[axis] for axis in self.order)


def prepared_slices(slices: Tensor, preparation: Preparation) -> Tensor:
    """Prepare slices one by one, as the 2D images that they are for the network.

    Args:
        slices: values of the files, `[C, n, H, W]`.
        preparation: preparation of the training's images.

    Returns:
        `[n, C, *S]`, where S may be another size.

    Raises:
        ImageError: if the preparation refuses such an image.
    """
    values = slices.float().cpu().numpy()
    made = [preparation.prepare([ImageFile(np.ascontiguousarray(values[:, at]))], 2) for at in range(values.shape[1])]
    return torch.stack([one.image for one in made])


@dataclass(frozen=True)
class SlicedVolume(Preparation):
    """Volumes whose first axis counts the slices, with the values of the files; slices are prepared one by one later.

    Attributes:
        slicing: choice of the slices.
        preparation: preparation of the slices.
        storage: how the files of the training's images store their axes, see `Slicing.layout`.
    """

    slicing: Slicing
    preparation: Preparation
    storage: str | None

    def prepare(self, files: Sequence[ImageFile], spatial_dims: int) -> PreparedImage:
        """Prepare the images of a case, see `Preparation.prepare`."""
        # without an affine, the axes run to the right, anterior and superior
        placed = [replace(file, affine=np.eye(4)) if file.affine is None else file for file in files]
        whole = Stacked().prepare(placed, spatial_dims)
        assert whole.grid is not None, "every file has an affine"
        layout = self.slicing.layout(self.storage)
        image = self.slicing.shown(layout.turned(whole.image)).contiguous()
        self.slicing.require_scale(image, self.preparation, self.storage)
        spacing = None if whole.spacing is None else layout.spacing(whole.spacing)
        return replace(whole, image=image, spacing=spacing, grid=layout.grid(whole.grid))


def keeps_values(preparation: Preparation) -> TypeGuard[Stacked]:
    """Return whether the values of the files can be computed from volumes prepared in this way."""
    return isinstance(preparation, Stacked) and not preparation.standardise


def as_stored(volume: Tensor, preparation: Preparation) -> Tensor:
    """Return the values of the files from a prepared volume `[C, *S]`, or the volume itself where they are lost.

    Args:
        volume: prepared volume.
        preparation: preparation of its data set, see `keeps_values`.
    """
    if not keeps_values(preparation):
        return volume
    return volume * preparation.scale - preparation.offset
