"""Checkpoints that rebuild their method: weights and plain settings, no code that runs on loading."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edue_lightning.atomic import write_whole
from edue_lightning.config.build import (
    ImageFormat,
    build_inference,
    build_mask_rule,
    build_method,
    build_preparation,
)
from edue_lightning.config.data_place import with_absolute_root
from edue_lightning.config.schema import check_only_ours, with_current_targets
from edue_lightning.data.identity import CaseIdentity, TrainingCases
from edue_lightning.data.preparation import Stacked
from edue_lightning.errors import UserError
from edue_lightning.methods import Density, InferenceChanges, SegmentationMethod
from edue_lightning.text import ambiguous_structures, can_be_in_file_name, one_line, reason_of, times

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints within a run's."""

BEST, LAST = "best.ckpt", "last.ckpt"
"""Names of the checkpoints of a training: with the best weights on validation cases, and with the latest state."""

_CONFIGURATION = "edue_configuration"
_IMAGE_FORMAT = "edue_image_format"
_MEMBER = "edue_ensemble_member"
_TRIAGE = "edue_triage"
_MASK = "edue_mask"
_TEMPERATURE = "edue_temperature"
_DENSITY = "edue_density"
_ORIENTATION = "edue_orientation"
_CANONICAL = "RAS"
"""Directions of the axes of volumes as the network sees them, see `data.images.canonical`."""
_CASES = "edue_training_cases"
_EARLIER_CASES = "edue_earlier_training_cases"
# what a training finds on its cases with the weights of best.ckpt
_RESULTS = frozenset({_TRIAGE, _MASK, _TEMPERATURE, _DENSITY})


class LoadedMethod(NamedTuple):
    """A trained method in evaluation mode, the image format it takes, and the configuration of its training.

    `triage` and `density` are the entries of `add_results`, or None; `cases` are those of training (`train`) and
    validation (`val`), also of the trainings that it began from (`init`), None in a checkpoint of an earlier version.
    With `other_masks` the thresholds of the triage data belong to the masks of another rule, so they flag no case. With
    `other_window` the density is left out, since its features depend on the window.
    `measured` says whether its training measured it, as it does `best.ckpt` alone, at its end.
    """

    method: SegmentationMethod
    image_format: ImageFormat
    configuration: dict[str, Any]
    triage: Mapping[str, Any] | None
    cases: TrainingCases | None
    density: Density | None = None
    other_masks: bool = False
    other_window: bool = False
    measured: bool = False


def checkpoint_entries(
    configuration: Mapping[str, Any],
    image_format: ImageFormat,
    member: int | None = None,
    cases: TrainingCases | None = None,
    earlier: TrainingCases | None = None,
) -> dict[str, Any]:
    """Return the entries of a checkpoint beside its weights.

    Args:
        configuration: configuration of the run, resolved.
        image_format: format of the images that the method takes.
        member: position in a deep ensemble if the checkpoint holds one member alone, or None.
        cases: cases of the training, or None if they are unknown.
        earlier: cases of the trainings that it began from, or None.
    """
    entries = {
        _CONFIGURATION: with_absolute_root(configuration),
        _ORIENTATION: _CANONICAL,
        _IMAGE_FORMAT: image_format.as_dict(),
        _MEMBER: member,
    }
    for name, stored in ((_CASES, cases), (_EARLIER_CASES, earlier)):
        if stored is not None:
            entries[name] = {split: [case.as_list() for case in of_split] for split, of_split in stored.items()}
    return entries


def training_cases(checkpoint: Mapping[str, Any]) -> TrainingCases | None:
    """Return the cases that a read checkpoint was trained on, or None in one of an earlier version.

    Raises:
        ValueError: if they are damaged.
    """
    return _stored_cases(checkpoint, _CASES)


def all_training_cases(checkpoint: Mapping[str, Any]) -> TrainingCases | None:
    """Return the cases of `training_cases` with those of the trainings that it began from; None if any are unknown.

    Raises:
        ValueError: if they are damaged.
    """
    own, earlier = training_cases(checkpoint), _stored_cases(checkpoint, _EARLIER_CASES)
    if own is None or earlier is None:
        return own
    return {split: [*own[split], *earlier[split]] for split in own}


