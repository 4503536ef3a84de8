"""Command that trains one method on one data set, then tests its best checkpoint.

python -m edue_lightning.train experiment=NAME [overrides]
"""

from __future__ import annotations

from edue_lightning.runtime.startup import imports_of_command, start_process

with imports_of_command(__name__):
    from omegaconf import DictConfig

    from edue_lightning.config.command import command, job_folder, stated_keys
    from edue_lightning.config.plan import keeping
    from edue_lightning.config.schema import resolved
    from edue_lightning.runs.folder import register_run_folder
    from edue_lightning.runtime.processes import launch
    from edue_lightning.training.run import check_training, planned_training, train

__all__ = ["main", "train"]

register_run_folder()


@command("train")
def main(config: DictConfig) -> float | None:
    """Run the command; a sweeper that searches gets `select_by` on the validation cases."""
    start_process()
    configuration = keeping(resolved(config), stated_keys())
    check_training(configuration)
    # once, and not in every process
    return launch(train, planned_training(configuration, job_folder()), job_folder())


if __name__ == "__main__":
    # under its own name, not as __main__, so that the processes of launchers can import it
    from edue_lightning.train import main as importable_main

    importable_main()
