"""The cross-entropy of structures that exclude each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.losses.structures import check_count


def categorical_cross_entropy(
    logits: Tensor, target: Tensor, dim: int, weights: Sequence[float] | None = None
) -> Tensor:
    """Return the cross-entropy of the softmax over the structures and the background, whose logit is 0, in nats.

    It is `-sum_c w_c y_c log p_c` over all K + 1 classes, where the target of the background is what is left of 1. For
    K = 1 it is the binary cross-entropy.

    Args:
        logits: logits of any shape.
        target: shares in [0, 1] like `logits`, which add up to at most 1.
        dim: axis of the K structures.
        weights: positive weight of each structure, used relative to their mean; that of the background is 1. None for
            equal weights.

    Returns:
        `logits` without this axis.

    Raises:
        ValueError: if there are not as many weights as structures.
    """
    total = log_total(logits, dim)
    if weights is None:
        return total - (target * logits).sum(dim)
    check_count(weights, logits.shape[dim])
    relative = logits.new_tensor(weights) / (sum(weights) / len(weights))
    weighted = target * relative.reshape(-1, *[1] * (logits.ndim - 1 - dim % logits.ndim))
    background = 1 - target.sum(dim)
    return (weighted.sum(dim) + background) * total - (weighted * logits).sum(dim)


def cross_entropy_terms(logits: Tensor, target: Tensor, dim: int, exclusive: bool) -> Tensor:
    """Return the cross-entropy at each voxel: of each structure, or of all classes where structures exclude each other.

    Args:
        logits: logits of any shape.
        target: like `logits`, in [0, 1].
        dim: axis of the K structures.
        exclusive: whether the structures exclude each other, see `categorical_cross_entropy`.

    Returns:
        like `logits`, with K terms along the axis, or one.
    """
    if exclusive:
        return categorical_cross_entropy(logits, target, dim).unsqueeze(dim)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def log_total(logits: Tensor, dim: int) -> Tensor:
    """Return `log(1 + sum_k exp(z_k))`, minus the log of the background's probability: `logits` without the axis."""
    background = torch.zeros_like(logits.narrow(dim, 0, 1))
    return torch.cat([background, logits], dim).logsumexp(dim)
