"""Where training curves go: CSV always, Weights & Biases beside it, which never stops a training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbSettings:
    """Where Weights & Biases keeps a run.

    Attributes:
        mode: `offline` (files in the run's folder, `wandb sync` uploads them), `online` or `disabled`.
        project: of the run.
        entity: user or team; None for the key's own.
        group: of runs that belong together, such as one method's seeds.
        tags: of the run.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "edue-lightning"
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = field(default_factory=tuple)

    def start(self, name: str, folder: Path, configuration: Mapping[str, Any]) -> wandb.Run | None:
        """Start a run; without key, network or server it goes on offline, and at the worst without W&B.

        Args:
            name: of the run.
            folder: the run's folder, which gets a folder `wandb`.
            configuration: stored with the run.

        Returns:
            the run; None where disabled, not possible, or not the first of several processes.
        """
        if self.mode == "disabled" or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return None
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
                    reinit="finish_previous",
                    settings=wandb.Settings(
                        silent=True, console="off", init_timeout=30, login_timeout=10, finish_timeout=60
                    ),
                )
            # whatever goes wrong in the logger (no key, no network, a full disk), the training matters more
            except Exception as error:
                _warn(f"cannot run {mode}", error)
        return None


@contextmanager
def wandb_must_not_matter(what: str) -> Iterator[None]:
    """Turn any error of W&B in this block into a warning: the files of the run are already written."""
    try:
        yield
    except Exception as error:
        _warn(f"failed to {what}", error)


def _warn(what: str, error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    log.warning("Weights & Biases %s: %s", what, reason)


def training_loggers(folder: Path, run: wandb.Run | None, member: int | None) -> list[Logger]:
    """Return the loggers of one fit.

    Args:
        folder: the run's folder; the curves go to `logs/metrics.csv`, for a member to `logs/member_M/metrics.csv`.
        run: the Weights & Biases run, if there is one.
        member: position in a deep ensemble, or None.
    """
    name = "" if member is None else f"member_{member}"
    loggers: list[Logger] = [CSVLogger(folder, name="logs", version=name)]
    if run is not None:
        loggers.append(WandbLogger(experiment=run, save_dir=folder, prefix=name))
    return loggers
