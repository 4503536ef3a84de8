"""The course of the learning rate, for trainings of any length."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from edue_lightning.methods import OptimizerSettings


def rates(steps: int) -> list[float]:
    """Return the learning rate of each step of a training."""
    module = torch.nn.Linear(1, 1)
    module.trainer = SimpleNamespace(estimated_stepping_batches=steps)  # type: ignore[assignment]
    configured = OptimizerSettings(learning_rate=0.5).configure(module)  # type: ignore[arg-type]
    assert isinstance(configured, dict)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]  # type: ignore[index]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        # as the trainer does, also after the last step
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", range(1, 25))
def test_short_trainings_have_a_rate_too(steps: int) -> None:
    assert all(0 < rate <= 0.5 for rate in rates(steps))


def test_the_rate_rises_over_a_tenth_and_falls_to_nothing() -> None:
    found = rates(200)
    assert max(range(200), key=found.__getitem__) == 19
    assert found[19] == pytest.approx(0.5)
    assert found[0] == pytest.approx(0.5 / 25)
    assert found[-1] < 1e-5
