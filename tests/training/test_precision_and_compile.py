"""Settings that trade memory and precision for speed: what they leave as it is, and how far they move the rest."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor
from torch._inductor import cpp_builder
from torch.optim.optimizer import register_optimizer_step_post_hook
from trainings import configuration, output_of, train_apart

from edue_lightning.config.build import build_data
from edue_lightning.networks import HeadLayout, MultiHeadUNet
from edue_lightning.runs.checkpoints import load_method, read_checkpoint, write_checkpoint
from edue_lightning.training.run import train

# 16 training cases, four steps an epoch
SHORT = [
    *("data.batch_size=4", "data.fractions.val=0.17", "data.fractions.test=0.17", "trainer.max_epochs=2"),
    "data.fractions.draw=permutation",
    "checkpoint_every_steps=null",
]


def trained(run: Path, *overrides: str) -> Path:
    assert train_apart(configuration(*SHORT, *overrides), run) == 0, output_of(run)
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run without any of these settings."""
    return trained(tmp_path_factory.mktemp("plain") / "run")


def curve(run: Path, name: str) -> np.ndarray:
    return pd.read_csv(run / "logs" / "metrics.csv")[name].dropna().to_numpy()


def predictions(run: Path) -> Tensor:
    """Return the member probabilities of the first test case, by the last weights, computed in full precision."""
    loaded = load_method(run / "checkpoints" / "last.ckpt")
    image = build_data(loaded.configuration).single_batch("test", 0).image
    with torch.inference_mode():
        return loaded.method.predict(image).sigmoid()


def assert_same_training(first: Path, second: Path, tolerance: float) -> None:
    for name in ("train/loss", "val/nll"):
        np.testing.assert_allclose(curve(first, name), curve(second, name), rtol=0, atol=tolerance, err_msg=name)
    # weights differ more: Adam takes whole steps even where a gradient is zero but for rounding, as it is for biases
    # before a normalisation
    torch.testing.assert_close(predictions(first), predictions(second), rtol=0, atol=10 * tolerance)


@pytest.mark.xdist_group("precision")
def test_mixed_precision_trains_weights_of_full_precision(plain: Path, tmp_path: Path) -> None:
    mixed = trained(tmp_path / "run", "trainer.precision=bf16-mixed")
    state = read_checkpoint(mixed / "checkpoints" / "best.ckpt")["state_dict"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert not np.array_equal(curve(plain, "train/loss"), curve(mixed, "train/loss"))
    assert_same_training(plain, mixed, 2e-2)


@pytest.mark.xdist_group("precision")
def test_accumulated_gradients_are_those_of_the_whole_batch(plain: Path, tmp_path: Path) -> None:
    halves = trained(tmp_path / "run", "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    assert read_checkpoint(halves / "checkpoints" / "last.ckpt")["global_step"] == 8
    assert_same_training(plain, halves, 1e-4)


@pytest.fixture
def gradient_norms() -> Iterator[list[float]]:
    """Note the norm of the gradients by which each step was made in this process."""
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        gradients = [one.grad.norm() for group in optimizer.param_groups for one in group["params"]]
        norms.append(float(torch.stack(gradients).norm()))

    handle = register_optimizer_step_post_hook(note)
    yield norms
    handle.remove()


def test_long_gradients_are_cut_to_the_length_that_is_set(tmp_path: Path, gradient_norms: list[float]) -> None:
    train(configuration(*SHORT, "trainer.gradient_clip_val=null"), tmp_path / "free")
    free = list(gradient_norms)
    limit = float(np.median(free))
    gradient_norms.clear()
    train(configuration(*SHORT, f"trainer.gradient_clip_val={limit}"), tmp_path / "cut")
    assert len(gradient_norms) == len(free) == 8
    assert max(gradient_norms) <= limit * 1.001
    # the first step is the same but for its length
    assert gradient_norms[0] == pytest.approx(min(free[0], limit), rel=1e-3)


@pytest.fixture
def compiler() -> Iterator[None]:
    """Skip where there is none for the CPU; compile as trainings do, with deterministic algorithms."""
    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"torch.compile has no compiler here: {error}")
    earlier = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(earlier[0], warn_only=earlier[1])
    torch.compiler.reset()


# heads of several sizes, and stages that must be padded
@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 16), (11, 13)])
def test_compiled_networks_have_the_gradients_of_plain_ones(compiler: None, size: tuple[int, int]) -> None:
    plain = MultiHeadUNet(2, 1, 1, HeadLayout("encoder+decoder"), features=(3, 4, 5))
    compiled = copy.deepcopy(plain)
    compiled.compile()
    draws = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, *size, generator=draws)
    weight = torch.randn(2, plain.members, 1, *size, generator=draws)
    logits = []
    for network in (plain, compiled):
        logits.append(network(image))
        (logits[-1] * weight).sum().backward()
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for (name, first), second in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert first.grad is not None
        assert second.grad is not None
        # biases before a normalisation have no gradient but rounding
        largest = max(float(first.grad.abs().max()), 1.0)
        torch.testing.assert_close(first.grad, second.grad, rtol=0, atol=1e-4 * largest, msg=name)


@pytest.mark.slow
@pytest.mark.xdist_group("precision")
def test_a_compiled_training_is_that_of_a_plain_network(plain: Path, compiler: None, tmp_path: Path) -> None:
    compiled = trained(tmp_path / "run", "compile=true")
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (plain, compiled)]
    assert states[0].keys() == states[1].keys()
    assert_same_training(plain, compiled, 1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_changes_the_memory_and_not_the_logits(dims: Literal[2, 3]) -> None:
    networks = [
        MultiHeadUNet(dims, 2, 2, HeadLayout("encoder+decoder"), features=(4, 6, 8), channels_last=last).eval()
        for last in (False, True)
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    image = torch.randn((2, 2, *(24, 20, 16)[:dims]), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = (network(image) for network in networks)
    torch.testing.assert_close(expected, found, rtol=0, atol=1e-5)
    wanted = torch.channels_last if dims == 2 else torch.channels_last_3d
    kernels = [value for value in networks[1].state_dict().values() if value.ndim == dims + 2]
    assert all(kernel.is_contiguous(memory_format=wanted) for kernel in kernels)


@pytest.mark.xdist_group("precision")
def test_a_training_with_channels_last_is_read_without(plain: Path, tmp_path: Path) -> None:
    last = trained(tmp_path / "run", "network.channels_last=true")
    assert_same_training(plain, last, 1e-4)
    checkpoint = read_checkpoint(last / "checkpoints" / "last.ckpt")
    checkpoint["edue_configuration"]["network"]["channels_last"] = False
    write_checkpoint(checkpoint, last / "checkpoints" / "last.ckpt")
    assert_same_training(plain, last, 1e-4)


@pytest.mark.parametrize("size", [(16, 24), (19, 29), (12, 13, 11)])
def test_decoder_stages_are_those_of_monai(size: tuple[int, ...]) -> None:
    dims: Literal[2, 3] = 2 if len(size) == 2 else 3
    own = MultiHeadUNet(dims, 1, 1, HeadLayout(), features=(4, 6, 8))
    monai = copy.deepcopy(own)
    for stage in monai.decoder:
        stage.forward = partial(UpCat.forward, stage)
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    logits = [network(image) for network in (own, monai)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    for part in logits:
        part.square().sum().backward()
    for first, second in zip(own.parameters(), monai.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-4)
