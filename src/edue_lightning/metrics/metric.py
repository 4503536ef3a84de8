"""Base classes of the `torchmetrics` metrics, and their functional twins.

All classes of single metrics take the same arguments and the same batches:

    metric = Dice(structures=("disc", "cup"))
    metric.update(members, masks, valid)    # [B, M, K, *S], [B, R, K, *S] in {0, 1}, [B, R] bool
    metric.compute()                        # [K] float64, a scalar for K = 1; NaN where undefined

Their state is a row of numbers per case, so the result depends neither on the batches nor on the number of processes,
and memory not on the number of voxels. A functional twin takes all cases at once: `dice(members, masks, valid)`. For
intervals, or many metrics in one pass, see `CaseTable` and `summarise`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from edue_lightning.metrics.case_statistics import CaseStatistics, Columns, measure_cases
from edue_lightning.metrics.definition import Definition, StructureCases
from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.uncertainty import MEMBERS, Readout

_NO_INDEX = -1


class IndexedCases(NamedTuple):
    """Cases with their positions in a split, `[N]`; -1 where none was given."""

    positions: Tensor
    statistics: CaseStatistics


class CaseRows(Metric):
    """Collects one row of statistics per case: exact under batching and distribution.

    Memory grows with the number of cases (about 1 KiB per case and structure), not with voxels. A case that arrives
    twice under one index, as padding samplers send it, counts once.

    Args:
        structures: names of the K structures.
        settings: see `MetricSettings`.
        contents: contents of the members passed to `update`, logits or probabilities.
        readout: how probability, disagreement and decision are read from the members.

    Attributes:
        members: M of the batch that this process saw last.

    Raises:
        ValueError: if a setting does not fit the structures.
    """

    full_state_update = False
    is_differentiable = False
    rows: list[Tensor]

    def __init__(
        self,
        structures: Sequence[str],
        settings: MetricSettings | None = None,
        contents: Members = "logits",
        readout: Readout = MEMBERS,
    ) -> None:
        super().__init__()
        self.structures = tuple(structures)
        self.settings = settings or MetricSettings()
        self.settings.check(self.structures)
        self.contents: Members = contents
        self.readout = readout
        self.members = 0
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """Statistics that are kept."""

    def update(
        self,
        members: Tensor,
        masks: Tensor,
        valid: Tensor,
        spacing: Tensor | None = None,
        case_index: Tensor | None = None,
        region: Tensor | None = None,
    ) -> None:
        """Add a batch of cases.

        Args:
            members: `[B, M, K, *S]`, and behind the members the maps of `readout.own_maps`.
            masks: `[B, R, K, *S]` in {0, 1}.
            valid: `[B, R]` bool.
            spacing: `[B, n]`, mm along each spatial axis; None for 1.
            case_index: `[B]` of whole numbers, unique and not negative; None where every case is known to come once.
            region: `[B, *S]` bool, the voxels that count; None if all do.

        Raises:
            ValueError: see `case_statistics`; or if `case_index` has another type, shape or sign.
            UserError: see `case_statistics`.
        """
        if case_index is not None:
            if case_index.is_floating_point() or case_index.dtype == torch.bool:
                raise ValueError(f"case_index must hold whole numbers, not {case_index.dtype}")
            if case_index.shape != members.shape[:1]:
                raise ValueError(f"case_index must be [B] = {list(members.shape[:1])}, not {list(case_index.shape)}")
            if bool((case_index < 0).any()):
                raise ValueError(f"case_index must not be negative: {case_index.tolist()}")
        found = measure_cases(
            self.columns,
            members,
            masks,
            valid,
            spacing,
            self.structures,
            self.contents,
            self.settings,
            region,
            self.readout,
        )
        self.members = self.readout.count(members.shape[1])
        index = torch.full((len(found),), _NO_INDEX) if case_index is None else case_index
        table = self.columns.pack(found)
        # one flat vector, since only vectors of different length can be gathered where a process has no case
        self.rows.append(torch.cat([index.to(table)[:, None], table], dim=1).flatten().to(self.device))

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        if not len(self.rows):
            # torchmetrics would gather float32 from a process without cases, among the others' float64
            self.rows = [torch.empty(0, dtype=torch.float64, device=self.device)]
        super()._sync_dist(*args, **kwargs)

    def compute(self) -> Any:
        """Return the rows of the cases of all processes, in the order of their index."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, dtype=torch.float64)
        rows = rows.reshape(-1, 1 + sum(self.columns.widths(len(self.structures))))
        rows = rows[torch.argsort(rows[:, 0], stable=True)]
        index = rows[:, 0]
        repeated = torch.zeros_like(index, dtype=torch.bool)
        repeated[1:] = (index[1:] == index[:-1]) & (index[1:] != _NO_INDEX)
        return rows[~repeated]

    def _read(self, rows: Tensor) -> IndexedCases:
        return IndexedCases(rows[:, 0].long(), self.columns.unpack(rows[:, 1:], len(self.structures)))


