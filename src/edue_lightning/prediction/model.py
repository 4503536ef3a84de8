"""A trained model for new images, from Python: load it, show it an array or files, get mask, map and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from edue_lightning.config.build import ImageFormat, build_preparation
from edue_lightning.data.images import ImageError, ImageFile
from edue_lightning.data.new_images import ImageCase, read_case
from edue_lightning.data.preparation import PreparedImage, require_channels
from edue_lightning.errors import UserError
from edue_lightning.prediction.estimate import Estimate, estimate
from edue_lightning.prediction.triage import Triage
from edue_lightning.prediction.triage_table import triage_frame, triage_rows
from edue_lightning.runs.checkpoints import load_method
from edue_lightning.runtime.devices import chosen_device
from edue_lightning.text import reason_of


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of an image, on the image's own voxels `*F`.

    Attributes:
        probability: mean over the members, `[K, *F]` float32.
        disagreement: V, the variance between the members, `[K, *F]` float32; of a single network p (1 - p).
        table: a row a structure with scores, volume and flag, see `triage_table.triage_rows`.
    """

    probability: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    table: pd.DataFrame

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the mean probability reaches one half, `[K, *F]`."""
        return self.probability >= 0.5


class Model:
    """A trained method with the preparation of its images and what it knows of its validation cases.

    Args:
        checkpoint: `checkpoints/best.ckpt` of a run.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        inference: node of the configuration, see `conf/inference`; None for the checkpoint's own.
        sensitivity: share of the poor segmentations that shall be flagged; None for the checkpoint's own.

    Attributes:
        image_format: axes, channels and names of the structures.
        triage: what tells which cases need a look; None in a checkpoint that was not trained to its end.

    Raises:
        UserError: if the checkpoint cannot be used, the device is not there, or a setting is none.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        device: str = "auto",
        inference: Mapping[str, Any] | None = None,
        sensitivity: float | None = None,
    ) -> None:
        if sensitivity is not None and not 0 < sensitivity <= 1:
            raise UserError(f"sensitivity must lie above 0 and be at most 1, not {sensitivity}")
        path = Path(checkpoint)
        loaded = load_method(path, inference)
        self.method = loaded.method
        self.image_format: ImageFormat = loaded.image_format
        self._preparation = build_preparation(loaded.configuration)
        self.triage = None if loaded.triage is None else Triage.from_dict(loaded.triage, str(path))
        if self.triage is not None and set(self.triage.structures) != set(self.structures):
            raise UserError(f"{path}: its validation cases are of other structures")
        self._sensitivity = sensitivity or (None if self.triage is None else self.triage.sensitivity)
        self.method.to(chosen_device(device))

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the K structures."""
        return self.image_format.structures

    def predict(
        self, image: ArrayLike, spacing: Sequence[float] | None = None, affine: ArrayLike | None = None
    ) -> Prediction:
        """Predict an array.

        Args:
            image: `[C, *F]` (or `[*F]` of a single channel), values as the training's files have them (pictures of 8
                bits over 255); it is prepared as they were.
            spacing: mm along each axis, None where it is not known.
            affine: `[4, 4]` of a volume, from voxel indices to mm; None for one along the axes.

        Raises:
            UserError: if the image does not fit the model.
        """
        array = np.asarray(image, dtype=np.float32)
        if array.ndim == self.image_format.spatial_dims:
            array = array[None]
        if array.ndim != self.image_format.spatial_dims + 1 or array.size == 0 or not np.isfinite(array).all():
            raise UserError(f"image: an array of shape {list(array.shape)}, but the model sees {self.image_format}")
        if affine is None and array.ndim == 4:
            affine = np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0])
        placed = None if affine is None else np.asarray(affine, dtype=np.float64)
        # a file a channel, as a CT and its PET are
        files = [ImageFile(channel[None], None if spacing is None else tuple(spacing), placed) for channel in array]
        try:
            prepared = self._preparation.prepare(self._as_files(files), self.image_format.spatial_dims)
            require_channels(prepared, self.image_format.channels)
            found = self.estimate(prepared)
        except ImageError as error:
            raise UserError(f"image: {error}") from error
        return self._prediction("array", prepared, found)

    def predict_files(self, *files: Path | str) -> Prediction:
        """Predict the images of one case, read and prepared as in training.

        Args:
            files: in the order of the channels; one file may hold several.

        Raises:
            UserError: if they cannot be used.
        """
        case = ImageCase(Path(files[0]).name, tuple(Path(file) for file in files))
        try:
            prepared = self.read(case)
            found = self.estimate(prepared)
        except ImageError as error:
            raise UserError(str(error)) from error
        return self._prediction(case.case_id, prepared, found)

    def read(self, case: ImageCase) -> PreparedImage:
        """Read and prepare the images of a case.

        Raises:
            ImageError: naming the file, if one cannot be used.
        """
        return read_case(case, self._preparation, self.image_format.spatial_dims, self.image_format.channels)

    def estimate(self, prepared: PreparedImage) -> Estimate:
        """Predict a prepared image.

        Raises:
            ImageError: if the network cannot see it.
        """
        try:
            found = estimate(self.method, prepared.image, prepared.voxel_size)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise ImageError("does not fit the device's memory; set inference=default inference.window=") from error
        # what a network says of an image that it cannot halve often enough
        except (RuntimeError, ValueError) as error:
            size = "x".join(map(str, prepared.image.shape[1:]))
            reason = reason_of(error)
            raise ImageError(f"the model cannot see an image of {size} ({reason})") from error
        if not torch.isfinite(found.probability).all():
            raise ImageError("the model predicts NaN")
        return found

    def rows(self, case_id: str, prepared: PreparedImage, found: Estimate) -> list[dict[str, Any]]:
        """Return a row a structure of what a reader must know, see `triage_table.triage_rows`."""
        return triage_rows(case_id, prepared, found, self.structures, self.triage, self._sensitivity)

    def _as_files(self, channels: list[ImageFile]) -> list[ImageFile]:
        # pictures hold their colours in one file
        if self.image_format.spatial_dims == 2:
            return [ImageFile(np.concatenate([channel.array for channel in channels]), channels[0].spacing)]
        return channels

    def _prediction(self, case_id: str, prepared: PreparedImage, found: Estimate) -> Prediction:
        probability, disagreement = (
            np.stack([prepared.on_file(values) for values in part]) for part in (found.probability, found.disagreement)
        )
        return Prediction(probability, disagreement, triage_frame(self.rows(case_id, prepared, found)))
