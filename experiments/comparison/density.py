"""AUROC of the density for distorted validation images by its features: the network's, the image's own, and both.

python experiments/comparison/density.py RUN [RUN ...] --output TABLE.csv

Each validation image is distorted in every kind and severity of its training's `distortions`; test images are not read.
The networks of the runs are used as they are, and the Gaussians are fitted anew to the training images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from edue_lightning.config.build import build_data, build_distortions
from edue_lightning.data import RaterDataModule
from edue_lightning.data.source import Subset
from edue_lightning.methods import SegmentationMethod
from edue_lightning.methods.density import density_features, image_features
from edue_lightning.metrics import ood_auroc
from edue_lightning.reporting.comparison import to_markdown
from edue_lightning.runs.checkpoints import BEST, CHECKPOINTS, load_method
from edue_lightning.uncertainty.appearance import appearance_statistics
from edue_lightning.uncertainty.density import fit_gaussian, mean_distance


def aurocs(run: Path) -> pd.DataFrame:
    """Return one row per set of features, kind and severity: `run`, `features`, `kind`, `severity`, `auroc`."""
    loaded = load_method(run / CHECKPOINTS / BEST)
    method, trained = loaded.method, loaded.configuration
    data, distortions = build_data(trained), build_distortions(trained["distortions"])
    if distortions is None:
        raise SystemExit(f"{run}: was trained without distortions=...; choose another run")
    gaussians = {
        name: [fit_gaussian(part) for part in parts]
        for name, parts in _features(method, _images(data, "train")).items()
    }
    images = _images(data, "val")
    clean = _features(method, images)
    is_distorted = torch.arange(2 * len(images)) >= len(images)
    rows = []
    for kind in distortions.kinds:
        for severity in distortions.severities:
            changed = [distortions.apply(image[0], kind, severity, key)[None] for key, image in enumerate(images)]
            for name, parts in _features(method, changed).items():
                distances = [mean_distance(gaussians[name], of_images) for of_images in (clean[name], parts)]
                rows.append((run.name, name, kind, severity, float(ood_auroc(torch.cat(distances), is_distorted))))
    return pd.DataFrame(rows, columns=["run", "features", "kind", "severity", "auroc"])


def _images(data: RaterDataModule, split: Subset) -> list[Tensor]:
    return [data.sample(split, position).image[None] for position in range(len(data.records(split)))]


def _features(method: SegmentationMethod, images: list[Tensor]) -> dict[str, list[Tensor]]:
    """Return the features of images by their name in the table, `[N, F]` for each network."""
    found: dict[str, list[list[Tensor]]] = {"network": [], "image": [], "both": []}
    for image in images:
        first = image_features(method, image)
        if first is None:
            raise SystemExit("the networks have no two convolutions that a normalisation follows; choose another run")
        found["network"].append(first)
        found["image"].append([appearance_statistics(image)])
        found["both"].append(density_features(method, image, first))
    return {name: [torch.cat(parts) for parts in zip(*cases, strict=True)] for name, cases in found.items()}


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
