"""Tables, figures and the report made from finished runs."""

from edue_lightning.reporting.comparison import compare, comparison_table, paired_differences
from edue_lightning.reporting.html import ReportPaths, write_report
from edue_lightning.reporting.run_folder import Run, find_runs, read_run
from edue_lightning.reporting.verdict import judge

__all__ = [
    "ReportPaths",
    "Run",
    "compare",
    "comparison_table",
    "find_runs",
    "judge",
    "paired_differences",
    "read_run",
    "write_report",
]
