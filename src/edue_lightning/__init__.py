"""Segmentation models whose heads disagree where experts disagree (EDUE), and the baselines to compare with."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edue_lightning.prediction.model import Model

__version__ = version("edue-lightning")


def load_model(checkpoint: Path | str, device: str = "auto") -> Model:
    """Load a trained model for new images, see `edue_lightning.prediction.model.Model`.

    Args:
        checkpoint: `checkpoints/best.ckpt` of a run.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        UserError: if the checkpoint cannot be used, or the device does not exist.
    """
    # imported here because it takes seconds, and the commands need not wait for it
    from edue_lightning.prediction.model import Model

    return Model(checkpoint, device)
