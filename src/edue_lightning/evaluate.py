"""Command that measures a trained model, or the predictions of any other one, on a split of a data set.

python -m edue_lightning.evaluate ckpt=PATH [split=test] [data=NAME ...]
python -m edue_lightning.evaluate predictions=DIR data=NAME [split=test]
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edue_lightning.runtime.startup import imports_of_command, start_process

with imports_of_command(__name__):
    from omegaconf import DictConfig

    from edue_lightning.config.command import command, job_folder
    from edue_lightning.config.schema import check_configuration, resolved
    from edue_lightning.evaluation.run import EvaluateConfiguration, evaluate
    from edue_lightning.runtime.processes import launch

__all__ = ["evaluate", "main"]

log = logging.getLogger(__name__)


def _evaluate_and_log(configuration: Mapping[str, Any], folder: Path) -> None:
    evaluation = evaluate(configuration, folder)
    log.info("%s\n%s", folder, evaluation.headline())


@command("evaluate")
def main(config: DictConfig) -> None:
    """Run the command."""
    start_process()
    configuration = resolved(config)
    check_configuration(configuration, EvaluateConfiguration)
    if configuration["predictions"] is None:
        launch(_evaluate_and_log, configuration, job_folder())
    else:
        _evaluate_and_log(configuration, job_folder())


if __name__ == "__main__":
    # under its own name, not as __main__, so that the processes of launchers can import it
    from edue_lightning.evaluate import main as importable_main

    importable_main()
