"""The shared parts of all commands: one-line errors, and the job's folder."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from edue_lightning.errors import UserError

Result = TypeVar("Result")


def command(function: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Report a `UserError` in one line with exit status 2, and an interrupt in one line with exit status 130."""

    @functools.wraps(function)
    def run(config: DictConfig) -> Result:
        try:
            return function(config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def job_folder() -> Path:
    """Return the output folder that Hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)
