"""The study as commands: search settings, compare the methods, measure them by other read-outs, vary EDUE.

python experiments/comparison/study.py search|compare|reread|ablate|report|pack [options]

Every training is a process of its own with a folder of its own. Finished ones are not repeated and interrupted ones are
resumed, so the same command continues a study that was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jobs import FINISHED, Job, Pool
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from edue_lightning.atomic import write_whole
from edue_lightning.config.schema import configuration_folder
from edue_lightning.data import LidcSlices
from edue_lightning.metrics import MEAN_STRUCTURE
from edue_lightning.reporting.comparison import to_markdown
from edue_lightning.runs.checkpoints import CHECKPOINTS, read_checkpoint, unmeasured, write_checkpoint
from edue_lightning.runs.files import (
    CONFIGURATION_FILE,
    METRICS_COLUMNS,
    METRICS_FILE,
    VALIDATION_FILE,
    read_mapping,
    read_table,
)
from edue_lightning.text import listed

HERE = Path(__file__).resolve().parent
CONFIGURATION = HERE / "conf"
SEARCHED = HERE / "results" / "search.csv"
CANDIDATE = "edue_levels_mask"
SEARCHED_ON, SEARCH_EPOCHS = "lidc_four", 16
VARIED_ON = {"ablation": "lidc", "raters": "fundus"}
QUICK_EPOCHS, QUICK_BATCHES, QUICK_CASES = 2, 4, 90
SHOWN = ("dice", "nll", "ece", "image_pearson", "image_spearman_normalised", "pixel_pearson", "pixel_pearson_total")

SEARCH_OF = {
    "deep_ensemble": "single",
    "deep_ensemble_soft_majority": "single_soft_majority",
    "deep_ensemble_random_rater": "single_random_rater",
    "deep_ensemble_rater_per_member": "single_random_rater",
    "deep_ensemble_levels": "edue_levels",
    "layer_ensemble_soft_majority": "layer_ensemble",
    "mc_dropout_soft_majority": "mc_dropout",
    "test_time_augmentation": "single_soft_majority",
}
"""The search whose settings a method takes, where it is not the one of its name: that of its single networks."""

READ_OUTS = {
    "mask_raters": "mask=raters",
    "mask_validation": "mask=validation",
    "mask_expected_dice": "mask=expected_dice",
    "temperature": "temperature=validation",
}
"""Overrides by the name of a read-out other than the usual one; none of them changes the weights."""

SEARCH_COLUMNS = ("search", "trial", "settings", "validation_nll")

# of a packed study, per file, so that each can travel by mail or other narrow ways
_PART_BYTES = 12 * 2**20
_NOT_PACKED = {"checkpoints", ".hydra", "wandb"}

_MISSING = object()
# settings that change no result; of `temperature=validation` a run records the value that it found
_OF_THE_MACHINE = ("data.root", "data.cache", "trainer.accelerator", "trainer.devices", "temperature")


@dataclass(frozen=True)
class DataSet:
    """A data set of the study.

    Attributes:
        seconds: expected seconds of one network's training by device, and of all that follows.
        root: file or folder below `--data`, empty for synthetic data.
        folds: number of folds, each a run of its own; 0 for a single division.
        people: number of raters if a position on the rater axis is one person; 0 if it is not, so that no member can
            learn from one rater and none can be held out.
    """

    seconds: Mapping[str, tuple[float, float]]
    root: str = ""
    folds: int = 0
    people: int = 0


DATA = {
    "lidc_four": DataSet({"cpu": (240, 60), "gpu": (48, 28)}, "lidc_slices.zip"),
    "lidc_four_folds": DataSet({"cpu": (240, 60), "gpu": (48, 28)}, "lidc_slices.zip", folds=5),
    "lidc_all": DataSet({"cpu": (3600, 300), "gpu": (270, 120)}, "lidc_slices.zip"),
    "lidc_all_128": DataSet({"cpu": (18000, 900), "gpu": (1000, 300)}, "lidc_slices.zip"),
    "bu_bil": DataSet({"cpu": (2700, 180), "gpu": (150, 30)}, "bu_bil", folds=5, people=5),
    "bu_bil_half": DataSet({"cpu": (400, 40), "gpu": (75, 20)}, "bu_bil_half", folds=5, people=5),
    "fundus": DataSet({"cpu": (200, 40), "gpu": (75, 30)}, people=6),
    "petct": DataSet({"cpu": (130, 40), "gpu": (30, 30)}, people=6),
    "chase_db1": DataSet({"cpu": (1800, 60), "gpu": (60, 40)}, "chase_db1", folds=4, people=2),
}
"""Data sets by name; `conf/experiment/study_NAME.yaml` has their settings."""

FEWEST_RATERS = 2
"""Number of raters in training below which there is no disagreement to learn."""

USUAL_DATA = ("lidc_four", "lidc_all", "bu_bil", "fundus", "petct")


def contenders() -> list[str]:
    """Return the names of the methods that are compared."""
    return _options("contender")


def variations(group: str) -> list[str]:
    """Return the names of the variations of EDUE in a group."""
    return _options(group)


def searches() -> dict[str, dict[str, list[Any]]]:
    """Return the values that are searched, by search and setting."""
    return read_mapping(CONFIGURATION / "search.yaml")


def _options(group: str) -> list[str]:
    # a leading underscore marks what the others share
    return sorted(path.stem for path in (CONFIGURATION / group).glob("[!_]*.yaml"))


def networks(contender: str) -> int:
    """Return the number of networks that a method trains."""
    return 5 if contender.startswith("deep_ensemble") else 1


def fits(contender: str, data: str) -> bool:
    """Return whether a method can be trained on a data set."""
    return contender != "deep_ensemble_rater_per_member" or DATA[data].people > 0


@dataclass(frozen=True)
class Setup:
    """Settings that all jobs of a command share.

    Attributes:
        folder: the study's folder, absolute.
        device: `cpu` or `gpu`.
        data: folder with the real data sets; None if none is used.
        quick: whether to train for two epochs of a few batches, on few synthetic cases, to see that everything runs.
        epochs: number of epochs in place of the data set's, or None.
        searched: table of a search, whose best settings the methods take.
    """

    folder: Path
    device: str = "cpu"
    data: Path | None = None
    quick: bool = False
    epochs: int | None = None
    searched: Path = SEARCHED

    @property
    def runs(self) -> Path:
        """Folder of the comparison's runs; quick ones must not pass for finished ones."""
        return self.folder / ("quick" if self.quick else "runs")

    def job(self, name: str, data: str, contender: str, *overrides: str, epochs: int | None = None) -> Job:
        """Return a training on a data set.

        Raises:
            SystemExit: if the data set is real and `data` is not given.
        """
        command = [sys.executable, "-m", "edue_lightning.train", "--config-dir", str(CONFIGURATION)]
        command += [f"experiment=study_{data}", *overrides]
        command += [f"trainer.accelerator={self.device}", "trainer.devices=1"]
        of = DATA.get(data, DATA["fundus"])
        if of.root:
            if self.data is None:
                sys.exit(f"{data}: give the folder with {of.root} (--data FOLDER)")
            command += [f"data.root={self.data / of.root}", f"data.cache={self.folder / 'cache'}"]
        epochs = epochs if self.epochs is None else self.epochs
        training, rest = of.seconds[self.device]
        if self.quick:
            command += [f"trainer.max_epochs={QUICK_EPOCHS}", f"+trainer.limit_train_batches={QUICK_BATCHES}"]
            command += ["trainer.check_val_every_n_epoch=1", "bootstrap_resamples=50"]
            if not of.root:
                command.append(f"data.source.n_cases={QUICK_CASES}")
            training = training / 10
        elif epochs is not None:
            usual = read_mapping(CONFIGURATION / "experiment" / f"study_{data}.yaml")["trainer"]["max_epochs"]
            command.append(f"trainer.max_epochs={epochs}")
            training *= epochs / usual
        return Job(name, tuple(command), networks(contender) * training + rest, rest)


