"""Dice of masks: against soft majority and raters, at several thresholds, and where the raters agree or do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edue_lightning.metrics.case_batch import CaseBatch
from edue_lightning.metrics.definition import Statistic, mean_over_cases
from edue_lightning.metrics.metric import CaseMetric, functional
from edue_lightning.uncertainty import dice_of_counts

D_SOFT_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def _dice(cases: CaseBatch) -> Sequence[Tensor]:
    dice = cases.overlap.dice()[:, :, 0]
    return dice[..., 1], dice[..., cases.of_raters].mean(dim=-1)


def _d_soft(cases: CaseBatch) -> Sequence[Tensor]:
    return (mean_dice_over_shares(cases.share_reached, cases.share),)


def mean_dice_over_shares(predicted: Callable[[float], Tensor], share: Tensor) -> Tensor:
    """Return the mean Dice of predicted masks and (q >= t) over `D_SOFT_THRESHOLDS`, `[..., V]` to `[...]`.

    Args:
        predicted: function from t to the predicted mask, `[..., V]` bool.
        share: q, `[..., V]`.
    """
    # in float32 7 of 10 raters reach 0.7, and so does a prediction of 0.7 that was stored in float32
    share = share.float()
    return torch.stack([dice_of_masks(predicted(t), share >= t) for t in D_SOFT_THRESHOLDS]).mean(dim=0)


def _consensus(cases: CaseBatch) -> Sequence[Tensor]:
    disputed = (cases.marked > 0) & (cases.marked < cases.n_raters)
    found = []
    for region in (~disputed, disputed):
        first, second = cases.predicted & region, cases.consensus & region
        found.append(dice_of_masks(first, second))
    agreed, contested = found
    return agreed, contested.masked_fill(~disputed.any(dim=-1), torch.nan)


def dice_of_masks(first: Tensor, second: Tensor) -> Tensor:
    """Return the Dice of masks, `[..., V]` bool to `[...]`: 1 for two empty ones, 0 for one."""
    both, one, other = (mask.count_nonzero(dim=-1).double() for mask in (first & second, first, second))
    return dice_of_counts(both, one + other)


DICE = Statistic(("dice", "dice_per_rater"), _dice)
SOFT_DICE = Statistic(("d_soft",), _d_soft)
CONSENSUS_DICE = Statistic(("dice_consensus", "dice_dissensus"), _consensus, fewest_raters=2)


class Dice(CaseMetric):
    """Dice of the mean prediction (p >= 0.5) and the soft-majority mask (q >= 0.5), mean over cases.

    In [0, 1], higher is better. A case in which both masks are empty scores 1, one in which one of them is 0.

    >>> metric = Dice()
    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 1, 2, 2)
    >>> metric.update(logits, masks, torch.ones(1, 1, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.6667, dtype=torch.float64)
    """

    definition = mean_over_cases("dice", DICE, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


dice = functional(Dice)


class DicePerRater(CaseMetric):
    """Dice of the mean prediction and each rater's mask, mean over the raters and then over cases.

    In [0, 1], higher is better; at best what one mask can have with raters who disagree. Empty masks as in `Dice`.

    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> dice_per_rater(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.8333, dtype=torch.float64)
    """

    definition = mean_over_cases("dice_per_rater", DICE, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


dice_per_rater = functional(DicePerRater)


class DSoft(CaseMetric):
    """Soft multi-rater Dice: Dice of (p >= t) and (q >= t), mean over t = 0.1, 0.3, 0.5, 0.7, 0.9 and then cases.

    In [0, 1], higher is better (Ji et al., CVPR 2021). Two empty masks score 1.

    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> d_soft(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.8667, dtype=torch.float64)
    """

    definition = mean_over_cases("d_soft", SOFT_DICE, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


d_soft = functional(DSoft)


class ConsensusDice(CaseMetric):
    """Dice of the mean prediction over the voxels on which all raters agree, mean over cases (CURVAS).

    In [0, 1], higher is better: foreground is what all raters marked, background what none did; voxels in dispute are
    left out. Two empty masks score 1, one empty mask 0. Undefined (NaN) for fewer than two raters.

    >>> logits = torch.tensor([4.0, 4.0, 4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> dice_consensus(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.6667, dtype=torch.float64)
    """

    definition = mean_over_cases("dice_consensus", CONSENSUS_DICE, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


dice_consensus = functional(ConsensusDice)


class DissensusDice(CaseMetric):
    """Dice of the mean prediction and the soft-majority mask over the voxels in dispute, mean over cases.

    In [0, 1], higher is better: only voxels that some valid raters marked and others did not. Two empty masks score 1,
    one empty mask 0. Undefined (NaN) where no voxel is in dispute.

    >>> logits = torch.tensor([4.0, -4.0, 4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> dice_dissensus(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.6667, dtype=torch.float64)
    """

    definition = mean_over_cases("dice_dissensus", CONSENSUS_DICE, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


dice_dissensus = functional(DissensusDice)

STATISTICS = (DICE, SOFT_DICE, CONSENSUS_DICE)
METRICS = (
    Dice.definition,
    DicePerRater.definition,
    DSoft.definition,
    ConsensusDice.definition,
    DissensusDice.definition,
)
