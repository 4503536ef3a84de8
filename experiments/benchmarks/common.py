"""Shared parts of the benchmarks: configured methods, batches, training steps, and tables of ratios."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.optim import Optimizer

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data.sample import RaterBatch
from edue_lightning.evaluation.cost import ratios
from edue_lightning.methods import SegmentationMethod

RESULTS = Path(__file__).parent / "results"
CLIP = 1.0
"""Largest norm of the gradient, as in `conf/trainer`."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the command line with the common option of all benchmarks."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--quick", action="store_true", help="small settings, to test the script; its times mean nothing"
    )
    return result


def machine() -> str:
    """Return the processor, the number of threads and the version of torch, on which results depend."""
    described = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in described.read_text().splitlines() if "model name" in line]
    return ", ".join([*names[:1], f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"])


def configuration(*overrides: str) -> dict[str, Any]:
    """Return the configuration of a training, without a schedule of the learning rate, which needs a trainer."""
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", ["optimizer.schedule=constant", *overrides]))


def image_format(spatial_dims: int, channels: int = 1, structures: int = 1) -> ImageFormat:
    """Return a format of images with numbered structures."""
    return ImageFormat(spatial_dims, channels, tuple(f"structure {number}" for number in range(structures)))


def method_of(images: ImageFormat, *overrides: str) -> SegmentationMethod:
    """Return the method for overrides such as `method=edue`, with the same weights each time."""
    torch.manual_seed(0)
    return build_method(configuration(*overrides), images)


def random_batch(images: ImageFormat, cases: int, size: Sequence[int], raters: int, seed: int = 0) -> RaterBatch:
    """Return a batch of noise images; the masks of the raters are discs (or balls) of different radius."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, length) for length in size]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(dim=0).sqrt()
    drawn = 0.2 + 0.4 * torch.rand(cases, raters, len(images.structures), *[1] * len(size), generator=generator)
    return RaterBatch(
        image=torch.randn(cases, images.channels, *size, generator=generator),
        masks=(radius < drawn).to(torch.uint8),
        valid=torch.ones(cases, raters, dtype=torch.bool),
        spacing=torch.ones(cases, len(size)),
        case_index=torch.arange(cases),
        draw_key=torch.arange(cases),
    )


def optimisers_of(method: SegmentationMethod) -> list[Optimizer]:
    """Return one optimiser per trainee of a method that was configured without a schedule."""
    found = [trainee.configure_optimizers() for trainee in method.trainees()]
    return [optimiser for optimiser in found if isinstance(optimiser, Optimizer)]


def training_step(
    method: SegmentationMethod, batch: RaterBatch, precision: torch.dtype | None = None
) -> Callable[[], None]:
    """Return a function that takes one step of every trainee: loss, gradient, clipping, optimiser.

    Args:
        method: method that was configured without a schedule.
        batch: batch on the method's device.
        precision: precision of the forward pass and the loss under autocast; None for float32.
    """
    method.train()
    pairs = list(zip(method.trainees(), optimisers_of(method), strict=True))

    def step() -> None:
        for trainee, optimiser in pairs:
            optimiser.zero_grad()
            with torch.autocast(batch.image.device.type, precision, enabled=precision is not None):
                loss = trainee.training_loss(batch)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(trainee.parameters(), CLIP)
            optimiser.step()

    return step


def run_command(command: str, overrides: Sequence[str], folder: Path, **environment: str) -> None:
    """Run `python -m edue_lightning.COMMAND OVERRIDES` in a folder; if it fails, stop with its output."""
    done = subprocess.run(
        [sys.executable, "-m", f"edue_lightning.{command}", *overrides],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> str:
    """Return the median of the ratios of each round, with their quartiles."""
    low, middle, high = ratios(seconds, reference)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])
