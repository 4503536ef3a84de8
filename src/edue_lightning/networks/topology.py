"""Strides and kernels of the stages of a U-Net, one number per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence


def stage_strides(strides: Sequence[Sequence[int]] | None, stages: int, spatial_dims: int) -> list[list[int]]:
    """Return the reduction along each axis at the beginning of each stage, `[stages][axes]`.

    Args:
        strides: the reductions; None for 2 along all axes of all stages but the first.
        stages: number of stages.
        spatial_dims: number of axes.

    Raises:
        ValueError: if there is another number of stages or axes, a number below 1, or the first stage reduces.
    """
    if strides is None:
        return [[1] * spatial_dims, *([2] * spatial_dims for _ in range(stages - 1))]
    found = _per_stage("strides", strides, stages, spatial_dims)
    if max(found[0]) > 1:
        raise ValueError(f"strides must be 1 in the first stage, which has the image's size, not {found[0]}")
    return found


def stage_kernels(kernels: Sequence[Sequence[int]] | None, stages: int, spatial_dims: int) -> list[list[int]]:
    """Return the kernel size along each axis of each stage, `[stages][axes]`.

    Args:
        kernels: the sizes; None for 3 along all axes.
        stages: number of stages.
        spatial_dims: number of axes.

    Raises:
        ValueError: if there is another number of stages or axes, or an even number.
    """
    if kernels is None:
        return [[3] * spatial_dims for _ in range(stages)]
    found = _per_stage("kernels", kernels, stages, spatial_dims)
    if any(size % 2 == 0 for stage in found for size in stage):
        raise ValueError(f"kernels must be odd, so that the size of the features is kept, not {found}")
    return found


def total_strides(strides: Sequence[Sequence[int]]) -> list[int]:
    """Return the reduction along each axis from the image to the coarsest stage.

    >>> total_strides([[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    [2, 4, 4]
    """
    return [math.prod(along) for along in zip(*strides, strict=True)]


def _per_stage(name: str, values: Sequence[Sequence[int]], stages: int, spatial_dims: int) -> list[list[int]]:
    found = [list(stage) for stage in values]
    if len(found) != stages or any(len(stage) != spatial_dims for stage in found):
        raise ValueError(f"{name} needs {stages} stages of {spatial_dims} numbers, one per axis, not {found}")
    if any(number < 1 for stage in found for number in stage):
        raise ValueError(f"{name} must be at least 1, not {found}")
    return found
