"""Growth of cost with the image size and the numbers of heads, members, raters and cases.

    python experiments/benchmarks/growth.py

One quantity is varied at a time. A power law is fitted to the upper half of each series (least squares on the
logarithms), where fixed costs matter least. The exponent is 1 if twice the number costs twice the time. Writes
results/growth.csv and results/growth.png.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import framework_cost
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from common import RESULTS, image_format, machine, method_of, parser, random_batch, table, training_step
from torch import Tensor

from edue_lightning.data import RaterBatch
from edue_lightning.evaluation.cost import side_by_side
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import CaseTable
from edue_lightning.runtime.startup import keep_freed_memory, quiet_libraries

CASES, SIZE, RATERS = 4, 128, 4
SIZES, QUICK_SIZES = (32, 64, 128, 256, 512), (16, 32)
HEADS, QUICK_HEADS = (1, 2, 4), (1, 2)
MEMBERS, QUICK_MEMBERS = (2, 3, 5, 10), (2, 3)
RATER_COUNTS, QUICK_RATER_COUNTS = (1, 2, 4, 8, 12), (2, 4)
CASE_COUNTS, QUICK_CASE_COUNTS = (32, 64, 128, 256, 512, 1024), (32, 64)
# size of the images in the series over cases, and their batch size
SMALL, BATCH = 32, 16
RESAMPLES = 1000
ROUNDS, QUICK_ROUNDS = 3, 1
EDUE = "method=edue"
MEMORY = "memory kept for the gradient, MiB"

Calls = dict[str, Callable[[], object]]
Series = dict[tuple[str, str], dict[int, float]]
"""Milliseconds (median) or MiB by number, per pair of varied and measured quantity."""


def training_and_prediction(batch: RaterBatch, *overrides: str) -> Calls:
    """Return functions that take one training step, and that predict."""
    method = method_of(image_format(batch.image.ndim - 2), *overrides)
    step = training_step(method, batch)

    def train() -> None:
        method.train()
        step()

    @torch.inference_mode()
    def predict() -> None:
        method.eval()
        method(batch.image)

    return {"training step": train, "prediction": predict}


def kept_for_gradient(batch: RaterBatch, *overrides: str) -> float:
    """Return the MiB of the tensors that the forward pass of a training step keeps for the backward pass."""
    method: SegmentationMethod = method_of(image_format(batch.image.ndim - 2), *overrides)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # the loss keeps the tensors alive until the sum is computed
        loss = method.training_loss(batch)["loss"]
    total = sum(kept.values())
    del loss
    return total / 2**20


def measuring(batch: RaterBatch) -> Calls:
    """Return a function that computes every test metric of the cases of a batch for three members."""
    cases = CaseTable(["structure"])
    members = logits_of_members(len(batch), batch.image.shape[2:])

    def measure() -> None:
        cases.update(members, batch.masks, batch.valid, batch.spacing, batch.case_index)
        cases.reset()

    return {"all metrics of the cases": measure}


def logits_of_members(cases: int, size: Sequence[int], seed: int = 1) -> Tensor:
    """Return the logits of three members, `[cases, 3, 1, *size]`, each with its own confident discs."""
    return 8 * random_batch(image_format(len(size)), cases, size, 3, seed).masks.float() - 4


def epoch_and_summary(cases: int) -> Calls:
    """Return functions that train for an epoch, and that summarise measured cases without and with intervals."""
    setting = framework_cost.Setting(SMALL, BATCH, cases // BATCH, epochs=1, rounds=1)
    work = framework_cost.Work(setting, torch.device("cpu"))
    measured = CaseTable(["structure"])
    batch = random_batch(image_format(2), cases, (SMALL, SMALL), RATERS)
    members = logits_of_members(cases, (SMALL, SMALL))
    measured.update(members, batch.masks, batch.valid, batch.spacing, batch.case_index)
    return {
        "an epoch": partial(framework_cost.train_ours, work, framework_cost.StepClock()),
        "summary": measured.summary,
        f"summary, {RESAMPLES} resamples": partial(measured.summary, RESAMPLES),
    }


def measured(quick: bool) -> Series:
    """Return every series."""
    usual = 32 if quick else SIZE
    images = image_format(2)
    sizes = {size: random_batch(images, CASES, (size, size), RATERS) for size in (QUICK_SIZES if quick else SIZES)}
    of_raters = {
        count: random_batch(images, CASES, (usual, usual), count)
        for count in (QUICK_RATER_COUNTS if quick else RATER_COUNTS)
    }
    batch = random_batch(images, CASES, (usual, usual), RATERS)
    heads = {
        # one head on each of three stages
        3 * count: f"method.heads.per_stage={count}"
        for count in (QUICK_HEADS if quick else HEADS)
    }
    calls: dict[str, dict[int, Calls]] = {
        "pixels along an edge": {
            size: training_and_prediction(one, EDUE) | measuring(one) for size, one in sizes.items()
        },
        "heads": {count: training_and_prediction(batch, EDUE, override) for count, override in heads.items()},
        "members of a deep ensemble": {
            count: training_and_prediction(batch, "method=deep_ensemble", f"method.members={count}")
            for count in (QUICK_MEMBERS if quick else MEMBERS)
        },
        "raters": {count: training_and_prediction(one, EDUE) | measuring(one) for count, one in of_raters.items()},
        "cases": {count: epoch_and_summary(count) for count in (QUICK_CASE_COUNTS if quick else CASE_COUNTS)},
    }
    result: Series = {}
    for varied, by_number in calls.items():
        for what in next(iter(by_number.values())):
            rounds = QUICK_ROUNDS if quick else ROUNDS
            seconds = side_by_side({str(number): own[what] for number, own in by_number.items()}, rounds)
            result[varied, what] = {int(number): 1000 * float(np.median(found)) for number, found in seconds.items()}
    memory = {
        "pixels along an edge": {size: kept_for_gradient(one, EDUE) for size, one in sizes.items()},
        "heads": {count: kept_for_gradient(batch, EDUE, override) for count, override in heads.items()},
        "raters": {count: kept_for_gradient(one, EDUE) for count, one in of_raters.items()},
    }
    return result | {(varied, MEMORY): series for varied, series in memory.items()}


def exponent(series: Mapping[int, float]) -> float:
    """Return the slope of the upper half of a series on a log-log scale, to two digits."""
    numbers = np.array(list(series))
    kept = slice(min(len(numbers) // 2, len(numbers) - 2), None)
    slope, _ = np.polyfit(np.log(numbers[kept]), np.log(list(series.values())[kept]), 1)
    # no negative zero
    return round(float(slope), 2) + 0.0


def draw(found: Series, path: Path) -> None:
    """Draw one panel per varied quantity, with each series relative to its first value."""
    varied = list(dict.fromkeys(name for name, _ in found))
    figure, axes = plt.subplots(2, 3, figsize=(12, 7.5), layout="constrained")
    for axis in axes.flat[len(varied) :]:
        axis.set_axis_off()
    for name, axis in zip(varied, axes.flat, strict=False):
        own = {what: series for (of, what), series in found.items() if of == name}
        for what, series in own.items():
            values = np.array(list(series.values()))
            axis.plot(list(series), values / values[0], marker="o", label=f"{exponent(series):.2f}  {what}")
        numbers = list(next(iter(own.values())))
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="cost, of the first's")
        # a cost that hardly grows must not look as if it grew
        axis.set_ylim(min(axis.get_ylim()[0], 0.5), max(axis.get_ylim()[1], 10))
        axis.set_xticks(numbers, [str(number) for number in numbers])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.legend(title="exponent", fontsize=8, title_fontsize=8, loc="upper left")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, fit, write and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--folder", type=Path, default=RESULTS, help="for growth.csv and growth.png")
    asked = arguments.parse_args()
    keep_freed_memory()
    quiet_libraries()
    warnings.simplefilter("ignore")
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = measured(asked.quick)
    flat = [(*names, number, value) for names, series in found.items() for number, value in series.items()]
    pd.DataFrame(flat, columns=["varied", "measured", "number", "milliseconds_or_mib"]).to_csv(
        asked.folder / "growth.csv", index=False
    )
    draw(found, asked.folder / "growth.png")
    rows = [
        (*names, ", ".join(f"{number}: {value:.3g}" for number, value in series.items()), f"{exponent(series):.2f}")
        for names, series in found.items()
    ]
    print(f"{machine()}; EDUE, batches of {CASES} images of {SIZE}x{SIZE}, {RATERS} raters where these are not varied;")
    print(f"cases of {SMALL}x{SMALL}, trained on in batches of {BATCH} by the plain U-Net; {ROUNDS} rounds\n")
    print(table(("varied", "measured", "milliseconds, or MiB", "exponent"), rows))


if __name__ == "__main__":
    main()
