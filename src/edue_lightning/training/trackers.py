"""Trackers of a run beside its CSV files: Weights & Biases, TensorBoard, MLflow; their errors never stop a training."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edue_lightning.errors import UserError
from edue_lightning.evaluation.result import Evaluation
from edue_lightning.evaluation.summary_values import summary_values
from edue_lightning.text import reason_of

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

MLFLOW_RUN_FILE = "mlflow_run.txt"
"""File of a run's folder with the id of its MLflow run, which a resumed training continues."""


class Tracker(ABC):
    """Place where one run is tracked."""

    name: str

    @abstractmethod
    def curves(self, member: str, steps: int) -> Logger:
        """Return Lightning's logger of one fit.

        Args:
            member: name of the member of a deep ensemble, or an empty text.
            steps: optimizer steps after which the fit resumes.
        """

    @abstractmethod
    def log_results(
        self,
        evaluation: Evaluation,
        detection: pd.DataFrame | None,
        distorted_cases: pd.DataFrame | None,
        cost: Mapping[str, float | str],
    ) -> None:
        """Log the results of the test.

        Args:
            evaluation: evaluation of the test cases.
            detection: content of `detection.csv`; None if no distortions were measured.
            distorted_cases: content of `distorted_cases.csv`; None as above.
            cost: content of `model.json`.
        """

    @abstractmethod
    def finish(self, failed: bool) -> None:
        """Mark the run as finished or failed."""

    @contextmanager
    def must_not_matter(self, what: str) -> Iterator[None]:
        """Turn any error within this block into a warning: the files of the run are already written."""
        try:
            yield
        except Exception as error:
            _warn(self.name, f"failed to {what}", error)


class TrackerSettings(ABC):
    """Settings of a tracker, node `logger` of the configuration."""

    @abstractmethod
    def start(self, name: str, folder: Path, configuration: Mapping[str, Any]) -> Tracker | None:
        """Start to track a run, or resume the one of the folder.

        Args:
            name: name of the run.
            folder: folder of the run.
            configuration: configuration to store with the run.

        Returns:
            the tracker; None if the run is not tracked, or in any but the first of several processes.
        """


