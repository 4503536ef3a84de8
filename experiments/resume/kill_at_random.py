"""Trainings that are killed at random moments and resumed, compared with an undisturbed one.

python experiments/resume/kill_at_random.py [--trials 20] [--method edue] [--folder FOLDER]

Each trial starts the training anew, sends SIGKILL to it and all its processes at a moment drawn uniformly from the time
that the undisturbed one took, from start-up to the last file, and goes on with `resume=auto`, killing again with
probability one half. The weights and tables must be those of the undisturbed run, to the last bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from edue_lightning.runs.files import CONFIGURATION_FILE, METRICS_FILE, VALIDATION_FILE

SETTINGS = [
    *("experiment=synthetic", "data.source.n_cases=48", "data.source.size=48", "data.batch_size=4"),
    *("network.features=[8,12,16,16]", "network.dropout=0.1", "trainer.max_epochs=40", "trainer.accelerator=cpu"),
    *("checkpoint_every_steps=5", "bootstrap_resamples=200"),
]
SEED = 0


def start(run: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """Start or resume the training in its own process group."""
    command = [sys.executable, "-m", "edue_lightning.train", *overrides, "resume=auto", f"hydra.run.dir={run}"]
    with (run.parent / f"{run.name}.txt").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=run.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def killed_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait, then kill the process and its children; return whether it was still running."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def phase(run: Path) -> str:
    """Return the stage of a run, judged by its files."""
    if (run / VALIDATION_FILE).is_file():
        return "finished"
    if (run / "model.json").is_file():
        return "testing"
    if (run / "checkpoints").is_dir():
        found = sorted(run.glob("checkpoints/**/last.ckpt"))
        steps = [torch.load(path, weights_only=True).get("global_step", "all") for path in found]
        return f"training, {steps} steps stored" if steps else "training, nothing stored"
    return "starting a run" if (run / CONFIGURATION_FILE).is_file() else "starting"


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Return the files that differ: checkpoints by their weights, tables by their content."""
    found = []
    for path in sorted(undisturbed.glob("checkpoints/**/*.ckpt")):
        own = run / path.relative_to(undisturbed)
        states = [torch.load(one, weights_only=True)["state_dict"] for one in (path, own) if one.is_file()]
        if len(states) < 2 or any(not torch.equal(states[0][name], states[1][name]) for name in states[0]):
            found.append(str(path.relative_to(undisturbed)))
    for name in (VALIDATION_FILE, METRICS_FILE):
        if not pd.read_csv(run / name).equals(pd.read_csv(undisturbed / name)):
            found.append(name)
    for path in sorted(undisturbed.glob("logs/**/metrics.csv")):
        # the training loss of a resumed epoch covers only the steps after the resumption
        curves = [pd.read_csv(one / path.relative_to(undisturbed))["val/nll"].dropna() for one in (undisturbed, run)]
        if curves[0].tolist() != curves[1].tolist():
            found.append(str(path.relative_to(undisturbed)))
    return found


def main() -> None:
    """Run the trials and print one line for each; the exit status is 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--method", default="edue")
    parser.add_argument("--folder", type=Path, help="new folder (default: a temporary one)")
    asked, more = parser.parse_known_args()
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="edue_resume_"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [*SETTINGS, f"method={asked.method}", *more]
    draw = random.Random(SEED)

    undisturbed = folder / "undisturbed"
    begun = time.monotonic()
    if start(undisturbed, overrides).wait() != 0:
        sys.exit((folder / "undisturbed.txt").read_text())
    whole = time.monotonic() - begun
    print(f"{' '.join(overrides)}\nundisturbed: {whole:.1f} s\n", flush=True)

    identical = 0
    for trial in range(asked.trials):
        run = folder / f"trial_{trial}"
        kills: list[str] = []
        while True:
            seconds = draw.uniform(0, whole)
            if kills and draw.random() < 0.5:
                break
            if killed_after(start(run, overrides), seconds):
                kills.append(f"{seconds:.1f} s ({phase(run)})")
        status = start(run, overrides).wait()
        found = differences(run, undisturbed) if status == 0 else [f"status {status}, see {run.name}.txt"]
        identical += not found
        verdict = "identical" if not found else f"DIFFERS: {', '.join(found)}"
        print(f"{trial + 1:3d}  {verdict}; killed at {', '.join(kills)}", flush=True)
    print(f"\n{identical} of {asked.trials} ended with the undisturbed weights and tables")
    sys.exit(0 if identical == asked.trials else 1)


if __name__ == "__main__":
    main()
