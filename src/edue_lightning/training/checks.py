"""Checks before a training: settings out of range, and images that the network cannot take."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from edue_lightning.config.build import ImageFormat, network_factory, refused_size
from edue_lightning.data import RaterDataModule
from edue_lightning.errors import UserError
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods import SegmentationMethod
from edue_lightning.methods.test_time_augmentation import unequal_axes
from edue_lightning.runs.checkpoints import TrainingCases
from edue_lightning.runs.trainer import check_seed
from edue_lightning.runtime.processes import is_first_process
from edue_lightning.text import times

log = logging.getLogger(__name__)


def check_numbers(configuration: Mapping[str, Any]) -> None:
    """Check the ranges of top-level numbers and of the length of the training.

    Raises:
        UserError: naming the first invalid setting.
    """
    check_seed(configuration["seed"])
    if configuration["bootstrap_resamples"] < 0:
        raise UserError(f"bootstrap_resamples must be at least 0, not {configuration['bootstrap_resamples']}")
    for name in ("members_at_once", "checkpoint_every_steps"):
        if configuration[name] is not None and configuration[name] < 1:
            raise UserError(f"{name} must be at least 1, not {configuration[name]}")
    trainer = configuration["trainer"]
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    # without a number of epochs, the number of steps ends a training
    if (epochs is None or epochs == -1) and steps < 1:
        raise UserError(f"trainer.max_epochs={epochs}: set trainer.max_epochs or trainer.max_steps to at least 1")
    if epochs is not None and epochs < 1 and epochs != -1:
        raise UserError(f"trainer.max_epochs must be at least 1, not {epochs}")
    for name in ("max_steps", "accumulate_grad_batches", "check_val_every_n_epoch"):
        value = trainer.get(name)
        if value is not None and value < 1 and (name, value) != ("max_steps", -1):
            raise UserError(f"trainer.{name} must be at least 1, not {value}")
    for name in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
        value = trainer.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float):
            raise UserError(f"trainer.{name}={value}: must be a number of batches, or a share of an epoch such as 0.5")
        if value <= 0:
            raise UserError(f"trainer.{name} must be above 0, not {value}")


def check_validated(trainer: Mapping[str, Any], batches: int, method: SegmentationMethod) -> None:
    """Check that a training reaches a validation of all that it trains, without which there is no best checkpoint.

    Args:
        trainer: node of the configuration.
        batches: number of training batches per epoch.
        method: method to be trained.

    Raises:
        UserError: naming the settings that prevent it.
    """
    limit = trainer.get("limit_train_batches")
    if limit is not None:
        batches = min(batches, limit if isinstance(limit, int) else int(batches * limit))
    if batches < 1:
        raise UserError(f"trainer.limit_train_batches={limit}: leaves no batch to train on")
    every, interval = trainer.get("check_val_every_n_epoch", 1), trainer.get("val_check_interval")
    if isinstance(interval, int) and every is not None and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval}: an epoch has {batches} batches; choose at most that number, or a "
            "share of the epoch such as 0.5"
        )
    # an interval without a number of epochs counts on from one epoch to the next
    period = interval if isinstance(interval, int) and every is None else batches * (every or 1)
    first = period
    if interval is not None and period != interval:
        first += (interval if isinstance(interval, int) else int(batches * interval)) - batches
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    available = math.inf if epochs in (None, -1) else batches * epochs
    # several processes share the batches of an epoch
    if steps != -1 and trainer.get("devices") in (1, "1") and trainer.get("num_nodes", 1) == 1:
        per_epoch = math.ceil(batches / trainer.get("accumulate_grad_batches", 1))
        available = min(available, steps / per_epoch * batches)
    if first > available:
        raise UserError(
            "the training ends before its first validation, so no checkpoint could be chosen; raise "
            "trainer.max_epochs (or trainer.max_steps), or set trainer.check_val_every_n_epoch=1"
        )
    preparing = max(trainee.first_epochs for trainee in method.trainees())
    if not preparing or available == math.inf:
        return
    validated = math.ceil(available // period * period / batches)
    if validated - 1 < preparing:
        raise UserError(
            f"the last validation follows epoch {validated}, and the best checkpoint is of an epoch after the first "
            f"{preparing:g} (method.warm_up_epochs or method.guidance.ramp_up_epochs); lower these, or raise "
            "trainer.max_epochs"
        )


def check_validation_batches(trainer: Mapping[str, Any], batches: int) -> None:
    """Check that a share of the validation batches is at least one of them.

    Args:
        trainer: node of the configuration.
        batches: number of validation batches.

    Raises:
        UserError: naming the setting.
    """
    limit = trainer.get("limit_val_batches")
    if isinstance(limit, float) and int(limit * batches) < 1:
        raise UserError(
            f"trainer.limit_val_batches={limit}: leaves none of the {batches} validation batches; choose a larger share"
        )


def check_raters(method: SegmentationMethod, data: RaterDataModule) -> None:
    """Check that a method that learns from each rater has raters to learn from.

    Raises:
        UserError: for data of which only the votes are known.
    """
    if data.source.votes and any(getattr(part, "target", None) == "rater_per_member" for part in method.trainees()):
        raise UserError(
            f"method.target=rater_per_member: who gave which vote is unknown in data={data.name}, so no member can "
            "learn from one rater; choose method.target=soft_majority, majority or random_rater"
        )


def check_loss(method: SegmentationMethod) -> None:
    """Check that the loss has a meaning for the targets of a method, and a weight for each structure.

    Warn if another loss than the default has no effect, since a sweep may set one for several methods.

    Raises:
        UserError: for soft targets with a loss of hard ones, another number of weights than structures, or weights that
            the method does not use.
    """
    for part in method.trainees():
        loss = getattr(part, "loss", None)
        if getattr(part, "target", None) == "soft_majority" and not getattr(loss, "takes_soft_targets", True):
            raise UserError(
                f"method.target=soft_majority: the loss {type(loss).__name__} is defined for masks, not for shares of "
                "raters; choose method.target=majority or random_rater, or another loss"
            )
        check_structure_weights(loss, method.structures)
        if loss is not None and not part.takes_loss and not _is_default(loss) and is_first_process():
            log.warning("loss=%s: has no effect on %s, which has a loss of its own", type(loss).__name__, part.label)
        if not part.takes_structure_weights and getattr(loss, "structure_weights", None) is not None:
            raise UserError(
                f"loss.structure_weights: has no effect on {part.label}, which is trained by the likelihood of all "
                "structures together; set it to null"
            )


def _is_default(loss: nn.Module) -> bool:
    """Return whether a loss is the default of trainings, whatever its weights of structures."""
    if not isinstance(loss, SegmentationLoss):
        return False
    default = SegmentationLoss()
    return (loss.cross_entropy_weight, loss.dice_weight) == (default.cross_entropy_weight, default.dice_weight)


def check_structure_weights(loss: Any, structures: Sequence[str]) -> None:
    """Check that a loss with weights of structures has one for each.

    Raises:
        UserError: for another number of weights than structures.
    """
    weights = getattr(loss, "structure_weights", None)
    if weights is not None and len(weights) != len(structures):
        raise UserError(
            f"loss.structure_weights={list(weights)}: there are {len(structures)} structures "
            f"({', '.join(structures)}); give one weight for each"
        )


def check_turns(method: SegmentationMethod, cases: TrainingCases) -> None:
    """Check that a method that exchanges the first two axes of an image meets voxels of equal sizes along them.

    Args:
        method: method to train.
        cases: cases of training and validation.

    Raises:
        UserError: naming a case whose voxels have other sizes.
    """
    for case in (*cases["train"], *cases["val"]):
        reason = unequal_axes(method, case.spacing)
        if reason is not None:
            raise UserError(f"case {case.case_id!r}: {reason}; set method.turned=false")


def check_sizes(configuration: Mapping[str, Any], data: RaterDataModule, cases: TrainingCases) -> None:
    """Check that the network can take the images of training, validation and test.

    Args:
        configuration: configuration of the training.
        data: data module of the configuration.
        cases: cases of training and validation.

    Raises:
        UserError: naming the size, and a case that has it.
    """
    patch = None if data.patch is None or data.patch.size is None else tuple(data.patch.size)
    window = (configuration.get("inference") or {}).get("window")
    trained = _sizes_of([(case.case_id, case.size) for case in cases["train"]], patch, "data.patch.size")
    named = [(case.case_id, case.size) for case in cases["val"]]
    if window is None and data.source.mixed_sizes:
        # otherwise the test images have the size of the others
        for record in data.splits["test"]:
            named.append((record.case_id, tuple(data.source.load(record.case_id).image.shape[1:])))
    predicted = _sizes_of(named, None if window is None else tuple(window), "inference.window")
    make_network = network_factory(configuration["network"], ImageFormat.of(data.source))
    for size, where in {**predicted, **trained}.items():
        reason = refused_size(make_network, data.source.channels, size)
        if reason is not None:
            raise UserError(f"{where}: the network cannot take {times(size)}: {reason}")


def _sizes_of(
    named: Sequence[tuple[str, tuple[int, ...]]], part: tuple[int, ...] | None, setting: str
) -> dict[tuple[int, ...], str]:
    """Return the sizes that a network meets, each with its setting or a case of that size."""
    if part is not None:
        return {part: f"{setting}={list(part)}"}
    return {size: f"case {case_id}" for case_id, size in reversed(named)}
