"""Checkpoints that rebuild their method: weights and plain settings, nothing that is executed on loading."""

from __future__ import annotations

import itertools
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from edue_lightning.atomic import write_whole
from edue_lightning.config.build import ImageFormat, build_method, build_preparation
from edue_lightning.config.schema import check_only_ours, with_current_targets
from edue_lightning.errors import UserError
from edue_lightning.methods import SegmentationMethod
from edue_lightning.text import can_be_in_file_name, one_line, reason_of

_CONFIGURATION = "edue_configuration"
_IMAGE_FORMAT = "edue_image_format"
_MEMBER = "edue_ensemble_member"
_TRIAGE = "edue_triage"


class LoadedMethod(NamedTuple):
    """A trained method in evaluation mode, what it was built for, and the configuration of its training.

    `triage` is what `add_triage` added, or None.
    """

    method: SegmentationMethod
    image_format: ImageFormat
    configuration: dict[str, Any]
    triage: Mapping[str, Any] | None


def checkpoint_entries(
    configuration: Mapping[str, Any], image_format: ImageFormat, member: int | None = None
) -> dict[str, Any]:
    """Return what a checkpoint holds beside its weights.

    Args:
        configuration: of the run, resolved.
        image_format: what the method was built for.
        member: position in a deep ensemble whose member alone the checkpoint holds, or None.
    """
    return {_CONFIGURATION: dict(configuration), _IMAGE_FORMAT: image_format.as_dict(), _MEMBER: member}


class WholeFileIO(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints; a file appears whole or not at all, and is verified when read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write a checkpoint, see `write_checkpoint`."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,  # noqa: ARG002
        weights_only: bool | None = True,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read tensors, onto the CPU, and plain values, see `read_checkpoint`."""
        return read_checkpoint(Path(path))


def save_method(method: SegmentationMethod, path: Path) -> None:
    """Write a method's weights and entries, see `write_checkpoint`."""
    write_checkpoint({"state_dict": method.state_dict(), **method.checkpoint_entries}, path)


def add_triage(path: Path, triage: Mapping[str, Any]) -> None:
    """Add to a checkpoint what its validation and training cases tell of new ones, plain values and tensors.

    One that has it is left as it is, as that of a run that is gone on with after its training.
    """
    checkpoint = read_checkpoint(path)
    if _TRIAGE not in checkpoint:
        write_checkpoint({**checkpoint, _TRIAGE: dict(triage)}, path)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; the file appears whole or not at all, and is on the disk when this returns.

    Raises:
        UserError: if it cannot be written, as on a full disk; the earlier file is still there then.
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
            f"{path}: cannot be written ({reason_of(error)}); free some space, and go on with resume=auto"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values, checking that the file is as it was written.

    Raises:
        UserError: if there is no such file, or it is not a readable checkpoint.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file; a run keeps its own under checkpoints/best.ckpt")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing: what is packed, or there twice, could unpack to any size
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
    # what a damaged archive or pickle makes its reader stumble over: OSError, IndexError, struct.error, ...
    except Exception as error:
        raise UserError(one_line(f"{path}: cannot be read as a checkpoint ({reason_of(error)})")) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: is no checkpoint, it holds no weights")
    return checkpoint


def load_method(path: Path) -> LoadedMethod:
    """Rebuild a trained method from its checkpoint alone.

    Raises:
        UserError: if the checkpoint cannot be read, is of another program, holds one member of an ensemble, or
            does not fit the code.
    """
    checkpoint = read_checkpoint(path)
    if _CONFIGURATION not in checkpoint or _IMAGE_FORMAT not in checkpoint:
        raise UserError(f"{path}: was not written by edue_lightning.train, its settings are missing")
    try:
        return _rebuilt(checkpoint, path)
    except UserError as error:
        # a class that refuses its settings does not know where they came from
        text = str(error)
        raise UserError(one_line(text if text.startswith(str(path)) else f"{path}: {text}")) from error
    # what settings of any type at any place make the code stumble over: TypeError, KeyError, RecursionError, ...
    except Exception as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(one_line(f"{path}: its settings are damaged or of another version ({reason})")) from error


def _rebuilt(checkpoint: Mapping[str, Any], path: Path) -> LoadedMethod:
    if checkpoint.get(_MEMBER) is not None:
        raise UserError(
            f"{path}: holds one member of a deep ensemble; take the whole, checkpoints/best.ckpt of its run"
        )
    configuration = with_current_targets(checkpoint[_CONFIGURATION])
    for part in ("method", "network", "loss", "optimizer"):
        if part not in configuration:
            raise UserError(f"{path}: its settings lack {part!r}")
        check_only_ours(configuration[part], str(path))
    # not in every checkpoint, but built from it where they are
    for part in ("inference", "metrics"):
        check_only_ours(configuration.get(part), str(path))
    if configuration.get("data"):
        # that it cannot prepare images is told when there are some
        with suppress(UserError):
            build_preparation(configuration)
    image_format = ImageFormat.from_dict(checkpoint[_IMAGE_FORMAT])
    odd = [name for name in image_format.structures if not can_be_in_file_name(name)]
    if odd or image_format.spatial_dims not in (2, 3):
        raise UserError(one_line(f"{path}: was trained for {image_format}, of which there can be no results"))
    weights = checkpoint["state_dict"]
    # no memory is taken for what the settings describe before it is known to be what the file holds
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
    return LoadedMethod(method.eval(), image_format, configuration, checkpoint.get(_TRIAGE))


def _refuse_blank_memory(archive: zipfile.ZipFile) -> None:
    """Refuse a pickle that makes memory of a size that it names: torch counts `bytearray` among the plain values."""
    for name in archive.namelist():
        if name.endswith("data.pkl"):
            for code, argument, _ in pickletools.genops(archive.read(name)):
                if code.name == "GLOBAL" and "bytearray" in str(argument):
                    raise pickle.UnpicklingError("asks for memory")


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Stop whoever makes a network of more parameters."""
    made = itertools.count(1)

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:  # noqa: ARG001
        if next(made) > parameters:
            raise ValueError("they describe a network of more weights than there are")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _kind(value: Any) -> str:
    """Return what must be the same of a weight in a file and in a network; half precision may be stored."""
    if not isinstance(value, Tensor):
        return "nothing" if value is None else type(value).__name__
    size = "x".join(map(str, value.shape)) or "1"
    return f"{size} {'' if value.is_floating_point() else 'other '}numbers"
