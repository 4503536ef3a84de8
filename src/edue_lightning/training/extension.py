"""Training of a run for more epochs than it was planned for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edue_lightning.atomic import write_whole
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import without_results, write_checkpoint
from edue_lightning.runs.files import CONFIGURATION_FILE, VALIDATION_FILE, read_mapping
from edue_lightning.runs.folder import AUTO, BEST, CHECKPOINTS
from edue_lightning.runs.record import extend_record
from edue_lightning.training.trackers import MLFLOW_RUN_FILE

log = logging.getLogger(__name__)

EARLIER = "earlier"
"""Folder of a run with the results of its earlier, shorter trainings."""

_EPOCHS = "max_epochs"
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
        UserError: if the schedule of the learning rate depends on the planned number of epochs.
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
    if schedule != _ENDLESS:
        raise UserError(
            f"trainer.{_EPOCHS}={wanted}: {folder} was planned for {planned} epochs with optimizer.schedule="
            f"{schedule}, which ends with them, so it cannot be trained on; begin a new training with "
            f"init={folder / CHECKPOINTS / BEST}"
        )
    return planned


def with_epochs(configuration: Mapping[str, Any], epochs: int | None) -> dict[str, Any]:
    """Return a configuration with another number of epochs; None for its own."""
    if epochs is None:
        return dict(configuration)
    return {**configuration, "trainer": {**configuration["trainer"], _EPOCHS: epochs}}


def set_results_aside(configuration: Mapping[str, Any], entries: Mapping[str, Any], folder: Path, planned: int) -> None:
    """Move the results of the shorter training to `earlier/N_epochs`, and let the record say what is trained now.

    A second call after a kill completes what the first began.

    Args:
        configuration: configuration with the larger number of epochs.
        entries: entries of checkpoints of that configuration, see `runs.checkpoints.checkpoint_entries`.
        folder: the run's folder.
        planned: number of epochs of the shorter training.

    Raises:
        UserError: if the best checkpoint cannot be read, before anything is changed, or written.
    """
    aside = folder / EARLIER / f"{planned}_epochs"
    best, kept = folder / CHECKPOINTS / BEST, aside / BEST
    # what may fail comes first, while the folder is still that of a finished run
    bare = without_results(best) if best.is_file() else None
    aside.mkdir(parents=True, exist_ok=True)
    if best.is_file() and not kept.is_file():
        write_whole(kept, lambda temporary: shutil.copy2(best, temporary))
    results = [path for path in folder.iterdir() if path.name not in _CONTINUED and not path.name.startswith(".")]
    # without the file that marks it as finished, a run whose files are partly moved is one to resume
    for path in sorted(results, key=lambda path: (path.name != VALIDATION_FILE, path.name)):
        path.replace(aside / path.name)
    if bare is not None:
        write_checkpoint({**bare, **entries}, best)
    extend_record(configuration, folder, planned)
    log.info("%s: is trained on from epoch %d; its earlier results are in %s", folder, planned, aside)
