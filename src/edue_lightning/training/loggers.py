"""Loggers of training curves: always CSV, and Weights & Biases, whose errors never stop a training."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edue_lightning.text import reason_of

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbSettings:
    """Settings of Weights & Biases for a run.

    Attributes:
        mode: `offline` (files in the run's folder, `wandb sync` uploads them), `online` or `disabled`.
        project: project of the run.
        entity: user or team; None for the owner of the API key.
        group: name of runs that belong together, such as one method's seeds.
        tags: tags of the run.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "edue-lightning"
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = field(default_factory=tuple)

    def start(self, name: str, folder: Path, configuration: Mapping[str, Any]) -> wandb.Run | None:
        """Start a run, or resume the one of the folder.

        Without key, network or server it runs offline; if that fails too, without W&B.

        Args:
            name: name of the run.
            folder: folder of the run, in which a folder `wandb` is made.
            configuration: configuration to store with the run.

        Returns:
            the run; None if disabled, impossible, or in any but the first of several processes.
        """
        if self.mode == "disabled" or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return None
        # costs a second, and nothing where the mode is `disabled`
        import wandb

        earlier = sorted(folder.glob("wandb/*run-*-*"))
        resumed = {"id": earlier[-1].name.rsplit("-", 1)[-1], "resume": "allow"} if earlier else {}
        modes: list[Literal["online", "offline"]] = ["online", "offline"] if self.mode == "online" else ["offline"]
        for mode in modes:
            try:
                return wandb.init(
                    mode=mode,
                    dir=folder,
                    name=name,
                    project=self.project,
                    entity=self.entity,
                    group=self.group,
                    tags=list(self.tags),
                    config=dict(configuration),
                    **resumed,  # type: ignore[arg-type]
                    reinit="finish_previous",
                    settings=wandb.Settings(
                        silent=True, console="off", init_timeout=30, login_timeout=10, finish_timeout=60
                    ),
                )
            # an error of the logger (no key, no network, a full disk) must not stop the training
            except Exception as error:
                _warn(f"cannot run {mode}", error)
        return None


@contextmanager
def wandb_must_not_matter(what: str) -> Iterator[None]:
    """Turn any error of W&B within this block into a warning: the files of the run are already written."""
    try:
        yield
    except Exception as error:
        _warn(f"failed to {what}", error)


def _warn(what: str, error: Exception) -> None:
    reason = reason_of(error)
    log.warning("Weights & Biases %s: %s", what, reason)


class _HarmlessWandbLogger(WandbLogger):
    """Logger that stops after its first failure: a signal to stop may end W&B before the training has saved."""

    _lost = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; failures become a warning."""
        if self._lost:
            return
        self._lost = True
        with wandb_must_not_matter("log the curves"):
            super().log_metrics(metrics, step)
            self._lost = False


def training_loggers(folder: Path, run: wandb.Run | None, member: int | None, steps: int = 0) -> list[Logger]:
    """Return the loggers of one fit.

    Args:
        folder: folder of the run; the curves go to `logs/metrics.csv`, for a member to `logs/member_M/metrics.csv`.
        run: Weights & Biases run, or None.
        member: position in a deep ensemble, or None.
        steps: optimizer steps after which the fit resumes; the curves up to there are kept.
    """
    name = _name(member)
    loggers: list[Logger] = [_csv_logger(folder, name, steps)]
    if run is not None:
        loggers.append(_HarmlessWandbLogger(experiment=run, save_dir=folder, prefix=name))
    return loggers


def log_curves(folder: Path, run: wandb.Run, member: int) -> None:
    """Log a member's curves, which another process wrote, to Weights & Biases."""
    logger = _HarmlessWandbLogger(experiment=run, save_dir=folder, prefix=_name(member))
    for row in _rows(Path(CSVLogger(folder, name=_LOGS, version=_name(member)).log_dir) / _CURVES):
        step = int(row.pop("step"))
        logger.log_metrics({name: float(value) for name, value in row.items() if value}, step=step)


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
