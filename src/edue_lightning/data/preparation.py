"""Preparation of image files for a network, the same for training and for new images without raters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edue_lightning.data.geometry import grid_spacing, resample, same_grid, whole_steps
from edue_lightning.data.images import ImageError, ImageFile, canonical
from edue_lightning.data.sample import Grid
from edue_lightning.text import times

_ROUNDING_OF_SPACING = 0.01

MIXED_SLICES = (
    "NIfTI slices and pictures do not store their axes in the same order (x first, or rows first), so they cannot be "
    "combined; save all as NIfTI or all as pictures"
)


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as a network sees it, and the way back to its file's voxels.

    Attributes:
        image: `[C, *S]` float32.
        spacing: voxel size in mm along each axis of S, or None if it is unknown.
        grid: grid of the voxels of a volume, or None for pictures and slices.
        file: `[*F]`, shape of the (first) file's spatial axes.
        file_grid: grid of that file, or None for pictures and slices.
        storage: how the file of a 2D image stores its axes, see `geometry.slice_storage`; None if it is unknown.
    """

    image: Tensor
    spacing: tuple[float, ...] | None
    grid: Grid | None
    file: tuple[int, ...]
    file_grid: Grid | None
    storage: str | None = None

    @property
    def voxel_size(self) -> float:
        """Size of a voxel in mm² or mm³; 1 if it is unknown."""
        return float(np.prod(self.spacing)) if self.spacing else 1.0

    @property
    def resampled(self) -> bool:
        """Whether `on_file` interpolates, since the voxels of the image are not those of its file."""
        if self.grid is not None and self.file_grid is not None:
            return whole_steps(self.grid.affine.numpy(), self.file_grid) is None
        return tuple(self.image.shape[1:]) != self.file

    def with_spacing(self, on_file: Sequence[float] | None) -> PreparedImage:
        """Return the image with the voxel size that follows from its file's; a known voxel size stays.

        Args:
            on_file: mm along each axis of the file, as many as S; None if it is unknown.
        """
        if self.spacing is not None or on_file is None:
            return self
        lengths = zip(on_file, self.file, self.image.shape[1:], strict=True)
        return replace(self, spacing=tuple(size * file / own for size, file, own in lengths))

    def on_file(self, values: Tensor) -> NDArray[np.float32]:
        """Return a map `[*S]` on the voxels of the file, `[*F]`; 0 beyond what the network saw."""
        array: NDArray[np.float32] = values.numpy().astype(np.float32, copy=False)
        if self.grid is not None and self.file_grid is not None:
            return resample(array, self.grid.affine.numpy(), self.file_grid, fill=0.0)
        return array if array.shape == self.file else resized(array, self.file)


class Preparation(ABC):
    """Conversion of the image files of a case to the channels that a network sees."""

    @abstractmethod
    def prepare(self, files: Sequence[ImageFile], spatial_dims: int) -> PreparedImage:
        """Prepare the images of a case.

        Args:
            files: at least one, in the order of the channels.
            spatial_dims: number of axes that the network expects, 2 or 3.

        Raises:
            ImageError: if they cannot be prepared, or do not fit each other.
        """


@dataclass(frozen=True)
class Stacked(Preparation):
    """Channels of all files one after the other, each file on the grid of the first.

    Volumes are brought to one orientation, with axes to the right, anterior and superior, see `images.canonical`.

    Attributes:
        standardise: whether to bring each channel to mean 0 and standard deviation 1, see `standardised`.
        offset: number added to the values.
        scale: number by which the values are divided after that.
    """

    standardise: bool = False
    offset: float = 0.0
    scale: float = 1.0

    def channels(self, files: Sequence[ImageFile]) -> NDArray[np.float32]:
        """Return the channels of files that lie on one grid, `[C, *S]`."""
        stacked = np.concatenate([file.array.astype(np.float32, copy=False) for file in files])
        if self.standardise:
            return np.stack([standardised(channel) for channel in stacked])
        if self.offset or self.scale != 1:
            stacked = (stacked + np.float32(self.offset)) / np.float32(self.scale)
        return stacked

    def prepare(self, files: Sequence[ImageFile], spatial_dims: int) -> PreparedImage:
        """Prepare the images of a case, see `Preparation.prepare`.

        Raises:
            ImageError: if they differ in size, affine or kind, or have another number of axes.
        """
        if spatial_dims == 2:
            files = [as_slice(file) for file in files]
        require_axes(files, spatial_dims)
        turned = [canonical(file) for file in files]
        if any(file.shape != turned[0].shape for file in turned):
            raise ImageError("the images of the case differ in size; resample them to one grid")
        grids = [file.grid for file in turned if file.grid is not None]
        if spatial_dims == 2 and len(grids) not in (0, len(files)):
            raise ImageError(MIXED_SLICES)
        if not all(same_grid(grid, grids[0]) for grid in grids):
            raise ImageError("the images of the case have different affines; resample them to one grid")
        spacing = next((file.spacing for file in turned if file.spacing), None)
        image = _tensor(self.channels(turned))
        if spatial_dims == 2 or not grids:
            return PreparedImage(image, spacing, None, files[0].shape, None)
        file_grid = next(file.origin or file.grid for file in turned if file.grid is not None)
        assert file_grid is not None, "has a grid"
        return PreparedImage(image, spacing, grids[0], file_grid.shape, file_grid)


