"""Command that compares all finished runs below a folder.

python -m edue_lightning.report runs=DIR [output=DIR] [reference=edue] [figures=screen]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edue_lightning.runtime.startup import imports_of_command, start_process

with imports_of_command(__name__):
    from omegaconf import DictConfig

    from edue_lightning.config.command import command
    from edue_lightning.config.schema import check_configuration, resolved
    from edue_lightning.reporting import Report, write_report
    from edue_lightning.reporting.charts.draw import FigureForm


@dataclass
class ReportConfiguration:
    """Top level of `conf/report.yaml`."""

    runs: str
    output: str
    reference: str
    figures: FigureForm


def report(configuration: Mapping[str, Any]) -> Report:
    """Write the report of all finished runs below a folder.

    Raises:
        UserError: if the folder does not exist or holds no finished run, or a run's files are damaged.
    """
    check_configuration(configuration, ReportConfiguration)
    runs, output = Path(configuration["runs"]), Path(configuration["output"])
    return write_report(runs, output, configuration["reference"], configuration["figures"])


@command("report")
def main(config: DictConfig) -> None:
    """Run the command."""
    start_process()
    written = report(resolved(config))
    print(f"{written.tables}\n\nintervals, verdict and figures: {written.html} (as text: {written.markdown.name})")


if __name__ == "__main__":
    # under its own name, not as __main__, so that the processes of launchers can import it
    from edue_lightning.report import main as importable_main

    importable_main()
