"""Export of a trained model as ONNX, as a torch.export program or as a MONAI bundle: the body of `export`."""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from edue_lightning.config.build import build_inference_changes, build_preparation
from edue_lightning.config.schema import check_configuration
from edue_lightning.data.geometry import PICTURE
from edue_lightning.errors import UserError
from edue_lightning.exporting.graph import (
    MemberLogits,
    MemberMaps,
    example_sizes,
    exportable,
    is_fixed,
    reduction_of,
    thresholds_of,
    traced,
    window_of,
)
from edue_lightning.exporting.monai_bundle import (
    INFERENCE,
    MAPS_OF_LOGITS,
    METADATA,
    NETWORK,
    bundle_configuration,
    bundle_metadata,
    write_bundle,
)
from edue_lightning.exporting.programs import Exported, load_program, require_onnx, write_onnx, write_program
from edue_lightning.methods import InferenceChanges
from edue_lightning.methods.test_time_augmentation import exchanges_axes
from edue_lightning.prediction.triage import CANDIDATES, Triage, applicable
from edue_lightning.runs.checkpoints import load_method, warn_of_other_masks

log = logging.getLogger(__name__)


@dataclass
class ExportConfiguration:
    """Top level of `conf/export.yaml`."""

    ckpt: str | None
    format: Literal["onnx", "torch_export", "monai_bundle"] | None
    output: str | None
    overwrite: bool
    inference: dict[str, Any] | None = None
    mask: dict[str, Any] | None = None


def export(configuration: Mapping[str, Any]) -> float:
    """Export a model; `docs/export.md` describes the result.

    Args:
        configuration: resolved and plain, as `conf/export.yaml` composes it.

    Returns:
        the largest difference between the exported model and the checkpoint, see `graph.TOLERANCE`.

    Raises:
        UserError: if the configuration or checkpoint cannot be used; if the output exists and `overwrite` is false; if
            packages are missing; or if the exported model differs from the checkpoint. Then nothing is written.
    """
    check_configuration(configuration, ExportConfiguration)
    for name in ("ckpt", "format", "output"):
        if configuration[name] is None:
            raise UserError(f"{name}: not set; give ckpt=PATH format=onnx|torch_export|monai_bundle output=PATH")
    form, output = str(configuration["format"]), Path(configuration["output"])
    if form == "onnx":
        require_onnx()
    _require_place(output, form, bool(configuration["overwrite"]))
    changes = build_inference_changes(configuration.get("inference"))
    exported = _load(Path(configuration["ckpt"]), changes, configuration.get("mask"))
    output.parent.mkdir(parents=True, exist_ok=True)
    write = {"onnx": write_onnx, "torch_export": write_program, "monai_bundle": _write_bundle}[form]
    with _quiet_exporters():
        difference = write(exported, output)
    log.info("%s: differs from the checkpoint by at most %.2g", output, difference)
    return difference


def _load(path: Path, changes: InferenceChanges, mask: Mapping[str, Any] | None) -> Exported:
    loaded = load_method(path, changes, mask)
    warn_of_other_masks(loaded, path)
    method = exportable(loaded.method, str(path))
    preparation = build_preparation(loaded.configuration)
    size = example_sizes(method, loaded.image_format.spatial_dims)[0]
    with torch.inference_mode():
        channels = method(torch.zeros(1, loaded.image_format.channels, *size)).shape[1]
    members = method.readout.count(channels)
    # the thresholds of other masks flag no case
    stored = None if loaded.other_masks or loaded.triage is None else Triage.from_dict(loaded.triage, str(path))
    triage = applicable(stored, method.readout, str(path))
    volumes = loaded.image_format.spatial_dims == 3
    pictures = not volumes and loaded.image_format.storage in (None, PICTURE)
    description = {
        **loaded.image_format.as_dict(),
        # of the image's axes, from lower to higher indices
        "axes": "RAS" if volumes else None,
        "values": "whole numbers divided by the largest of their type" if pictures else "as the header scales them",
        "equal_voxels": exchanges_axes(method),
        "method": method.label,
        "members": members,
        "readout": method.readout.as_dict(),
        "thresholds": dict(zip(method.structures, thresholds_of(method), strict=True)),
        "temperature": method.temperature_by_structure,
        "window": None if window_of(method) is None else list(window_of(method) or ()),
        "multiple_of": None if is_fixed(method) else reduction_of(method),
        "preparation": {"kind": type(preparation).__name__, **dataclasses.asdict(preparation)},  # type: ignore[call-overload]
        "triage": None if triage is None else _plain(triage),
    }
    has_disagreement = method.readout.has_disagreement(channels)
    return Exported(method, loaded.image_format, preparation, members, has_disagreement, description)


