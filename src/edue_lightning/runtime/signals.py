"""Stop signals of a scheduler, and the requeueing of a stopped job."""

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
"""Exit status of a training that was stopped and can be resumed."""


class StopSignals:
    """Handler that ends this process on SIGTERM or SIGUSR1, at once or, in a training, where it can be resumed.

    Schedulers send these signals when they need the machine. A SLURM job is requeued, which the cluster itself does not
    do for a job that ends before its time limit or when it is preempted. The exit status is `STOPPED_STATUS`.

    Attributes:
        deferred: whether a training checks `received` after each step; otherwise the process ends at once.
        received: whether a signal was received.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.received = False

    def listen(self) -> None:
        """Replace earlier handlers of the signals; in the main thread only, as Python requires."""
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
    """Requeue this SLURM job unless it is queued already or was cancelled."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        # the number of the last task of an array is that of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
        if "JobState=RUNNING" in shown:
            subprocess.run(["scontrol", "requeue", job], check=False)
    except OSError as error:
        log.warning("job %s is not requeued: %s", job, error)
