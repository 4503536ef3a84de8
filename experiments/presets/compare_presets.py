"""Comparison of the preset for slices of LIDC-IDRI with the defaults and with a residual encoder, on validation cases.

python experiments/presets/compare_presets.py run --data lidc_slices.zip [--epochs N] [--folder FOLDER] [--only JOB ...]
python experiments/presets/compare_presets.py table [--folder FOLDER]

`run` trains one network after the other, in a folder per number of epochs; the same command resumes an interrupted
training and leaves finished ones. `table` writes the results of all numbers of epochs to `results.csv` beside this
file, and prints it. `FOLDER` is `outputs/presets` unless given.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.runs.files import COST_FILE, METRICS_COLUMNS, VALIDATION_FILE, read_mapping, read_table
from edue_lightning.runs.folder import register_run_folder
from edue_lightning.runtime.startup import start_process
from edue_lightning.training.run import train

RESULTS = Path(__file__).parent / "results.csv"
METRICS = ("dice", "nll", "brier", "ece")

# nodules that four radiologists marked, by their largest slice, in crops of 48x48; validation alone
COMMON = (
    *("data.source.readers=[4]", "data.source.slices=largest", "data.source.size=48", "test=false", "figures=false"),
    *("triage_sensitivity=null", "bootstrap_resamples=0", "logger.mode=disabled", "resume=auto"),
    *("trainer.accelerator=cpu", "+trainer.check_val_every_n_epoch=2"),
)
# four stages for 48x48 in place of six for 128x128, by the same rule
FOUR_STAGES = "network.features=[32,64,128,256]"
RECIPES = {
    "default": ("data=lidc_slices",),
    "preset": ("experiment=lidc_slices", FOUR_STAGES),
    "preset_residual": ("experiment=lidc_slices", "network=nnunet_residual", FOUR_STAGES, "network.blocks=[1,3,4,6]"),
}
JOBS = {
    f"{method}_{recipe}": (f"method={method}", *overrides)
    for recipe, overrides in RECIPES.items()
    for method in ("single", "edue")
}
"""Overrides of each training, by its name."""


def configuration(name: str, epochs: int, data: Path, folder: Path) -> dict[str, Any]:
    """Return the configuration of a job.

    Args:
        name: key of `JOBS`.
        epochs: number of epochs.
        data: archive or folder with the slices.
        folder: folder for the cache.
    """
    paths = f"data.root='{data}'", f"data.cache='{folder / 'cache'}'"
    overrides = [*JOBS[name], *COMMON, f"trainer.max_epochs={epochs}", *paths]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", overrides))


def table(folder: Path) -> pd.DataFrame:
    """Return the validation metrics of the finished jobs, one row per number of epochs and job."""
    rows = []
    # by number, not by text
    for epochs in sorted(int(found.name) for found in folder.glob("[0-9]*")):
        for name in JOBS:
            place = folder / str(epochs) / name
            if not (place / VALIDATION_FILE).is_file():
                continue
            found = read_table(place / VALIDATION_FILE, METRICS_COLUMNS).set_index("metric")["value"]
            cost = read_mapping(place / COST_FILE)
            method, _, recipe = name.partition("_")
            numbers = {metric: round(float(found[metric]), 4) for metric in METRICS}
            labels = {"method": method, "recipe": recipe, "epochs": epochs}
            rows.append({**labels, **numbers, "parameters": int(cost["parameters"])})
    return pd.DataFrame(rows)


def run(data: Path, folder: Path, epochs: int, names: Sequence[str]) -> None:
    """Train the networks that are not finished, one after the other, with one thread.

    Args:
        data: archive or folder with the slices.
        folder: folder for the runs and the cache.
        epochs: number of epochs.
        names: keys of `JOBS`, in this order.
    """
    start_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    register_run_folder()
    for name in names:
        nll = train(configuration(name, epochs, data, folder), folder / str(epochs) / name)
        logging.info("%s: validation NLL %.4f", name, nll)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", type=Path, help="lidc_slices.zip, or the folder in it")
    parser.add_argument("--folder", type=Path, default=Path("outputs/presets"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS), metavar="NAME")
    asked = parser.parse_args()
    if asked.what == "table":
        found = table(asked.folder)
        found.to_csv(RESULTS, index=False)
        print(found.to_string(index=False))
        return
    if asked.data is None:
        parser.error("run needs --data, the archive or folder with the slices")
    run(asked.data.absolute(), asked.folder.absolute(), asked.epochs, asked.only)


if __name__ == "__main__":
    main()
