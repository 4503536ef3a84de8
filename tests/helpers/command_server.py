"""Process that has imported what the commands import, and runs each requested command in a child of its own.

A child has the requested arguments, folder, environment and output files, and ends as `python -m` ends, so that a
command finds what it finds in a process of its own, without the seconds of its imports. A request is one line of JSON
on the standard input; its answer is the exit status as one line. The process ends with its input.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

from wandb.sdk.data_types._private import MEDIA_TMP

from edue_lightning.__main__ import COMMANDS


def import_libraries() -> None:
    """Import all commands, and keep only what they import; they themselves are executed anew for each request."""
    gc.disable()
    for name in COMMANDS:
        __import__(f"edue_lightning.{name}")
    # wandb.init imports it
    import wandb.sdk.launch  # noqa: F401

    for name in COMMANDS:
        del sys.modules[f"edue_lightning.{name}"]
    gc.freeze()
    gc.enable()


def serve() -> None:
    """Answer requests until the input ends. In a child this runs the command and does not return."""
    import_libraries()
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            _become(request)
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _become(request: dict) -> None:
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY)]
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    # the first child that ended has removed this folder, which wandb makes at its import
    Path(MEDIA_TMP.name).mkdir(exist_ok=True)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])
    sys.argv = [request["module"], *request["arguments"]]
    signal.alarm(request["seconds"])


if __name__ == "__main__":
    serve()
