"""A `torchmetrics` metric that collects cases batch by batch on any number of processes, each counted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from edue_lightning.metrics.calibration import RELIABILITY_BINS
from edue_lightning.metrics.case_statistics import BINS, STATISTIC_NAMES, CaseStatistics, case_statistics
from edue_lightning.metrics.definitions import METRICS, statistics_needed
from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.metrics.summary import Summary, summarise

_NO_INDEX = -1


class IndexedCases(NamedTuple):
    """Cases with their positions in a split, `[N]`; -1 where none was given."""

    positions: Tensor
    statistics: CaseStatistics


class CaseTable(Metric):
    """Collects one row of statistics a case and structure: exact under batching and distribution.

    Memory grows with the number of cases (about 0.6 KiB a case and structure), not with voxels. A case that arrives
    twice under one index, as padding samplers send it, counts once.

    Args:
        structures: names of the K structures.
        metrics: names of the metrics that will be asked for; what only others need is not computed. None for all of
            them and every statistic.
        statistics: names of statistics that are kept beside what the metrics need.
        settings: see `MetricSettings`.
        contents: what the members hold that `update` gets.

    Attributes:
        members: M of the batch that this process saw last.

    Raises:
        ValueError: if a setting does not fit the structures.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(
        self,
        structures: Sequence[str],
        metrics: Sequence[str] | None = None,
        settings: MetricSettings | None = None,
        contents: Members = "logits",
        statistics: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.structures = tuple(structures)
        self.metric_names = tuple(METRICS) if metrics is None else tuple(metrics)
        self.statistic_names = STATISTIC_NAMES
        if metrics is not None:
            self.statistic_names = tuple(dict.fromkeys((*statistics_needed(self.metric_names), *statistics)))
        self.settings = settings or MetricSettings()
        self.settings.check(self.structures)
        self.contents: Members = contents
        self.members = 0
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        members: Tensor,
        masks: Tensor,
        valid: Tensor,
        spacing: Tensor | None = None,
        case_index: Tensor | None = None,
    ) -> None:
        """Add a batch of cases.

        Args:
            members: `[B, M, K, *S]`.
            masks: `[B, R, K, *S]` in {0, 1}.
            valid: `[B, R]` bool.
            spacing: `[B, n]`, mm along each spatial axis; None for 1.
            case_index: `[B]`, unique and not negative; None where every case is known to come once.
        """
        found = case_statistics(
            members,
            masks,
            valid,
            spacing,
            self.structures,
            contents=self.contents,
            settings=self.settings,
            names=self.statistic_names,
        )
        self.members = members.shape[1]
        index = torch.full((len(found),), _NO_INDEX) if case_index is None else case_index
        table = torch.cat([values.flatten(1) for values in found.columns.values()], dim=1)
        # one flat vector, since only vectors of different length can be gathered where a process has no case
        self.rows.append(torch.cat([index.to(table)[:, None], table], dim=1).flatten())

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        if not len(self.rows):
            # torchmetrics would gather a float32 one from a process without cases, among the others' float64
            self.rows = [torch.empty(0, dtype=torch.float64, device=self.device)]
        super()._sync_dist(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return the rows of the cases of all processes, in the order of their index; `cases` reads them."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, dtype=torch.float64)
        rows = rows.reshape(-1, 1 + sum(self._widths()))
        rows = rows[torch.argsort(rows[:, 0], stable=True)]
        index = rows[:, 0]
        repeated = torch.zeros_like(index, dtype=torch.bool)
        repeated[1:] = (index[1:] == index[:-1]) & (index[1:] != _NO_INDEX)
        return rows[~repeated]

    def cases(self) -> IndexedCases:
        """Return the cases of all processes, in the order of their index."""
        return self._read(self.compute())

    def summary(self, resamples: int = 0) -> Summary:
        """Return the metrics over the cases of all processes, with intervals if there are bootstrap resamples."""
        return self._summarise(self.cases().statistics, resamples)

    def _summarise(self, cases: CaseStatistics, resamples: int = 0) -> Summary:
        return summarise(cases, self.structures, metrics=self.metric_names, settings=self.settings, resamples=resamples)

    def _widths(self) -> list[int]:
        per_structure = {BINS: 3 * RELIABILITY_BINS}
        return [len(self.structures) * per_structure.get(name, 1) for name in self.statistic_names]

    def _read(self, rows: Tensor) -> IndexedCases:
        columns = dict(zip(self.statistic_names, rows[:, 1:].split(self._widths(), dim=1), strict=True))
        if BINS in columns:
            columns[BINS] = columns[BINS].reshape(len(rows), len(self.structures), RELIABILITY_BINS, 3)
        return IndexedCases(rows[:, 0].long(), CaseStatistics(columns))
