"""Training of a run for more epochs than it was planned for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edue_lightning.atomic import write_whole
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import (
    BEST,
    CHECKPOINTS,
    LAST,
    planned_epochs_of,
    read_checkpoint,
    without_results,
    write_checkpoint,
)
from edue_lightning.runs.files import CONFIGURATION_FILE, VALIDATION_FILE, read_mapping
from edue_lightning.runs.folder import AUTO
from edue_lightning.runs.record import extend_record
from edue_lightning.training.trackers import MLFLOW_RUN_FILE

log = logging.getLogger(__name__)

EARLIER = "earlier"
"""Folder of a run with the results of its earlier, shorter trainings."""

_EPOCHS = "max_epochs"
_WARM_UP = "warm_up_epochs"
# a schedule that ends with the planned epochs has no continuation
_ENDLESS = "constant"
# what a resumed training continues; all else in the folder are results
_CONTINUED = {CHECKPOINTS, CONFIGURATION_FILE, EARLIER, "logs", "tensorboard", "wandb", MLFLOW_RUN_FILE, "train.log"}


def planned_epochs(configuration: Mapping[str, Any], folder: Path) -> int | None:
    """Return the number of epochs that a run was planned for, if a command resumes it for more; else None.

    Args:
        configuration: resolved and plain configuration of the command.
        folder: the run's folder.

    Raises:
        UserError: if the schedule of the learning rate or the method depends on the planned number of epochs.
    """
    path = folder / CONFIGURATION_FILE
    if configuration["resume"] in (None, AUTO) or not path.is_file():
        return None
    record = read_mapping(path)
    planned = (record.get("trainer") or {}).get(_EPOCHS)
    wanted = configuration["trainer"].get(_EPOCHS)
    if not isinstance(planned, int) or not isinstance(wanted, int) or not 0 < planned < wanted:
        return None
    schedule = (record.get("optimizer") or {}).get("schedule")
    bound = "" if schedule == _ENDLESS else f"optimizer.schedule={schedule}, which ends with them"
    # see `StochasticSegmentation`
    if not bound and (record.get("method") or {}).get(_WARM_UP, 0) is None:
        bound = f"method.{_WARM_UP}=null, which is half of them"
    if bound:
        raise UserError(
            f"trainer.{_EPOCHS}={wanted}: {folder} was planned for {planned} epochs with {bound}, so it cannot be "
            f"resumed for more; begin a new training with init={folder / CHECKPOINTS / BEST}"
        )
    return planned


def with_epochs(configuration: Mapping[str, Any], epochs: int | None) -> dict[str, Any]:
    """Return a configuration with another number of epochs; None for its own."""
    if epochs is None:
        return dict(configuration)
    return {**configuration, "trainer": {**configuration["trainer"], _EPOCHS: epochs}}


def set_results_aside(configuration: Mapping[str, Any], folder: Path, planned: int) -> None:
    """Move the results of the shorter training to `earlier/N_epochs`, and let the record say what is trained now.

    A second call after a kill completes what the first began. Checkpoints follow the record, see `align_checkpoints`.

    Args:
        configuration: configuration with the larger number of epochs.
        folder: the run's folder.
        planned: number of epochs of the shorter training.

    Raises:
        UserError: if the best checkpoint cannot be read, before anything is changed.
    """
    aside = folder / EARLIER / f"{planned}_epochs"
    best, kept = folder / CHECKPOINTS / BEST, aside / BEST
    # what may fail comes first, while the folder is still that of a finished run
    if best.is_file():
        read_checkpoint(best)
    aside.mkdir(parents=True, exist_ok=True)
    if best.is_file() and not kept.is_file():
        write_whole(kept, lambda temporary: shutil.copy2(best, temporary))
    results = [path for path in folder.iterdir() if path.name not in _CONTINUED and not path.name.startswith(".")]
    # without the file that marks it as finished, a run whose files are partly moved is one to resume
    for path in sorted(results, key=lambda path: (path.name != VALIDATION_FILE, path.name)):
        path.replace(aside / path.name)
    extend_record(configuration, folder, planned)
    log.info("%s: training resumes from epoch %d; its earlier results are in %s", folder, planned, aside)


def align_checkpoints(entries: Mapping[str, Any], folder: Path) -> None:
    """Let the checkpoints of a run name as many epochs as its record, without results of fewer epochs.

    Only a run that was resumed for more epochs is changed. The record decides: a process may have been killed after it
    was written and before the checkpoints, and one of an earlier version the other way round.

    Args:
        entries: entries of checkpoints of the run, see `runs.checkpoints.checkpoint_entries`; they follow its record.
        folder: the run's folder.

    Raises:
        UserError: if a checkpoint cannot be read or written.
    """
    if not (folder / EARLIER).is_dir():
        return
    for path in (folder / CHECKPOINTS / name for name in (BEST, LAST)):
        if path.is_file() and planned_epochs_of(read_checkpoint(path)) not in (None, planned_epochs_of(entries)):
            write_checkpoint({**without_results(path), **entries}, path)