def comparison(
    setup: Setup,
    seeds: Sequence[int],
    data_sets: Sequence[str] = USUAL_DATA,
    names: Sequence[str] | None = None,
    hold_out: bool = False,
) -> list[Job]:
    """Return the jobs method x data x seed x fold, seed by seed, so that a stopped study has whole seeds.

    Args:
        setup: settings of all jobs.
        seeds: seeds of the trainings.
        data_sets: keys of `DATA`.
        names: methods; None for all.
        hold_out: whether training and validation lack the last rater, who then appears in the test only. The runs have
            labels and folders of their own (`_held_out`); data sets with fewer than three known raters are left out.
    """
    names = contenders() if names is None else names
    jobs = []
    for seed, data, name in itertools.product(seeds, data_sets, names):
        raters = [*range(DATA[data].people - 1)]
        if not fits(name, data) or (hold_out and len(raters) < FEWEST_RATERS):
            continue
        folds = [*range(DATA[data].folds)] or [None]
        for fold in folds:
            overrides = [f"+contender={name}", *best_settings(setup.searched, name), f"seed={seed}"]
            method = f"{name}_held_out" if hold_out else name
            if hold_out:
                overrides += [f"data.training_raters={raters}".replace(" ", ""), f"label={method}"]
            where = f"{setup.runs.name}/{data}_{method}_{seed}"
            if fold is not None:
                overrides.append(f"data.fold={fold}")
                where += f"_fold{fold}"
            jobs.append(setup.job(where, data, name, *overrides))
    return jobs


