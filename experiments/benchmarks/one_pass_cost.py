"""Parameters and time of one pass of EDUE, relative to a plain network, with each network.

    python experiments/benchmarks/one_pass_cost.py
    python experiments/benchmarks/one_pass_cost.py --cpu-time --networks unet dynunet segresnet    # on a busy machine

For each network the plain method (`method=single`), EDUE and EDUE with levels are timed in turn
(`edue_lightning.evaluation.cost.side_by_side`): the prediction of a batch, and the prediction of each of its images
with maps, mask and all scores (`edue_lightning.prediction.estimate`). A ratio is the median over rounds of the two
times within a round. With `--cpu-time` times are those of the process on the CPU, without the time of other processes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial

import torch
from common import image_format, machine, method_of, parser, ratio, table
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.evaluation.cost import side_by_side
from edue_lightning.methods import SegmentationMethod, parameter_count
from edue_lightning.prediction.estimate import estimate
from edue_lightning.runtime.startup import keep_freed_memory

REFERENCE = "single"
# four levels, as for four raters
METHODS = {REFERENCE: [], "edue": [], "edue_levels": ["method.levels=4"], "edue_levels_mask": ["method.levels=4"]}
# the same model twice shows the noise of the machine
AGAIN = f"{REFERENCE}, again"
NETWORKS = (
    *("unet", "dynunet", "segresnet", "attention_unet", "swin_unetr"),
    *("nnunet", "nnunet_residual", "encoder_unet"),
)
PLANE_ONLY = "encoder_unet"


@dataclass(frozen=True)
class Setting:
    """Images of a batch."""

    cases: int
    size: tuple[int, ...]


SETTINGS = (Setting(8, (256, 256)), Setting(1, (64, 64, 64)))
QUICK = (Setting(2, (32, 32)), Setting(1, (16, 16, 16)))


def scored(method: SegmentationMethod, images: Tensor) -> None:
    """Predict each image with its maps and scores."""
    for image in images:
        estimate(method, image)


def measure(network: str, setting: Setting, rounds: int, cpu_time: bool) -> list[tuple[str, ...]]:
    """Return the rows of one network, without scores and with them.

    Raises:
        UserError: if the network cannot be built, such as without its library.
    """
    images = image_format(len(setting.size))
    batch = torch.randn(setting.cases, 1, *setting.size, generator=torch.Generator().manual_seed(0))
    methods = {
        name: method_of(images, f"network={network}", f"method={name}", *options).eval()
        for name, options in METHODS.items()
    }
    methods[AGAIN] = methods[REFERENCE]
    clock = time.process_time if cpu_time else time.perf_counter
    with torch.inference_mode():
        predicted = side_by_side(
            {name: partial(method.predict, batch) for name, method in methods.items()}, rounds, clock=clock
        )
        estimated = side_by_side(
            {name: partial(scored, method, batch) for name, method in methods.items()}, rounds, clock=clock
        )
    plain = parameter_count(methods[REFERENCE])
    return [
        (
            network,
            name,
            f"{parameter_count(method) / plain:.4f}",
            ratio(predicted[name], predicted[REFERENCE]),
            ratio(estimated[name], estimated[REFERENCE]),
        )
        for name, method in methods.items()
        if name != REFERENCE
    ]


def main() -> None:
    """Print a table for images and one for volumes."""
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="values of network=")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--cases", type=int, help="images in a batch, instead of 8 in 2D and 1 in 3D")
    options.add_argument("--cpu-time", action="store_true", help="time on the CPU, for a machine that does other work")
    given = options.parse_args()
    keep_freed_memory()
    clock = "time on the CPU" if given.cpu_time else "elapsed time"
    print(f"{machine()}, {clock}, load {os.getloadavg()[0]:.0f}")
    for setting in QUICK if given.quick else SETTINGS:
        setting = Setting(given.cases or setting.cases, setting.size)
        rounds = 2 if given.quick else given.rounds
        print(f"\n{setting.cases} x 1 x {'x'.join(map(str, setting.size))}, {rounds} rounds\n", flush=True)
        rows = []
        for network in given.networks:
            if network == PLANE_ONLY and len(setting.size) == 3:
                continue
            try:
                rows += measure(network, setting, rounds, given.cpu_time)
            except UserError as error:
                rows.append((network, f"not measured: {error}", "", "", ""))
        header = ("network", "method", "parameters, ratio", "prediction, ratio (quartiles)", "with scores, ratio")
        print(table(header, rows), flush=True)


if __name__ == "__main__":
    main()
