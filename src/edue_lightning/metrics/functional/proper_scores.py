"""Proper scoring rules of the mean prediction against every rater."""

from __future__ import annotations

from torch import Tensor

from edue_lightning.metrics.functional.flat_case import FlatCase, each_case


def negative_log_likelihood(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Return the cross-entropy of the members' mean probability, averaged over valid raters and voxels.

    The mean is taken of probabilities, the logarithm from logits (logsumexp of log-sigmoids): finite logits give a
    finite value, without clipping.

    Source: Lakshminarayanan et al., NeurIPS 2017, for a mixture of binary predictions.

    Args:
        logits: member logits, `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.

    Returns:
        `[B, K]` float64, at least 0, in nats a voxel, lower is better; NaN for a case without a valid rater.
    """
    return each_case(case_negative_log_likelihood, logits, masks, valid, needs_raters=1)


def brier_score(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Return the squared error of the members' mean probability, averaged over valid raters and voxels.

    Source: Brier, 1950 (binary form, of the foreground alone).

    Args:
        logits: member logits, `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.

    Returns:
        `[B, K]` float64 in [0, 1], lower is better; NaN for a case without a valid rater.
    """
    return each_case(case_brier_score, logits, masks, valid, needs_raters=1)


def case_negative_log_likelihood(case: FlatCase) -> Tensor:
    """Return `negative_log_likelihood` of one case, `[K]`."""
    # the cross-entropy is linear in the label, so the raters' mean q stands for all of them
    likelihood = case.rater_mean * case.log_foreground + (1 - case.rater_mean) * case.log_background
    return -likelihood.mean(dim=1)


def case_brier_score(case: FlatCase) -> Tensor:
    """Return `brier_score` of one case, `[K]`."""
    # mean over raters of (p - y)² for y in {0, 1}
    q = case.rater_mean
    return ((case.mean_probability - q).square() + q * (1 - q)).mean(dim=1)
