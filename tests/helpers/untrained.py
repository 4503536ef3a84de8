"""Writes checkpoints of networks that were not trained."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.runs.checkpoints import checkpoint_entries, save_method


def checkpoint(path: Path, *, earlier: bool = False) -> Path:
    """Write a checkpoint for volumes with the structure `ball`; `earlier` is one without the volumes' orientation."""
    image_format = ImageFormat(3, 1, ("ball",))
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = [
            "data=manifest",
            "data.root=data",
            "method=edue",
            "network.features=[4,6]",
            "network.foreground_prior=0.5",
        ]
        configuration = resolved(compose("train", overrides))
    torch.manual_seed(0)
    entries = checkpoint_entries(configuration, image_format)
    if earlier:
        del entries["edue_orientation"]
    save_method(build_method(configuration, image_format), path, entries)
    return path
