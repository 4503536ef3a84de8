"""Time saved on a CPU by keeping freed memory (`edue_lightning.runtime.startup.keep_freed_memory`).

    python experiments/benchmarks/allocator.py

Training steps of EDUE in a process that keeps freed memory and in one that does not, in turns.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from dataclasses import dataclass

from common import image_format, machine, method_of, parser, random_batch, ratio, table, training_step

from edue_lightning.runtime.startup import keep_freed_memory


@dataclass(frozen=True)
class Setting:
    """Images of a batch, number of steps timed together, and number of repetitions."""

    cases: int
    channels: int
    size: tuple[int, ...]
    steps: int
    rounds: int


SETTINGS = (Setting(8, 1, (256, 256), steps=4, rounds=5), Setting(2, 1, (64, 64, 64), steps=2, rounds=5))
QUICK = (Setting(2, 1, (32, 32), steps=2, rounds=1),)


def cost(setting: Setting, keep: bool) -> tuple[float, float]:
    """Return the seconds of a training step, and the peak memory of this process in MiB."""
    if keep:
        keep_freed_memory()
    images = image_format(len(setting.size), setting.channels)
    step = training_step(method_of(images, "method=edue"), random_batch(images, setting.cases, setting.size, 4))
    step()
    start = time.perf_counter()
    for _ in range(setting.steps):
        step()
    seconds = (time.perf_counter() - start) / setting.steps
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    quick = parser(__doc__).parse_args().quick
    rows = []
    # each value comes from a new process, which has no freed memory to reuse yet
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for setting in QUICK if quick else SETTINGS:
            found = [[pool.apply(cost, (setting, keep)) for keep in (True, False)] for _ in range(setting.rounds)]
            kept, given_back = (list(zip(*side, strict=True)) for side in zip(*found, strict=True))
            size = f"{setting.cases} x {setting.channels} x {'x'.join(map(str, setting.size))}"
            rows.append((size, ratio(kept[0], given_back[0]), ratio(kept[1], given_back[1])))
    print(machine() + "\n")
    print(table(("batch", "training step, kept to given back (quartiles)", "peak memory"), rows))


if __name__ == "__main__":
    main()
