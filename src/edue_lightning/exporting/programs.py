"""Export of a trained model as ONNX, as a torch.export program or as a MONAI bundle: the body of `export`."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edue_lightning.atomic import write_whole
from edue_lightning.config.build import ImageFormat, build_preparation
from edue_lightning.config.schema import check_configuration
from edue_lightning.data.preparation import Preparation
from edue_lightning.errors import UserError
from edue_lightning.exporting.graph import (
    OUTPUTS,
    ImageEstimate,
    MemberLogits,
    MemberMaps,
    Outputs,
    example_sizes,
    exportable,
    is_fixed,
    reduction_of,
    require_same,
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
from edue_lightning.methods import SegmentationMethod
from edue_lightning.prediction.triage import CANDIDATES, Triage
from edue_lightning.runs.checkpoints import load_method

log = logging.getLogger(__name__)

DESCRIPTION = "edue_lightning.json"
"""Name of the description in a `.pt2` file; in an ONNX file it is the metadata entry `edue_lightning`."""

_ONNX_KEY = "edue_lightning"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass
class ExportConfiguration:
    """Top level of `conf/export.yaml`."""

    ckpt: str | None
    format: Literal["onnx", "torch_export", "monai_bundle"] | None
    output: str | None
    overwrite: bool
    inference: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Exported:
    """A checkpoint to export."""

    method: SegmentationMethod
    image_format: ImageFormat
    preparation: Preparation
    members: int
    has_disagreement: bool
    description: Mapping[str, Any]

    @property
    def reduction(self) -> int | None:
        """Number that the lengths of an image are multiples of; None where they are the window's."""
        return None if is_fixed(self.method) else reduction_of(self.method)

    def example(self) -> Tensor:
        """Return a batch of two blank images to trace the graph with."""
        size = example_sizes(self.method, self.image_format.spatial_dims)[0]
        return torch.zeros(2, self.image_format.channels, *size)

    def require_same(self, run: Callable[[Tensor], Outputs]) -> float:
        """Compare the exported model with the method, see `graph.require_same`."""
        return require_same(self.method, self.image_format.channels, self.image_format.spatial_dims, run)


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
        _require_onnx()
    _require_place(output, form, bool(configuration["overwrite"]))
    exported = _load(Path(configuration["ckpt"]), configuration.get("inference"))
    output.parent.mkdir(parents=True, exist_ok=True)
    write = {"onnx": _write_onnx, "torch_export": _write_program, "monai_bundle": _write_bundle}[form]
    with _quiet_exporters():
        difference = write(exported, output)
    log.info("%s: differs from the checkpoint by at most %.2g", output, difference)
    return difference


def _load(path: Path, inference: Mapping[str, Any] | None) -> _Exported:
    loaded = load_method(path, inference)
    method = exportable(loaded.method, str(path))
    preparation = build_preparation(loaded.configuration)
    size = example_sizes(method, loaded.image_format.spatial_dims)[0]
    with torch.inference_mode():
        channels = method(torch.zeros(1, loaded.image_format.channels, *size)).shape[1]
    members = method.readout.count(channels)
    description = {
        **loaded.image_format.as_dict(),
        "method": method.label,
        "members": members,
        "readout": method.readout.as_dict(),
        "temperature": method.temperature_by_structure,
        "window": None if window_of(method) is None else list(window_of(method) or ()),
        "multiple_of": None if is_fixed(method) else reduction_of(method),
        "preparation": {"kind": type(preparation).__name__, **dataclasses.asdict(preparation)},  # type: ignore[call-overload]
        "triage": None if loaded.triage is None else _plain(Triage.from_dict(loaded.triage, str(path))),
    }
    has_disagreement = method.readout.has_disagreement(channels)
    return _Exported(method, loaded.image_format, preparation, members, has_disagreement, description)


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
        "intensities": {name: _finite(list(ends)) for name, ends in triage.intensities.items()},
    }


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _write_onnx(exported: _Exported, output: Path) -> float:
    import onnxruntime

    program = traced(ImageEstimate(exported.method), exported.example(), exported.reduction)
    made = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=list(OUTPUTS), optimize=True, verbose=False
    )
    assert made is not None
    made.model.metadata_props[_ONNX_KEY] = json.dumps(exported.description, allow_nan=False)

    def write(temporary: Path) -> float:
        made.save(temporary, external_data=False)
        session = onnxruntime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])

        def run(image: Tensor) -> Outputs:
            found = session.run(list(OUTPUTS), {"image": image.numpy()})
            return {name: torch.from_numpy(values) for name, values in zip(OUTPUTS, found, strict=True)}

        return exported.require_same(run)

    return _whole(output, write)


def _write_program(exported: _Exported, output: Path) -> float:
    program = traced(ImageEstimate(exported.method), exported.example(), exported.reduction)
    description = json.dumps(exported.description, allow_nan=False)

    def write(temporary: Path) -> float:
        _save_program(program, temporary, description)
        return exported.require_same(_load_program(temporary))

    return _whole(output, write)


def _write_bundle(exported: _Exported, output: Path) -> float:
    image_format = exported.image_format
    texts = {
        INFERENCE: bundle_configuration(
            exported.preparation, exported.method.inference, image_format, exported.has_disagreement
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
        logits, maps = (_load_program(folder / name) for name in (NETWORK, MAPS_OF_LOGITS))
        differences.append(exported.require_same(lambda image: maps(logits(image))))

    write_bundle(output, programs, texts, check)
    return differences[0]


def _monai_sizes(exported: _Exported) -> list[str]:
    window = window_of(exported.method)
    if window is not None:
        return list(map(str, window))
    return [f"{exported.reduction}*n"] * exported.image_format.spatial_dims


def _save_program(program: ExportedProgram, path: Path, description: str) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={DESCRIPTION: description})


def _load_program(path: Path) -> Callable[[Tensor], Any]:
    # from memory, because the loader rejects files with another ending
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(image: Tensor) -> Any:
        with torch.no_grad():
            return module(image)

    return run


def _whole(output: Path, write: Callable[[Path], float]) -> float:
    """Write a file with `write_whole`, and return the result of `write`."""
    differences: list[float] = []
    try:
        write_whole(output, lambda temporary: differences.append(write(temporary)))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); free some space") from error
    return differences[0]


def _require_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'format=onnx needs {", ".join(missing)}; pip install "edue-lightning[export]"')


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
