"""Lightning's loggers of training curves: always CSV, and that of the run's tracker."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edue_lightning.training.trackers import Tracker


def training_loggers(folder: Path, tracker: Tracker | None, member: int | None, steps: int = 0) -> list[Logger]:
    """Return the loggers of one fit.

    Args:
        folder: folder of the run; the curves go to `logs/metrics.csv`, for a member to `logs/member_M/metrics.csv`.
        tracker: tracker of the run, or None.
        member: position in a deep ensemble, or None.
        steps: optimizer steps after which the fit resumes; the curves up to there are kept.
    """
    name = _name(member)
    loggers: list[Logger] = [_csv_logger(folder, name, steps)]
    if tracker is not None:
        loggers.append(tracker.curves(name, steps))
    return loggers


def log_curves(folder: Path, tracker: Tracker, member: int) -> None:
    """Log a member's curves, which another process wrote, to the run's tracker."""
    logger = tracker.curves(_name(member), 0)
    for row in _rows(Path(CSVLogger(folder, name=_LOGS, version=_name(member)).log_dir) / _CURVES):
        step = int(row.pop("step"))
        logger.log_metrics({name: float(value) for name, value in row.items() if value}, step=step)
    logger.finalize("success")


_LOGS, _CURVES = "logs", "metrics.csv"


def _name(member: int | None) -> str:
    return "" if member is None else f"member_{member}"


@rank_zero_only
def _keep_curves(logger: CSVLogger, steps: int) -> None:
    """Pass the curves of the first `steps` steps, which an earlier process wrote, to a new logger.

    The logger deletes an existing file, so the file is moved until its content is written again.
    """
    written = Path(logger.log_dir) / _CURVES
    kept = written.with_suffix(".earlier.csv")
    rows = [row for path in (kept, written) for row in _rows(path) if int(row["step"]) < steps]
    # a process that was killed after writing the curves again leaves each row twice
    rows = list({tuple(row.items()): row for row in rows}.values())
    if written.is_file() and not kept.is_file():
        written.replace(kept)
    logger.experiment.metrics.extend(rows)
    logger.save()
    kept.unlink(missing_ok=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        # a line that was incomplete when the process was killed lacks fields
        return [row for row in csv.DictReader(file) if None not in row.values() and (row.get("step") or "").isdigit()]


def _csv_logger(folder: Path, name: str, steps: int) -> CSVLogger:
    logger = CSVLogger(folder, name=_LOGS, version=name)
    _keep_curves(logger, steps)
    return logger
