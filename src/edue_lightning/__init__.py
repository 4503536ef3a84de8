"""Segmentation models whose heads disagree where experts disagree (EDUE), and the baselines to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edue_lightning.prediction.model import Model

__version__ = version("edue-lightning")


def load_model(
    checkpoint: Path | str,
    device: str = "auto",
    slice_axis: str | int | None = None,
    slice_window: Sequence[float] | None = None,
    slice_directions: str | None = None,
) -> Model:
    """Load a trained model for new images, see `edue_lightning.prediction.model.Model`.

    Args:
        checkpoint: `checkpoints/best.ckpt` of a run.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        slice_axis: `axial`, `coronal`, `sagittal`, or the number of an array axis, to predict volumes slice by slice
            with a model of 2D images; None to predict images as trained. See `edue_lightning.data.Slicing`.
        slice_window: values of a volume that become 0 and 1, as in pictures made with a window; None for the values.
        slice_directions: directions of rows and columns of the slices, such as `PL`; None for those of the training.

    Raises:
        UserError: if the checkpoint cannot be used, the device does not exist, or a slice setting is invalid.
    """
    # imported here because it takes seconds, and the commands need not wait for it
    from edue_lightning.config.slices import chosen_slicing
    from edue_lightning.prediction.model import Model

    chosen = {"slice_axis": slice_axis, "slice_window": slice_window, "slice_directions": slice_directions}
    return Model(checkpoint, device, slicing=chosen_slicing(chosen))
