"""Measurement of a model of 2D images on volumes, slice by slice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edue_lightning.config.build import ImageFormat, build_preparation
from edue_lightning.config.slices import slice_layout, unequal_pixels
from edue_lightning.data import RaterDataModule, RaterSample
from edue_lightning.data.identity import CaseIdentity, content_digest
from edue_lightning.data.images import ImageError
from edue_lightning.data.preparation import Preparation
from edue_lightning.data.slices import (
    SliceLayout,
    Slicing,
    as_stored,
    assumed_view,
    keeps_values,
    prepared_slices,
)
from edue_lightning.data.source import CaseRecord, Subset
from edue_lightning.errors import UserError
from edue_lightning.methods import SliceBySlice
from edue_lightning.runs.checkpoints import LoadedMethod
from edue_lightning.runtime.processes import is_first_process

log = logging.getLogger(__name__)


class VolumesAsSlices:
    """The volumes of a data set as slices for a model that was trained on 2D images.

    Args:
        slicing: choice of the slices.
        loaded: the model.
        path: its checkpoint, for messages.
        data: data set of volumes.
        node: node `data` of the configuration that describes it.
        allow_other_preparation: whether its volumes may have other values than the files.

    Raises:
        UserError: if the model does not fit the volumes.
    """

    def __init__(
        self,
        slicing: Slicing,
        loaded: LoadedMethod,
        path: Path,
        data: RaterDataModule,
        node: Mapping[str, Any],
        allow_other_preparation: bool,
    ) -> None:
        self._slicing, self._loaded, self._path, self._data = slicing, loaded, path, data
        wanted, found = loaded.image_format, ImageFormat.of(data.source)
        self._layout: SliceLayout = slice_layout(slicing, wanted, str(path))
        self._preparation: Preparation = build_preparation(loaded.configuration)
        self._of_data = build_preparation({"data": node})
        if found.spatial_dims != 3:
            raise UserError(
                f"slice_axis={slicing.axis}: data={data.name} has 2D images; choose a data set of volumes with "
                "data=NAME, or remove slice_axis"
            )
        if replace(found, spatial_dims=2) != wanted:
            raise UserError(f"{path}: was trained for {wanted}, but data={data.name} has {found}")
        if not keeps_values(self._of_data) and not allow_other_preparation:
            raise UserError(
                f"slice_axis={slicing.axis}: slices are prepared from the values of the files, but data={data.name} "
                f"changes them ({type(self._of_data).__name__}) before; choose data=manifest or another data set that "
                "does not, or set allow_other_preparation=true"
            )
        if slicing.assumes_view(wanted.storage) and is_first_process():
            log.warning("%s: %s", path, assumed_view(self._layout))

    def method(self) -> SliceBySlice:
        """Return the model as a method of volumes."""
        values = partial(_values, preparation=self._of_data, slicing=self._slicing)
        size = self._slicing.batch_size
        return SliceBySlice(self._loaded.method, self._preparation, self._layout, size, values).eval()

    def check(self, split: Subset) -> list[CaseIdentity]:
        """Check every volume of a split, and return the identities of the volumes and of their slices.

        Raises:
            UserError: naming the first case whose slices cannot be predicted.
        """
        found = []
        for record in self._data.records(split):
            sample = self._data.source.load(record.case_id)
            try:
                found += self._identities(record, sample)
            except ImageError as error:
                raise UserError(f"data={self._data.name}: case {record.case_id!r}: {error}") from error
        return found

    def _identities(self, record: CaseRecord, sample: RaterSample) -> list[CaseIdentity]:
        if sample.affine is None and not isinstance(self._slicing.axis, int):
            raise ImageError(
                f"has no orientation, so its {self._slicing.axis} slices are unknown; set slice_axis to the number of "
                "the array's axis across the slices, 0 to 2"
            )
        spacing = None if sample.spacing is None else self._layout.spacing(sample.spacing)
        reason = unequal_pixels(self._loaded.method, self._layout, spacing)
        if reason is not None:
            raise ImageError(reason)
        stored = _values(sample.image, self._of_data, self._slicing)
        self._slicing.require_scale(stored, self._preparation, self._loaded.image_format.storage)
        found = [CaseIdentity.of(record, sample)]
        for layout in self._layouts():
            slices = layout.turned(stored)
            prepared = prepared_slices(slices, self._preparation)
            found += [
                CaseIdentity.of(record, _as_case(record, image, slices[:, at])) for at, image in enumerate(prepared)
            ]
        return found

    def _layouts(self) -> list[SliceLayout]:
        """Return the chosen layout and, where another one is known, that of the training's slices."""
        try:
            trained = replace(self._slicing, directions=None).layout(self._loaded.image_format.storage)
        except ValueError:
            # the training's slices lie in another plane, or it is unknown how they lie
            return [self._layout]
        return [self._layout, *([trained] if trained != self._layout else [])]


def _as_case(record: CaseRecord, image: Tensor, stored: Tensor) -> RaterSample:
    """Return a slice as a case of its volume's name, without raters.

    Args:
        record: the volume.
        image: slice prepared for the network, `[C, *S]`.
        stored: slice with the values of the file, `[C, H, W]`.
    """
    nobody = torch.zeros(0, 1, *image.shape[1:], dtype=torch.uint8)
    valid = torch.zeros(0, dtype=torch.bool)
    return RaterSample(image, nobody, valid, record.case_id, content=content_digest([stored.numpy()]))


def _values(volume: Tensor, preparation: Preparation, slicing: Slicing) -> Tensor:
    """Return the values of the files, through the window, of a prepared volume `[C, *S]`."""
    return slicing.shown(as_stored(volume, preparation))