def _plain(triage: Triage) -> dict[str, Any]:
    """Return the rules by which cases are flagged as JSON values, with None for infinite ones."""
    structures = {}
    for name, one in triage.structures.items():
        threshold = one.threshold(triage.sensitivity).value
        finite = threshold is not None and math.isfinite(threshold)
        structures[name] = {
            "score": one.score,
            "flagged_if": "at_least" if CANDIDATES[one.score] > 0 else "at_most",
            "threshold": one.measured(threshold) if threshold is not None and finite else None,
            # a poor validation case without a score can make these the only cases that are flagged
            "flag_undefined": threshold is not None,
            "poor_dice": one.poor_dice,
            "dice": _finite(one.dice.tolist()),
            "scores": _finite([one.measured(value) for value in one.uncertainties.tolist()]),
            "ranges": {score: list(ends) for score, ends in one.ranges.items()},
            "expected_dice": None if one.expected_dice is None else one.expected_dice.as_dict(),
        }
    return {
        "sensitivity": triage.sensitivity,
        "training_cases": triage.training_cases,
        "spaced": triage.spaced,
        "structures": structures,
        "false_alarms": triage.false_alarms,
        "intensities": {name: _finite(list(ends)) for name, ends in triage.intensities.items()},
    }


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _write_bundle(exported: Exported, output: Path) -> float:
    image_format = exported.image_format
    if image_format.spatial_dims == 3 and exported.description["equal_voxels"]:
        raise UserError(
            "format=monai_bundle: the method exchanges the first two axes (method.turned=true), and a bundle does not "
            "check that the voxels of a volume have one size along them; choose format=onnx or format=torch_export"
        )
    texts = {
        INFERENCE: bundle_configuration(
            exported.preparation,
            exported.method.inference,
            image_format,
            exported.has_disagreement,
            thresholds_of(exported.method),
        ),
        METADATA: bundle_metadata(exported.description, image_format, _monai_sizes(exported)),
    }
    example = exported.example()
    network = MemberLogits(exported.method)
    programs = {
        NETWORK: traced(network, example, exported.reduction),
        # whole images, of any size, come out of the sliding window
        MAPS_OF_LOGITS: traced(MemberMaps(len(image_format.structures), exported.method.readout), network(example), 1),
    }
    differences: list[float] = []

    def check(folder: Path) -> None:
        logits, maps = (load_program(folder / name) for name in (NETWORK, MAPS_OF_LOGITS))
        differences.append(exported.require_same(lambda image: maps(logits(image))))

    write_bundle(output, programs, texts, check)
    return differences[0]


def _monai_sizes(exported: Exported) -> list[str]:
    window = window_of(exported.method)
    if window is not None:
        return list(map(str, window))
    return [f"{exported.reduction}*n"] * exported.image_format.spatial_dims


def _require_place(output: Path, form: str, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"output={output}: already exists; choose another path or set overwrite=true")
    if form != "monai_bundle" and output.is_dir():
        raise UserError(f"output={output}: is a folder; choose the path of a file")
    if form == "monai_bundle" and not (output / METADATA).is_file():
        raise UserError(
            f"output={output}: exists and is not a MONAI bundle, so it is not replaced; choose another folder"
        )


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silence messages that exporters print on every run and users cannot act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
