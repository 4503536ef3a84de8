"""Likelihood of the raters under the mean prediction, the counterpart of the guidance of the variance."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from edue_lightning.losses.exclusive import log_total
from edue_lightning.losses.region import voxel_mean
from edue_lightning.uncertainty.maps import at_least_float32, rater_mean


def mean_prediction_nll(
    logits: Tensor, masks: Tensor, valid: Tensor, region: Tensor | None = None, exclusive: bool = False
) -> Tensor:
    """Return the cross-entropy of the members' mean prediction p against every valid rater.

    It is `-(q log p + (1 - q) log (1 - p))` with the raters' mean q, a proper score: its optimum is p = q. It and its
    gradients are finite for every finite logit. Of structures that exclude each other it is the categorical
    cross-entropy of the mean of the members' softmax, `-sum_c q_c log p_c` over structures and background.

    Args:
        logits: member logits `[B, M, K, *S]`; narrower types than float32 are converted first.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool, at least one true in each row.
        region: `[B, *S]` bool, the voxels that count; None if all do.
        exclusive: whether the structures exclude each other; then `logits` are those of the softmax.

    Returns:
        `[B]` in nats, averaged over structures and voxels; of exclusive structures over voxels.
    """
    logits = at_least_float32(logits)
    share = rater_mean(masks, valid).to(logits.dtype)
    log_members = math.log(logits.shape[1])
    if exclusive:
        total = log_total(logits, dim=2)
        log_p = (logits - total.unsqueeze(2)).logsumexp(dim=1) - log_members
        log_background = (-total).logsumexp(dim=1) - log_members
        return voxel_mean(-(share * log_p).sum(dim=1) - (1 - share.sum(dim=1)) * log_background, region)
    log_p = F.logsigmoid(logits).logsumexp(dim=1) - log_members
    log_not_p = F.logsigmoid(-logits).logsumexp(dim=1) - log_members
    return voxel_mean(-(share * log_p + (1 - share) * log_not_p), region)
