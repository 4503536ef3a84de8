"""Relative error of the predicted area."""

from __future__ import annotations

import torch
from torch import Tensor

from edue_lightning.metrics import Case, PerCaseMetric


class AreaError(PerCaseMetric):
    """Difference of the predicted area from the raters' mean area, as a share of the latter."""

    better = "low"

    def of_case(self, case: Case) -> Tensor:
        """Return the error of each structure, `[K]`; NaN where no rater marked a voxel."""
        predicted = case.predicted.sum(dim=1).double()  # [K], voxels
        drawn = case.marked.sum(dim=1) / case.n_raters
        return (predicted - drawn).abs() / torch.where(drawn > 0, drawn, torch.nan)
