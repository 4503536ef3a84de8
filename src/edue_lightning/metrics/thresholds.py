"""Thresholds of the decision map with the largest mean Dice over cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edue_lightning.metrics.case_batch import CaseBatch
from edue_lightning.metrics.case_statistics import Columns
from edue_lightning.metrics.definition import Statistic
from edue_lightning.metrics.metric import CaseRows
from edue_lightning.metrics.ties import tied
from edue_lightning.uncertainty import dice_of_counts, largest_alone

GRID = torch.arange(1, 100, dtype=torch.float64).div(100).float()
"""Thresholds to choose from, 0.01 to 0.99."""


def _counts(cases: CaseBatch) -> Sequence[Tensor]:
    decision = cases.decision.float()
    if cases.readout.exclusive:
        # no threshold puts the others into a mask
        decision = largest_alone(decision, dim=1)
    # number of thresholds that the voxel reaches
    position = torch.bucketize(decision, GRID.to(decision.device), right=True)
    counts = cases.mean.new_zeros(*decision.shape[:2], len(GRID) + 1, 2)
    counts[..., 0].scatter_add_(2, position, torch.ones_like(cases.mean))
    counts[..., 1].scatter_add_(2, position, cases.consensus.double())
    return (counts if cases.n_raters else torch.full_like(counts, torch.nan),)


_COUNTS = Statistic(("decision_counts",), _counts, fewest_raters=0, shape=(len(GRID) + 1, 2))


class BestThresholds(CaseRows):
    """Collects, for each case, how many voxels reach each threshold, in all and in the soft-majority mask.

    Arguments as of `CaseRows`. The read-out's own `MaskRule` plays no part, but for `takes_probability`.
    """

    @property
    def columns(self) -> Columns:
        """The counts."""
        return Columns.all_of([_COUNTS])

    def thresholds(self) -> dict[str, float]:
        """Return the threshold of each structure, that of the largest mean Dice over the cases of all processes.

        Of equally good ones it is the nearest to 0.5; 0.5 if no case has a rater.
        """
        counts = self._read(self.compute()).statistics["decision_counts"]
        counts = counts[~counts.isnan().flatten(1).any(dim=1)]
        # voxels at and above each threshold
        reached = counts.flip(2).cumsum(dim=2).flip(2)[:, :, 1:]
        dice = dice_of_counts(reached[..., 1], reached[..., 0] + counts[..., 1].sum(dim=2, keepdim=True)).mean(dim=0)
        chosen = {}
        for name, values in zip(self.structures, dice, strict=True):
            # sums of the same Dice in another order are equally good
            values = torch.from_numpy(tied(values.cpu().numpy()))
            best = GRID[values == values.max()] if len(counts) else GRID[:0]
            nearest = best[(best - 0.5).abs().argmin()] if len(best) else torch.tensor(0.5)
            chosen[name] = round(float(nearest), 2)
        return chosen
