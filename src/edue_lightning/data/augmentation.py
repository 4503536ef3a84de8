"""Random changes to a training case, the same for the image and every rater's masks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandAffined,
    RandAffineGrid,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandGridDistortiond,
    Randomizable,
    RandRotate90d,
    RandScaleIntensityd,
    RandScaleIntensityFixedMean,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    Transform,
)
from torch import Tensor

from edue_lightning.data.sample import RaterSample

_EQUAL_SIZES = 0.01
"""Largest relative difference of voxel sizes that count as equal."""

# ranges of nnU-Net (Isensee et al., Nature Methods 2021)
_NOISE = 0.1**0.5
_BLUR = (0.5, 1.0)
_BRIGHTNESS = 0.25
_CONTRAST = 0.25
_LOW_RESOLUTION = (0.5, 1.0)
_GAMMA = (0.7, 1.5)
_ELASTIC, _CELLS = 0.3, 5

_PROBABILITIES = ("affine", "elastic", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")


def are_equal_sizes(one: float, other: float) -> bool:
    """Return whether two voxel sizes count as equal, so that a quarter turn exchanges their axes."""
    return math.isclose(one, other, rel_tol=_EQUAL_SIZES)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training cases (MONAI's transforms).

    Attributes:
        flip: probability of a flip along each axis.
        rotate90: probability of a turn by 90, 180 or 270 degrees in the plane of the last two axes. Where their lengths
            or voxel sizes differ, volumes are turned in another plane of equal axes, and all other images by 180
            degrees only.
        rotation: largest rotation in radians, about every axis; 0 for none. Angles are those in mm, if the voxel size
            is known.
        scaling: largest relative change of size; 0 for none.
        intensity_scale: largest relative change of the image's values.
        intensity_shift: largest shift of the image's values.
        affine: probability of a rotation and scaling, if there are any.
        elastic: probability of a deformation along every axis (MONAI's grid distortion): the widths of its five cells
            change by up to 30 %.
        noise: probability of Gaussian noise; its standard deviation is at most 0.32 of that of the channel.
        blur: probability of a Gaussian blur of 0.5 to 1 voxels.
        brightness: probability of a factor of 0.75 to 1.25.
        contrast: probability of a contrast of 0.75 to 1.25 around the mean of each channel, within its range.
        low_resolution: probability of a resolution of 0.5 to 1 of the image's.
        gamma: probability of a gamma of 0.7 to 1.5 over the range of each channel, which keeps its mean and standard
            deviation; with a third of this probability, another one is applied to the negative image.

    Raises:
        ValueError: if a setting is out of range.
    """

    flip: float = 0.5
    rotate90: float = 0.0
    rotation: float = 0.0
    scaling: float = 0.0
    intensity_scale: float = 0.0
    intensity_shift: float = 0.0
    affine: float = 1.0
    elastic: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    low_resolution: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("flip", 1.0), ("rotate90", 1.0), ("scaling", 0.99), *((n, 1.0) for n in _PROBABILITIES)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"data.augmentation.{name} must lie between 0 and {most:g}, not {getattr(self, name)}")
        for name in ("rotation", "intensity_scale", "intensity_shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"data.augmentation.{name} must be at least 0, not {getattr(self, name)}")

    def transform(self, spatial_dims: int) -> Compose:
        """Build the transform of a dict.

        It holds `image` `[C, *S]`, `masks` `[R * K, *S]`, `spacing` (voxel size along each axis), and maybe `region`
        `[1, *S]`.
        """
        all_of = ("image", "masks", "region")
        steps: list[Transform] = [
            RandFlipd(all_of, prob=self.flip, spatial_axis=axis, allow_missing_keys=True)
            for axis in range(spatial_dims)
            if self.flip
        ]
        if self.rotate90:
            axes = (spatial_dims - 2, spatial_dims - 1)
            steps.append(_QuarterTurns(all_of, prob=self.rotate90, spatial_axes=axes, allow_missing_keys=True))
        # a structure that reaches the border continues beyond it, as its image does; nothing there counts
        sampling: dict[str, Any] = {
            "mode": ("bilinear", "nearest", "nearest"),
            "padding_mode": ("border", "border", "zeros"),
            "allow_missing_keys": True,
        }
        if self.affine and (self.rotation or self.scaling):
            rotations = 1 if spatial_dims == 2 else 3
            steps.append(
                _Rotations(
                    all_of,
                    prob=self.affine,
                    rotate_range=[self.rotation] * rotations,
                    scale_range=[self.scaling] * spatial_dims,
                    **sampling,
                )
            )
        if self.elastic:
            steps.append(_Elastic(all_of, num_cells=_CELLS, prob=self.elastic, distort_limit=_ELASTIC, **sampling))
        if self.intensity_scale:
            steps.append(RandScaleIntensityd(("image",), factors=self.intensity_scale, prob=1.0))
        if self.intensity_shift:
            steps.append(RandShiftIntensityd(("image",), offsets=self.intensity_shift, prob=1.0))
        return Compose([*steps, *self._degradations(spatial_dims)])

    def _degradations(self, spatial_dims: int) -> list[Transform]:
        """Return the changes of nnU-Net to the image alone, in its order."""
        upsampled = "bilinear" if spatial_dims == 2 else "trilinear"
        found: list[tuple[float, Transform]] = [
            (self.noise, _RelativeNoise(("image",), prob=self.noise, std=_NOISE)),
            (self.blur, RandGaussianSmoothd(("image",), _BLUR, _BLUR, _BLUR, prob=self.blur)),
            (self.brightness, RandScaleIntensityd(("image",), factors=_BRIGHTNESS, prob=self.brightness)),
            (
                self.contrast,
                _EachChannel(RandScaleIntensityFixedMean(self.contrast, factors=_CONTRAST, preserve_range=True)),
            ),
            (
                self.low_resolution,
                RandSimulateLowResolutiond(
                    ("image",),
                    prob=self.low_resolution,
                    # PyTorch's "nearest" moves the image by half a voxel against its masks
                    downsample_mode="nearest-exact",
                    upsample_mode=upsampled,
                    zoom_range=_LOW_RESOLUTION,
                ),
            ),
            (
                self.gamma,
                _EachChannel(RandAdjustContrast(self.gamma / 3, _GAMMA, invert_image=True, retain_stats=True)),
            ),
            (self.gamma, _EachChannel(RandAdjustContrast(self.gamma, _GAMMA, retain_stats=True))),
        ]
        return [step for probability, step in found if probability]


class _RelativeNoise(RandGaussianNoised):
    """MONAI's noise with the same draws, in units of the standard deviation of each channel."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data["image"]
        noise = super().__call__({"image": torch.zeros_like(image)})["image"]
        deviation = image.std(dim=tuple(range(1, image.ndim)), correction=0, keepdim=True)
        return {**data, "image": image + deviation * noise}


class _EachChannel(Randomizable, Transform):
    """One of MONAI's random transforms of an image, applied to every channel alone, with the same draw."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: Any = None) -> _EachChannel:
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        channels = data["image"].split(1)
        self.transform.randomize(channels[0])
        changed = [torch.as_tensor(self.transform(channel, randomize=False)) for channel in channels]
        return {**data, "image": torch.cat(changed)}


class _Elastic(RandGridDistortiond):
    """MONAI's transform with the same draws, for axes of any length.

    MONAI divides an axis of n voxels into cells of n // 5 voxels and fills six of them; voxels beyond, of an axis of 8,
    say, would become copies of the first one. Such an axis is continued beyond its border, changed, and cut again.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        lengths = enumerate(data["image"].shape[1:], 1)
        short = {axis: n for axis, n in lengths if n > 1 and (_CELLS + 1) * (n // _CELLS) < n}
        longer = dict(data)
        for key in self.key_iterator(longer):
            for axis, length in short.items():
                more = -length % _CELLS
                places = torch.arange(length + more).clamp(max=length - 1)
                value = longer[key].index_select(axis, places)
                if key == "region":
                    value.narrow(axis, length, more).zero_()
                longer[key] = value
        changed = dict(super().__call__(longer))
        for key in self.key_iterator(changed):
            for axis, length in short.items():
                changed[key] = changed[key].narrow(axis, 0, length)
        return changed


class _QuarterTurns(RandRotate90d):
    """MONAI's transform with the same draws, in a plane that a quarter turn maps to itself; elsewhere half a turn."""

    _unequal = False

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        shape, spacing = data["image"].shape[1:], data["spacing"]
        last = (len(shape) - 2, len(shape) - 1)
        planes = [last, *(plane for plane in combinations(range(len(shape)), 2) if plane != last)]
        equal = [
            (one, two)
            for one, two in planes
            if shape[one] == shape[two] and are_equal_sizes(spacing[one], spacing[two])
        ]
        self._unequal = not equal
        self.spatial_axes = equal[0] if equal else last
        return dict(super().__call__(data, lazy))

    def randomize(self, data: Any = None) -> None:
        super().randomize(data)
        if self._unequal:
            self._rand_k = 2


class _Rotations(RandAffined):
    """MONAI's transform with the same draws, its rotations in mm."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        rotations = self.rand_affine.rand_affine_grid
        self._grid = _GridInMillimetres(rotations.rotate_range, scale_range=rotations.scale_range)
        self.rand_affine.rand_affine_grid = self._grid

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        self._grid.spacing = data["spacing"]
        return dict(super().__call__(data, lazy))


class _GridInMillimetres(RandAffineGrid):
    """MONAI's grid of places in voxels, transformed in mm."""

    spacing: Sequence[float] = ()

    def __call__(
        self, spatial_size: Any = None, grid: Any = None, randomize: bool = True, lazy: bool | None = None
    ) -> Tensor:
        if len(set(self.spacing)) == 1:
            return super().__call__(spatial_size, grid, randomize, lazy)
        sizes = torch.ones(len(grid), *[1] * (grid.ndim - 1), dtype=grid.dtype)
        # the last coordinate is always 1
        sizes[:-1, ...] = torch.tensor(self.spacing, dtype=grid.dtype).reshape(-1, *[1] * (grid.ndim - 1))
        return super().__call__(spatial_size, grid * sizes, randomize, lazy) / sizes


@contextmanager
def _untracked() -> Iterator[None]:
    """Keep MONAI from tracking the affine within this block; tracking takes longer than the steps themselves."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def augment(sample: RaterSample, transform: Compose, key: int) -> RaterSample:
    """Apply a transform to a sample.

    Args:
        sample: sample, which stays unchanged.
        transform: transform of `Augmentation.transform`.
        key: key that determines all of its random choices, see `RaterBatch.draw_key`.
    """
    transform.set_random_state(seed=key % 2**32)
    spacing = sample.spacing or (1.0,) * (sample.image.ndim - 1)
    given = {"image": sample.image, "masks": sample.masks.flatten(0, 1), "spacing": spacing}
    if sample.region is not None:
        given["region"] = sample.region[None].to(sample.masks.dtype)
    with _untracked():
        found = transform(given)
    changed = {name: torch.as_tensor(found[name]).contiguous() for name in given if name != "spacing"}
    image, masks = changed["image"], changed["masks"].to(torch.uint8).reshape(sample.masks.shape)
    region = None if sample.region is None else changed["region"][0] > 0
    return replace(
        sample,
        image=image.to(torch.float32),
        masks=masks if region is None else masks * region,
        region=region,
        affine=None,  # that of the unchanged image no longer holds
    )