class CasesOfOneMetric(CaseRows):
    """Collects the cases of one metric; structures are numbered unless they are named.

    Args:
        structures: names of the K structures, or K.
        settings: see `MetricSettings`.
        contents: contents of the members passed to `update`, logits or probabilities.
        readout: how probability, disagreement and decision are read from the members.
    """

    definition: ClassVar[Definition]

    def __init__(
        self,
        structures: int | Sequence[str] = 1,
        settings: MetricSettings | None = None,
        contents: Members = "logits",
        readout: Readout = MEMBERS,
    ) -> None:
        names = [str(k) for k in range(structures)] if isinstance(structures, int) else structures
        super().__init__(names, settings, contents, readout)

    @property
    def columns(self) -> Columns:
        """Statistics that the metric needs."""
        return Columns(self.definition.statistics, self.definition.needs)

    def _cases(self) -> CaseStatistics:
        return self._read(CaseRows.compute(self)).statistics


class CaseMetric(CasesOfOneMetric):
    """A single metric over cases; a subclass has its definition, and says range, direction and source.

    `higher_is_better` follows from the definition.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.higher_is_better = {"high": True, "low": False, "neither": None}[cls.definition.better]

    def compute(self) -> Tensor:
        """Return the metric of each structure, `[K]` float64 (a scalar for K = 1); NaN where it is undefined."""
        cases = self._cases()
        columns = {name: values.double().cpu().numpy() for name, values in cases.columns.items()}
        once = np.ones((1, len(cases)))
        values = []
        for k, structure in enumerate(self.structures):
            own = StructureCases({n: v[:, k] for n, v in columns.items()}, self.settings.poor_dice_of(structure))
            values.append(float(self.definition.estimate(own, once).values[0]))
        result = torch.tensor(values, dtype=torch.float64)
        return result if len(result) > 1 else result[0]

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value per structure, or a series of values of `compute`, as all `torchmetrics` do.

        Args:
            val: result of `compute`, or a list of results; None to compute it now.
            ax: axes of Matplotlib; None for new ones.

        Returns:
            figure and axes.
        """
        return self._plot(val, ax)


class Functional(Protocol):
    """A metric of all cases at once."""

    def __call__(
        self,
        members: Tensor,
        masks: Tensor,
        valid: Tensor,
        spacing: Tensor | None = None,
        region: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """Return what the class returns; `settings` are the class's own arguments."""
        ...


def functional(metric_class: type[CaseMetric]) -> Functional:
    """Return the functional twin of a metric's class."""

    def function(
        members: Tensor,
        masks: Tensor,
        valid: Tensor,
        spacing: Tensor | None = None,
        region: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        metric = metric_class(**{"structures": members.shape[2], **settings})
        metric.update(members, masks, valid, spacing, region=region)
        return metric.compute()

    function.__name__ = function.__qualname__ = metric_class.definition.name
    function.__module__ = metric_class.__module__
    function.__doc__ = f"""Return `{metric_class.__name__}` of all cases at once.

    {(metric_class.__doc__ or "").partition(">>>")[0].strip()}

    Args:
        members: `[B, M, K, *S]` logits, or probabilities with `contents="probabilities"`.
        masks: `[B, R, K, *S]` in {{0, 1}}.
        valid: `[B, R]` bool, false for a rater without masks.
        spacing: `[B, n]`, mm along each spatial axis; None for 1.
        region: `[B, *S]` bool, the voxels that count; None if all do.
        settings: the class's arguments.

    Returns:
        `[K]` float64, a scalar for K = 1.
    """
    return function