@dataclass(frozen=True)
class CsvOnly(TrackerSettings):
    """No tracker beside the CSV files, which are always written."""

    def start(self, name: str, folder: Path, configuration: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Return None."""
        return


@dataclass(frozen=True)
class WandbSettings(TrackerSettings):
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

    def start(self, name: str, folder: Path, configuration: Mapping[str, Any]) -> Tracker | None:
        """Start a run, or resume the one of the folder; see `TrackerSettings.start`.

        Without key, network or server it runs offline; if that fails too, without W&B.
        """
        if self.mode == "disabled" or _is_other_process():
            return None
        # costs a second, and nothing where the mode is `disabled`
        import wandb

        earlier = sorted(folder.glob("wandb/*run-*-*"))
        resumed = {"id": earlier[-1].name.rsplit("-", 1)[-1], "resume": "allow"} if earlier else {}
        modes: list[Literal["online", "offline"]] = ["online", "offline"] if self.mode == "online" else ["offline"]
        for mode in modes:
            try:
                run = wandb.init(
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
            # an error of the tracker (no key, no network, a full disk) must not stop the training
            except Exception as error:
                _warn(_WandbTracker.name, f"cannot run {mode}", error)
            else:
                return _WandbTracker(run, folder)
        return None


@dataclass(frozen=True)
class TensorBoardSettings(TrackerSettings):
    """TensorBoard: curves, settings and results in the folder `tensorboard` of the run."""

    def __post_init__(self) -> None:
        _require("tensorboard")

    def start(self, name: str, folder: Path, configuration: Mapping[str, Any]) -> Tracker | None:  # noqa: ARG002
        """Track into the folder of the run; see `TrackerSettings.start`."""
        return None if _is_other_process() else _TensorBoardTracker(folder, configuration)


@dataclass(frozen=True)
class MlflowSettings(TrackerSettings):
    """Settings of MLflow for a run.

    Attributes:
        tracking_uri: address of the server or of a database, such as `sqlite:///mlflow.db`.
        experiment_name: experiment of the run; it is made if it does not exist.
        tags: tags of the run.
    """

    tracking_uri: str
    experiment_name: str = "edue-lightning"
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require("mlflow")

    def start(self, name: str, folder: Path, configuration: Mapping[str, Any]) -> Tracker | None:
        """Start a run, or resume the one of the folder; without a server it is not tracked. See `TrackerSettings`."""
        if _is_other_process():
            return None
        # the usual seven attempts take minutes where there is no server
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        stored = folder / MLFLOW_RUN_FILE
        run_id = stored.read_text().strip() if stored.is_file() else None
        tracker = _MlflowTracker(self, name, run_id)
        try:
            logger = tracker.logger("")
            tracker.run_id = logger.run_id
            if run_id is None:
                stored.write_text(f"{tracker.run_id}\n")
                logger.log_hyperparams(dict(configuration))
        except Exception as error:
            _warn(tracker.name, "cannot run", error)
            return None
        return tracker


class _WandbTracker(Tracker):
    name = "Weights & Biases"

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        self.run = run
        self.folder = folder

    def curves(self, member: str, steps: int) -> Logger:  # noqa: ARG002
        """Return a logger whose keys begin with the member."""
        return _Harmless(WandbLogger(experiment=self.run, save_dir=self.folder, prefix=member), self)

    def log_results(
        self,
        evaluation: Evaluation,
        detection: pd.DataFrame | None,
        distorted_cases: pd.DataFrame | None,
        cost: Mapping[str, float | str],
    ) -> None:
        """Log summary, tables, curves and panels."""
        from edue_lightning.evaluation.wandb_results import log_results

        log_results(self.run, evaluation, detection, distorted_cases, cost)

    def finish(self, failed: bool) -> None:
        """Finish the run with an exit code."""
        self.run.finish(exit_code=int(failed))


class _ValuesTracker(Tracker):
    """Tracker that shows single values: of the results, the finite numbers of their summary."""

    @abstractmethod
    def log_values(self, values: Mapping[str, float]) -> None:
        """Log values of the whole run."""

    def log_results(
        self,
        evaluation: Evaluation,
        detection: pd.DataFrame | None,
        distorted_cases: pd.DataFrame | None,  # noqa: ARG002
        cost: Mapping[str, float | str],
    ) -> None:
        """Log the values of the summary."""
        self.log_values(_numbers(summary_values(evaluation, detection, cost)))


class _TensorBoardTracker(_ValuesTracker):
    name = "TensorBoard"

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder = folder
        self.configuration = configuration

    def _logger(self, member: str, **arguments: Any) -> TensorBoardLogger:
        return TensorBoardLogger(self.folder, name="tensorboard", version=member, default_hp_metric=False, **arguments)

    def curves(self, member: str, steps: int) -> Logger:
        """Return a logger into the member's own folder; it replaces points of steps that are made again."""
        return _Harmless(self._logger(member, **({"purge_step": steps} if steps else {})), self)

    def log_values(self, values: Mapping[str, float]) -> None:
        """Log values as metrics of the settings."""
        logger = self._logger("")
        logger.log_hyperparams(dict(self.configuration), dict(values))
        logger.finalize("success")

    def finish(self, failed: bool) -> None:
        """Do nothing; the files are complete."""


class _MlflowTracker(_ValuesTracker):
    name = "MLflow"

    def __init__(self, settings: MlflowSettings, run_name: str, run_id: str | None) -> None:
        self.settings = settings
        self.run_name = run_name
        self.run_id = run_id

    def logger(self, member: str) -> MLFlowLogger:
        """Return Lightning's logger into the run."""
        return MLFlowLogger(
            self.settings.experiment_name,
            run_name=self.run_name,
            tracking_uri=self.settings.tracking_uri,
            tags=dict(self.settings.tags),
            prefix=member,
            run_id=self.run_id,
        )

    def curves(self, member: str, steps: int) -> Logger:  # noqa: ARG002
        """Return a logger whose keys begin with the member."""
        return _Harmless(self.logger(member), self)

    def log_values(self, values: Mapping[str, float]) -> None:
        """Log values as metrics of the run."""
        self.logger("").log_metrics(values)

    def finish(self, failed: bool) -> None:
        """Set the status of the run."""
        assert self.run_id is not None
        self.logger("").experiment.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


class _Harmless(Logger):
    """Logger of a tracker that stops after its first failure: a signal to stop may end it before the training saves."""

    def __init__(self, logger: Logger, tracker: Tracker) -> None:
        super().__init__()
        self._logger = logger
        self._tracker = tracker
        self._lost = False

    @property
    def name(self) -> str | None:
        """Name that the logger gives the experiment."""
        return self._logger.name

    @property
    def version(self) -> int | str | None:
        """Version that the logger gives the experiment."""
        return self._logger.version

    @property
    def save_dir(self) -> str | None:
        """Folder of the logger."""
        return self._logger.save_dir

    @property
    def experiment(self) -> Any:
        """Object of the tracker's library, for callbacks that log more than metrics."""
        return getattr(self._logger, "experiment", None)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics."""
        self._guarded("log the curves", lambda: self._logger.log_metrics(dict(metrics), step))

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the tracker has the whole configuration."""

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered."""
        self._guarded("write the curves", self._logger.save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the fit."""
        self._guarded("end the curves", lambda: self._logger.finalize(status))

    def _guarded(self, what: str, action: Callable[[], None]) -> None:
        if self._lost:
            return
        # set before the action, so that it stays set if the action fails or a signal interrupts it
        self._lost = True
        with self._tracker.must_not_matter(what):
            action()
            self._lost = False


def _numbers(values: Mapping[str, float | str]) -> dict[str, float]:
    """Return the finite numbers among some values; a tracker shows gaps for the others."""
    return {
        name: float(value) for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def _is_other_process() -> bool:
    return bool(rank_zero_only.rank != 0)  # type: ignore[attr-defined]


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f'logger={package} needs the package {package}; pip install "edue-lightning[loggers]", or choose logger=csv'
        )


def _warn(tracker: str, what: str, error: Exception) -> None:
    log.warning("%s %s: %s", tracker, what, reason_of(error))
