"""What disagreement costs at inference: each method against the plain U-Net, side by side.

    make bench

Each round times every model once (`edue_lightning.cost.side_by_side`), so that a noisy machine is noisy to all; a ratio
is the median over rounds of the two times within a round.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from edue_lightning.build import ImageFormat, build_method
from edue_lightning.configuration import configuration_folder, resolved
from edue_lightning.cost import side_by_side
from edue_lightning.methods import parameter_count

ROUNDS = 25
BATCH, SIZE = 8, 256
REFERENCE = "single"
METHODS = (REFERENCE, "edue", "layer_ensemble", "deep_ensemble")


@torch.inference_mode()
def main() -> None:
    """Print parameters and time of each method as configured, relative to the plain U-Net."""
    models: dict[str, nn.Module] = {}
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        for method in METHODS:
            configuration = resolved(compose("train", [f"method={method}"]))
            models[method] = build_method(configuration, ImageFormat(2, 1, ("structure",))).eval()
    # the same model twice shows what the noise of the machine is worth
    models["single, again"] = models[REFERENCE]

    image = torch.randn(BATCH, 1, SIZE, SIZE)
    times = side_by_side({name: partial(model, image) for name, model in models.items()}, ROUNDS)

    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{BATCH} images of {SIZE}x{SIZE}, {ROUNDS} rounds, {machine}\n")
    print("| method | parameters, ratio | one prediction, ratio (quartiles over rounds) |\n|---|---|---|")
    for name, model in models.items():
        ratios = np.array(times[name]) / np.array(times[REFERENCE])
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        parameters = parameter_count(model) / parameter_count(models[REFERENCE])
        print(f"| {name} | {parameters:.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
