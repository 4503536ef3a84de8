"""Speed-up of a sweep by two runs at a time: trainings with the launcher `local`, and one after the other.

    python experiments/benchmarks/sweep_cost.py

The same sweep of two seeds with the command, from start to end: one run after the other with two threads, and both runs
at the same time with one thread each. One run alone on one thread shows the upper limit: without any interference, both
runs together take as long as one alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import machine, parser, ratio, run_command, table

JOBS = 2
FULL = ("experiment=synthetic", "data.source.n_cases=200", "trainer.max_epochs=6")
SHORT = (
    *("experiment=synthetic", "data.source.n_cases=12", "data.source.size=32"),
    *("network.features=[4,6,8]", "trainer.max_epochs=1", "test=false", "bootstrap_resamples=10"),
)
AT_A_TIME = ("hydra/launcher=local", f"hydra.launcher.n_jobs={JOBS}")


def sweep(overrides: tuple[str, ...], threads: int) -> None:
    """Run a sweep with a number of threads per process."""
    with tempfile.TemporaryDirectory() as folder:
        silent = ["logger.mode=disabled", "hydra.sweep.dir=sweep"]
        run_command("train", ["-m", *overrides, *silent], Path(folder), OMP_NUM_THREADS=str(threads))


def main() -> None:
    """Print the table."""
    quick = parser(__doc__).parse_args().quick
    settings, threads, rounds = (SHORT, 1, 1) if quick else (FULL, JOBS, 2)
    two = (*settings, "seed=0,1")
    calls: dict[str, Callable[[], object]] = {
        f"{JOBS} runs, one after the other, on {JOBS} cores": partial(sweep, two, threads),
        f"{JOBS} runs at a time, 1 thread each": partial(sweep, (*two, *AT_A_TIME), 1),
        "one run alone, 1 thread": partial(sweep, (*settings, "seed=0"), 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds):
        for name in list(calls)[:: 1 if round_ % 2 == 0 else -1]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    usual, at_a_time, alone = seconds.values()
    print(f"{machine()}\n\n{' '.join(settings)}, {rounds} rounds\n")
    header = ("", "time of the sweep, relative to one after the other (quartiles)")
    print(table(header, [(name, ratio(seconds[name], usual)) for name in calls]))
    print(f"\nspeed-up by {JOBS} runs at a time: {ratio(usual, at_a_time)}")
    print(f"share of what {JOBS} cores could give, without any interference: {ratio(alone, at_a_time)}")


if __name__ == "__main__":
    main()
