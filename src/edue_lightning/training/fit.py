"""The fit of a method: its trainees one after the other, or several members of an ensemble at a time."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from edue_lightning.atomic import remove_unfinished
from edue_lightning.config.build import (
    ImageFormat,
    build,
    build_data,
    build_method,
    build_metric_settings,
    with_levels,
)
from edue_lightning.data import RaterDataModule
from edue_lightning.data.identity import TrainingCases, identities
from edue_lightning.errors import UserError
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import LOWER_IS_BETTER, VALIDATION_METRICS, CaseTable, MetricSettings
from edue_lightning.runs.checkpoints import (
    BEST,
    CHECKPOINTS,
    LAST,
    checkpoint_entries,
    read_checkpoint,
    save_method,
    training_cases,
)
from edue_lightning.runs.record import INIT_DIGEST, check_same_beginning, check_same_cases, training_entries
from edue_lightning.runs.trainer import build_trainer
from edue_lightning.runtime.processes import is_first_process, process_number, run_processes
from edue_lightning.runtime.signals import StopSignals
from edue_lightning.text import named
from edue_lightning.training.callbacks import build_callbacks
from edue_lightning.training.checks import (
    check_loss,
    check_raters,
    check_sizes,
    check_structure_weights,
    check_turns,
    check_validated,
    check_validation_batches,
)
from edue_lightning.training.initial import InitialWeights
from edue_lightning.training.loggers import log_curves, training_loggers
from edue_lightning.training.progress import EpochLines
from edue_lightning.training.resume import BestCheckpoint, ResumePoint, check_processes, resume_state
from edue_lightning.training.trackers import Tracker
from edue_lightning.training.validation import ValidationMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A configuration with the data, method and metric settings built from it."""

    configuration: Mapping[str, Any]
    data: RaterDataModule
    method: SegmentationMethod
    metric_settings: MetricSettings
    cases: TrainingCases | None
    initial: InitialWeights | None = None

    @classmethod
    def of(cls, configuration: Mapping[str, Any], cases: TrainingCases | None = None) -> Experiment:
        """Build an experiment, with all weights drawn from the configuration's seed.

        Args:
            configuration: resolved, plain and checked configuration, as `conf/train.yaml` composes it.
            cases: cases of training and validation, if another process has identified and checked them already. Else
                the first process does; in others they stay None.

        Raises:
            UserError: if the data or settings cannot be used.
        """
        pl.seed_everything(int(configuration["seed"]), workers=True, verbose=False)
        data = build_data(configuration)
        data.require("train", "val", "test")
        image_format = ImageFormat.of(data.source)
        check_structure_weights(build(configuration["loss"], "loss"), image_format.structures)
        if cases is None and is_first_process():
            cases = {split: identities(data.source, data.splits[split]) for split in ("train", "val")}
            check_sizes(configuration, data, cases)
        configuration = with_levels(configuration, data)
        method = build_method(configuration, image_format)
        check_validated(configuration["trainer"], data.training_batches(), method)
        check_validation_batches(configuration["trainer"], len(data.val_dataloader()))
        check_raters(method, data)
        check_loss(method)
        if cases is not None:
            check_turns(method, cases)
        initial = None if configuration.get("init") is None else InitialWeights.read(configuration["init"])
        if initial is not None:
            configuration = {**configuration, INIT_DIGEST: initial.digest}
            initial.load_into(method)
            if is_first_process() and cases is not None:
                initial.check_cases(data, cases, configuration["data"])
        metric_settings = build_metric_settings(configuration["metrics"], method.structures)
        if configuration["compile"]:
            method.compile_networks()
        return cls(configuration, data, method, metric_settings, cases, initial)

    def checkpoint_entries(self, member: int | None = None) -> dict[str, Any]:
        """Return the entries of a checkpoint beside its weights, see `runs.checkpoints.checkpoint_entries`."""
        # so that evaluations know them too, see `runs.record.method_settings`
        known = {**self.configuration, **({} if self.cases is None else training_entries(self.cases))}
        earlier = None if self.initial is None else self.initial.cases
        return checkpoint_entries(known, ImageFormat.of(self.data.source), member, self.cases, earlier)