def reread(setup: Setup, jobs: Sequence[Job], read_outs: Sequence[str]) -> list[Job]:
    """Return one job per finished run and read-out, which measures its networks anew, and prepare its folder.

    The folder has the run's checkpoints, so the run's command with another read-out resumes it at its end. Runs whose
    checkpoints are elsewhere are left out.

    Args:
        setup: settings of all jobs.
        jobs: jobs of the comparison.
        read_outs: keys of `READ_OUTS`.
    """
    # runs of earlier versions were measured with fewer metrics
    extra = read_mapping(Path(configuration_folder()) / "metrics" / "mask_rules.yaml")["extra"]
    measured = []
    for job in jobs:
        run = setup.folder / job.name
        if not (run / VALIDATION_FILE).is_file() or not (run / CHECKPOINTS).is_dir():
            continue
        record = read_mapping(run / CONFIGURATION_FILE)
        metrics = {**record["metrics"], "extra": extra}
        for read_out in read_outs:
            label = f"{record['label']}_{read_out}"
            name = re.sub(r"_\d+(_fold\d+)?$", rf"_{read_out}\g<0>", job.name)
            key, value = READ_OUTS[read_out].split("=")
            node = read_mapping(Path(configuration_folder()) / key / f"{value}.yaml") if key == "mask" else value
            _copy_training(run, setup.folder / name, {key: node, "label": label, "metrics": metrics})
            measured.append(Job(name, (*job.command, READ_OUTS[read_out], f"label={label}"), job.seconds_after))
    return measured


def _copy_training(run: Path, target: Path, changes: Mapping[str, Any]) -> None:
    """Write a finished training with other settings of its predictions, as if it had just ended."""
    if (target / CONFIGURATION_FILE).is_file():
        return
    record = {**read_mapping(run / CONFIGURATION_FILE), **changes}
    record["command"] = str(record["command"]).replace(str(run), str(target))
    for path in sorted((run / CHECKPOINTS).rglob("*.ckpt")):
        copy = target / path.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(unmeasured(read_checkpoint(path), changes), copy)
    # last, since it marks the folder as prepared
    write_whole(target / CONFIGURATION_FILE, lambda path: path.write_text(yaml.safe_dump(record, sort_keys=False)))


def search(setup: Setup, names: Sequence[str] | None = None) -> list[Job]:
    """Return one job per trial of every search, on validation cases alone."""
    return [_trial(setup, *trial) for trial in _trials() if names is None or trial[0] in names]


def _trials() -> Iterator[tuple[str, int, tuple[str, ...]]]:
    # name of the search, number of the trial, settings
    for name, grid in searches().items():
        for trial, values in enumerate(itertools.product(*grid.values())):
            yield name, trial, tuple(f"{key}={value}" for key, value in zip(grid, values, strict=True))


