"""Training of one method on one data set, and the test of its best checkpoint: the body of `train`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edue_lightning.config.build import ImageFormat, build, build_distortions, build_mask_rule, build_method
from edue_lightning.config.plan import planned
from edue_lightning.config.schema import check_configuration
from edue_lightning.data import RaterDataModule
from edue_lightning.distortions import Distortions
from edue_lightning.errors import UserError
from edue_lightning.evaluation.cost import measure_cost
from edue_lightning.evaluation.measure import Measurement, measure_method
from edue_lightning.evaluation.shift import measure_shift
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import VALIDATION_METRICS
from edue_lightning.metrics.thresholds import BestThresholds
from edue_lightning.prediction.density import fit_density
from edue_lightning.prediction.triage import fit_triage
from edue_lightning.runs.checkpoints import BEST, CHECKPOINTS, add_results
from edue_lightning.runs.files import (
    CONFIGURATION_FILE,
    COST_FILE,
    METRICS_COLUMNS,
    METRICS_FILE,
    VALIDATION_FILE,
    read_mapping,
    write_table,
)
from edue_lightning.runs.folder import AUTO, folder_of, sole_writer
from edue_lightning.runs.record import (
    check_same_run,
    finished_value,
    write_configuration,
    write_mapping,
)
from edue_lightning.runs.trainer import build_test_trainer, check_trainer
from edue_lightning.runtime.devices import device_name, on_device, with_free_device
from edue_lightning.runtime.processes import is_first_process, quiet_unless_first
from edue_lightning.runtime.signals import StopSignals
from edue_lightning.training.callbacks import build_callbacks
from edue_lightning.training.checks import check_numbers
from edue_lightning.training.extension import align_checkpoints, planned_epochs, set_results_aside, with_epochs
from edue_lightning.training.fit import Experiment, check_begun, fit
from edue_lightning.training.temperature import calibrate
from edue_lightning.training.trackers import TrackerSettings
from edue_lightning.uncertainty import MaskRule

log = logging.getLogger(__name__)


@dataclass
class TrainConfiguration:
    """Top level of `conf/train.yaml`."""

    seed: int
    label: str | None
    select_by: str
    test: bool
    resume: str | None
    members_at_once: int
    checkpoint_every_steps: int | None
    compile: bool
    bootstrap_resamples: int
    triage_sensitivity: float | None
    data: dict[str, Any]
    network: dict[str, Any]
    method: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    inference: dict[str, Any]
    metrics: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any]
    distortions: dict[str, Any] | None = None
    mask: dict[str, Any] | None = None
    figures: bool = True
    temperature: Literal["validation"] | None = None
    callbacks: dict[str, Any] | None = None
    init: str | None = None
    plan: dict[str, Any] | None = None


# the plain U-Net, the reference for the cost of every method
_PLAIN = {
    "_target_": "edue_lightning.methods.SingleNetwork",
    "_partial_": True,
    "heads": {"_target_": "edue_lightning.networks.HeadLayout", "stages": "last"},
}


def train(configuration: Mapping[str, Any], folder: Path) -> float:
    """Train, validate and test according to a configuration.

    Args:
        configuration: resolved and plain configuration, as `conf/train.yaml` composes it.
        folder: folder of the run, see `docs/train.md`. New or without results, unless `resume` asks to resume an
            interrupted run, which then ends with the weights of an uninterrupted one, or to train a run for more
            epochs. Otherwise a finished run is unchanged.

    Returns:
        `select_by` on the validation cases at the best checkpoint, averaged over structures: the objective of a search
        for settings.

    Raises:
        UserError: if the configuration or data cannot be used, before any training; or if the folder contains a run
            that must not be replaced, or that another process is writing.
        SystemExit: if a scheduler stops the process, see `StopSignals`.
    """
    check_training(configuration)
    configuration = planned_training(configuration, folder)
    quiet_unless_first()
    signals = StopSignals()
    signals.listen()
    planned = planned_epochs(configuration, folder)
    resuming = _is_resumed(with_epochs(configuration, planned), folder)
    if resuming and planned is None:
        found = finished_value(folder, configuration["select_by"])
        if found is not None:
            log.info("%s: is already finished, and is not run again", folder)
            return found
    with with_free_device(configuration["trainer"]) as trainer:
        settings: TrackerSettings = build(configuration["logger"], "logger")
        distortions = build_distortions(configuration.get("distortions"))
        experiment = Experiment.of(configuration)
        # refuses a device that does not exist, too
        processes = None if planned is None else build_test_trainer(trainer).world_size
        with sole_writer(folder, folder / CHECKPOINTS):
            check_begun(experiment, folder, resuming, processes)
            if resuming and is_first_process():
                if planned is not None:
                    set_results_aside(configuration, folder, planned)
                align_checkpoints(experiment.checkpoint_entries(), folder)
            return _run(experiment, trainer, distortions, settings, folder, signals, resuming)


def check_training(configuration: Mapping[str, Any]) -> None:
    """Check a configuration of `conf/train.yaml` before any work.

    Raises:
        UserError: naming the invalid setting.
    """
    check_configuration(configuration, TrainConfiguration)
    if configuration["select_by"] not in VALIDATION_METRICS:
        known = ", ".join(VALIDATION_METRICS)
        raise UserError(f"select_by={configuration['select_by']}: not a validation metric; known: {known}")
    check_trainer(configuration["trainer"])
    build_callbacks(configuration.get("callbacks"))
    check_numbers(configuration)
    # reading the data may take long
    build(configuration["loss"], "loss")
    sensitivity = configuration["triage_sensitivity"]
    if sensitivity is not None and not 0 < sensitivity <= 1:
        raise UserError(f"triage_sensitivity must be above 0 and at most 1, or null, not {sensitivity}")
    if configuration["members_at_once"] > 1 and configuration["trainer"].get("devices") not in (1, "1"):
        raise UserError(
            f"members_at_once={configuration['members_at_once']}: each member is trained on one device, so "
            "trainer.devices must be 1"
        )


def planned_training(configuration: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a configuration with plain values in place of `plan=auto`, see `config.plan.planned`.

    A run that is resumed keeps the plan of its record, so that its training cases are not measured again.

    Args:
        configuration: resolved and checked configuration of `conf/train.yaml`.
        folder: folder of the run.

    Raises:
        UserError: if the data cannot be read, or the plan cannot be made.
    """
    path = folder / CONFIGURATION_FILE
    resumed = configuration["resume"] is not None and path.is_file()
    return planned(configuration, read_mapping(path).get("plan") if resumed else None)