def check_begun(experiment: Experiment, folder: Path, resuming: bool, processes: int | None = None) -> None:
    """Check what a folder holds of a training that `fit` would continue, before anything in it is changed.

    Args:
        experiment: experiment to train.
        folder: folder of the run.
        resuming: whether the folder holds a run to resume.
        processes: number of processes that train, where steps are left for certain, else None.

    Raises:
        UserError: if its training cases or the checkpoint of `init` have changed since it began, a checkpoint cannot be
            read, or another number of processes wrote it.
    """
    if resuming:
        check_same_beginning(experiment.configuration, folder)
    if experiment.cases is None:
        return
    paths = [_folder(experiment, position, folder) / LAST for position in range(len(experiment.method.trainees()))]
    begun = [path for path in paths if path.is_file()]
    for path in begun:
        checkpoint = read_checkpoint(path)
        _require_same_cases(checkpoint, experiment.cases, path)
        if processes is not None:
            check_processes(checkpoint, processes, path)
    # before its first checkpoint
    if resuming and len(begun) < len(paths):
        check_same_cases(experiment.cases, folder)


def fit(
    experiment: Experiment, trainer: Mapping[str, Any], folder: Path, signals: StopSignals, tracker: Tracker | None
) -> float:
    """Fit every trainee, resuming from its last checkpoint, and leave the method with its best weights.

    Args:
        experiment: experiment to train.
        trainer: node of the configuration, with the devices to use.
        folder: folder of the run.
        signals: signals to stop.
        tracker: tracker of the run, or None.

    Returns:
        seconds of training, summed over the trainees.

    Raises:
        UserError: if `select_by` is undefined for the method, or a checkpoint cannot be written or read.
    """
    method, configuration = experiment.method, experiment.configuration
    trainees = method.trainees()
    at_once = min(configuration["members_at_once"], len(trainees))
    if at_once > 1:
        run_processes(_fit_share, at_once, at_once, dict(configuration), dict(trainer), folder, experiment.cases)
        if tracker is not None:
            with tracker.must_not_matter("log the members' curves"):
                for position in range(len(trainees)):
                    log_curves(folder, tracker, position)
    else:
        for position in range(len(trainees)):
            _fit_trainee(experiment, position, trainer, folder, signals, tracker)
    seconds = 0.0
    states: dict[str, list[Mapping[str, Any]]] = {BEST: [], LAST: []}
    for position in range(len(trainees)):
        for name, found in states.items():
            checkpoint = read_checkpoint(_folder(experiment, position, folder) / name)
            found.append(checkpoint["state_dict"])
            if name == LAST:
                seconds += resume_state(checkpoint)["seconds"]
    # the best weights last, since the method keeps them
    for name in (LAST, BEST):
        for trainee, state in zip(trainees, states[name], strict=True):
            trainee.load_state_dict(state)
        if trainees[0] is not method and is_first_process():
            save_method(method, folder / CHECKPOINTS / name, experiment.checkpoint_entries())
    return seconds


def _folder(experiment: Experiment, position: int, folder: Path) -> Path:
    """Return the folder of a trainee's checkpoints."""
    alone = experiment.method.trainees()[0] is experiment.method
    return folder / CHECKPOINTS / ("" if alone else f"member_{position}")


def _fit_share(
    index: int,
    count: int,
    configuration: Mapping[str, Any],
    trainer: Mapping[str, Any],
    folder: Path,
    cases: TrainingCases | None,
) -> None:
    """Fit every `count`th member of an ensemble, on its own device if there are several."""
    signals = StopSignals()
    signals.listen()
    experiment = Experiment.of(configuration, cases)
    if torch.cuda.is_available() and trainer["accelerator"] != "cpu":
        trainer = {**trainer, "devices": [index % torch.cuda.device_count()]}
    for position in range(index, len(experiment.method.trainees()), count):
        _fit_trainee(experiment, position, trainer, folder, signals, None)


