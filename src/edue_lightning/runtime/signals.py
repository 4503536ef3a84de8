"""Signals of a scheduler that needs the machine, and the job's way back into the queue."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import NoReturn

from edue_lightning.runtime.processes import is_first_process

log = logging.getLogger(__name__)

STOPPED_STATUS = 128 + signal.SIGTERM
"""Exit status of a training that was told to stop, and can go on."""


class StopSignals:
    """Ends this process when a scheduler needs the machine, at once or, in a training, where that can go on.

    SIGTERM and SIGUSR1 are such signals. A SLURM job is put back into the queue, which the cluster itself does for no
    job that leaves before its time is up, or when it is preempted. The process ends with `STOPPED_STATUS`.

    Attributes:
        deferred: a training will look at `received` after each step; otherwise the process ends at once.
        received: whether a signal came.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.received = False

    def listen(self) -> None:
        """Take up the signals, from whoever did before (of the main thread alone, as Python has it)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._note)

    def end(self) -> NoReturn:
        """End the process."""
        if is_first_process() and "SLURM_JOB_ID" in os.environ:
            _requeue()
        sys.exit(STOPPED_STATUS)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = True
        if not self.deferred:
            self.end()


def _requeue() -> None:
    """Put this SLURM job back into the queue, unless it is there already, or was cancelled."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        # the last task of an array has the number of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
        if "JobState=RUNNING" in shown:
            subprocess.run(["scontrol", "requeue", job], check=False)
    except OSError as error:
        log.warning("job %s is not requeued: %s", job, error)