@dataclass(frozen=True)
class SquarePicture(Preparation):
    """Pictures resized to squares of one size, values from 0 to 1; grey ones get three equal channels.

    Attributes:
        size: edge in pixels.
    """

    size: int = 256

    def channels(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a picture's channels `[3, H, W]`, resized to `[3, size, size]`."""
        return np.stack([resized(channel, (self.size, self.size)) for channel in picture])

    def prepare(self, files: Sequence[ImageFile], spatial_dims: int) -> PreparedImage:
        """Prepare a picture, see `Preparation.prepare`.

        Raises:
            ImageError: if there is not one picture, grey or in colour.
        """
        require_axes(files, spatial_dims)
        if len(files) > 1 or len(files[0].array) not in (1, 3):
            raise ImageError("is neither a colour nor a grey picture; give one such file per case")
        picture = np.broadcast_to(files[0].array, (3, *files[0].shape)).astype(np.float32)
        prepared = PreparedImage(_tensor(self.channels(picture)), None, None, files[0].shape, None)
        return prepared.with_spacing(files[0].spacing)


def disc_caveat(crop: float, size: int, exception: str = "") -> str:
    """Return the caveat of a training on squares around the optic disc, see `CaseSource.new_image_caveat`.

    Args:
        crop: edge of the squares as a share of the photograph's height.
        size: edge in pixels to which photographs are resized.
        exception: remark on other squares of the data set, in brackets; usually empty.
    """
    squares = f"squares around the optic disc with edges of {crop:g} of the photograph's height{exception}"
    return (
        f"was trained on {squares}, but takes new photographs whole and resizes them to {size}x{size}; cut new "
        "photographs in the same way first"
    )


def as_slice(image: ImageFile) -> ImageFile:
    """Return a volume whose third axis counts modalities, as QUBIQ's brain-tumor has it, as a slice with channels."""
    if len(image.shape) == 2 or len(image.array) > 1:
        return image
    spacing = None if image.spacing is None else image.spacing[:2]
    return replace(image, array=np.moveaxis(image.array[0], -1, 0), spacing=spacing)


def agreed_spacing(files: Sequence[ImageFile], given: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return the voxel size of a case, from the headers of its files and from what a table gives.

    Args:
        files: images of the case, on one grid; the axes of volumes may have been turned.
        given: mm along each axis as the first file stores them, or None.

    Returns:
        mm along each axis of the images as they are, or None if neither gives it.

    Raises:
        ImageError: if the two contradict each other by more than 1 %, or `given` has another number of axes.
    """
    known = next((file.spacing for file in files if file.spacing), None)
    if given is None:
        return known
    if len(given) != len(files[0].shape):
        raise ImageError(f"spacing has {len(given)} numbers for {len(files[0].shape)} axes; write one per axis")
    if known is None:
        return tuple(given)
    first = files[0]
    stored = known if first.origin is None else grid_spacing(first.origin)
    if not np.allclose(stored, given, rtol=_ROUNDING_OF_SPACING, atol=0):
        raise ImageError(
            f"the table gives the spacing {times(given, 6)} mm, but the header {times(stored, 6)} mm; correct one of "
            "them"
        )
    return known


def require_axes(files: Sequence[ImageFile], spatial_dims: int) -> None:
    """Check the number of axes.

    Raises:
        ImageError: if a file has another number.
    """
    for file in files:
        if len(file.shape) != spatial_dims:
            raise ImageError(f"is {len(file.shape)}D, but the model expects {spatial_dims}D images")


def require_channels(prepared: PreparedImage, channels: int) -> None:
    """Check the number of channels.

    Raises:
        ImageError: if it is another number.
    """
    if len(prepared.image) != channels:
        raise ImageError(f"has {len(prepared.image)} channels, but the model expects {channels}")


def standardised(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an image channel with mean 0 and standard deviation 1; a constant one becomes 0."""
    # the deviation of a constant channel is rounding, which must not be divided by
    if channel.min() == channel.max():
        return np.zeros_like(channel)
    values = channel.astype(np.float64)
    return ((values - values.mean()) / values.std()).astype(np.float32)


def resized(channel: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize `[H, W]` values by Pillow's bilinear filter, which averages where it shrinks."""
    picture = Image.fromarray(channel.astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float32)


def _tensor(channels: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))
