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


def member_variance(probabilities: Tensor) -> Tensor:
    """Return V, the variance between the members: `[B, M, K, *S]` to `[B, K, *S]`; 0 for a single member."""
    probabilities = at_least_float32(probabilities)
    # several times as fast as Tensor.var over this axis; relative to the first member, so that equal members give
    # exactly 0, and without cancellation, since the first member's own difference is 0
    difference = probabilities - probabilities[:, :1]
    return difference.square().mean(dim=1) - difference.mean(dim=1).square()


def total_variance(probabilities: Tensor) -> Tensor:
    """Return p (1 - p) of the members' mean p: `[B, M, K, *S]` to `[B, K, *S]`.

    By the law of total variance this is the variance between the members plus the mean of each member's own
    Bernoulli variance, and the counterpart of V* = q (1 - q) for a calibrated p.
    """
    mean = at_least_float32(probabilities).mean(dim=1)
    return mean * (1 - mean)


def expected_entropy(probabilities: Tensor) -> Tensor:
    """Return the mean over the members of their entropies (nats): `[B, M, K, *S]` to `[B, K, *S]`."""
    # member by member, since a volume's logarithms of all members would need as much memory again
    members = at_least_float32(probabilities).unbind(dim=1)
    total = _binary_entropy(members[0])
    for member in members[1:]:
        total = total + _binary_entropy(member)
    return total / len(members)


def mutual_information(probabilities: Tensor) -> Tensor:
    """Return the mean divergence (Kullback-Leibler, nats) of the members from their mean, exactly 0 where they agree.

    It is the entropy of the mean minus the expected entropy, without the rounding of that difference. It is computed
    in float64, in which exported graphs are exact too: they take the logarithm of a rounded 1 + x for `log1p`.

    Args:
        probabilities: `[B, M, K, *S]`.

    Returns:
        `[B, K, *S]`, not negative.
    """
    # one member at a time in float64
    members = probabilities.unbind(dim=1)
    # relative to the first member, so that the mean of equal members is exactly each of them
    mean = first = members[0].double()
    for member in members[1:]:
        mean = mean + (member.double() - first) / len(members)
    # divisors that are not 0
    other = 1 - mean
    smallest = torch.finfo(mean.dtype).tiny
    of_mean, of_other = mean.clamp_min(smallest), other.clamp_min(smallest)
    total = torch.zeros_like(mean)
    for given in members:
        member = given.double()
        difference = member - mean
        total += member * _log_ratio(difference, of_mean, len(members))
        total += (1 - member) * _log_ratio(-difference, of_other, len(members))
    return (total / len(members)).clamp_min(0).to(torch.promote_types(probabilities.dtype, torch.float32))


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (nats, at most ln 2) of the members' mean: `[B, M, K, *S]` to `[B, K, *S]`."""
    mean = at_least_float32(probabilities).mean(dim=1)
    return _binary_entropy(mean)


def _binary_entropy(probability: Tensor) -> Tensor:
    # half the time of `torch.xlogy`; 0 log 0 is 0 here too, since the logarithm of the smallest number is finite
    smallest = torch.finfo(probability.dtype).tiny
    other = 1 - probability
    return -(probability * probability.clamp_min(smallest).log() + other * other.clamp_min(smallest).log())


def _log_ratio(difference: Tensor, mean: Tensor, members: int) -> Tensor:
    """Return log(a / b) from a - b and the mean b > 0 of so many members, exact where a is close to b, and finite."""
    ratio = difference / mean
    return ratio.clamp_(torch.finfo(mean.dtype).eps - 1, members - 1).log1p_()
