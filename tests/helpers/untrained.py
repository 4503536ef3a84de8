"""Writes checkpoints of networks that were not trained."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data.identity import TrainingCases
from edue_lightning.runs.checkpoints import checkpoint_entries, save_method

VOLUMES = ImageFormat(3, 1, ("ball",))


def checkpoint(
    path: Path,
    *more: str,
    image_format: ImageFormat = VOLUMES,
    cases: TrainingCases | None = None,
    earlier: bool = False,
) -> Path:
    """Write a checkpoint of a method that was not trained.

    Args:
        path: path of the file.
        more: further overrides of the configuration.
        image_format: format of the images that the method takes.
        cases: cases that the checkpoint names as those of its training.
        earlier: whether the checkpoint lacks the orientation of volumes, as those of an earlier version.
    """
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = [
            "data=manifest",
            "data.root=data",
            "method=edue",
            "network.features=[4,6]",
            "network.foreground_prior=0.5",
            *more,
        ]
        configuration = resolved(compose("train", overrides))
    torch.manual_seed(0)
    entries = checkpoint_entries(configuration, image_format, cases=cases)
    if earlier:
        del entries["edue_orientation"]
    method = build_method(configuration, image_format)
    for module in method.modules():
        if isinstance(module, (torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d)):
            # as after a training: while they are 0, a constant image leaves nothing but rounding to be normalised
            torch.nn.init.normal_(module.bias)
    save_method(method, path, entries)
    return path
