"""Weights of the structures in the mean of their losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def checked_weights(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return one weight per structure as numbers, or None for equal weights.

    Raises:
        ValueError: if there is no weight, or one is not positive and finite.
    """
    if weights is None:
        return None
    numbers = tuple(map(float, weights))
    if not numbers or not all(0 < weight < math.inf for weight in numbers):
        raise ValueError(f"structure_weights must be positive numbers, one per structure, not {list(weights)}")
    return numbers


def structure_mean(losses: Tensor, weights: Sequence[float] | None) -> Tensor:
    """Return the mean of losses `[N, K]` over the structures, `[N]`: `sum_k w_k l_k / sum_k w_k`.

    Raises:
        ValueError: if there are not as many weights as structures.
    """
    if weights is None:
        return losses.mean(dim=1)
    check_count(weights, losses.shape[1])
    numbers = losses.new_tensor(weights)
    return (losses * numbers).sum(dim=1) / numbers.sum()


def check_count(weights: Sequence[float], structures: int) -> None:
    """Check that there is one weight per structure.

    Raises:
        ValueError: if there is not.
    """
    if len(weights) != structures:
        raise ValueError(f"structure_weights has {len(weights)} entries, but there are {structures} structures")
