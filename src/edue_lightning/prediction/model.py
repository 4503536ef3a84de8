"""A trained model for new images, from Python: mask, disagreement map and scores of an array or of files."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import ArrayLike, NDArray

from edue_lightning.config.build import ImageFormat, build_preparation, new_image_caveat
from edue_lightning.config.slices import slice_layout, unequal_pixels
from edue_lightning.data.image_limits import require_right_angles
from edue_lightning.data.images import ImageError, ImageFile
from edue_lightning.data.new_images import ImageCase, read_case, warn_of_unoriented
from edue_lightning.data.preparation import PreparedImage, require_channels
from edue_lightning.data.slices import HOW_TO_SLICE, SlicedVolume, SliceLayout, Slicing, assumed_view
from edue_lightning.errors import UserError, is_out_of_memory
from edue_lightning.methods import InferenceChanges, SliceBySlice
from edue_lightning.methods.density import RecordedFeatures
from edue_lightning.methods.slice_by_slice import SliceSlabs
from edue_lightning.methods.test_time_augmentation import unequal_axes
from edue_lightning.prediction.estimate import Estimate, estimate
from edue_lightning.prediction.triage import Triage, applicable
from edue_lightning.prediction.triage_table import triage_frame, triage_rows
from edue_lightning.runs.checkpoints import load_method, warn_of_other_masks, warn_of_other_window
from edue_lightning.runtime.devices import chosen_device
from edue_lightning.text import reason_of, times
from edue_lightning.uncertainty import masks_of

log = logging.getLogger(__name__)

_VOLUME = 3
_ROUNDING_OF_SPACING = 0.01


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image, on the image's own voxels `*F`.

    Attributes:
        probability: p, the mean over the members unless the method's read-out has another, `[K, *F]` float32.
        disagreement: V, the variance between the members unless the method's read-out has another, `[K, *F]` float32;
            p (1 - p) for a single network.
        decision: map that the mask is taken from, p unless the method's read-out has another, `[K, *F]` float32.
        thresholds: threshold of `decision` for each structure, `[K]` float32, see `MaskRule`.
        table: one row per structure with scores, volume and flag, see `triage_table.triage_rows`.
        members: probabilities of the members, or samples, `[M, K, *F]` float32; None unless they were requested.
        exclusive: whether the structures exclude each other, so that their masks do not overlap.
    """

    probability: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    decision: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    table: pd.DataFrame
    members: NDArray[np.float32] | None = None
    exclusive: bool = False

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Predicted mask, `[K, *F]`."""
        decision, thresholds = torch.from_numpy(self.decision), torch.from_numpy(self.thresholds)
        found: NDArray[np.bool_] = masks_of(decision, thresholds, self.exclusive).numpy()
        return found


class Model:
    """A trained method with the preparation of its images and its triage data.

    Args:
        checkpoint: `checkpoints/best.ckpt` of a run.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        inference: settings of the prediction of whole images that differ from the checkpoint's; None for no change.
        mask: node of the configuration, see `conf/mask`; None for the checkpoint's.
        sensitivity: share of the poor segmentations to flag; None for the checkpoint's.
        slicing: slices of volumes, to predict these with a model of 2D images; None to predict such images as trained.
            The limits of 2D images do not hold for volumes, so `triage` and `density` are None.

    Attributes:
        image_format: axes, channels and names of the structures.
        triage: rules that flag cases for review; None with `other_masks` or `slicing`, after a training that was
            interrupted or had `triage_sensitivity=null`, and where they are not `applicable`.
        has_triage_data: whether the checkpoint holds such rules, applied or not.
        other_masks: whether `mask` chose another rule than that of the training, so that no case can be flagged.
        density: density of the training images; None with another window than in the training, with `slicing`, or in a
            checkpoint of an interrupted training or earlier version.

    Raises:
        UserError: if the checkpoint cannot be used, the device does not exist, or a setting is invalid.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        device: str = "auto",
        inference: InferenceChanges | None = None,
        sensitivity: float | None = None,
        mask: Mapping[str, Any] | None = None,
        slicing: Slicing | None = None,
    ) -> None:
        if sensitivity is not None and not 0 < sensitivity <= 1:
            raise UserError(f"sensitivity must be above 0 and at most 1, not {sensitivity}")
        path = Path(checkpoint)
        loaded = load_method(path, inference, mask)
        self.method = loaded.method
        warn_of_other_masks(loaded, path)
        # slices have no density at all
        if slicing is None:
            warn_of_other_window(loaded, path)
        self.other_masks = loaded.other_masks
        self.density = loaded.density
        self.image_format: ImageFormat = loaded.image_format
        self._preparation = build_preparation(loaded.configuration)
        self.slicing = slicing
        caveat = new_image_caveat(loaded.configuration)
        if caveat:
            log.warning("%s: %s", path, caveat)
        triage = None if loaded.triage is None else Triage.from_dict(loaded.triage, str(path))
        if triage is not None and set(triage.structures) != set(self.structures):
            raise UserError(f"{path}: its triage data is for other structures; train again or use another checkpoint")
        self.triage = None if loaded.other_masks else applicable(triage, self.method.readout, str(path))
        self.has_triage_data = triage is not None
        # sizes keep the unit of the limits where no case can be flagged; None: without limits, each case has its own
        self._spaced = None if triage is None else triage.spaced
        if slicing is not None:
            self._predict_volumes(slicing, sensitivity, path)
        self._sensitivity = sensitivity or (None if self.triage is None else self.triage.sensitivity)
        self.method.to(chosen_device(device))

    def _predict_volumes(self, slicing: Slicing, sensitivity: float | None, path: Path) -> None:
        """Predict volumes from now on, slice by slice, without the limits of 2D images.

        Raises:
            UserError: if the model takes volumes, or it is unknown how its images lie in one.
        """
        if sensitivity is not None:
            raise UserError(
                f"sensitivity={sensitivity}: has no effect with slice_axis, as no volume is flagged; remove it"
            )
        wanted = self.image_format
        self._layout = slice_layout(slicing, wanted, str(path))
        if slicing.assumes_view(wanted.storage):
            log.warning("%s: %s", path, assumed_view(self._layout))
        # the preparation turns volumes already
        self.method = SliceBySlice(self.method, self._preparation, SliceLayout("RAS"), slicing.batch_size)
        self.method.inference = SliceSlabs(batch_size=slicing.batch_size)
        self._preparation = SlicedVolume(slicing, self._preparation, wanted.storage)
        self.image_format = replace(wanted, spatial_dims=_VOLUME, storage=None)
        self.triage = self.density = self._spaced = None

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the K structures."""
        return self.image_format.structures

    @property
    def false_alarms(self) -> float | None:
        """Probability that a case like those of the training lies outside of its range, at most; None if unknown."""
        parts = [part.false_alarms for part in (self.density, self.triage) if part is not None]
        return sum(part for part in parts if part is not None) if parts and None not in parts else None

    def predict(
        self,
        image: ArrayLike,
        spacing: Sequence[float] | None = None,
        affine: ArrayLike | None = None,
        members: bool = False,
    ) -> Prediction:
        """Predict an array.

        Args:
            image: `[C, *F]` (or `[*F]` for a single channel), values as in the files of the training (pictures of 8
                bits divided by 255); it is prepared like them.
            spacing: voxel size in mm along each axis of F; None for that of `affine`, or if it is unknown.
            affine: `[4, 4]` from the voxel indices to mm (RAS); None for axes to the right, anterior and superior.
            members: whether to return the members too.

        Raises:
            UserError: if the image does not fit the model, or spacing and affine are invalid or contradict each other.
        """
        array = np.asarray(image, dtype=np.float32)
        if array.ndim == self.image_format.spatial_dims:
            array = array[None]
        if array.ndim != self.image_format.spatial_dims + 1 or array.size == 0 or not np.isfinite(array).all():
            expected = str(self.image_format)
            if array.ndim > self.image_format.spatial_dims + 1:
                expected += f"; {HOW_TO_SLICE}"
            raise UserError(f"image: an array of shape {list(array.shape)}, but the model expects {expected}")
        sizes, placed = _placed(spacing, affine, self.image_format.spatial_dims)
        # one file per channel, like a CT and its PET
        files = [ImageFile(channel[None], sizes, placed) for channel in array]
        try:
            prepared = self._preparation.prepare(self._as_files(files), self.image_format.spatial_dims)
            require_channels(prepared, self.image_format.channels)
            self._require_pixels(prepared)
            found = self.estimate(prepared, members)
        except ImageError as error:
            # a volume without an axis of channels looks like a picture of many channels
            is_picture = self.image_format.spatial_dims == 2 and len(array) != self.image_format.channels
            hint = f"; {HOW_TO_SLICE}" if is_picture else ""
            raise UserError(f"image: {error}{hint}") from error
        return self._prediction("array", prepared, found)

    def predict_files(self, *files: Path | str, members: bool = False) -> Prediction:
        """Predict the images of one case, read and prepared as in training.

        Args:
            files: paths in the order of the channels; one file may hold several.
            members: whether to return the members too.

        Raises:
            UserError: if they cannot be used.
        """
        case = ImageCase(Path(files[0]).name, tuple(Path(file) for file in files))
        if self.image_format.spatial_dims == _VOLUME:
            warn_of_unoriented([case], str(files[0]))
        try:
            prepared = self.read(case)
            found = self.estimate(prepared, members)
        except ImageError as error:
            raise UserError(str(error)) from error
        return self._prediction(case.case_id, prepared, found)

    def read(self, case: ImageCase) -> PreparedImage:
        """Read and prepare the images of a case.

        Raises:
            ImageError: naming the file, if one cannot be used.
        """
        wanted = self.image_format
        prepared = read_case(case, self._preparation, wanted.spatial_dims, wanted.channels, wanted.require_storage)
        self._require_pixels(prepared)
        return prepared

    def estimate(self, prepared: PreparedImage, members: bool = False) -> Estimate:
        """Predict a prepared image; sizes are in pixels or voxels.

        Args:
            prepared: image as the network sees it.
            members: whether to keep the probabilities of the members.

        Raises:
            ImageError: if the network cannot predict it, or the memory is too small.
        """
        recorded = None
        try:
            if self.density is None:
                found = estimate(self.method, prepared.image, members=members)
            else:
                recorded = RecordedFeatures(self.method, prepared.image[None].to(self.method.device))
                with recorded.recording():
                    found = estimate(self.method, prepared.image, members=members)
        # such as of an image too small for the network's stages
        except (RuntimeError, ValueError, MemoryError) as error:
            size, reason = times(prepared.image.shape[1:]), reason_of(error)
            if not is_out_of_memory(error):
                raise ImageError(f"the network cannot predict an image of {size} ({reason})") from error
            torch.cuda.empty_cache()
            window = "[96,96,48]" if self.slicing is None and prepared.image.ndim == _VOLUME + 1 else "[256,256]"
            batch = "" if self.slicing is None else " slice_batch=1"
            raise ImageError(
                f"not enough memory for {size} ({reason}); predict by windows: inference.window={window}{batch}"
            ) from error
        if not torch.isfinite(found.probability).all():
            raise ImageError("the model predicts NaN; check the values of the image")
        return found if recorded is None else replace(found, image_features=recorded.features)

    def rows(self, case_id: str, prepared: PreparedImage, found: Estimate) -> list[dict[str, Any]]:
        """Return one row per structure, see `triage_table.triage_rows`."""
        unusual = None
        if self.density is not None:
            image = prepared.image[None].to(self.method.device)
            unusual = self.density.outside(float(self.density(self.method, image, found.image_features)))
        spaced = prepared.spacing is not None if self._spaced is None else self._spaced
        return triage_rows(case_id, prepared, found, self.structures, self.triage, self._sensitivity, spaced, unusual)

    def _require_pixels(self, prepared: PreparedImage) -> None:
        """Check that the method can predict an image, or the slices of a volume, of this voxel size.

        Raises:
            ImageError: if it cannot.
        """
        if isinstance(self.method, SliceBySlice):
            reason = unequal_pixels(self.method.method, self._layout, prepared.spacing)
        else:
            reason = unequal_axes(self.method, prepared.spacing)
        if reason is not None:
            raise ImageError(reason)

    def _as_files(self, channels: list[ImageFile]) -> list[ImageFile]:
        # pictures store their colours in one file
        if self.image_format.spatial_dims == 2:
            return [ImageFile(np.concatenate([channel.array for channel in channels]), channels[0].spacing)]
        return channels

    def _prediction(self, case_id: str, prepared: PreparedImage, found: Estimate) -> Prediction:
        probability, disagreement, decision = (
            np.stack([prepared.on_file(values) for values in part])
            for part in (found.probability, found.disagreement, found.decision)
        )
        table = triage_frame(self.rows(case_id, prepared, found))
        members = found.member_probabilities
        kept = None
        if members is not None:
            kept = np.stack([np.stack([prepared.on_file(values) for values in member]) for member in members])
        thresholds = found.thresholds.numpy()
        return Prediction(probability, disagreement, decision, thresholds, table, kept, found.exclusive)


def _placed(
    spacing: Sequence[float] | None, affine: ArrayLike | None, spatial_dims: int
) -> tuple[tuple[float, ...] | None, NDArray[np.float64] | None]:
    """Return the voxel size and the affine of an array, each from the other where one is missing.

    Raises:
        UserError: if one is invalid, or they contradict each other.
    """
    sizes = None if spacing is None else tuple(map(float, spacing))
    if sizes is not None and (len(sizes) != spatial_dims or not all(0 < size < math.inf for size in sizes)):
        raise UserError(f"spacing={list(sizes)}: must be {spatial_dims} positive numbers, mm along each axis")
    if affine is None:
        return sizes, None if sizes is None or spatial_dims == 2 else np.diag([*sizes, 1.0])
    placed = np.asarray(affine, dtype=np.float64)
    usable = placed.shape == (4, 4) and np.isfinite(placed).all() and np.array_equal(placed[3], [0, 0, 0, 1])
    if not usable or np.linalg.matrix_rank(placed[:3, :spatial_dims]) < spatial_dims:
        raise UserError("affine: must be an invertible 4x4 matrix from voxel indices to mm, with the last row 0 0 0 1")
    try:
        require_right_angles(placed, spatial_dims)
    except ImageError as error:
        raise UserError(f"affine: {error}") from error
    own = tuple(float(size) for size in voxel_sizes(placed)[:spatial_dims])
    if sizes is not None and not np.allclose(sizes, own, rtol=_ROUNDING_OF_SPACING, atol=0):
        shown = [float(f"{size:.4g}") for size in own]
        raise UserError(f"spacing={list(sizes)}: contradicts the affine, whose voxels are {shown} mm; correct one")
    return own, placed if spatial_dims == 3 else None
