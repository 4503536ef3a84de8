"""From the image files of a case to what a network sees: the same for training and for new images without raters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edue_lightning.data.geometry import grid_of, resample
from edue_lightning.data.images import ImageError, ImageFile, same_affine
from edue_lightning.data.sample import Grid


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as a network sees it, and the way back to its file's voxels.

    Attributes:
        image: `[C, *S]` float32.
        spacing: voxel size in mm along each axis of S, or None where it is not known.
        grid: where the voxels of a volume lie, or None of pictures and slices.
        file: `[*F]`, shape of the (first) file's spatial axes.
        file_grid: the grid of that file, or None as above.
    """

    image: Tensor
    spacing: tuple[float, ...] | None
    grid: Grid | None
    file: tuple[int, ...]
    file_grid: Grid | None

    @property
    def voxel_size(self) -> float:
        """Size of a voxel in mm² or mm³; 1 where it is not known."""
        return float(np.prod(self.spacing)) if self.spacing else 1.0

    def on_file(self, values: Tensor) -> NDArray[np.float32]:
        """Return a map `[*S]` on the voxels of the file, `[*F]`; 0 where the network saw nothing."""
        array: NDArray[np.float32] = values.numpy().astype(np.float32, copy=False)
        if self.grid is not None and self.file_grid is not None:
            return resample(array, self.grid.affine.numpy(), self.file_grid, fill=0.0)
        return array if array.shape == self.file else resized(array, self.file)


class Preparation(ABC):
    """How the image files of a case become the channels that a network sees."""

    @abstractmethod
    def prepare(self, files: Sequence[ImageFile], spatial_dims: int) -> PreparedImage:
        """Prepare the images of a case.

        Args:
            files: at least one, in the order of the channels.
            spatial_dims: axes that the network wants, 2 or 3.

        Raises:
            ImageError: if they cannot be prepared, or do not fit each other.
        """


@dataclass(frozen=True)
class Stacked(Preparation):
    """Channels of all files one after the other, each file on the grid of the first.

    Attributes:
        standardise: bring each channel to mean 0 and standard deviation 1, see `standardised`.
        offset: is added to the values,
        scale: by which they are divided then.
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
        """Prepare the images of a case, see `Preparation.prepare`."""
        if spatial_dims == 2:
            files = [as_slice(file) for file in files]
        first = files[0]
        require_axes(files, spatial_dims)
        if any(file.shape != first.shape for file in files):
            raise ImageError("the images of the case differ in size; resample them to one grid")
        placed = [file.affine for file in files if file.affine is not None]
        if not all(same_affine(affine, placed[0]) for affine in placed):
            raise ImageError("the images of the case have different affines; resample them to one grid")
        grid = grid_of(first.shape, placed[0]) if placed and spatial_dims == 3 else None
        spacing = next((file.spacing for file in files if file.spacing), None)
        return PreparedImage(_tensor(self.channels(files)), spacing, grid, first.shape, grid)


@dataclass(frozen=True)
class SquarePicture(Preparation):
    """Pictures brought to a square of one size, values from 0 to 1; grey ones get three equal channels.

    Attributes:
        size: edge in pixels.
    """

    size: int = 256

    def channels(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `[3, size, size]` of a picture's channels `[3, H, W]`."""
        return np.stack([resized(channel, (self.size, self.size)) for channel in picture])

    def prepare(self, files: Sequence[ImageFile], spatial_dims: int) -> PreparedImage:
        """Prepare a picture, see `Preparation.prepare`."""
        require_axes(files, spatial_dims)
        if len(files) > 1 or len(files[0].array) not in (1, 3):
            raise ImageError("is no picture in colours or grey; give one such file a case")
        picture = np.broadcast_to(files[0].array, (3, *files[0].shape)).astype(np.float32)
        return PreparedImage(_tensor(self.channels(picture)), None, None, files[0].shape, None)


def as_slice(image: ImageFile) -> ImageFile:
    """Return a volume whose third axis counts modalities, as QUBIQ's brain-tumor has it, as a slice with channels."""
    if len(image.shape) == 2 or len(image.array) > 1:
        return image
    spacing = None if image.spacing is None else image.spacing[:2]
    return replace(image, array=np.moveaxis(image.array[0], -1, 0), spacing=spacing)


def require_axes(files: Sequence[ImageFile], spatial_dims: int) -> None:
    """Check the number of axes.

    Raises:
        ImageError: if a file has another one.
    """
    for file in files:
        if len(file.shape) != spatial_dims:
            raise ImageError(f"is {len(file.shape)}D, but the model sees {spatial_dims}D images")


def require_channels(prepared: PreparedImage, channels: int) -> None:
    """Check the number of channels.

    Raises:
        ImageError: if there is another one.
    """
    if len(prepared.image) != channels:
        raise ImageError(f"has {len(prepared.image)} channels, but the model sees {channels}")


def standardised(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an image channel with mean 0 and standard deviation 1; a constant one becomes 0."""
    # a deviation that is rounding alone must not be blown up
    if channel.min() == channel.max():
        return np.zeros_like(channel)
    values = channel.astype(np.float64)
    return ((values - values.mean()) / values.std()).astype(np.float32)


def resized(channel: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return `[H, W]` values brought to another size by Pillow's bilinear filter, which averages where it shrinks."""
    picture = Image.fromarray(channel.astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float32)


def _tensor(channels: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))
