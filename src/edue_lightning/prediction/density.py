"""The fit of a method's density of training images, at the end of its training."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
import torch
from torch import Tensor

from edue_lightning.data import RaterDataModule
from edue_lightning.data.source import Subset
from edue_lightning.methods import SegmentationMethod
from edue_lightning.methods.density import Density, density_features
from edue_lightning.prediction.limits import FALSE_ALARMS, ROUNDING, upper_limit
from edue_lightning.runtime.devices import on_device
from edue_lightning.runtime.processes import is_first_process, merged, own_share
from edue_lightning.uncertainty.density import fit_gaussian, mean_distance

log = logging.getLogger(__name__)

FEWEST_IMAGES = 2


def fit_density(method: SegmentationMethod, data: RaterDataModule, trainer: pl.Trainer) -> Density | None:
    """Fit the density to the training images, whole and without augmentation, and set its limit.

    The limit is set on the validation images, which the density has not seen, see `limits.upper_limit`.

    In a distributed run every process takes part and gets the result.

    Args:
        method: trained method; left in evaluation mode.
        data: data module it was trained on.
        trainer: trainer whose device the features are computed on.

    Returns:
        the density; None, with a warning, if there are fewer than two training images.
    """
    method.eval()
    with on_device(method, trainer.strategy.root_device):
        training = _features(method, data, "train")
        validation = _features(method, data, "val")
    if len(training[0]) < FEWEST_IMAGES:
        if is_first_process():
            log.warning(
                "no density score for unusual images: %d training image, fewer than %d", len(training[0]), FEWEST_IMAGES
            )
        return None
    gaussians = [fit_gaussian(features) for features in training]
    known, unseen = (mean_distance(gaussians, features).numpy() for features in (training, validation))
    # half of the false alarms, see `triage.fit_triage` for the other half
    limit, false_alarms = upper_limit(unseen, FALSE_ALARMS / 2)
    # few validation images may all lie closer than many of the training images
    limit = max(limit, upper_limit(known, FALSE_ALARMS / 2).value) * (1 + ROUNDING)
    return Density(gaussians, limit, false_alarms)


def _features(method: SegmentationMethod, data: RaterDataModule, split: Subset) -> list[Tensor]:
    """Return the features of a split's images for each network, `[N, F]`, each computed by one of the processes."""
    count = len(data.records(split))
    cases = merged(
        {
            position: density_features(method, data.sample(split, position).image[None].to(method.device))
            for position in own_share(count)
        }
    )
    return [torch.cat(parts) for parts in zip(*(cases[position] for position in range(count)), strict=True)]
