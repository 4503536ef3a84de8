"""How cost grows with the size of an image, the members, the raters and the cases.

    python experiments/benchmarks/growth.py

One of the four is varied at a time. Each series is fitted by a power law (least squares on the logarithms) over its
upper half, where fixed costs matter least; the exponent is 1 where twice as much costs twice the time. Writes
results/growth.csv and results/growth.png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from common import RESULTS, image_format, machine, method_of, parser, random_batch, table, training_step

from edue_lightning.cost import side_by_side
from edue_lightning.data import RaterBatch
from edue_lightning.metrics import CaseTable

CASES, SIZE, RATERS = 4, 128, 4
SIZES, QUICK_SIZES = (32, 64, 128, 256, 512), (16, 32)
HEADS, QUICK_HEADS = (1, 2, 4, 8, 16), (1, 2)
RATER_COUNTS, QUICK_RATER_COUNTS = (1, 2, 4, 8, 16), (2, 4)
CASE_COUNTS, QUICK_CASE_COUNTS = (32, 64, 128, 256, 512, 1024), (4, 8)
# of the images of which many are measured
SMALL = 32
RESAMPLES = 1000

Series = dict[tuple[str, str], dict[int, float]]
"""Median seconds by number, for what is varied and what is timed."""


def training_and_prediction(heads: int, batch: RaterBatch) -> dict[str, Callable[[], object]]:
    """Return calls that train EDUE for a step and that predict, with so many heads on each decoder stage."""
    images = image_format(batch.image.ndim - 2)
    training, predicting = (method_of(images, "method=edue", f"method.heads.per_stage={heads}") for _ in range(2))
    predicting.eval()

    @torch.inference_mode()
    def predict() -> object:
        return predicting(batch.image)

    return {"training step": training_step(training, batch), "prediction": predict}


def measuring(batch: RaterBatch) -> dict[str, Callable[[], object]]:
    """Return a call that computes every test metric of a batch's cases."""
    probabilities = torch.rand(len(batch), 3, 1, *batch.image.shape[2:], generator=torch.Generator().manual_seed(0))

    def measure() -> object:
        cases = CaseTable(["structure"], contents="probabilities")
        cases.update(probabilities, batch.masks, batch.valid, batch.spacing, batch.case_index)
        return cases

    return {"all metrics of the cases": measure}


def summarising(cases: int) -> dict[str, Callable[[], object]]:
    """Return calls that summarise measured cases, without and with intervals."""
    table_ = CaseTable(["structure"], contents="probabilities")
    generator = torch.Generator().manual_seed(0)
    for start in range(0, cases, CASES):
        batch = random_batch(image_format(2), CASES, (SMALL, SMALL), RATERS, seed=start)
        probabilities = torch.rand(CASES, 3, 1, SMALL, SMALL, generator=generator)
        table_.update(probabilities, batch.masks, batch.valid, batch.spacing, batch.case_index + start)
    return {
        "summary of the cases": table_.summary,
        f"summary with {RESAMPLES} resamples": lambda: table_.summary(RESAMPLES),
    }


def measured(quick: bool) -> Series:
    """Return the median seconds of every series."""
    sizes, heads, raters, cases = (
        (QUICK_SIZES, QUICK_HEADS, QUICK_RATER_COUNTS, QUICK_CASE_COUNTS)
        if quick
        else (SIZES, HEADS, RATER_COUNTS, CASE_COUNTS)
    )
    usual, rounds = (32, 2) if quick else (SIZE, 5)
    images = image_format(2)

    def batch(size: int = usual, count: int = RATERS) -> RaterBatch:
        return random_batch(images, CASES, (size, size), count)

    calls: dict[str, Mapping[int, Mapping[str, Callable[[], object]]]] = {
        "pixels along an edge": {
            size: {**training_and_prediction(1, batch(size)), **measuring(batch(size))} for size in sizes
        },
        "heads on each of 3 stages": {count: training_and_prediction(count, batch()) for count in heads},
        "raters": {
            count: {**training_and_prediction(1, batch(count=count)), **measuring(batch(count=count))}
            for count in raters
        },
        "cases": {count: summarising(count) for count in cases},
    }
    result: Series = {}
    for varied, by_number in calls.items():
        for what in next(iter(by_number.values())):
            seconds = side_by_side({str(number): own[what] for number, own in by_number.items()}, rounds)
            result[varied, what] = {int(number): float(np.median(found)) for number, found in seconds.items()}
    return result


def exponent(seconds: Mapping[int, float]) -> float:
    """Return the slope of log time over log number in the upper half of a series."""
    numbers = np.array(list(seconds))
    kept = slice(len(numbers) // 2 - (len(numbers) == 2), None)
    slope, _ = np.polyfit(np.log(numbers[kept]), np.log(list(seconds.values())[kept]), 1)
    return float(slope)


def draw(series: Series, path: Path) -> None:
    """Draw a panel for each thing that is varied, each series relative to its first value."""
    varied = list(dict.fromkeys(name for name, _ in series))
    figure, axes = plt.subplots(1, len(varied), figsize=(4.2 * len(varied), 3.8), layout="constrained")
    for name, axis in zip(varied, axes, strict=True):
        for (of, what), seconds in series.items():
            if of != name:
                continue
            times = np.array(list(seconds.values()))
            axis.plot(list(seconds), times / times[0], marker="o", label=f"{what}: {exponent(seconds):.2f}")
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="time, of the smallest's")
        axis.set_xticks(list(seconds), [str(number) for number in seconds], minor=False)
        axis.set_xticks([], minor=True)
        axis.legend(title="exponent of the growth", fontsize=8, title_fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def rows(series: Series) -> Sequence[Sequence[str]]:
    """Return a row a series for the table."""
    return [
        (
            varied,
            what,
            ", ".join(f"{number}: {1000 * time:.3g}" for number, time in seconds.items()),
            f"{exponent(seconds):.2f}",
        )
        for (varied, what), seconds in series.items()
    ]


def main() -> None:
    """Measure, fit, write and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--folder", type=Path, default=RESULTS, help="for growth.csv and growth.png")
    asked = arguments.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    series = measured(asked.quick)
    flat = [(*key, number, time) for key, seconds in series.items() for number, time in seconds.items()]
    pd.DataFrame(flat, columns=["varied", "timed", "number", "seconds"]).to_csv(
        asked.folder / "growth.csv", index=False
    )
    draw(series, asked.folder / "growth.png")
    print(
        f"{machine()}; EDUE, batches of {CASES} images of {SIZE}x{SIZE}, {RATERS} raters, where these are not varied\n"
    )
    print(table(("varied", "timed", "milliseconds", "exponent"), rows(series)))


if __name__ == "__main__":
    main()
