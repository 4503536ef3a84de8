"""What a run's folder says of how it came about."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from edue_lightning.atomic import write_whole
from edue_lightning.errors import UserError
from edue_lightning.metrics import MEAN_STRUCTURE
from edue_lightning.runs.files import (
    CONFIGURATION_FILE,
    METRICS_COLUMNS,
    VALIDATION_FILE,
    read_mapping,
    read_table,
)

START_ONLY_KEYS = frozenset({"resume", "logger", "members_at_once", "checkpoint_every_steps"})
"""Top-level keys of the configuration that may differ between two starts of one run."""

# the label is recorded as the method names itself
_NOT_COMPARED = START_ONLY_KEYS | {"label"}


def write_configuration(configuration: Mapping[str, Any], label: str, note: str | None, folder: Path) -> None:
    """Write `config.yaml`: the resolved configuration, the command, the commit and what readers must be told.

    Args:
        configuration: resolved and plain.
        label: the method's name in tables.
        note: what a reader of any figure from this data must be told, or None.
        folder: of the run; made if need be.

    Raises:
        UserError: if the folder already holds a run.
    """
    path = folder / CONFIGURATION_FILE
    if path.exists():
        raise UserError(f"{folder}: already holds a run, and nothing is overwritten; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    record = {**configuration, "label": label, "command": command_line(), "commit": _commit(), "image_note": note}
    write_whole(path, lambda temporary: temporary.write_text(yaml.safe_dump(record, sort_keys=False)))


def check_same_run(configuration: Mapping[str, Any], folder: Path) -> None:
    """Check that a folder holds a run of a configuration.

    Args:
        configuration: resolved and plain.
        folder: of the run.

    Raises:
        UserError: if there is no run, or one of another configuration.
    """
    path = folder / CONFIGURATION_FILE
    if not path.is_file():
        raise UserError(f"{folder}: holds no run that could go on")
    recorded = read_mapping(path)
    differing = [
        name for name in configuration if name not in _NOT_COMPARED and configuration[name] != recorded.get(name)
    ]
    if differing:
        raise UserError(
            f"{folder}: holds a run with another {', '.join(differing)}, and nothing is overwritten; choose another "
            f"folder, or go on with that run by its own command and resume=auto: {recorded.get('command')}"
        )


def finished_value(folder: Path, metric: str) -> float | None:
    """Return what a finished run found on its validation cases, None of one that is not finished.

    Args:
        folder: of the run.
        metric: whose mean over structures is wanted.
    """
    if not (folder / VALIDATION_FILE).is_file():
        return None
    found = read_table(folder / VALIDATION_FILE, METRICS_COLUMNS)
    values = found[found["metric"] == metric].set_index("structure")["value"]
    return float(values[MEAN_STRUCTURE] if MEAN_STRUCTURE in values else values.iloc[0])


def write_mapping(values: Mapping[str, Any], path: Path) -> None:
    """Write keys and values as JSON."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(dict(values), indent=2) + "\n"))


def command_line() -> str:
    """Return the command that makes this run, for one run of many the one that makes it alone."""
    if not HydraConfig.initialized():
        return shlex.join(["python", *sys.argv])
    hydra = HydraConfig.get()
    # a launcher may run this in a process whose own command line says nothing
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    directories = [part for folder in folders for part in ("--config-dir", os.path.relpath(folder, hydra.runtime.cwd))]
    own = [override for override in hydra.overrides.hydra if override != "hydra.mode=RUN"]
    overrides = [*hydra.overrides.task, *(own if hydra.mode == RunMode.RUN else [])]
    return shlex.join(["python", "-m", f"edue_lightning.{hydra.job.name}", *directories, *overrides])


def _commit() -> str | None:
    """Return the commit of the checkout that this code runs from, `+` marking uncommitted changes."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
