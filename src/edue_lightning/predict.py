"""Command that writes masks, disagreement maps and a list of the cases to review, for new images.

python -m edue_lightning.predict ckpt=PATH input=FILE|FOLDER|TABLE output=DIR
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from edue_lightning.runtime.startup import imports_of_command, start_process

with imports_of_command(__name__):
    from omegaconf import DictConfig

    from edue_lightning.config.command import command
    from edue_lightning.config.schema import resolved
    from edue_lightning.prediction.run import TRIAGE_FILE, predict

__all__ = ["main", "predict"]

log = logging.getLogger(__name__)


@command("predict")
def main(config: DictConfig) -> None:
    """Run the command."""
    start_process()
    configuration = resolved(config)
    folder = Path(configuration["output"] or ".")
    found = predict(configuration, folder)
    flagged = found.triage.loc[found.triage["flagged"] == True, "case"].nunique()  # noqa: E712
    log.info(
        "%s: %d cases predicted, %d flagged for review, %d failed",
        folder / TRIAGE_FILE,
        found.triage["case"].nunique(),
        flagged,
        len(found.failed),
    )
    if found.failed:
        sys.exit(1)


if __name__ == "__main__":
    # under its own name, not as __main__, so that the processes of launchers can import it
    from edue_lightning.predict import main as importable_main

    importable_main()
