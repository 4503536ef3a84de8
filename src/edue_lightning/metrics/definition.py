"""The definition of a metric: how a case's numbers are computed, and how they become one value over cases.

Every metric is a function of the cases and of how often each of them counts: weights of one give the estimate, the
counts of a bootstrap resample give a replicate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.metrics.case import Case
from edue_lightning.metrics.case_batch import CaseBatch

Array = NDArray[np.float64]
Better = Literal["high", "low", "neither"]
"""Direction of a metric: whether high or low values are better, or neither."""


@dataclass(frozen=True)
class Statistic:
    """Numbers of cases that are computed together.

    Attributes:
        names: names of the numbers, columns of `cases.csv`.
        compute: function from B cases to one tensor per name, `[B, K, *shape]` float64.
        fewest_raters: number of valid raters below which a case leaves the numbers undefined (NaN).
        shape: shape of each number, `()` for a scalar.
    """

    names: tuple[str, ...]
    compute: Callable[[CaseBatch], Sequence[Tensor]]
    fewest_raters: int = 1
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class StructureCases:
    """The statistics of one structure over N cases.

    Attributes:
        columns: statistics by name, `[N]`, `bins` `[N, 15, 3]`; NaN where a case leaves one undefined.
        poor_dice: Dice below which a segmentation is poor.
    """

    columns: Mapping[str, Array]
    poor_dice: float


@dataclass(frozen=True)
class Estimate:
    """Values of a metric over some cases.

    Attributes:
        values: one value per weighting, `[W]`; NaN where it is undefined.
        defined: whether each case defines the metric, `[N]`.
    """

    values: Array
    defined: NDArray[np.bool_]


Estimator = Callable[[StructureCases, Array], Estimate]
"""Function from cases and weights `[W, N]` to the values of a metric."""


@dataclass(frozen=True)
class Definition:
    """A metric.

    Attributes:
        name: name in tables.
        statistics: statistics that the metric needs, with those computed together with them.
        estimate: function from cases and weights to values.
        needs: names of the statistics that `estimate` reads.
        better: direction.
    """

    name: str
    statistics: tuple[Statistic, ...]
    estimate: Estimator
    needs: tuple[str, ...]
    better: Better


def mean_estimate(name: str) -> Estimator:
    """Return the estimator of the mean of a statistic, over the cases that define it."""

    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        values = cases.columns[name]
        defined = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return Estimate((weights @ np.where(defined, values, 0)) / (weights @ defined), defined)

    return estimate


def mean_over_cases(name: str, statistic: Statistic, better: Better) -> Definition:
    """Define the mean of a statistic of the metric's name, over the cases that define it."""
    return Definition(name, (statistic,), mean_estimate(name), (name,), better)


def over_pairs(function: Callable[[Array, Array, Array], Array], first: str, second: str, sign: int = 1) -> Estimator:
    """Return an estimator of two statistics, over the cases that define both.

    Args:
        function: function from two statistics `[N]` and weights `[W, N]` to values `[W]`.
        first: name of the first statistic.
        second: name of the second statistic.
        sign: factor of the first statistic, 1 or -1.
    """

    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        columns = (sign * cases.columns[first], cases.columns[second])
        defined = ~(np.isnan(columns[0]) | np.isnan(columns[1]))
        filled = [np.where(defined, column, 0) for column in columns]
        return Estimate(function(filled[0], filled[1], np.where(defined, weights, 0)), defined)

    return estimate


class PerCaseMetric(ABC):
    """A metric from outside this package: one number per case and structure, averaged over cases.

    Pass it to `MetricSettings.extra` under its name in tables; see `docs/extend.md`.
    """

    better: ClassVar[Better]
    """Direction."""

    fewest_raters: ClassVar[int] = 1
    """Number of valid raters below which a case leaves the metric undefined (NaN)."""

    @abstractmethod
    def of_case(self, case: Case) -> Tensor:
        """Return the number of each structure, `[K]`, of any type; NaN where it is undefined."""

    def definition(self, name: str) -> Definition:
        """Return the definition of the metric under a name."""

        def compute(cases: CaseBatch) -> Sequence[Tensor]:
            found = [_checked(name, self.of_case(Case(cases, i)), len(cases.structures)) for i in range(len(cases))]
            return (torch.stack(found).to(cases.mean.device),)

        return mean_over_cases(name, Statistic((name,), compute, self.fewest_raters), self.better)


def _checked(name: str, value: Tensor, structures: int) -> Tensor:
    if not isinstance(value, Tensor) or list(value.shape) != [structures]:
        given = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise UserError(
            f"metric {name}: must return a tensor {[structures]} for each case, one entry per structure, not {given}; "
            "correct the metric's code"
        )
    return value.double()
