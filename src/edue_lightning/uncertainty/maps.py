"""Disagreement maps: the variance between raters, or between a model's members, at each voxel.

All variances are population variances, computed in float32 or better whatever the input's precision.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

# every number from here to 0.5 is 0.5 in float32, and so is this one
_HALF = 0.5 - 2.0**-26

# log-odds of a probability that is 1 in float64, while 1 minus it is 0
_SURE = 800.0

# factors of at least one half whose product keeps its distance from 1 and from 0
_MOST_FACTORS = 8

ArrayOrTensor = TypeVar("ArrayOrTensor", Tensor, NDArray[Any])

Tie = Literal["foreground", "background"]
"""Class of a voxel that exactly half of the raters marked, in a majority mask."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in its own floating type, or in float32 where that is narrower (or not floating)."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def foreground(probability: ArrayOrTensor) -> ArrayOrTensor:
    """Return the mask of a probability: where it is at least one half, once it is rounded to float32.

    The one rule for masks of predictions and of members, in tables, predictions and exported graphs. Without
    the rounding, the float64 mean of two sure members that disagree could lie below one half, and the float32
    probability that is stored of it at one half.

    Args:
        probability: probabilities of any shape, in any floating type.
    """
    return probability >= _HALF


def rater_mean(masks: Tensor, valid: Tensor) -> Tensor:
    """Return q, the share of the valid raters who marked each voxel.

    Args:
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.

    Returns:
        `[B, K, *S]` in [0, 1]; 0 for a case without a valid rater.
    """
    spatial_ones = [1] * (masks.ndim - 2)
    counted = valid.to(torch.float32).reshape(*valid.shape, *spatial_ones)
    # divided last: sums of small whole numbers are exact, so a tie of the raters is exactly 0.5
    return (masks.to(torch.float32) * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)


def majority(share: Tensor, tie: Tie) -> Tensor:
    """Return the soft-majority mask of the raters, bool like `share`: q >= 0.5, or q > 0.5 if a tie is background.

    Args:
        share: q, the share of the raters who marked each voxel, of any shape; a tie must be exactly 0.5.
        tie: class of a voxel that exactly half of the raters marked.
    """
    return share >= 0.5 if tie == "foreground" else share > 0.5


def rater_variance(masks: Tensor, valid: Tensor) -> Tensor:
    """Return V* = q (1 - q), the variance between the valid raters, at most 0.25.

    Args:
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.

    Returns:
        `[B, K, *S]`; 0 for a case with fewer than two valid raters, see `enough_raters`.
    """
    mean = rater_mean(masks, valid)
    return mean * (1 - mean)


def enough_raters(valid: Tensor) -> Tensor:
    """Return whether each case has the two valid raters that disagreement needs: `[B, R]` bool to `[B]` bool."""
    return valid.sum(dim=1) >= 2


def member_mean(values: Tensor) -> Tensor:
    """Return the mean over the members, or stages: `[B, M, ...]` to `[B, ...]`, in float32 or better."""
    # a third of the time of `Tensor.mean` over this axis, whose values lie far apart
    first, *others = at_least_float32(values).unbind(dim=1)
    total = first
    for other in others:
        total = total + other
    return total / (1 + len(others))


def member_variance(probabilities: Tensor) -> Tensor:
    """Return V, the variance between the members: `[B, M, K, *S]` to `[B, K, *S]`; 0 for a single member."""
    probabilities = at_least_float32(probabilities)
    # several times as fast as Tensor.var over this axis; relative to the first member, so that equal members give
    # exactly 0, and without cancellation, since the first member's own difference is 0
    difference = probabilities - probabilities[:, :1]
    return member_mean(difference.square()) - member_mean(difference).square()


def total_variance(probabilities: Tensor) -> Tensor:
    """Return p (1 - p) of the members' mean p: `[B, M, K, *S]` to `[B, K, *S]`.

    By the law of total variance this is the variance between the members plus the mean of each member's own
    Bernoulli variance, and the counterpart of V* = q (1 - q) for a calibrated p.
    """
    mean = member_mean(probabilities)
    return mean * (1 - mean)


def expected_entropy(probabilities: Tensor, log_odds: Tensor | None = None) -> Tensor:
    """Return the mean over the members of their entropies (nats), `[B, M, K, *S]` to `[B, K, *S]` float64.

    With s the smaller one of p and 1 - p, the entropy of a member is `s log((1 - s) / s) - log(1 - s)`. The first
    logarithm is the absolute value of the log-odds. As 1 - s is at least one half, the second logarithms of several
    members are that of one product.

    Args:
        probabilities: `[B, M, K, *S]`.
        log_odds: what they are the sigmoid of, which saves a logarithm for each member; None if unknown.
    """
    members = probabilities.unbind(dim=1)
    odds = [None] * len(members) if log_odds is None else log_odds.unbind(dim=1)
    total = torch.zeros_like(members[0], dtype=torch.float64)
    # 1 minus the product, which rounding would take to 1 where all members are sure
    missing, one = torch.zeros_like(total), total.new_ones(())
    # member by member, since a volume's maps of all members would need as much memory again
    for number, (member, of_member) in enumerate(zip(members, odds, strict=True), start=1):
        probability = member.double()
        smaller = torch.minimum(probability, 1 - probability)
        if of_member is None:
            size = ((1 - smaller) / smaller.clamp_min(torch.finfo(smaller.dtype).tiny)).log_()
        else:
            size = of_member.abs().clamp_max_(_SURE).double()
        missing.lerp_(one, smaller)
        total.addcmul_(smaller, size)
        if number % _MOST_FACTORS == 0 or number == len(members):
            total -= missing.neg_().log1p_()
            missing.zero_()
    return total.div_(len(members))


def mutual_information(probabilities: Tensor, entropy: Tensor, expected: Tensor) -> Tensor:
    """Return the entropy of the members' mean minus their expected entropy, exactly 0 where they agree.

    Both are float64, so that the difference is exact to about 1e-16 nats, or to a share of 1e-16 of sure background. Of
    sure foreground, 1 - p itself is rounded: where the log-odds exceed 23, the result is mostly rounding.

    Args:
        probabilities: probabilities of the members, `[B, M, K, *S]`.
        entropy: `predictive_entropy` of the members, `[B, K, *S]` float64, so that little is lost in the difference.
        expected: their `expected_entropy`.

    Returns:
        `[B, K, *S]` float64, not negative.
    """
    differ = probabilities.amax(dim=1) > probabilities.amin(dim=1)
    return (entropy - expected).clamp_min_(0).mul_(differ)


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (nats, at most ln 2) of the members' mean: `[B, M, K, *S]` to `[B, K, *S]`."""
    mean = member_mean(probabilities)
    return _binary_entropy(mean)


def _binary_entropy(probability: Tensor) -> Tensor:
    # half the time of `torch.xlogy`; 0 log 0 is 0 here too, since the logarithm of the smallest number is finite
    limits = torch.finfo(probability.dtype)
    of_one = probability.clamp_min(limits.tiny).log_().mul_(probability)
    # the largest number below 1
    of_zero = (-probability).clamp_min_(limits.eps / 2 - 1).log1p_().mul_(1 - probability)
    return of_one.add_(of_zero).neg_()
