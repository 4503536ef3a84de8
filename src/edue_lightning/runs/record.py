"""The record of how a run came about: configuration, command and commit."""

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
    """Write `config.yaml`: the resolved configuration, the command, the commit and a caveat.

    Args:
        configuration: resolved and plain.
        label: the method's name in tables.
        note: caveat to show with every result on this data set, or None.
        folder: the run's folder, created if necessary.

    Raises:
        UserError: if the folder already holds a run.
    """
    path = folder / CONFIGURATION_FILE
    if path.exists():
        raise UserError(f"{folder}: already holds a run; choose another folder, or resume that run with resume=auto")
    folder.mkdir(parents=True, exist_ok=True)
    record = {**configuration, "label": label, "command": command_line(), "commit": _commit(), "image_note": note}
    write_whole(path, lambda temporary: temporary.write_text(yaml.safe_dump(record, sort_keys=False)))


def check_same_run(configuration: Mapping[str, Any], folder: Path) -> None:
    """Check that a folder holds a run of this configuration.

    Args:
        configuration: resolved and plain.
        folder: the run's folder.

    Raises:
        UserError: if it holds no run, or one of another configuration.
    """
    path = folder / CONFIGURATION_FILE
    if not path.is_file():
        raise UserError(f"{folder}: holds no run to resume; check the path, or leave out resume")
    recorded = read_mapping(path)
    differing = [
        name for name in configuration if name not in _NOT_COMPARED and configuration[name] != recorded.get(name)
    ]
    if differing:
        raise UserError(
            f"{folder}: holds a run with another {', '.join(differing)}; choose another folder, or resume that run by "
            f"its own command with resume=auto: {recorded.get('command')}"
        )


def finished_value(folder: Path, metric: str) -> float | None:
    """Return the value of a metric on a finished run's validation cases, None if the run is not finished.

    Args:
        folder: the run's folder.
        metric: name of the metric, averaged over structures.
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
    """Return the command that repeats this run; for a run of a sweep, the command that runs it alone."""
    if not HydraConfig.initialized():
        return shlex.join(["python", *sys.argv])
    hydra = HydraConfig.get()
    # not from sys.argv: a launcher may run this in a process of its own
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    directories = [part for folder in folders for part in ("--config-dir", os.path.relpath(folder, hydra.runtime.cwd))]
    own = [override for override in hydra.overrides.hydra if override != "hydra.mode=RUN"]
    overrides = [*hydra.overrides.task, *(own if hydra.mode == RunMode.RUN else [])]
    return shlex.join(["python", "-m", f"edue_lightning.{hydra.job.name}", *directories, *overrides])


def _commit() -> str | None:
    """Return the commit of the checkout this code runs from, with `+` for uncommitted changes, or None."""
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
