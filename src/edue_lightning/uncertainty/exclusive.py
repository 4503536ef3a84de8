"""Structures that exclude each other: their probabilities by softmax, and at most one of them at each voxel.

The classes are the K structures and the background, whose logit is fixed to 0. So K logits are enough, networks have
the same shapes as for structures that may overlap, and for K = 1 the softmax is the sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.uncertainty.maps import Tie, at_least_float32

# largest number in float32 below one half
_BELOW_HALF = 0.5 - 2.0**-25
# distance of neighbouring numbers in float32 below 1
_SPACING = 2.0**-24
# shares of up to some thousand raters that differ by less are equal
_EQUAL = 1e-4


def exclusive_log_odds(logits: Tensor, dim: int) -> Tensor:
    """Return `log(p_k / (1 - p_k))` of the softmax p over the structures and the background, whose logit is 0.

    Their sigmoid is the softmax, so that whatever takes one logit per structure takes these as well.

    Args:
        logits: logits of any shape; narrower types than float32 are converted first.
        dim: axis of the K structures.
    """
    logits = at_least_float32(logits)
    parts = logits.unbind(dim)
    return logits - torch.stack(_of_others(parts, torch.zeros_like(parts[0]), torch.logaddexp), dim)


def capped_log_odds(logits: Tensor) -> Tensor:
    """Return log-odds of levels whose means over the levels add up to at most 1 over the structures.

    The levels of different structures are not the classes of one softmax: with four raters, two structures may both
    have two votes. But their means are shares of the same raters. Where these add up to more than 1, all levels of the
    voxel are divided by the sum; they keep their order.

    Args:
        logits: logits of the levels, `[B, M, K, *S]`; narrower types than float32 are converted first.
    """
    logits = at_least_float32(logits)
    sum_of_shares = torch.sigmoid(logits).mean(dim=1, keepdim=True).sum(dim=2, keepdim=True).clamp_min(1)
    # p / s over 1 - p / s, where s - p = (s - 1) + (1 - p) is above 0 where s is above 1
    rest = (sum_of_shares - 1 + torch.sigmoid(-logits)).clamp_min(torch.finfo(logits.dtype).tiny)
    return torch.where(sum_of_shares > 1, F.logsigmoid(logits) - rest.log(), logits)


def exclusive_decision(probability: Tensor, dim: int) -> Tensor:
    """Return `p_k / (p_k + p of the strongest other class)`, the background being a class with what is left of 1.

    It is at least one half for one structure at most: the most probable class, unless that is the background. Of
    equally probable structures the first has one half, and a structure as probable as the background has it too. The
    values of two structures never add up to more than 1, so that interpolated between voxels, too, at most one exceeds
    one half. For K = 1 it is p.

    Args:
        probability: probabilities of any shape; they are rounded to float32 first, so that a stored map gives the same
            masks.
        dim: axis of the K structures.
    """
    probability = at_least_float32(probability)
    rounded = probability.float().double()
    background = (1 - rounded.sum(dim)).clamp_min(0)
    share = rounded / (rounded + torch.stack(_of_others(rounded.unbind(dim), background, torch.maximum), dim))
    # equal but for the rounding of the others; none of it where there are no others
    rounding = (probability.shape[dim] - 1) * _SPACING
    wins = first_largest(rounded, dim) & (rounded >= background.unsqueeze(dim) - rounding)
    return torch.where(wins, share.clamp_min(0.5), share.clamp_max(_BELOW_HALF)).to(probability.dtype)


def first_largest(values: Tensor, dim: int) -> Tensor:
    """Return where a structure has the largest value of all, bool like `values`; of equal ones, the first alone.

    Args:
        values: values of any shape.
        dim: axis of the structures.
    """
    largest = values.amax(dim)
    free = torch.ones_like(largest, dtype=torch.bool)
    found = []
    for part in values.unbind(dim):
        found.append((part >= largest) & free)
        free = free & ~found[-1]
    return torch.stack(found, dim)


def largest_alone(values: Tensor, dim: int) -> Tensor:
    """Return the values where a structure has the largest one of all, and 0 elsewhere, see `first_largest`.

    So the mask of each structure follows from its own map, at any threshold above 0.
    """
    return values * first_largest(values, dim)


def plurality(share: Tensor, tie: Tie, dim: int) -> Tensor:
    """Return the mask of the class that most raters gave to each voxel, bool like `share`, of one structure at most.

    The background is a class, too: that of the raters who marked no structure. So a structure need not be marked by
    half of the raters. Of structures marked by equally many, the first is taken. For K = 1 it is `majority`.

    Args:
        share: q, the share of the raters who marked each voxel, of any shape.
        tie: class of a voxel where a structure and the background have equally many raters.
        dim: axis of the K structures.
    """
    share = share.double()
    background = 1 - share.sum(dim, keepdim=True)
    # sums of shares such as 1/3 are inexact
    most = first_largest((share >= share.amax(dim, keepdim=True) - _EQUAL).to(torch.uint8), dim)
    return most & (share >= background - _EQUAL if tie == "foreground" else share > background + _EQUAL)


def _of_others(
    parts: Sequence[Tensor], background: Tensor, combine: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """Return for each structure what all other classes have together."""
    behind = [background]
    for part in parts[:0:-1]:
        behind.append(combine(behind[-1], part))
    found = []
    before: Tensor | None = None
    for part, others in zip(parts, reversed(behind), strict=True):
        found.append(others if before is None else combine(before, others))
        before = part if before is None else combine(before, part)
    return found
