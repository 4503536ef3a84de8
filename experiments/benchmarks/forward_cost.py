"""What disagreement costs at inference: EDUE, layer and deep ensembles against the plain U-Net, side by side.

    make bench

Each round times every model once, in an order that changes from round to round, so that a noisy machine is noisy to
all; a ratio is the median over rounds of the two times within a round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from edue_lightning.methods import parameter_count
from edue_lightning.networks import HeadLayout, MultiHeadUNet

ROUNDS = 25
BATCH, SIZE = 8, 256
DEEP_ENSEMBLE_MEMBERS = 5


def seconds(run: Callable[[], Tensor]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Print parameters and time of each model, relative to the plain U-Net."""
    image = torch.randn(BATCH, 1, SIZE, SIZE)
    plain, edue, layers = (
        MultiHeadUNet(2, 1, 1, heads).eval()
        for heads in (HeadLayout("last"), HeadLayout("decoder"), HeadLayout("encoder+decoder", kernel_size=3))
    )
    ensemble = [MultiHeadUNet(2, 1, 1, HeadLayout("last")).eval() for _ in range(DEEP_ENSEMBLE_MEMBERS)]
    runs: dict[str, Callable[[], Tensor]] = {
        "plain U-Net": lambda: plain(image),
        "plain U-Net, again": lambda: plain(image),
        "EDUE": lambda: edue(image),
        "layer ensemble": lambda: layers(image),
        f"deep ensemble of {DEEP_ENSEMBLE_MEMBERS}": lambda: torch.cat([member(image) for member in ensemble], dim=1),
    }
    parameters = [parameter_count(plain)] * 2 + [parameter_count(edue), parameter_count(layers)]
    parameters.append(DEEP_ENSEMBLE_MEMBERS * parameters[0])

    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name in random.sample(list(runs), len(runs)):
            times[name].append(seconds(runs[name]))
    reference = np.array(times["plain U-Net"])
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{BATCH} images of {SIZE}x{SIZE}, {ROUNDS} rounds, {machine}")
    print("| model | parameters, ratio | one forward pass, ratio (quartiles over rounds) |\n|---|---|---|")
    for (name, own), count in zip(times.items(), parameters, strict=True):
        low, middle, high = np.percentile(np.array(own) / reference, [25, 50, 75])
        print(f"| {name} | {count / parameters[0]:.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
