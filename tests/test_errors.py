"""Errors of used-up memory, which become errors for users."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from edue_lightning.errors import UserError, is_out_of_memory, memory_as_user_error

TOO_MUCH = 10**15


def full_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def full_driver() -> None:
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(
    "work",
    [lambda: torch.empty(TOO_MUCH), lambda: np.empty(TOO_MUCH), lambda: [0] * TOO_MUCH, full_gpu, full_driver],
    ids=["torch", "numpy", "list", "gpu", "driver"],
)
def test_too_little_memory_names_the_settings_that_need_less(work: Callable[[], object]) -> None:
    with (
        pytest.raises(UserError, match=r"^not enough memory \(.+\); lower data\.batch_size") as caught,
        memory_as_user_error(),
    ):
        work()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, memory_as_user_error():
        raise error
    assert caught.value is error