def _trial(setup: Setup, name: str, trial: int, settings: Sequence[str]) -> Job:
    overrides = (*settings, f"+contender={name}", "test=false")
    return setup.job(f"search/{name}_{trial}", SEARCHED_ON, name, *overrides, epochs=SEARCH_EPOCHS)


def trials(setup: Setup) -> pd.DataFrame:
    """Return settings and validation NLL of the finished trials (`SEARCH_COLUMNS`).

    Trials that were finished elsewhere are those of an earlier `search.csv` in the study's folder.

    Raises:
        SystemExit: if a trial was run with other settings.
    """
    earlier = setup.folder / SEARCHED.name
    known = pd.read_csv(earlier) if earlier.is_file() else pd.DataFrame(columns=list(SEARCH_COLUMNS))
    values_of = {(row["search"], row["settings"]): row["validation_nll"] for row in known.to_dict("records")}
    rows = []
    for name, trial, values in _trials():
        job = _trial(setup, name, trial, values)
        file = setup.folder / job.name / VALIDATION_FILE
        settings = " ".join(values)
        if file.is_file():
            require_same_settings(setup.folder, [job])
            found = of_one_structure(read_table(file, METRICS_COLUMNS))
            rows.append((name, trial, settings, float(found[found["metric"] == "nll"]["value"].iloc[0])))
        elif (name, settings) in values_of:
            rows.append((name, trial, settings, float(values_of[name, settings])))
    return pd.DataFrame(rows, columns=list(SEARCH_COLUMNS))


def require_same_settings(folder: Path, jobs: Sequence[Job]) -> None:
    """Check that the runs in the folders of jobs have the jobs' settings, so that no result of others is taken.

    Args:
        folder: the study's folder.
        jobs: jobs, of which those without a run are ignored.

    Raises:
        SystemExit: if a run has another value of a setting that is a number, a text or a list.
    """
    for job in jobs:
        record = folder / job.name / CONFIGURATION_FILE
        if not record.is_file():
            continue
        found = read_mapping(record)
        # of an option that is given twice, the last counts
        for key, text in dict(part.split("=", 1) for part in job.command if "=" in part).items():
            value: Any = _MISSING if key.startswith(_OF_THE_MACHINE) else found
            for part in key.split("."):
                value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
            # others are groups, whose content is in no override
            if value is _MISSING or isinstance(value, Mapping):
                continue
            # as Hydra reads it: to YAML alone 1e-05 is a text
            if value != OmegaConf.from_dotlist([f"given={text}"])["given"]:
                sys.exit(f"{record.parent}: has {key}={value}, not {text}; move it away to run it anew")