def _is_resumed(configuration: Mapping[str, Any], folder: Path) -> bool:
    """Return whether the folder contains a run of this configuration that `resume` asks to resume.

    Raises:
        UserError: if `resume` is a path without a run, or the run has another configuration.
    """
    resume = configuration["resume"]
    if resume is None:
        return False
    if resume != AUTO and folder_of(resume).resolve() != folder.resolve():
        raise UserError(
            f"resume={resume}: no such run, or another folder was chosen (hydra.run.dir); give the folder of a run"
        )
    if resume == AUTO and not (folder / CONFIGURATION_FILE).is_file():
        return False
    check_same_run(configuration, folder)
    return True


def _run(
    experiment: Experiment,
    trainer_node: Mapping[str, Any],
    distortions: Distortions | None,
    settings: TrackerSettings,
    folder: Path,
    signals: StopSignals,
    resuming: bool,
) -> float:
    """Train, measure and write all results."""
    configuration, data, method = experiment.configuration, experiment.data, experiment.method
    label = configuration["label"] or method.label
    if not resuming and is_first_process():
        write_configuration(configuration, label, data.note, folder, experiment.cases)
    tracker = settings.start(f"{label}-{data.name}-{configuration['seed']}", folder, {**configuration, "label": label})
    try:
        seconds = fit(experiment, trainer_node, folder, signals, tracker)
        trainer = build_test_trainer(trainer_node)
        if configuration.get("temperature") == "validation":
            calibrate(method, data, trainer, folder / CHECKPOINTS / BEST)
        resamples = int(configuration["bootstrap_resamples"])
        metric_settings = experiment.metric_settings
        of_validation = Measurement(label, "val", metric_settings, resamples, figures=False)
        thresholds = BestThresholds(method.structures, metric_settings, readout=method.readout)
        validation = measure_method(method, data, of_validation, trainer, thresholds=thresholds)
        facts = {"thresholds": thresholds.thresholds(), "raters": int(validation.cases["n_raters"].max())}
        rule = build_mask_rule(configuration.get("mask"), method, facts)
        if rule.rule != MaskRule.rule:
            method.readout = replace(method.readout, mask=rule)
            validation = measure_method(method, data, of_validation, trainer)
        density = fit_density(method, data, trainer)
        sensitivity = configuration["triage_sensitivity"]
        triage = None
        if sensitivity is not None:
            triage = fit_triage(method, data, metric_settings, float(sensitivity), trainer).as_dict()
        if is_first_process():
            add_results(folder / CHECKPOINTS / BEST, triage=triage, mask_facts=facts, density=density)
            with on_device(method, trainer.strategy.root_device):
                cost = _cost(method, data, configuration, validation.members, seconds)
            write_mapping(cost, folder / COST_FILE)
        if configuration["test"]:
            figures = bool(configuration.get("figures", True))
            of_test = Measurement(label, "test", metric_settings, resamples, figures)
            evaluation = measure_method(method, data, of_test, trainer, density)
            detection = distorted_cases = None
            if distortions is not None:
                chosen_by, shift = (
                    measure_shift(method, data, distortions, label, split, metric_settings, trainer, density)
                    for split in ("val", "test")
                )
                chosen_by.write_validation(folder)
                shift.write(folder)
                detection, distorted_cases = shift.detection_frame(), shift.cases_frame()
            evaluation.write(folder)
            if tracker is not None:
                with tracker.must_not_matter("log the evaluation"):
                    tracker.log_results(evaluation, detection, distorted_cases, cost)
            log.info("%s\n%s", folder, evaluation.headline())
        measured, table_file = (evaluation, METRICS_FILE) if configuration["test"] else (validation, VALIDATION_FILE)
        lines = (measured.undefined_line(table_file), measured.missing_intervals_line(table_file))
        if is_first_process():
            for line in filter(None, lines):
                log.warning("%s", line)
            # last, since this file marks the run as finished
            write_table(validation.metrics_frame(), METRICS_COLUMNS, folder / VALIDATION_FILE)
    finally:
        if tracker is not None:
            failed = sys.exc_info()[0] is not None
            with tracker.must_not_matter("finish"):
                tracker.finish(failed)
    return validation.summary.means()[configuration["select_by"]]


def _cost(
    method: SegmentationMethod,
    data: RaterDataModule,
    configuration: Mapping[str, Any],
    members: int,
    train_seconds: float,
) -> dict[str, float | str]:
    """Return the content of `model.json`, measured on the method's device."""
    plain = build_method({**configuration, "method": _PLAIN}, ImageFormat.of(data.source)).to(method.device)
    image = data.single_batch("val", 0).image.to(method.device)
    temperature = method.temperature_by_structure or {}
    return {
        **asdict(measure_cost(method, plain, image)),
        **{f"temperature_{name}": value for name, value in temperature.items()},
        "members": members,
        "train_seconds": train_seconds,
        "device": device_name(method.device),
    }