def _fit_trainee(
    experiment: Experiment,
    position: int,
    trainer_node: Mapping[str, Any],
    folder: Path,
    signals: StopSignals,
    tracker: Tracker | None,
) -> None:
    """Fit one trainee to its end, from its last checkpoint if it has one."""
    configuration, data = experiment.configuration, experiment.data
    trainees = experiment.method.trainees()
    trainee = trainees[position]
    member = None if trainee is experiment.method else position
    if member is not None:
        # each member has its own order, augmentation and dropout; its weights were drawn one after the other
        member_seed = int(np.random.SeedSequence([configuration["seed"], position]).generate_state(1)[0])
        pl.seed_everything(member_seed, workers=True, verbose=False)
        data.set_order_seed(member_seed)
        log.info("member %d of %d", position + 1, len(trainees))
    if not is_first_process():
        # each process draws its own dropout; the draws for a case depend on the key of the case
        torch.manual_seed(torch.initial_seed() + process_number())
    own = _folder(experiment, position, folder)
    last, steps = own / LAST, 0
    if is_first_process():
        remove_unfinished(own)
    if last.is_file():
        checkpoint = read_checkpoint(last)
        if resume_state(checkpoint)["ended"]:
            return
        steps = int(checkpoint["global_step"])
        log.info("%s: resumes after %d steps", last, steps)
    metric = configuration["select_by"]
    keeper = BestCheckpoint(own, metric, lower_is_better=metric in LOWER_IS_BETTER)
    trainer = build_trainer(
        trainer_node,
        experiment.checkpoint_entries(member),
        logger=training_loggers(folder, tracker, member, steps),
        callbacks=[
            ValidationMetrics(
                CaseTable(trainee.structures, VALIDATION_METRICS, experiment.metric_settings, readout=trainee.readout)
            ),
            keeper,
            ResumePoint(last, signals, configuration["checkpoint_every_steps"]),
            EpochLines(),
            *build_callbacks(configuration.get("callbacks")),
        ],
        default_root_dir=folder,
        enable_progress_bar=sys.stderr.isatty(),
    )
    # with a number of steps, Lightning would count an epoch again that ended just before its checkpoint
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    trainer.fit(trainee, datamodule=data, ckpt_path=last if steps else None, weights_only=True)
    if keeper.best_model_score is None:
        raise UserError(
            "no validation ran once all of the method was trained, so no checkpoint could be chosen; set "
            "trainer.check_val_every_n_epoch=1, or train without early stopping"
        )
    # Lightning keeps the first checkpoint if the metric is always NaN
    if not keeper.best_model_score.isfinite():
        raise UserError(
            f"select_by={metric}: undefined on the validation cases, as the variance between "
            "members is for a single network; choose another metric, such as nll"
        )


def _require_same_cases(checkpoint: Mapping[str, Any], cases: TrainingCases | None, path: Path) -> None:
    """Check that a training resumes on the cases it began with.

    Raises:
        UserError: naming some of the cases that were added, removed or changed.
    """
    if cases is None:
        return
    earlier = training_cases(checkpoint)
    if earlier is None:
        log.warning("%s: does not record its training cases (earlier version), so they cannot be compared", path)
        return
    for split, now in cases.items():
        before = {case.case_id: case for case in earlier[split]}
        after = {case.case_id: case for case in now}
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        changed |= {name for name in before.keys() & after.keys() if not before[name].same_spacing(after[name])}
        if changed:
            raise UserError(
                f"{path}: the {split} cases have changed since the training began ({named(sorted(changed))}); restore "
                "them, or train anew in another folder"
            )
        # drawn by their position
        if [case.case_id for case in earlier[split]] != [case.case_id for case in now]:
            raise UserError(
                f"{path}: the {split} cases are listed in another order than when the training began, and their order "
                "decides which are drawn; restore it, or train anew in another folder"
            )
