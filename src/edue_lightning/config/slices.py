"""Slices of volumes from a configuration, for models of 2D images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import get_class

from edue_lightning.config.build import ImageFormat
from edue_lightning.config.schema import check_only_ours
from edue_lightning.data.slices import SliceLayout, Slicing
from edue_lightning.errors import UserError
from edue_lightning.methods import SegmentationMethod
from edue_lightning.methods.test_time_augmentation import unequal_axes

_OPTIONS = {"slice_directions": "directions", "slice_window": "window", "slice_batch": "batch_size"}


def chosen_slicing(configuration: Mapping[str, Any]) -> Slicing | None:
    """Return the slices that a command asks for, or None without `slice_axis`.

    Args:
        configuration: resolved, with the keys `slice_axis`, `slice_directions`, `slice_window` and `slice_batch`, each
            optional.

    Raises:
        UserError: if one is invalid, or has no effect.
    """
    axis = configuration.get("slice_axis")
    if axis is None:
        for name in ("slice_directions", "slice_window"):
            if configuration.get(name) is not None:
                raise UserError(f"{name}: has no effect without slice_axis; set slice_axis, or remove {name}")
        return None
    given = {to: configuration[name] for name, to in _OPTIONS.items() if configuration.get(name) is not None}
    try:
        return Slicing(axis, **given)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def slice_layout(slicing: Slicing, wanted: ImageFormat, where: str) -> SliceLayout:
    """Return how the slices lie in volumes, for a model of 2D images.

    Args:
        slicing: choice of the slices.
        wanted: format of the images of the training.
        where: checkpoint, for messages.

    Raises:
        UserError: if the model takes volumes, or it is unknown how its images lie.
    """
    if wanted.spatial_dims != 2:
        raise UserError(f"slice_axis={slicing.axis}: {where} was trained on volumes, not on slices; remove slice_axis")
    try:
        return slicing.layout(wanted.storage)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def unequal_pixels(method: SegmentationMethod, layout: SliceLayout, spacing: Sequence[float] | None) -> str | None:
    """Return why a method cannot predict the slices of a volume, or None if it can.

    Args:
        method: method of 2D images.
        layout: order and directions of the slices.
        spacing: voxel size along the slices, rows and columns, mm; None if it is unknown.
    """
    if spacing is None or unequal_axes(method, spacing[1:]) is None:
        return None
    return (
        "the method exchanges rows and columns (method.turned=true), but the pixels of the slices (along "
        f"{layout.codes[1:]}) are {spacing[1]:g} and {spacing[2]:g} mm; choose another slice_axis"
    )


def with_stored_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node of a data set whose volumes keep the values of their files, where it has such an option.

    Raises:
        UserError: if it names no data set of this package.
    """
    source = dict(data.get("source") or {})
    check_only_ours(source, "data.source")
    of_source = inspect.signature(get_class(str(source.get("_target_")))).parameters
    return {**data, "source": {**source, "standardise": False}} if "standardise" in of_source else dict(data)