def of_one_structure(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the mean over structures, or of the only structure."""
    structures = set(rows["structure"])
    return rows[rows["structure"] == (MEAN_STRUCTURE if MEAN_STRUCTURE in structures else rows["structure"].iloc[0])]


def best_settings(table: Path, contender: str) -> list[str]:
    """Return the overrides of the trial with the lowest validation NLL; none for a method without a search."""
    if not table.is_file():
        return []
    found = pd.read_csv(table)
    own = found[found["search"] == SEARCH_OF.get(contender, contender)]
    return str(own.sort_values("validation_nll", kind="stable")["settings"].iloc[0]).split() if len(own) else []


def ablation(setup: Setup, group: str, seeds: Sequence[int]) -> list[Job]:
    """Return the variations of EDUE (`ablation`, on validation data), or of the raters in its training (`raters`)."""
    data = VARIED_ON[group]
    return [
        setup.job(f"{group}/{name}_{seed}", data, "edue", f"+{group}={name}", f"seed={seed}")
        for seed in seeds
        for name in variations(group)
    ]


def ablation_table(folder: Path, file: str) -> pd.DataFrame:
    """Return the metrics of every variation below a folder, one row per variation, averaged over seeds and structures.

    Args:
        folder: folder above the runs.
        file: file of a run with the metrics: `validation.csv` or `metrics.csv`.

    Returns:
        `variation`, `seeds` (their number) and one column per metric; no row without a finished run.
    """
    tables = [
        of_one_structure(read_table(path, METRICS_COLUMNS)).assign(variation=path.parent.name.rpartition("_")[0])
        for path in sorted(folder.glob(f"*/{file}"))
    ]
    if not tables:
        return pd.DataFrame(columns=["variation", "seeds", *SHOWN])
    rows = pd.concat(tables, ignore_index=True)
    table = rows.pivot_table(index="variation", columns="metric", values="value").reset_index()
    seeds = pd.Series([own["variation"].iloc[0] for own in tables]).value_counts()
    table.insert(1, "seeds", table["variation"].map(seeds))
    return table


def prepare(setup: Setup, jobs: Sequence[Job]) -> None:
    """Read the pictures of LIDC once, so that jobs that start together need not."""
    if setup.data is not None and any("lidc_slices" in part for job in jobs for part in job.command):
        LidcSlices(str(setup.data / "lidc_slices.zip"), cache=str(setup.folder / "cache"))


def report(runs: Path, output: Path) -> None:
    """Write the report of a comparison, and the learning curves of its runs."""
    command = [sys.executable, "-m", "edue_lightning.report", f"runs={runs}", f"output={output}"]
    subprocess.run([*command, f"reference={CANDIDATE}"], check=True)
    curves = learning_curves(runs)
    curves.to_csv(output / "learning_curves.csv", index=False)
    draw_curves(curves, output / "learning_curves.png")


def learning_curves(runs: Path) -> pd.DataFrame:
    """Return the validation NLL after each epoch that was validated: `run`, `member`, `epoch`, `nll`.

    Args:
        runs: folder above the runs; of a deep ensemble, each member has curves of its own.
    """
    parts = []
    for path in sorted(runs.glob("*/logs/**/metrics.csv")):
        # a run without a validation so far has no such column
        curve = pd.read_csv(path).reindex(columns=["epoch", "val/nll"]).dropna().rename(columns={"val/nll": "nll"})
        run = path.relative_to(runs).parts[0]
        parts.append(curve.assign(run=run, member=path.parent.name.removeprefix("member_").replace("logs", "")))
    curves = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["epoch", "nll", "run", "member"])
    return curves[["run", "member", "epoch", "nll"]].astype({"epoch": int})


def draw_curves(curves: pd.DataFrame, path: Path) -> None:
    """Draw the validation NLL over the epochs, one line per method and data set, mean over seeds and members."""
    method = curves["run"].str.replace(r"_\d+(_fold\d+)?$", "", regex=True)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(curves.groupby(method)):
        mean = own.groupby("epoch")["nll"].mean()
        # there are ten colours
        axes.plot(mean.index + 1, mean, label=name, linestyle=("-", "--", ":")[number // 10 % 3])
    axes.set(xlabel="epoch", ylabel="validation NLL", yscale="log")
    figure.legend(loc="outside right upper", fontsize="x-small")
    figure.savefig(path, dpi=120)


def pack(folder: Path, target: Path) -> list[Path]:
    """Pack the tables and curves of all finished runs, without checkpoints, and return the archives.

    Args:
        folder: the study's folder.
        target: folder for `study_0.tar.gz` and so on, of less than 16 MiB each, and `finished.txt` with the names of
            all finished jobs. This file in another study's folder lets that study leave them out; the archives,
            unpacked there, give it their results.
    """
    target.mkdir(parents=True, exist_ok=True)
    found = sorted(path.parent for path in folder.glob(f"*/*/{VALIDATION_FILE}"))
    earlier = (folder / FINISHED).read_text().split() if (folder / FINISHED).is_file() else []
    names = sorted({*earlier, *(path.relative_to(folder).as_posix() for path in found)})
    (target / FINISHED).write_text("\n".join(names) + "\n")
    # an earlier pack may have had more of them
    for old in target.glob("study_*.tar.gz"):
        old.unlink()
    archives = [target / "study_0.tar.gz"]
    archive = tarfile.open(archives[0], "w:gz")  # noqa: SIM115
    for file in sorted(path for path in folder.glob("*") if path.suffix in (".csv", ".txt")):
        archive.add(file, file.name)
    for run in found:
        for file in _packed_files(run):
            archive.add(file, file.relative_to(folder).as_posix())
        if archives[-1].stat().st_size > _PART_BYTES:
            archive.close()
            archives.append(target / f"study_{len(archives)}.tar.gz")
            archive = tarfile.open(archives[-1], "w:gz")  # noqa: SIM115
    archive.close()
    return archives


def _packed_files(run: Path) -> Iterator[Path]:
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name != ".lock" and not _NOT_PACKED & set(path.relative_to(run).parts):
            yield path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "compare", "reread", "ablate", "report", "pack"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/study"))
    parser.add_argument("--data", type=Path, help="folder with lidc_slices.zip, bu_bil, bu_bil_half, chase_db1")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=DATA,
        metavar="DATASET",
        help=f"all but {listed([name for name in DATA if name not in USUAL_DATA])}; without --data the synthetic ones",
    )
    parser.add_argument(
        "--methods", nargs="+", choices=contenders(), metavar="METHOD", help="to compare or search; all"
    )
    parser.add_argument(
        "--read-outs", nargs="+", choices=READ_OUTS, default=[*READ_OUTS], metavar="READ_OUT", help="of reread; all"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--time-left", type=float, metavar="MINUTES", help="start no job that would not end in time")
    parser.add_argument(
        "--cut", action="store_true", help="start others too; at the end of the time they store a checkpoint"
    )
    parser.add_argument(
        "--hold-out",
        action="store_true",
        help="compare or reread: train without the last rater, who appears in the test only",
    )
    parser.add_argument("--longest-first", action="store_true", help="not one seed after the other")
    parser.add_argument("--epochs", type=int, help="in place of each data set's own")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPOCHS} short epochs per training")
    parser.add_argument("--searched", type=Path, default=SEARCHED, help="table of the search whose settings are used")
    parser.add_argument("--target", type=Path, help="folder of the archives that `pack` writes")
    return parser


def _jobs(setup: Setup, asked: argparse.Namespace) -> list[Job]:
    seeds = range(asked.seeds)
    if asked.what == "search":
        return search(setup, asked.methods)
    if asked.what == "ablate":
        return [*ablation(setup, "ablation", seeds), *ablation(setup, "raters", seeds)]
    usual = [name for name in USUAL_DATA if setup.data is not None or not DATA[name].root]
    jobs = comparison(setup, seeds, asked.only or usual, asked.methods, asked.hold_out)
    return reread(setup, jobs, asked.read_outs) if asked.what == "reread" else jobs


def _train(setup: Setup, asked: argparse.Namespace) -> list[str]:
    """Run the jobs that are asked for, write their tables, and return the names of those that failed."""
    jobs = _jobs(setup, asked)
    if asked.longest_first:
        jobs.sort(key=lambda job: -job.seconds)
    setup.folder.mkdir(parents=True, exist_ok=True)
    require_same_settings(setup.folder, jobs)
    prepare(setup, jobs)
    seconds = None if asked.time_left is None else 60 * asked.time_left
    failed = Pool(setup.folder, asked.jobs, seconds, asked.cut, lambda line: print(line, flush=True)).run(jobs)
    if asked.what == "search":
        trials(setup).to_csv(setup.folder / "search.csv", index=False)
        print(f"every trial: {setup.folder / 'search.csv'}")
    elif asked.what == "ablate":
        for group, file in (("ablation", VALIDATION_FILE), ("raters", METRICS_FILE)):
            table = ablation_table(setup.folder / group, file)
            table.to_csv(setup.folder / f"{group}.csv", index=False)
            print(to_markdown(table[["variation", "seeds", *SHOWN]].round(3)))
    return failed


def main() -> None:
    """Run the command."""
    asked = _parser().parse_args()
    folder = asked.folder.resolve()
    data = None if asked.data is None else asked.data.resolve()
    setup = Setup(folder, asked.device, data, asked.quick, asked.epochs, asked.searched.resolve())
    if asked.what == "pack":
        for archive in pack(folder, asked.target or folder / "packed"):
            print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    elif asked.what == "report":
        report(setup.runs, folder / "report")
    elif _train(setup, asked):
        sys.exit(1)


if __name__ == "__main__":
    main()
