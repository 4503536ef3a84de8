"""Many trainings as processes of their own: several at a time, resumable, within a time limit."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from edue_lightning.runs.files import VALIDATION_FILE

FINISHED = "finished.txt"
"""File of a study's folder with the names of jobs that were finished elsewhere, one per line."""

PROGRESS = "progress.csv"
"""File of a study's folder with one line per job that ended: name, seconds, exit status."""

_LINE_SECONDS = 30.0
_POLL_SECONDS = 0.2
# in which a training that is asked to stop stores its checkpoint
_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """One training in a process of its own.

    Attributes:
        name: name of its folder below the study's folder.
        command: command that runs or resumes it, without its folder.
        seconds: expected duration in a process of its own, beside the others.
        seconds_after: expected duration of what follows its training.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    seconds_after: float = 0.0


class _Process(NamedTuple):
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    begun: float
    # begun by an earlier process, so that its duration is not that of the job
    resumed: bool


@dataclass
class Pool:
    """Runs jobs as processes.

    A job is finished once its folder holds `validation.csv`, or `finished.txt` names it; it is not run again. Others
    are run, or resumed from their last checkpoint. Durations are expected as the jobs say, corrected by those of the
    jobs that ended, so that no job is started that would not end in time. At the limit, running jobs are asked to
    store a checkpoint and end.

    Attributes:
        folder: the study's folder.
        at_once: number of jobs at a time.
        seconds_left: time limit; None for none.
        cut: whether to start jobs too that would not end in time, to be resumed by a later pool in the same folder.
        say: function that is called with each line of progress.
    """

    folder: Path
    at_once: int
    seconds_left: float | None = None
    cut: bool = False
    say: Callable[[str], None] = print
    _running: dict[str, _Process] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)
    _failed: list[str] = field(default_factory=list)
    _stopped: bool = False

    def finished(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that are finished, here or elsewhere."""
        listed = self.folder / FINISHED
        elsewhere = set(listed.read_text().split()) if listed.is_file() else set()
        return [job for job in jobs if job.name in elsewhere or (self.folder / job.name / VALIDATION_FILE).is_file()]

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Run the jobs that are not finished, in their order, and return the names of those that failed."""
        start = time.monotonic()
        done = {job.name for job in self.finished(jobs)}
        waiting = [job for job in jobs if job.name not in done]
        expected = sum(job.seconds for job in waiting) / self.at_once / 60
        self.say(f"{len(waiting)} of {len(jobs)} jobs to do, about {expected:.0f} min")
        by_name = {job.name: job for job in jobs}
        logged = start
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        skipped = 0
        try:
            while waiting or self._running:
                left = None if self.seconds_left is None else self.seconds_left - (time.monotonic() - start)
                self._collect(by_name)
                if self._stopped or (left is not None and left <= 0):
                    break
                while waiting and len(self._running) < self.at_once:
                    # the first that ends in time
                    fits = [job for job in waiting if self.cut or left is None or self._expected(job) <= left]
                    if not fits:
                        skipped, waiting = skipped + len(waiting), []
                        break
                    self._start(fits[0])
                    waiting.remove(fits[0])
                if time.monotonic() - logged >= _LINE_SECONDS:
                    logged = time.monotonic()
                    self._report(jobs, start)
                time.sleep(_POLL_SECONDS)
        finally:
            self._end_all(by_name)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self._report(jobs, start)
        if skipped:
            self.say(f"{skipped} jobs not started, since they would not end in time; the same command runs them")
        for name in self._failed:
            self.say(f"failed: {name}, see {self.folder / name}.log")
        return self._failed

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._stopped = True

    def _expected(self, job: Job) -> float:
        # 1.1: a job that is cut is lost work
        ratios = sorted(self._ratios)
        return 1.1 * job.seconds * (ratios[len(ratios) // 2] if ratios else 1.0)

    def _start(self, job: Job) -> None:
        folder = self.folder / job.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        log_file = folder.with_name(f"{folder.name}.log")
        resumed = log_file.is_file()
        log = log_file.open("ab")
        # one thread per job, since several run at a time; a process group of its own, so that the pool ends it
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        command = [*job.command, f"hydra.run.dir={folder}"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self._running[job.name] = _Process(process, log, time.monotonic(), resumed)

    def _collect(self, by_name: dict[str, Job]) -> None:
        for name, one in list(self._running.items()):
            status = one.process.poll()
            if status is None:
                continue
            one.log.close()
            del self._running[name]
            seconds = time.monotonic() - one.begun
            with (self.folder / PROGRESS).open("a", newline="") as file:
                csv.writer(file).writerow((name, f"{seconds:.1f}", status))
            if status != 0 and not self._stopped:
                self._failed.append(name)
            if status == 0 and not one.resumed:
                self._ratios.append(seconds / by_name[name].seconds)

    def _end_all(self, by_name: dict[str, Job]) -> None:
        if not self._running:
            return
        self._stopped = True
        self.say(f"{len(self._running)} running jobs are asked to store a checkpoint and end")
        for one in self._running.values():
            _signal(one.process, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._running and time.monotonic() < deadline:
            self._collect(by_name)
            time.sleep(_POLL_SECONDS)
        for one in self._running.values():
            _signal(one.process, signal.SIGKILL)
            one.process.wait()
        self._collect(by_name)

    def _report(self, jobs: Sequence[Job], start: float) -> None:
        minutes = (time.monotonic() - start) / 60
        counts = f"{len(self.finished(jobs))} of {len(jobs)} jobs finished, {len(self._running)} running"
        self.say(f"{minutes:.1f} min: {counts}, {len(self._failed)} failed")


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # it may just have ended
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
