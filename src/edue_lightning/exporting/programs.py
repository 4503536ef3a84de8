"""Programs of a trained model in one file: ONNX, and those of torch.export."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from edue_lightning.atomic import write_whole
from edue_lightning.config.build import ImageFormat
from edue_lightning.data.preparation import Preparation
from edue_lightning.errors import UserError
from edue_lightning.exporting.graph import (
    OUTPUTS,
    ImageEstimate,
    Outputs,
    example_sizes,
    is_fixed,
    reduction_of,
    require_same,
    traced,
)
from edue_lightning.methods import SegmentationMethod

DESCRIPTION = "edue_lightning.json"
"""Name of the description in a `.pt2` file; in an ONNX file it is the metadata entry `edue_lightning`."""

_ONNX_KEY = "edue_lightning"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
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


def write_onnx(exported: Exported, output: Path) -> float:
    """Write an ONNX file.

    Returns:
        the largest difference between the exported model and the checkpoint, see `graph.TOLERANCE`.

    Raises:
        UserError: if the exported model differs from the checkpoint, or the file cannot be written.
    """
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


def write_program(exported: Exported, output: Path) -> float:
    """Write a program of torch.export.

    Returns:
        the largest difference between the exported model and the checkpoint, see `graph.TOLERANCE`.

    Raises:
        UserError: if the exported model differs from the checkpoint, or the file cannot be written.
    """
    program = traced(ImageEstimate(exported.method), exported.example(), exported.reduction)
    description = json.dumps(exported.description, allow_nan=False)

    def write(temporary: Path) -> float:
        _save_program(program, temporary, description)
        return exported.require_same(load_program(temporary))

    return _whole(output, write)


def _save_program(program: ExportedProgram, path: Path, description: str) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={DESCRIPTION: description})


def load_program(path: Path) -> Callable[[Tensor], Any]:
    """Return the function that a file of `write_program`, or a program of a MONAI bundle, holds."""
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


def require_onnx() -> None:
    """Check that the packages of ONNX are installed.

    Raises:
        UserError: naming those that are missing.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'format=onnx needs {", ".join(missing)}; pip install "edue-lightning[export]"')
