"""Measurement of a checkpoint, or of the predictions of any model, on a split of a data set: the body of `evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl

from edue_lightning.config.build import (
    ImageFormat,
    build_data,
    build_distortions,
    build_inference_changes,
    build_metric_settings,
    differing_preparation,
    mask_rule_for,
)
from edue_lightning.config.data_place import data_to_measure
from edue_lightning.config.schema import check_configuration, check_only_ours
from edue_lightning.config.slices import chosen_slicing, with_stored_values
from edue_lightning.data import RaterDataModule
from edue_lightning.data.images import ImageError
from edue_lightning.data.slices import HOW_TO_SLICE, Slicing
from edue_lightning.data.source import Subset
from edue_lightning.errors import UserError
from edue_lightning.evaluation.measure import Measurement, measure_method, measure_predictions
from edue_lightning.evaluation.prediction_folder import PredictionFolder
from edue_lightning.evaluation.prediction_writer import PredictionWriter
from edue_lightning.evaluation.result import Evaluation
from edue_lightning.evaluation.shift import measure_shift
from edue_lightning.evaluation.slices import VolumesAsSlices
from edue_lightning.evaluation.unseen import same_place, seen_cases
from edue_lightning.methods import Inference, InferenceChanges, SegmentationMethod
from edue_lightning.methods.test_time_augmentation import exchanges_axes, unequal_axes
from edue_lightning.runs.checkpoints import LoadedMethod, load_method, warn_of_other_window
from edue_lightning.runs.files import CONFIGURATION_FILE
from edue_lightning.runs.record import CAUTIONS, CKPT_MEASURED, READ_OUT, TRAINING, write_configuration
from edue_lightning.runs.trainer import build_test_trainer, check_seed, check_trainer
from edue_lightning.runtime.devices import with_free_device
from edue_lightning.runtime.processes import is_first_process, quiet_unless_first
from edue_lightning.uncertainty.mask_rule import HALF

log = logging.getLogger(__name__)

PREDICTIONS_FOLDER = "predictions"


@dataclass
class EvaluateConfiguration:
    """Top level of `conf/evaluate.yaml`."""

    ckpt: str | None
    predictions: str | None
    split: Literal["train", "val", "test", "all"]
    output: str
    save_predictions: bool
    label: str | None
    seed: int
    bootstrap_resamples: int
    trainer: dict[str, Any]
    metrics: dict[str, Any] | None = None
    inference: dict[str, Any] | None = None
    mask: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    allow_overlap: bool = False
    allow_other_preparation: bool = False
    distortions: dict[str, Any] | None = None
    figures: bool = True
    slice_axis: str | int | None = None
    slice_directions: str | None = None
    slice_window: list[float] | None = None
    slice_batch: int = 8


def evaluate(configuration: Mapping[str, Any], folder: Path) -> Evaluation:
    """Measure a checkpoint or a folder of predictions, according to a configuration.

    Args:
        configuration: resolved and plain configuration, as `conf/evaluate.yaml` composes it; without `data` or
            `metrics`, the checkpoint's own.
        folder: folder for the results, new or without results.

    Raises:
        UserError: if the checkpoint, the predictions or the data cannot be used or do not fit each other, or the folder
            already contains results.
    """
    check_configuration(configuration, EvaluateConfiguration)
    if (configuration["ckpt"] is None) == (configuration["predictions"] is None):
        raise UserError("set either ckpt=PATH (a trained model) or predictions=DIR (the predictions of any model)")
    if configuration["save_predictions"] and configuration["ckpt"] is None:
        raise UserError("save_predictions=true: the predictions of predictions=DIR are saved already; use ckpt=PATH")
    changes = build_inference_changes(configuration.get("inference"))
    if changes != InferenceChanges() and configuration["ckpt"] is None:
        raise UserError("inference: predictions=DIR are predicted already; use ckpt=PATH")
    check_seed(configuration["seed"])
    if configuration["bootstrap_resamples"] < 0:
        raise UserError(f"bootstrap_resamples must be at least 0, not {configuration['bootstrap_resamples']}")
    check_trainer(configuration["trainer"])
    if configuration.get("distortions") is not None and configuration["ckpt"] is None:
        raise UserError("distortions: predictions=DIR were made on undistorted images; use ckpt=PATH")
    slicing = chosen_slicing(configuration)
    if slicing is not None and configuration["ckpt"] is None:
        raise UserError("slice_axis: predictions=DIR are predicted already; use ckpt=PATH")
    if slicing is not None and configuration.get("distortions") is not None:
        raise UserError("distortions: not supported with slice_axis; remove one of them")
    pl.seed_everything(int(configuration["seed"]), workers=True, verbose=False)
    quiet_unless_first()
    if configuration["ckpt"] is None:
        evaluation = _predictions(configuration, folder)
    else:
        with with_free_device(configuration["trainer"]) as trainer:
            evaluation = _checkpoint(configuration, trainer, folder, slicing, changes)
    evaluation.write(folder)
    for line in (evaluation.undefined_line(), evaluation.missing_intervals_line()):
        if line and is_first_process():
            log.warning("%s", line)
    return evaluation


def _checkpoint(
    configuration: Mapping[str, Any],
    trainer_node: Mapping[str, Any],
    folder: Path,
    slicing: Slicing | None,
    changes: InferenceChanges,
) -> Evaluation:
    path = Path(configuration["ckpt"])
    loaded = load_method(path, changes, configuration.get("mask"))
    method: SegmentationMethod = loaded.method
    trained = loaded.configuration
    # a threshold of the training means the same in the same precision
    precision = trainer_node.get("precision") or (trained.get("trainer") or {}).get("precision", "32-true")
    trainer_node = {**trainer_node, "precision": precision}
    check_trainer(trainer_node)
    node = data_to_measure(configuration.get("data"), trained.get("data"), str(path))
    if slicing is not None and node is not None:
        node = with_stored_values(node)
    data = _data(node, str(path))
    density, volumes, measured = loaded.density, None, None
    if slicing is None:
        _require_format(loaded, data, path)
        if not configuration.get("allow_other_preparation"):
            _require_same_preparation(node, trained.get("data"), path)
        if is_first_process():
            _require_equal_axes(method, data, configuration["split"])
    else:
        allowed = bool(configuration.get("allow_other_preparation"))
        volumes = VolumesAsSlices(slicing, loaded, path, data, node or {}, allowed)
        # the limit of 2D images does not hold for volumes
        method, density = volumes.method(), None
    if is_first_process() and volumes is not None:
        measured = volumes.check(configuration["split"])
    cautions = []
    if is_first_process():
        # slices have no density at all
        if slicing is None:
            warn_of_other_window(loaded, path)
        # data.root alone says that the data set of the training has moved
        same_data = "_target_" not in (configuration.get("data") or {}) or same_place(node, trained.get("data"))
        seen = seen_cases(loaded.cases, data, same_data, configuration["split"], path, measured)
        if seen and not configuration.get("allow_overlap"):
            raise UserError(f"{seen}; measure other cases, or set allow_overlap=true")
        if seen:
            cautions.append(f"{seen}; their results are not those of unseen cases (allow_overlap=true)")
    label = configuration["label"] or trained.get("label") or method.label
    measurement = _measurement(configuration, configuration.get("metrics") or trained.get("metrics"), label, data)
    # masks follow the majority that they are measured against
    tie = measurement.settings.majority_tie
    rule = replace(method.readout.mask, majority_tie=tie)
    method.readout = replace(method.readout, majority_tie=tie, mask=rule)
    distortions = build_distortions(configuration.get("distortions"))
    inference = None if changes == InferenceChanges() else _node_of(loaded.method.inference)
    used = {"data": node, "seed": trained["seed"], "trainer": trainer_node, "inference": inference, TRAINING: trained}
    if is_first_process():
        _record({**configuration, **used, CKPT_MEASURED: loaded.measured}, label, data.note, folder, cautions)
    callbacks = []
    if configuration["save_predictions"]:
        callbacks.append(PredictionWriter(folder / PREDICTIONS_FOLDER, data, measurement.split, method.readout))
    trainer = build_test_trainer(trainer_node, callbacks=callbacks)
    evaluation = measure_method(method, data, measurement, trainer, density)
    if configuration["save_predictions"] and method.readout.mask.rule != HALF.rule and is_first_process():
        log.warning(
            "%s: holds probabilities, and not the rule for masks; measure them (predictions=) with %s",
            folder / PREDICTIONS_FOLDER,
            method.readout.mask.options,
        )
    if distortions is not None:
        settings, split = measurement.settings, measurement.split
        shift = measure_shift(method, data, distortions, label, split, settings, trainer, density)
        shift.write(folder)
    return evaluation


def _node_of(inference: Inference) -> dict[str, Any]:
    """Return the node `inference` of a training that predicts whole images so."""
    window = None if inference.window is None else list(inference.window)
    return {"_target_": "edue_lightning.methods.Inference", **asdict(inference), "window": window}


def _require_format(loaded: LoadedMethod, data: RaterDataModule, path: Path) -> None:
    """Check that images are of the kind that a model was trained for.

    Raises:
        UserError: if they are not.
    """
    found, wanted = ImageFormat.of(data.source), loaded.image_format
    if found != wanted:
        hint = f"; {HOW_TO_SLICE}" if found.spatial_dims > wanted.spatial_dims else ""
        raise UserError(f"{path}: was trained for {wanted}, but data={data.name} has {found}{hint}")
    try:
        wanted.require_storage(found.storage)
    except ImageError as error:
        raise UserError(f"data={data.name}: {error}") from error


def _require_equal_axes(method: SegmentationMethod, data: RaterDataModule, split: Subset) -> None:
    """Check that a method can predict the cases of a split with their voxel sizes.

    Raises:
        UserError: naming the first case that it cannot.
    """
    if exchanges_axes(method):
        for record in data.records(split):
            reason = unequal_axes(method, data.source.load(record.case_id).spacing)
            if reason is not None:
                raise UserError(f"data={data.name}: case {record.case_id!r}: {reason}; measure other cases")


def _require_same_preparation(node: Mapping[str, Any] | None, trained: Mapping[str, Any] | None, path: Path) -> None:
    """Check that the images are prepared as in training.

    Raises:
        UserError: naming the settings that differ.
    """
    if not node or not trained:
        return
    differing = differing_preparation(node, trained)
    if differing:
        wanted, other = (", ".join(f"{name}={values[which]}" for name, values in differing.items()) for which in (0, 1))
        raise UserError(
            f"{path}: was trained on images prepared with {wanted}, but data={node.get('name')} has {other}; use the "
            "settings of the training, or set allow_other_preparation=true"
        )


def _predictions(configuration: Mapping[str, Any], folder: Path) -> Evaluation:
    path = Path(configuration["predictions"])
    data = _data(data_to_measure(configuration.get("data"), None, f"predictions={path}"), f"predictions={path}")
    predictions = PredictionFolder(path, data.source.structures)
    place = path.resolve()
    if place.name == PREDICTIONS_FOLDER and (place.parent / CONFIGURATION_FILE).is_file():
        # saved by an evaluation, whose folder has a name of its own
        place = place.parent
    label = configuration["label"] or place.name
    measurement = _measurement(configuration, configuration.get("metrics"), label, data)
    # masks follow the majority that they are measured against
    tie = measurement.settings.majority_tie
    rule = mask_rule_for(configuration.get("mask"), data.source.structures, tie)
    predictions.readout = replace(predictions.readout, majority_tie=tie, mask=rule)
    predictions.set_exclusive(data.source.exclusive)
    interpolated = predictions.check(data.records(measurement.split), data.records("all"), data.source)
    cautions = []
    if interpolated:
        cautions.append(
            f"{predictions}: {interpolated} of the {len(data.records(measurement.split))} cases are predicted on the "
            "grids of their files and interpolated onto the voxels of the data set (data.source.spacing), so their "
            "values differ from those of the model itself; for these, save predictions on the resampled grid"
        )
    read = {**predictions.readout.as_dict(), "members": predictions.members}
    _record({**configuration, READ_OUT: read}, label, data.note, folder, cautions)
    return measure_predictions(predictions, data, measurement)


def _record(
    configuration: Mapping[str, Any], label: str, note: str | None, folder: Path, cautions: Sequence[str]
) -> None:
    """Write the record of an evaluation, and warn of what every report repeats."""
    for caution in cautions:
        log.warning("%s", caution)
    write_configuration({**configuration, CAUTIONS: list(cautions)}, label, note, folder)


def _data(configuration: Mapping[str, Any] | None, where: str) -> RaterDataModule:
    if configuration is None:
        raise UserError(f"{where}: no data set to measure on; choose one with data=NAME")
    check_only_ours(configuration, where)
    return build_data({"data": configuration})


def _measurement(
    configuration: Mapping[str, Any], metrics: Mapping[str, Any] | None, label: str, data: RaterDataModule
) -> Measurement:
    settings = build_metric_settings(metrics, data.source.structures)
    resamples, figures = int(configuration["bootstrap_resamples"]), bool(configuration.get("figures", True))
    return Measurement(label, configuration["split"], settings, resamples, figures)
