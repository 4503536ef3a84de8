"""Command that writes any data set as a folder with a manifest, in files that every program opens.

python -m edue_lightning.convert data=NAME data.root=FOLDER output=DIR
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edue_lightning.runtime.startup import imports_of_command, start_process

with imports_of_command(__name__):
    from omegaconf import DictConfig

    from edue_lightning.config.build import build_data
    from edue_lightning.config.command import command
    from edue_lightning.config.schema import check_configuration, resolved
    from edue_lightning.data.conversion import require_empty, write_manifest
    from edue_lightning.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class ConvertConfiguration:
    """Top level of `conf/convert.yaml`."""

    seed: int
    output: str
    data: dict[str, Any] | None = None


def convert(configuration: Mapping[str, Any], folder: Path) -> int:
    """Write a data set as a folder with a manifest, see `write_manifest`.

    Args:
        configuration: resolved and plain, as `conf/convert.yaml` composes it.
        folder: folder for the files, new or empty.

    Returns:
        the number of cases.

    Raises:
        UserError: if the configuration or the data is invalid, before anything is written; if the folder is not empty;
            or if a file cannot be written.
    """
    check_configuration(configuration, ConvertConfiguration)
    if configuration.get("data") is None:
        raise UserError("no data set to convert; choose one with data=NAME")
    require_empty(folder)
    return write_manifest(build_data(configuration), folder)


@command("convert")
def main(config: DictConfig) -> None:
    """Run the command."""
    start_process()
    configuration = resolved(config)
    folder = Path(configuration["output"])
    cases = convert(configuration, folder)
    log.info(
        "%s: %d cases; read it with data=manifest data.root=%s data.source.standardise=false", folder, cases, folder
    )


if __name__ == "__main__":
    # under its own name, not as __main__, so that the processes of launchers can import it
    from edue_lightning.convert import main as importable_main

    importable_main()
