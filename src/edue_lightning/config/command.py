"""What every command shares: one-line errors, and its job's folder."""

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
    """Turn a `UserError` into its message on standard error and exit status 2, an interrupt into one line and 130."""

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
