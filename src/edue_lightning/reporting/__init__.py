"""Tables, figures and the report made from finished runs."""

from edue_lightning.reporting.comparison import compare, comparison_table, paired_differences
from edue_lightning.reporting.folds import pool_folds
from edue_lightning.reporting.out_of_distribution import with_detection
from edue_lightning.reporting.report import Report, write_report
from edue_lightning.reporting.verdict import judge
from edue_lightning.runs.files import Run, find_runs, read_run

__all__ = [
    "Report",
    "Run",
    "compare",
    "comparison_table",
    "find_runs",
    "judge",
    "paired_differences",
    "pool_folds",
    "read_run",
    "with_detection",
    "write_report",
]
