"""Dice of masks by other rules than that of the run, metrics of `metrics=mask_rules`: measured only on request.

They show what a prediction can reach by its read-out alone, so that methods are compared by the best mask of each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor

from edue_lightning.metrics.case import Case
from edue_lightning.metrics.definition import PerCaseMetric
from edue_lightning.metrics.overlap import dice_of_masks, mean_dice_over_shares
from edue_lightning.uncertainty import MaskRule, masks_of_images

_Rule = Literal["raters", "expected_dice"]


class DiceByRule(PerCaseMetric):
    """Dice of the soft-majority mask and the predicted mask by a rule, see `MaskRule`.

    In [0, 1], higher is better. Empty masks as in `Dice`.

    Args:
        rule: `raters`, with the number of the case's valid raters, or `expected_dice`.

    Raises:
        ValueError: if it is another rule.
    """

    better = "high"

    def __init__(self, rule: _Rule) -> None:
        if rule not in get_args(_Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(_Rule))}, not {rule!r}")
        self.rule = rule

    def of_case(self, case: Case) -> Tensor:
        """Return the Dice of each structure, `[K]`."""
        rule = MaskRule(self.rule, raters=case.n_raters, majority_tie=case.settings.majority_tie)
        readout = replace(case.readout, mask=rule)
        decision = readout.decision(case.channels[None])
        return dice_of_masks(masks_of_images(decision, rule, case.structures, readout.exclusive)[0], case.consensus)


class DSoftByExpectedDice(PerCaseMetric):
    """`DSoft` with the mask of the largest expected Dice at each share t of the raters, in place of a threshold.

    The expectation is that of `largest_expected_dice` under the probability that at least a share t of the raters marks
    a voxel, see `Readout.share_probability`. In [0, 1], higher is better. Two empty masks score 1.
    """

    better = "high"

    def of_case(self, case: Case) -> Tensor:
        """Return the mean Dice of each structure, `[K]`."""
        rule, channels, mean = MaskRule("expected_dice"), case.channels[None], case.mean[None]

        def predicted(share: float) -> Tensor:
            probability = case.readout.share_probability(channels, share, case.n_raters, mean)
            return masks_of_images(probability, rule, case.structures)[0]

        return mean_dice_over_shares(predicted, case.share)
