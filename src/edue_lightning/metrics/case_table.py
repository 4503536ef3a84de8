"""`torchmetrics` classes: cases are added batch by batch on any number of processes, each counted once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from edue_lightning.metrics.case_statistics import RELIABILITY_BINS, CaseStatistics, case_statistics
from edue_lightning.metrics.summary import summarise

_COLUMNS = [field.name for field in fields(CaseStatistics) if field.name != "bins"]
_WIDTH = len(_COLUMNS) + 3 * RELIABILITY_BINS
_NO_INDEX = -1


class IndexedCases(NamedTuple):
    """Cases with their positions in a split, `[N]`; -1 where none was given."""

    positions: Tensor
    statistics: CaseStatistics


class CaseTable(Metric):
    """Collects one row of statistics a case and structure: exact under batching and distribution.

    Memory grows with the number of cases (about 0.5 KiB a case and structure), not with voxels. A case that arrives
    twice under one index, as padding samplers send it, counts once.

    Args:
        n_structures: K.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, n_structures: int) -> None:
        super().__init__()
        self.n_structures = n_structures
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self, logits: Tensor, masks: Tensor, valid: Tensor, voxel_size: Tensor, case_index: Tensor | None = None
    ) -> None:
        """Add a batch of cases.

        Args:
            logits: member logits `[B, M, K, *S]`.
            masks: `[B, R, K, *S]` in {0, 1}.
            valid: `[B, R]` bool.
            voxel_size: `[B]`, mm² or mm³; 1 where it is unknown.
            case_index: `[B]`, unique and not negative; None where every case is known to come once.
        """
        found = case_statistics(logits, masks, valid, voxel_size)
        index = torch.full((len(found),), _NO_INDEX) if case_index is None else case_index
        scalars = torch.stack([getattr(found, name) for name in _COLUMNS], dim=-1)
        table = torch.cat([scalars, found.bins.flatten(2)], dim=-1)
        # one flat vector, since only vectors of different length can be gathered where a process has no case
        flat = torch.cat([index.to(table)[:, None], table.flatten(1)], dim=1).flatten()
        self.rows.append(flat)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        if not len(self.rows):
            # torchmetrics would gather a float32 one from a process without cases, among the others' float64
            self.rows = [torch.empty(0, dtype=torch.float64, device=self.device)]
        super()._sync_dist(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return the rows of the cases of all processes, in the order of their index; `cases` reads them."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, dtype=torch.float64)
        rows = rows.reshape(-1, 1 + self.n_structures * _WIDTH)
        rows = rows[torch.argsort(rows[:, 0], stable=True)]
        index = rows[:, 0]
        repeated = torch.zeros_like(index, dtype=torch.bool)
        repeated[1:] = (index[1:] == index[:-1]) & (index[1:] != _NO_INDEX)
        return rows[~repeated]

    def cases(self) -> IndexedCases:
        """Return the cases of all processes, in the order of their index."""
        return self._read(self.compute())

    def _read(self, rows: Tensor) -> IndexedCases:
        table = rows[:, 1:].reshape(-1, self.n_structures, _WIDTH)
        bins = table[..., len(_COLUMNS) :].unflatten(-1, (RELIABILITY_BINS, 3))
        scalars = dict(zip(_COLUMNS, table[..., : len(_COLUMNS)].unbind(dim=-1), strict=True))
        return IndexedCases(rows[:, 0].long(), CaseStatistics(bins=bins, **scalars))


class _OneMetric(CaseTable):
    """One metric of `summarise` alone; subclasses name it and give its range, direction and source."""

    metric: ClassVar[str]

    def __init__(self, n_structures: int = 1) -> None:
        super().__init__(n_structures)

    def update(  # type: ignore[override]
        self, logits: Tensor, masks: Tensor, valid: Tensor, voxel_size: Tensor | None = None
    ) -> None:
        """Add logits `[B, M, K, *S]`, masks `[B, R, K, *S]`, valid `[B, R]` and voxel_size `[B]` (None for 1)."""
        if voxel_size is None:
            voxel_size = torch.ones(len(logits), device=logits.device)
        super().update(logits, masks, valid, voxel_size)

    def compute(self) -> Tensor:
        """Return the metric of each structure, `[K]` float64 (a scalar for K = 1); NaN where it is undefined."""
        structures = [str(k) for k in range(self.n_structures)]
        summary = summarise(self._read(super().compute()).statistics, structures)
        values = {row.structure: row.value for row in summary.rows if row.metric == self.metric}
        return torch.tensor([values[structure] for structure in structures], dtype=torch.float64)


class Dice(_OneMetric):
    """Dice of the mean prediction (p >= 0.5) and the soft-majority mask (q >= 0.5), mean over cases.

    In [0, 1], higher is better. A case in which both masks are empty scores 1, one in which one of them is 0.

    >>> metric = Dice()
    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 1, 2, 2)
    >>> metric.update(logits, masks, torch.ones(1, 1, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.6667, dtype=torch.float64)
    """

    metric = "dice"


class NegativeLogLikelihood(_OneMetric):
    """Cross-entropy of the mean prediction in nats, mean over voxels, raters and then cases.

    In [0, inf), lower is better; at best the entropy of the raters' own labels. Computed from logits, so that a sure
    prediction gives a large finite value, never infinity.

    >>> metric = NegativeLogLikelihood()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.6931, dtype=torch.float64)
    """

    metric = "nll"


class BrierScore(_OneMetric):
    """Squared error of the mean prediction against every rater's label, mean over voxels, raters and then cases.

    In [0, 1], lower is better (Brier 1950).

    >>> metric = BrierScore()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    metric = "brier"


class ExpectedCalibrationError(_OneMetric):
    """Mean gap between predicted probability and the share of raters who marked, in 15 bins (Naeini et al. 2015).

    In [0, 1], lower is better. Binned by foreground probability against every rater's label, over all voxels of all
    cases; bin sums are kept, never the voxels.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    metric = "ece"


class ImagePearson(_OneMetric):
    """Pearson's correlation over cases of SV, the sum of the variance between members, with the raters' SV*.

    In [-1, 1], higher is better. NaN for fewer than three cases with two raters, or a constant series.
    """

    metric = "image_pearson"


class ImageSpearman(_OneMetric):
    """Spearman's rank correlation over cases of SV with the raters' SV*; otherwise as `ImagePearson`."""

    metric = "image_spearman"


class PixelPearson(_OneMetric):
    """Correlation over voxels of the variance between members with that between raters, mean over cases.

    In [-1, 1], higher is better. Cases in which either map is constant, or with fewer than two raters, take no part.
    """

    metric = "pixel_pearson"
