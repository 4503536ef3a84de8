"""The course of the learning rate, for trainings of any length."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edue_lightning.methods import OptimizerSettings, SGDSettings


def rates(steps: int, settings: OptimizerSettings | None = None) -> list[float]:
    """Return the learning rate of each step of a training."""
    module = torch.nn.Linear(1, 1)
    settings = settings or OptimizerSettings(learning_rate=0.5)
    module.trainer = SimpleNamespace(estimated_stepping_batches=steps)  # type: ignore[assignment]
    configured = settings.configure(module)  # type: ignore[arg-type]
    assert isinstance(configured, dict)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]  # type: ignore[index]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        # as the trainer does, also after the last step
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["one_cycle", "poly", "cosine_warmup"])
@pytest.mark.parametrize("steps", range(1, 25))
def test_short_trainings_have_a_rate_too(steps: int, schedule: Any) -> None:
    assert all(0 < rate <= 0.5 for rate in rates(steps, OptimizerSettings(0.5, schedule=schedule)))


def test_the_rate_rises_over_a_tenth_and_falls_to_nothing() -> None:
    found = rates(200)
    assert max(range(200), key=found.__getitem__) == 19
    assert found[19] == pytest.approx(0.5)
    assert found[0] == pytest.approx(0.5 / 25)
    assert found[-1] < 1e-5


def test_the_poly_schedule_is_that_of_nnunet() -> None:
    expected = [0.01 * (1 - step / 50) ** 0.9 for step in range(50)]
    assert rates(50, SGDSettings()) == pytest.approx(expected)


def test_a_cosine_follows_the_warm_up() -> None:
    found = rates(200, OptimizerSettings(0.5, schedule="cosine_warmup"))
    assert found[:11] == pytest.approx([0.5 * (step + 1) / 11 for step in range(11)])
    expected = [0.25 * (1 + math.cos(math.pi * step / 190)) for step in range(190)]
    assert found[10:] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["one_cycle", "poly"])
def test_sgd_keeps_its_nesterov_momentum(schedule: Any) -> None:
    module = torch.nn.Linear(1, 1)
    module.trainer = SimpleNamespace(estimated_stepping_batches=20)  # type: ignore[assignment]
    configured: Any = SGDSettings(schedule=schedule).configure(module)  # type: ignore[arg-type]
    (group,) = configured["optimizer"].param_groups
    for _ in range(10):
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum must lie between 0 and 1, not 1\.0"):
        SGDSettings(momentum=1.0)
    with pytest.raises(
        ValueError, match="schedule must be one of one_cycle, constant, poly, cosine_warmup, not 'step'"
    ):
        OptimizerSettings(schedule="step")  # type: ignore[arg-type]
