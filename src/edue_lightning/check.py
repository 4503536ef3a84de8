"""Check of a data set before training: its numbers, its problems, and a few cases with all their outlines.

python -m edue_lightning.check data=NAME data.root=FOLDER [output=DIR]

The exit status is 0 for data that can be trained on, 1 for data that cannot, 2 for an invalid configuration.
"""

from __future__ import annotations

import sys

from edue_lightning.runtime.startup import imports_of_command, start_process

with imports_of_command(__name__):
    from omegaconf import DictConfig

    from edue_lightning.config.command import command, job_folder, stated_keys
    from edue_lightning.config.plan import keeping
    from edue_lightning.config.schema import resolved
    from edue_lightning.reporting.data_check import SHEET_FILE, SUMMARY_FILE, check
    from edue_lightning.runs.files import CASES_FILE

__all__ = ["check", "main"]


@command("check")
def main(config: DictConfig) -> None:
    """Run the command."""
    start_process()
    folder = job_folder()
    result = check(keeping(resolved(config), stated_keys()), folder)
    print(result.text())
    print(f"\n{folder}: {', '.join((SUMMARY_FILE, CASES_FILE, *([SHEET_FILE] if result.overview.cases else [])))}")
    if result.problems:
        print(result.problems_text(), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    # under its own name, not as __main__, so that the processes of launchers can import it
    from edue_lightning.check import main as importable_main

    importable_main()
