"""AUROC of the density for distorted validation images by its features: the network's, the image's own, and both.

python experiments/comparison/density.py RUN [RUN ...] --output TABLE.csv

Each validation image is distorted in every kind and severity of its training's `distortions`; test images are not read.
The networks of the runs are used as they are, and the Gaussians are fitted anew to the training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from edue_lightning.config.build import build_data, build_distortions
from edue_lightning.data import RaterDataModule
from edue_lightning.data.source import Subset
from edue_lightning.distortions import Distortions
from edue_lightning.methods.density import density_features, image_features
from edue_lightning.metrics import ood_auroc
from edue_lightning.reporting.comparison import to_markdown
from edue_lightning.runs.checkpoints import load_method
from edue_lightning.uncertainty.appearance import appearance_statistics
from edue_lightning.uncertainty.density import Gaussian, fit_gaussian

Features = Callable[[Tensor], Sequence[Tensor] | None]


def aurocs(run: Path) -> pd.DataFrame:
    """Return one row per set of features, kind and severity: `run`, `features`, `kind`, `severity`, `auroc`."""
    loaded = load_method(run / "checkpoints" / "best.ckpt")
    method, trained = loaded.method, loaded.configuration
    data, distortions = build_data(trained), build_distortions(trained["distortions"])
    if distortions is None:
        raise SystemExit(f"{run}: was trained without distortions=...; choose another run")
    sets: dict[str, Features] = {
        "network": lambda image: image_features(method, image),
        "image": lambda image: [appearance_statistics(image)],
        "both": lambda image: density_features(method, image),
    }
    rows = []
    for name, features in sets.items():
        gaussians = [fit_gaussian(part) for part in _features(features, _images(data, "train"))]
        images = _images(data, "val")
        clean = _distances(gaussians, _features(features, images))
        for kind in distortions.kinds:
            for severity in distortions.severities:
                changed = _distorted(images, distortions, kind, severity)
                distorted = _distances(gaussians, _features(features, changed))
                is_distorted = torch.arange(2 * len(clean)) >= len(clean)
                value = float(ood_auroc(torch.cat([clean, distorted]), is_distorted))
                rows.append((run.name, name, kind, severity, value))
    return pd.DataFrame(rows, columns=["run", "features", "kind", "severity", "auroc"])


def _distances(gaussians: Sequence[Gaussian], features: Sequence[Tensor]) -> Tensor:
    found = [gaussian.distance(part) for gaussian, part in zip(gaussians, features, strict=True)]
    return torch.stack(found).mean(dim=0)


def _images(data: RaterDataModule, split: Subset) -> list[Tensor]:
    return [data.sample(split, position).image[None] for position in range(len(data.records(split)))]


def _distorted(images: list[Tensor], distortions: Distortions, kind: str, severity: int) -> list[Tensor]:
    return [distortions.apply(image[0], kind, severity, key)[None] for key, image in enumerate(images)]


def _features(features: Features, images: list[Tensor]) -> list[Tensor]:
    found = [part for image in images if (part := features(image)) is not None]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished training")
    parser.add_argument("--output", type=Path, required=True, help="table, with the mean over kinds and severities")
    asked = parser.parse_args()
    table = pd.concat([aurocs(run) for run in asked.runs], ignore_index=True)
    mean = table.pivot_table(index="run", columns="features", values="auroc", sort=False)
    mean.round(4).to_csv(asked.output)
    print(to_markdown(mean.round(3).reset_index()))


if __name__ == "__main__":
    main()
