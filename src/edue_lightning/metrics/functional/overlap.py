"""Dice of the mean prediction."""

from __future__ import annotations

from torch import Tensor

from edue_lightning.metrics.functional.flat_case import FlatCase, each_case
from edue_lightning.uncertainty.scores import mask_dice


def dice(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Return the Dice coefficient of the mean prediction (p >= 0.5) and the soft majority of raters (q >= 0.5).

    An even split of the raters is foreground. Two empty masks are equal: 1; one empty mask: 0.

    Args:
        logits: member logits, `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.

    Returns:
        `[B, K]` float64 in [0, 1], higher is better; NaN for a case without a valid rater.
    """
    return each_case(case_dice, logits, masks, valid, needs_raters=1)


def dice_per_rater(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Return the Dice coefficient of the mean prediction and each valid rater's mask, averaged over the raters.

    Two empty masks are equal: 1; one empty mask: 0. Raters who disagree keep the best possible value below 1.

    Args:
        logits: member logits, `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.

    Returns:
        `[B, K]` float64 in [0, 1], higher is better; NaN for a case without a valid rater.
    """
    return each_case(case_dice_per_rater, logits, masks, valid, needs_raters=1)


def case_dice(case: FlatCase) -> Tensor:
    """Return `dice` of one case, `[K]`."""
    return mask_dice(case.predicted, case.consensus)


def case_dice_per_rater(case: FlatCase) -> Tensor:
    """Return `dice_per_rater` of one case, `[K]`."""
    return mask_dice(case.predicted.unsqueeze(0), case.masks).mean(dim=0)
