"""What a run's folder says of how it came about."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edue_lightning.errors import UserError
from edue_lightning.reporting.run_folder import CONFIGURATION_FILE


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
    record = {**configuration, "label": label, "command": _command_line(), "commit": _commit(), "image_note": note}
    path.write_text(yaml.safe_dump(record, sort_keys=False))


def _command_line() -> str:
    main = sys.modules["__main__"].__spec__
    program = ["-m", main.name] if main is not None else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


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