def _stored_cases(checkpoint: Mapping[str, Any], entry: str) -> TrainingCases | None:
    stored = checkpoint.get(entry)
    if stored is None:
        return None
    if set(stored) != {"train", "val"}:
        raise ValueError("its training cases are damaged")
    return {split: [CaseIdentity.from_list(case) for case in of_split] for split, of_split in stored.items()}


def unmeasured(checkpoint: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a read checkpoint with other settings, without what was measured on validation cases.

    Args:
        checkpoint: a checkpoint of a training.
        changes: settings of its predictions, such as `mask`; network and training stay.
    """
    return {**_without_results(checkpoint), _CONFIGURATION: {**checkpoint[_CONFIGURATION], **changes}}


class WholeFileIO(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints; a file appears whole or not at all, and is verified when read.

    Args:
        entries: entries that each written checkpoint holds beside Lightning's own.
    """

    def __init__(self, entries: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.entries = dict(entries or {})

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write a checkpoint, see `write_checkpoint`."""
        write_checkpoint({**checkpoint, **self.entries}, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,  # noqa: ARG002
        weights_only: bool | None = True,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read tensors, onto the CPU, and plain values, see `read_checkpoint`."""
        return read_checkpoint(Path(path))


def save_method(method: SegmentationMethod, path: Path, entries: Mapping[str, Any]) -> None:
    """Write a checkpoint of a method, see `write_checkpoint`.

    Args:
        method: method whose weights are stored.
        path: path of the file.
        entries: entries beside the weights, see `checkpoint_entries`.
    """
    write_checkpoint({"state_dict": method.state_dict(), **entries}, path)


def add_results(
    path: Path,
    *,
    triage: Mapping[str, Any] | None = None,
    mask_facts: Mapping[str, Any] | None = None,
    density: Density | None = None,
) -> None:
    """Add what was found on the training and validation cases to a checkpoint, as plain values and tensors.

    What the checkpoint has already stays as it is, as when a run is resumed after its training.

    Args:
        path: path of the checkpoint.
        triage: triage data, or None.
        mask_facts: what the rules for masks need, see `config.build.build_mask_rule`, or None.
        density: density of the training images, or None.
    """
    results = {_TRIAGE: triage, _MASK: mask_facts, _DENSITY: None if density is None else density.as_dict()}
    checkpoint = read_checkpoint(path)
    new = {name: dict(entry) for name, entry in results.items() if entry is not None and name not in checkpoint}
    if new:
        write_checkpoint({**checkpoint, **new}, path)


def planned_epochs_of(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the number of epochs that the training of a read checkpoint was planned for, or None if it is unknown."""
    trainer = (checkpoint.get(_CONFIGURATION) or {}).get("trainer") or {}
    epochs: int | None = trainer.get("max_epochs")
    return epochs


def without_results(path: Path) -> dict[str, Any]:
    """Read a checkpoint, without what `add_results` and `add_temperature` added to it."""
    return _without_results(read_checkpoint(path))


def _without_results(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in checkpoint.items() if name not in _RESULTS}


def add_temperature(path: Path, temperature: Sequence[float]) -> None:
    """Add the temperature of each structure to a checkpoint."""
    write_checkpoint({**read_checkpoint(path), _TEMPERATURE: list(temperature)}, path)


def stored_temperature(checkpoint: Mapping[str, Any]) -> list[float] | None:
    """Return the temperature of each structure in a read checkpoint, or None if none was fitted.

    Raises:
        ValueError: if it is damaged.
    """
    stored = checkpoint.get(_TEMPERATURE)
    if stored is None:
        return None
    if not isinstance(stored, list) or not all(isinstance(value, float) for value in stored):
        raise ValueError("its temperature is damaged")
    return stored


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; the file appears whole or not at all, and is on the disk when this returns.

    Raises:
        UserError: if it cannot be written, as on a full disk; an earlier file then stays as it was.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    # torch reports some failures to write as RuntimeError
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be written ({reason_of(error)}); free some space, then resume with resume=auto"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values, and check that the file is as it was written.

    Raises:
        UserError: if the file does not exist, or is not a readable checkpoint.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file; a run keeps its own under checkpoints/best.ckpt")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch compresses nothing: compressed or repeated parts could unpack to any size
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it claims more than the file holds")
            damaged = archive.testzip()
            _refuse_blank_memory(archive)
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, it is damaged or holds more than weights and plain values; "
            "train again or take another checkpoint"
        ) from error
    # a damaged archive or pickle raises OSError, IndexError, struct.error, ...
    except Exception as error:
        raise UserError(one_line(f"{path}: cannot be read as a checkpoint ({reason_of(error)})")) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: is not a checkpoint, it contains no weights")
    return checkpoint


def load_method(
    path: Path, inference: InferenceChanges | None = None, mask: Mapping[str, Any] | None = None
) -> LoadedMethod:
    """Rebuild a trained method from its checkpoint alone.

    Args:
        path: path of the checkpoint.
        inference: settings of the prediction of whole images that differ from the checkpoint's; None for no change.
        mask: node of the configuration, see `conf/mask`; None for the checkpoint's own.

    Raises:
        UserError: if the checkpoint cannot be read, was written by another program, holds one member of an ensemble,
            lacks the temperature of its training, or does not fit the code; or if `inference` does not fit its images.
    """
    checkpoint = read_checkpoint(path)
    try:
        return _rebuilt(checkpoint, path, inference, mask)
    except UserError as error:
        # a class that refuses its settings does not know their file
        text = str(error)
        raise UserError(one_line(text if text.startswith(str(path)) else f"{path}: {text}")) from error
    # settings of any type at any place raise TypeError, KeyError, RecursionError, ...
    except Exception as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(one_line(f"{path}: its settings are damaged or of another version ({reason})")) from error


def configuration_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the configuration of the training that wrote a read checkpoint, which must hold a whole method.

    Raises:
        UserError: if another program wrote it, or it holds one member of an ensemble.
    """
    if _CONFIGURATION not in checkpoint or _IMAGE_FORMAT not in checkpoint:
        raise UserError(f"{path}: was not written by edue_lightning.train, its settings are missing")
    if checkpoint.get(_MEMBER) is not None:
        raise UserError(
            f"{path}: holds one member of a deep ensemble; use the whole ensemble, checkpoints/best.ckpt of its run"
        )
    configuration: dict[str, Any] = with_current_targets(checkpoint[_CONFIGURATION])
    return configuration


def _rebuilt(
    checkpoint: Mapping[str, Any], path: Path, inference: InferenceChanges | None, mask: Mapping[str, Any] | None
) -> LoadedMethod:
    configuration = configuration_of(checkpoint, path)
    for part in ("method", "network", "loss", "optimizer"):
        if part not in configuration:
            raise UserError(f"{path}: its settings lack {part!r}")
        check_only_ours(configuration[part], str(path))
    # optional parts, from which objects are built too
    for part in ("inference", "metrics", "mask"):
        check_only_ours(configuration.get(part), str(path))
    if configuration.get("data"):
        # an unusable preparation is reported once there are images to prepare
        with suppress(UserError):
            build_preparation(configuration)
    cases = all_training_cases(checkpoint)
    if cases is None and configuration.get("data"):
        configuration = {**configuration, "data": _with_earlier_draw(configuration["data"])}
    image_format = ImageFormat.from_dict(checkpoint[_IMAGE_FORMAT])
    if image_format.spatial_dims == 3 and checkpoint.get(_ORIENTATION) != _CANONICAL and _reads_volumes(configuration):
        log.warning(
            "%s: was trained by an earlier version, which took volumes as their files store them; now they are "
            "turned to %s first, so train again unless the files of the training were stored like that",
            path,
            _CANONICAL,
        )
    odd = [name for name in image_format.structures if not can_be_in_file_name(name)]
    if odd or ambiguous_structures(image_format.structures) or image_format.spatial_dims not in (2, 3):
        raise UserError(one_line(f"{path}: was trained for {image_format}, whose results could not be written"))
    weights = checkpoint["state_dict"]
    # no memory is allocated for the described network until its shapes are known to match the file
    with torch.device("meta"), _at_most(2 * len(weights)):
        wanted = build_method(configuration, image_format).state_dict()
    for name in dict.fromkeys([*wanted, *weights]):
        if _kind(wanted.get(name)) != _kind(weights.get(name)):
            reason = f"{name}: {_kind(weights.get(name))} instead of {_kind(wanted.get(name))}"
            raise UserError(one_line(f"{path}: weights do not fit the network of its settings ({reason})"))
    method = build_method(configuration, image_format)
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: weights do not fit the network of its settings ({reason_of(error)})") from error
    temperature = stored_temperature(checkpoint)
    if temperature is None and configuration.get("temperature") is not None:
        raise UserError(
            f"{path}: was trained with temperature={configuration['temperature']}, but the temperature is missing; "
            "a training stores it in best.ckpt at its end, so use checkpoints/best.ckpt of the finished run"
        )
    method.set_temperature(temperature)
    rule = build_mask_rule(mask or configuration.get("mask"), method, checkpoint.get(_MASK))
    method.readout = replace(method.readout, mask=rule)
    triage = checkpoint.get(_TRIAGE)
    other_masks = (
        triage is not None
        and mask is not None
        and rule != build_mask_rule(configuration.get("mask"), method, checkpoint.get(_MASK))
    )
    window = method.inference.window
    method.inference = build_inference(configuration.get("inference"), image_format, inference)
    density = Density.from_dict(checkpoint[_DENSITY]) if _DENSITY in checkpoint else None
    other_window = density is not None and list(method.inference.window or ()) != list(window or ())
    return LoadedMethod(
        method.eval(),
        image_format,
        configuration,
        triage,
        cases,
        None if other_window else density,
        other_masks,
        other_window,
        not _RESULTS.isdisjoint(checkpoint),
    )


def warn_of_other_window(loaded: LoadedMethod, path: Path) -> None:
    """Warn that no image is compared with the density of the training images, whose features depend on the window."""
    if loaded.other_window:
        window = loaded.method.inference.window
        log.warning(
            "%s: inference.window=%s is not the window of the training, by which the density of its images was "
            "measured, so there is no density of these images; leave out inference.window to have it",
            path,
            "[]" if window is None else list(window),
        )


def warn_of_other_masks(loaded: LoadedMethod, path: Path) -> None:
    """Warn that no case is flagged by its uncertainty, as the thresholds belong to the masks of another rule."""
    if loaded.other_masks:
        log.warning(
            "%s: mask=%s is not the rule of the training, whose thresholds hold for its own masks, so no case will be "
            "flagged by its uncertainty; leave out mask, or train with this rule",
            path,
            loaded.method.readout.mask.rule,
        )


def _with_earlier_draw(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data node of an earlier version, whose splits were drawn as permutations, with that draw."""
    fractions = data.get("fractions") or {"_target_": "edue_lightning.data.SplitFractions"}
    return {**data, "fractions": {"draw": "permutation", **fractions}}


def _reads_volumes(configuration: Mapping[str, Any]) -> bool:
    """Return whether the data set of a configuration takes volumes from files of any orientation."""
    try:
        preparation = build_preparation(configuration)
    except UserError:
        return False
    return isinstance(preparation, Stacked) and "root" in configuration["data"]["source"]


def _refuse_blank_memory(archive: zipfile.ZipFile) -> None:
    """Refuse a pickle that allocates memory of a size it names: torch counts `bytearray` among the plain values."""
    for name in archive.namelist():
        if name.endswith("data.pkl"):
            for code, argument, _ in pickletools.genops(archive.read(name)):
                if code.name == "GLOBAL" and "bytearray" in str(argument):
                    raise pickle.UnpicklingError("asks for memory")


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Raise `ValueError` if more parameters are made within this block."""
    made = itertools.count(1)

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:  # noqa: ARG001
        if next(made) > parameters:
            raise ValueError("they describe a network with more weights than the file holds")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _kind(value: Any) -> str:
    """Return the shape and kind of a weight, which must agree between file and network; the precision may differ."""
    if not isinstance(value, Tensor):
        return "nothing" if value is None else type(value).__name__
    size = times(value.shape) or "1"
    return f"{size} {'' if value.is_floating_point() else 'other '}numbers"
