"""Try the scripts of this folder, and the `slurm` launcher, on a real SLURM of two nodes on this machine.

python experiments/cluster/try_slurm.py [FOLDER]

As root, with the Debian packages slurm-wlm and munge, in about ten minutes. Prints one line per check; the status is 1
if one fails. FOLDER, by default a new temporary one, keeps all runs and logs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edue_lightning.runs.files import CONFIGURATION_FILE, METRICS_FILE, VALIDATION_FILE

HERE = Path(__file__).resolve().parent
EPOCHS = 40
QUICK = [
    *("experiment=synthetic", "data.source.n_cases=24", "data.source.size=32", "data.batch_size=4"),
    "data.fractions.draw=permutation",
    *("network.features=[4,6,8,8]", "bootstrap_resamples=50", "trainer.accelerator=cpu"),
]
LONG = [*QUICK, f"trainer.max_epochs={EPOCHS}", "checkpoint_every_steps=1"]
ONE_CORE = ["--gpus-per-node=0", "--cpus-per-task=1", "--time=20"]
TWO_NODES = [*ONE_CORE, "--nodes=2", "--ntasks-per-node=1"]
PATIENCE_SECONDS = 400


class CheckError(Exception):
    """A check that failed."""


@dataclass(frozen=True)
class Job:
    """A job of the test, or one task of an array.

    Attributes:
        name: number, for a task `ARRAY_TASK`.
        folder: where it was submitted.
    """

    name: str
    folder: Path

    def read(self, field: str) -> str:
        """Return a field of `scontrol show job`."""
        shown = _output(["scontrol", "show", "job", "--oneliner", self.name])
        found = re.search(rf"\b{field}=(\S+)", shown)
        return found.group(1) if found else ""

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until a condition is true.

        Raises:
            CheckError: if it does not come, or the job fails meanwhile.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            state = self.read("JobState")
            if state in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"):
                raise CheckError(f"job {self.name} is {state} before {what}")
            if time.monotonic() > end:
                raise CheckError(f"job {self.name}, {state}, is not {what} after {PATIENCE_SECONDS} s")
            time.sleep(0.5)

    def wait_until_completed(self) -> None:
        """Wait for its successful end, after any number of starts."""
        self.wait_until(lambda: self.read("JobState") == "COMPLETED", "completed")

    def wait_until_training(self) -> None:
        """Wait until it is training."""
        self.wait_until(lambda: "] - epoch 5/" in self.log(), "in its fifth epoch")

    def log(self) -> str:
        """Return its output."""
        path = Path(self.read("StdOut"))
        return path.read_text() if path.is_file() else ""

    def run_folder(self) -> Path:
        """Return the folder of its run.

        Raises:
            CheckError: if there is not one alone.
        """
        found = sorted(self.folder.glob(f"outputs/*/*/job-{self.name.replace('_', '-')}-*"))
        if len(found) != 1:
            raise CheckError(f"job {self.name} wrote to {len(found)} folders: {[path.name for path in found]}")
        return found[0]


def submit(script: str, folder: Path, options: Sequence[str], overrides: Sequence[str], **environment: str) -> Job:
    """Submit a script of this folder."""
    command = ["sbatch", "--parsable", *options, str(HERE / script), *overrides]
    return Job(_output(command, cwd=folder, env={**os.environ, **environment}).strip(), folder)


def _output(command: Sequence[str], **arguments: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **arguments)  # type: ignore[call-overload]
    if done.returncode:
        raise CheckError(f"{' '.join(command)}: {done.stderr.strip()}")
    return str(done.stdout)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise CheckError(what)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def _expect_same_weights(run: Path, undisturbed: Path) -> None:
    first, second = _weights(undisturbed), _weights(run)
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    _expect(first.keys() == second.keys() and not differing, f"other weights than undisturbed: {differing[:3]}")


def _epochs(job: Job) -> list[int]:
    """Return the epochs that a job finished, in the order of its log."""
    return [int(number) for number in re.findall(r"\] - epoch (\d+)/", job.log())]


class Trial:
    """The checks, in their order; each returns its result in words.

    Args:
        folder: of all runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._undisturbed: Path | None = None

    def multi_node(self) -> str:
        """Train on two nodes, with one process on each."""
        job = submit("train_ddp.sbatch", self.folder, TWO_NODES, LONG)
        job.wait_until_completed()
        _expect(job.read("NumNodes") == "2", "it did not run on two nodes")
        self._expect_finished_once(job)
        self._undisturbed = job.run_folder()
        return f"job {job.name} on {job.read('NodeList')}, one run folder, {EPOCHS} epochs, each logged once"

    def array(self) -> str:
        """Run two methods with two seeds as an array, and the same again."""
        asked = {"METHODS": "edue single", "SEEDS": "0 1"}
        options = [*ONE_CORE, "--array=0-3"]
        overrides = [*QUICK, "trainer.max_epochs=1"]
        found = []
        for _ in range(2):
            job = submit("sweep.sbatch", self.folder, options, overrides, **asked)
            tasks = [Job(f"{job.name}_{task}", self.folder) for task in range(4)]
            for task in tasks:
                task.wait_until_completed()
            found.append(
                {path: path.stat().st_mtime_ns for path in self.folder.glob(f"outputs/sweep/*/{METRICS_FILE}")}
            )
        names = sorted(path.parent.name for path in found[0])
        _expect(names == ["edue_0", "edue_1", "single_0", "single_1"], f"runs: {names}")
        _expect(found[0] == found[1], "the second submission ran finished runs again")
        return f"four runs: {', '.join(names)}; submitted again, none of them ran again"

    def preempted(self) -> str:
        """Let a job of another partition take the nodes."""
        job = submit("train_ddp.sbatch", self.folder, TWO_NODES, LONG)
        job.wait_until_training()
        self._take_the_nodes()
        return self._expect_went_on(job, "preempted")

    def requeued(self) -> str:
        """Requeue a job from outside, as an administrator or the failure of a node does."""
        job = submit("train_ddp.sbatch", self.folder, TWO_NODES, LONG)
        job.wait_until_training()
        _output(["scontrol", "requeue", job.name])
        return self._expect_went_on(job, "requeued")

    def signalled(self) -> str:
        """Signal a job as SLURM does before its time limit."""
        job = submit("train_ddp.sbatch", self.folder, TWO_NODES, LONG)
        job.wait_until_training()
        _output(["scancel", "--signal=USR1", job.name])
        return self._expect_went_on(job, "signalled")

    def timed_out(self) -> str:
        """Let a job reach its time limit; SLURM counts in minutes and signals up to a minute early."""
        job = submit(
            "train_ddp.sbatch",
            self.folder,
            [*TWO_NODES, "--time=3", "--signal=USR1@60"],
            [*LONG, f"trainer.max_epochs={10 * EPOCHS}"],
        )
        job.wait_until(lambda: job.read("Restarts") == "1", "requeued")
        job.wait_until(lambda: "resumes after" in job.log(), "going on")
        _output(["scancel", job.name])
        epochs = _epochs(job)
        _expect(epochs.count(1) == 1, f"began anew: epochs {epochs}")
        return f"job {job.name} requeued itself before its three minutes were over, and went on"

    def cancelled(self) -> str:
        """Cancel a job, which must not be requeued."""
        job = submit("train_ddp.sbatch", self.folder, TWO_NODES, LONG)
        job.wait_until_training()
        _output(["scancel", job.name])
        time.sleep(15)
        _expect(job.read("JobState") == "CANCELLED", f"it is {job.read('JobState')}")
        return f"job {job.name} is not requeued"

    def last_of_array(self) -> str:
        """Signal the last task of an array, which has the number of the whole array; the others must continue."""
        overrides = [*QUICK, f"trainer.max_epochs={EPOCHS}", "checkpoint_every_steps=1"]
        asked = {"METHODS": "edue single", "SEEDS": "5", "OUTPUT": "outputs/last"}
        job = submit("sweep.sbatch", self.folder, [*ONE_CORE, "--array=0-1"], overrides, **asked)
        first, last = (Job(f"{job.name}_{task}", self.folder) for task in range(2))
        last.wait_until_training()
        _output(["scancel", "--signal=USR1", last.name])
        for task in (first, last):
            task.wait_until_completed()
        restarts = [task.read("Restarts") for task in (first, last)]
        _expect(restarts == ["0", "1"], f"restarts of the two tasks: {restarts}")
        return f"task {last.name} was requeued and completed, {first.name} was left alone"

    def launcher(self) -> str:
        """Submit a Hydra multirun, and let a job of another partition take its nodes."""
        sweep = self.folder / "multirun"
        settings = ["timeout_min=20", "gpus_per_node=null", "cpus_per_task=1", "mem_gb=null"]
        command = [sys.executable, "-m", "edue_lightning.train", "-m", *LONG, "resume=auto", "seed=0,1"]
        command += ["hydra/launcher=slurm", f"hydra.sweep.dir={sweep}", *(f"hydra.launcher.{one}" for one in settings)]
        with (self.folder / "multirun.log").open("w") as log:
            launched = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + PATIENCE_SECONDS
            while not (logs := sorted(sweep.glob("*_edue_1/train.log"))) or "epoch 5/" not in logs[0].read_text():
                _expect(time.monotonic() < end and launched.poll() is None, "the second run did not start to train")
                time.sleep(0.5)
            (number,) = {path.name.split("_")[0] for path in sweep.glob(".submitit/*/*_submitted.pkl")}
            self._take_the_nodes()
            status = launched.wait(PATIENCE_SECONDS)
        finally:
            launched.kill()
        _expect(status == 0, f"the command ended with {status}")
        finished = sorted(path.parent.name for path in sweep.glob(f"*/{VALIDATION_FILE}"))
        _expect(len(finished) == 2, f"finished: {finished}")
        restarts = [Job(f"{number}_{task}", self.folder).read("Restarts") for task in range(2)]
        _expect(restarts == ["1", "1"], f"restarts of the two tasks: {restarts}")
        return f"both tasks of array {number} were preempted, and finished in their second start"

    def _take_the_nodes(self) -> None:
        urgent = ["--partition=high", "--nodes=2", "--exclusive", "--time=5", "--output=urgent.log", "--wrap=sleep 3"]
        _output(["sbatch", *urgent], cwd=self.folder)

    def _expect_finished_once(self, job: Job) -> None:
        run = job.run_folder()
        for name in (CONFIGURATION_FILE, METRICS_FILE, VALIDATION_FILE):
            _expect((run / name).is_file(), f"{run.name}: no {name}")
        # two writing processes would be visible here
        headers = (run / METRICS_FILE).read_text().count("method,data,")
        _expect(headers == 1, f"{METRICS_FILE} has {headers} headers")
        _expect(_epochs(job) == list(range(1, EPOCHS + 1)), f"epochs in the log: {_epochs(job)}")

    def _expect_went_on(self, job: Job, how: str) -> str:
        job.wait_until(lambda: job.read("Restarts") == "1", "requeued")
        job.wait_until_completed()
        found = re.search(r"resumes after (\d+) steps", job.log())
        if found is None:
            raise CheckError(f"job {job.name} began anew")
        self._expect_finished_once(job)
        if self._undisturbed is None:
            raise CheckError("there is no undisturbed run to compare with")
        _expect_same_weights(job.run_folder(), self._undisturbed)
        return f"job {job.name} was {how}, went on after {found.group(1)} steps, and ended with the undisturbed weights"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="new folder (default: a temporary one)")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="names of the checks; others need multi_node")
    asked = parser.parse_args()
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="edue_slurm_"))).resolve()
    runs = folder / "runs"
    runs.mkdir(parents=True)
    # the names of the nodes do not resolve; all processes of a job are on this machine
    os.environ.update({"SLURM_CONF": str(folder / "slurm" / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"})
    os.environ.update({"VENV": sys.prefix, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "MPLBACKEND": "Agg"})
    trial = Trial(runs)
    checks = [trial.multi_node, trial.array, trial.preempted, trial.requeued, trial.signalled, trial.timed_out]
    checks += [trial.cancelled, trial.last_of_array, trial.launcher]
    print(f"runs and logs: {runs}", flush=True)
    failed = 0
    cluster = [str(HERE / "local_slurm.sh")]
    try:
        subprocess.run([*cluster, "start", str(folder / "slurm")], check=True, stdout=subprocess.DEVNULL)
        for check in checks:
            if asked.only and check.__name__ not in asked.only:
                continue
            start = time.monotonic()
            try:
                verdict = f"OK      {check.__name__}: {check()}"
            except (CheckError, subprocess.SubprocessError) as error:
                verdict, failed = f"FAILED  {check.__name__}: {error}", failed + 1
            print(f"{verdict} ({time.monotonic() - start:.0f} s)", flush=True)
            subprocess.run(["scancel", "--user", "root"], check=False, capture_output=True)
    finally:
        subprocess.run([*cluster, "stop", str(folder / "slurm")], check=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
