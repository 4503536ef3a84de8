"""The study as commands: search settings, compare the methods, vary EDUE.

python experiments/comparison/study.py search|compare|ablate [--seeds 3] [--jobs 2] [--quick] [--folder outputs/study]

Each is a Hydra multirun of `edue_lightning.train`. Finished runs are not repeated, so an interrupted study resumes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from edue_lightning.metrics import MEAN_STRUCTURE
from edue_lightning.reporting.comparison import to_markdown
from edue_lightning.runs.files import (
    METRICS_COLUMNS,
    METRICS_FILE,
    VALIDATION_FILE,
    read_mapping,
    read_table,
)

HERE = Path(__file__).resolve().parent
CONFIGURATION = HERE / "conf"
CANDIDATE = "edue_moments"
DATA = ("lidc", "fundus", "petct")
VARIED_ON = {"ablation": "lidc", "raters": "fundus"}
QUICK_EPOCHS = 3
SHOWN = ("dice", "nll", "ece", "image_pearson", "image_spearman_normalised", "pixel_pearson", "pixel_pearson_total")

# minutes of one core: to train one network, without and with `--quick`, and for all that follows in a run. Measured on
# two cores with two jobs; only the estimate before the first run is finished rests on them
MINUTES = {"lidc": (0.5, 0.2), "fundus": (0.35, 0.1), "petct": (0.85, 0.25)}
MINUTES_A_RUN = 0.4
NETWORKS = dict.fromkeys(("deep_ensemble", "deep_ensemble_random_rater", "deep_ensemble_rater_per_member"), 5)


@dataclass(frozen=True)
class Plan:
    """A multirun.

    Attributes:
        folder: folder above the runs.
        overrides: overrides of `edue_lightning.train`.
        runs: names of the runs' folders.
        minutes: estimate for all runs together, on one core.
        jobs: number of runs at a time.
    """

    folder: Path
    overrides: Sequence[str]
    runs: Sequence[str]
    minutes: float
    jobs: int

    def command(self) -> list[str]:
        """Return the command of the multirun."""
        return _multirun(
            *self.overrides,
            *(f"hydra.sweep.dir={self.folder}", "logger.mode=offline"),
            *("hydra/launcher=joblib", f"hydra.launcher.n_jobs={self.jobs}"),
        )

    def finished(self) -> int:
        """Return the number of finished runs."""
        return sum((self.folder / name / VALIDATION_FILE).is_file() for name in self.runs)


def contenders() -> list[str]:
    """Return the names of the methods that are compared."""
    return _options("contender")


def variations(group: str) -> list[str]:
    """Return the names of the variations of EDUE in a group."""
    return _options(group)


def searches() -> list[str]:
    """Return the names of the searches for settings."""
    return _options("search")


def _options(group: str) -> list[str]:
    # a leading underscore marks what the others share
    return sorted(path.stem for path in (CONFIGURATION / group).glob("[!_]*.yaml"))


def _extent(seeds: int, quick: bool) -> list[str]:
    # the first override varies slowest: one seed after the other
    return [f"seed={','.join(map(str, range(seeds)))}", *([f"trainer.max_epochs={QUICK_EPOCHS}"] if quick else [])]


def comparison(
    folder: Path,
    seeds: int,
    jobs: int,
    quick: bool,
    names: Sequence[str] | None = None,
    data_sets: Sequence[str] = DATA,
) -> Plan:
    """Plan method x data x seed, one seed after the other, so that an interrupted study has whole seeds."""
    names = contenders() if names is None else names
    networks = sum(NETWORKS.get(name, 1) for name in names)
    minutes = seeds * sum(networks * MINUTES[data][quick] + len(names) * MINUTES_A_RUN for data in data_sets)
    overrides = [
        *_extent(seeds, quick),
        f"experiment={','.join(f'study_{data}' for data in data_sets)}",
        f"+contender={','.join(names)}",
        "hydra.sweep.subdir=${hydra:runtime.choices.experiment}_${hydra:runtime.choices.contender}_${seed}",
    ]
    runs = [f"study_{data}_{name}_{seed}" for seed in range(seeds) for data in data_sets for name in names]
    return Plan(folder / "runs", overrides, runs, minutes, jobs)


def ablation(folder: Path, group: str, seeds: int, jobs: int, quick: bool) -> Plan:
    """Plan the variations of EDUE (`ablation`, on validation data), or of the raters in its training (`raters`)."""
    names, data = variations(group), VARIED_ON[group]
    minutes = seeds * len(names) * (MINUTES[data][quick] + MINUTES_A_RUN)
    overrides = [
        *_extent(seeds, quick),
        f"experiment=study_{data}",
        f"+{group}={','.join(names)}",
        f"hydra.sweep.subdir=${{hydra:runtime.choices.{group}}}_${{seed}}",
    ]
    runs = [f"{name}_{seed}" for seed in range(seeds) for name in names]
    return Plan(folder / group, overrides, runs, minutes, jobs)


def run(plan: Plan) -> None:
    """Run a plan, with one line per minute on the finished runs and the time left.

    Raises:
        SystemExit: with the command's status, if it fails.
    """
    before = plan.finished()
    to_do = len(plan.runs) - before
    minutes = to_do / len(plan.runs) * plan.minutes / plan.jobs
    print(f"{to_do} of {len(plan.runs)} runs to do, about {minutes:.0f} min", flush=True)
    plan.folder.mkdir(parents=True, exist_ok=True)
    start, logged = time.monotonic(), time.monotonic()
    with (plan.folder / "study.log").open("a") as log:
        process = subprocess.Popen(plan.command(), stdout=log, stderr=subprocess.STDOUT, env=_environment())
        try:
            while process.poll() is None:
                time.sleep(1)
                if time.monotonic() - logged >= 60:
                    logged = time.monotonic()
                    _report_progress(plan, before, (logged - start) / 60)
        except KeyboardInterrupt:
            process.wait()
            sys.exit("interrupted; the same command resumes")
    if process.returncode:
        sys.exit(f"failed: see the end of {log.name}; the same command resumes with the remaining runs")
    print(f"{len(plan.runs)} runs finished in {plan.folder}, {(time.monotonic() - start) / 60:.0f} min")


def _report_progress(plan: Plan, before: int, minutes: float) -> None:
    done = plan.finished()
    left = len(plan.runs) - done
    estimate = f", about {left * minutes / (done - before):.0f} min left" if done > before else ""
    print(f"{done} of {len(plan.runs)} runs finished after {minutes:.0f} min{estimate}", flush=True)


def ablation_table(folder: Path, file: str) -> pd.DataFrame:
    """Return the metrics of every variation below a folder, one row per variation, averaged over seeds and structures.

    Args:
        folder: folder above the runs.
        file: file of a run with the metrics: `validation.csv` or `metrics.csv`.
    """
    tables = [
        read_table(path, METRICS_COLUMNS).assign(variation=path.parent.name.rpartition("_")[0])
        for path in sorted(folder.glob(f"*/{file}"))
    ]
    rows = pd.concat(tables, ignore_index=True)
    structure = MEAN_STRUCTURE if MEAN_STRUCTURE in set(rows["structure"]) else rows["structure"].iloc[0]
    rows = rows[rows["structure"] == structure]
    return rows.pivot_table(index="variation", columns="metric", values="value").reset_index()


def search(folder: Path, jobs: int) -> None:
    """Search the settings of every method on validation data, and write all trials to one table."""
    names = searches()
    with ThreadPoolExecutor(jobs) as pool:
        for name, seconds in pool.map(lambda name: _search_one(name, folder / name), names):
            print(f"{name}: {seconds:.0f} s", flush=True)
    table = pd.concat([_trials(folder / name, name) for name in names], ignore_index=True)
    table.to_csv(folder / "search.csv", index=False)
    print(f"every trial: {folder / 'search.csv'}; the best: {folder}/NAME/optimization_results.yaml")


def _search_one(name: str, folder: Path) -> tuple[str, float]:
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    command = _multirun(
        *("experiment=study_lidc", f"+search={name}", f"hydra.sweep.dir={folder}", "logger.mode=disabled"),
        "hydra.sweep.subdir=${hydra.job.num}",
    )
    with (folder / "search.log").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=_environment()).returncode
    if status:
        sys.exit(f"{name}: the search failed; see the end of {folder / 'search.log'}")
    return name, time.monotonic() - start


def _trials(folder: Path, name: str) -> pd.DataFrame:
    """Return the settings and the validation NLL of each trial of a search."""
    searched = read_mapping(CONFIGURATION / "search" / f"{name}.yaml")["hydra"]["sweeper"]["params"]
    rows = []
    for path in sorted(folder.rglob(VALIDATION_FILE), key=lambda path: int(path.parent.name)):
        overrides = yaml.safe_load((path.parent / ".hydra" / "overrides.yaml").read_text())
        found = read_table(path, METRICS_COLUMNS)
        nll = float(found[found["metric"] == "nll"]["value"].iloc[0])
        settings = " ".join(override for override in overrides if override.split("=")[0] in searched)
        rows.append((name, int(path.parent.name), settings, nll))
    return pd.DataFrame(rows, columns=["search", "trial", "settings", "validation_nll"])


def _multirun(*overrides: str) -> list[str]:
    program = (sys.executable, "-m", "edue_lightning.train", "--multirun", "--config-dir", str(CONFIGURATION))
    return [*program, *overrides]


def _environment() -> dict[str, str]:
    # one thread per run, since several run at a time
    return {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def report(runs: Path, output: Path) -> None:
    """Write the report of a comparison."""
    command = [sys.executable, "-m", "edue_lightning.report", f"runs={runs}", f"output={output}"]
    subprocess.run([*command, f"reference={CANDIDATE}"], check=True, env=_environment())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "compare", "ablate"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs a run")
    parser.add_argument("--methods", nargs="+", choices=contenders(), metavar="METHOD", help="to compare; all")
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA, help="to compare on; all")
    parser.add_argument("--folder", type=Path, default=Path("outputs/study"))
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if asked.what == "search":
        search(folder / "search", asked.jobs)
    elif asked.what == "compare":
        plan = comparison(folder, asked.seeds, asked.jobs, asked.quick, asked.methods, asked.data)
        run(plan)
        report(plan.folder, folder / "report")
    else:
        for group, file in (("ablation", VALIDATION_FILE), ("raters", METRICS_FILE)):
            plan = ablation(folder, group, asked.seeds, asked.jobs, asked.quick)
            run(plan)
            table = ablation_table(plan.folder, file)
            table.to_csv(folder / f"{group}.csv", index=False)
            print(to_markdown(table[["variation", *SHOWN]].round(3)))


if __name__ == "__main__":
    main()
