"""Images that are too large for the memory, or that the network cannot predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import VOLUMES, checkpoint

from edue_lightning.config.build import ImageFormat
from edue_lightning.data.slices import Slicing
from edue_lightning.errors import UserError
from edue_lightning.prediction import model as model_module
from edue_lightning.prediction.model import Model

SLICES = ImageFormat(2, 1, ("ball",), "NIfTI slice LP")
FULL_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def reason_of_failure(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    image_format: ImageFormat,
    shape: tuple[int, ...],
    slicing: Slicing | None = None,
) -> str:
    """Return the error of a prediction in which the network raises `error`."""

    def fails(*_: object, **__: object) -> None:
        raise error

    model = Model(checkpoint(folder / "best.ckpt", image_format=image_format), "cpu", slicing=slicing)
    monkeypatch.setattr(model_module, "estimate", fails)
    with pytest.raises(UserError) as caught:
        model.predict(np.random.default_rng(0).normal(size=shape))
    return str(caught.value)


@pytest.mark.parametrize(
    ("image_format", "slicing", "shape", "hint"),
    [
        (VOLUMES, None, (8, 8, 6), "inference.window=[96,96,48]"),
        (SLICES, None, (8, 6), "inference.window=[256,256]"),
        (SLICES, Slicing(2), (8, 8, 6), "inference.window=[256,256] slice_batch=1"),
    ],
    ids=["volume", "image", "slices"],
)
@pytest.mark.parametrize("error", [FULL_GPU, MemoryError()], ids=["gpu", "cpu"])
def test_too_little_memory_names_the_windows_that_need_less(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_format: ImageFormat,
    slicing: Slicing | None,
    shape: tuple[int, ...],
    hint: str,
    error: Exception,
) -> None:
    reason = reason_of_failure(tmp_path, monkeypatch, error, image_format, shape, slicing)
    assert "not enough memory for " in reason
    assert reason.endswith(f"; predict by windows: {hint}")


def test_any_other_failure_gives_its_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = reason_of_failure(tmp_path, monkeypatch, RuntimeError("no such operator"), SLICES, (8, 6))
    assert "the network cannot predict an image of 8x6 (no such operator)" in reason
