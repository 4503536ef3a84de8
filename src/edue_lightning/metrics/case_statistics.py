"""The statistics of cases: a row of numbers per case and structure, however many voxels the case has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.metrics.case import Case
from edue_lightning.metrics.definition import Statistic
from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.uncertainty import MEMBERS, Readout


@dataclass(frozen=True)
class CaseStatistics:
    """Numbers of N cases.

    Attributes:
        columns: numbers by name (see `STATISTICS`), `[N, K]` float64, `bins` `[N, K, 15, 3]`.
    """

    columns: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    @property
    def scalars(self) -> dict[str, Tensor]:
        """The columns with one number per case and structure."""
        return {name: values for name, values in self.columns.items() if values.ndim == 2}

    @staticmethod
    def concatenate(parts: Sequence[CaseStatistics]) -> CaseStatistics:
        """Return the cases of all parts one after the other."""
        return CaseStatistics({name: torch.cat([part[name] for part in parts]) for name in parts[0].columns})


@dataclass(frozen=True)
class Columns:
    """The chosen numbers of a table of cases.

    Attributes:
        statistics: statistics that compute them.
        names: names of the chosen numbers, in their order.
    """

    statistics: Sequence[Statistic]
    names: tuple[str, ...]

    @classmethod
    def all_of(cls, statistics: Sequence[Statistic]) -> Columns:
        """Return all numbers of some statistics."""
        return cls(statistics, tuple(name for statistic in statistics for name in statistic.names))

    def choose(self, names: Sequence[str]) -> Columns:
        """Return some of the numbers, with the statistics that they need."""
        needed = [statistic for statistic in self.statistics if set(statistic.names) & set(names)]
        return Columns(needed, tuple(names))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each number."""
        of_name = {name: statistic.shape for statistic in self.statistics for name in statistic.names}
        return [of_name[name] for name in self.names]

    def pack(self, cases: CaseStatistics) -> Tensor:
        """Return the numbers of N cases as rows, `[N, width]`."""
        return torch.cat([cases[name].flatten(1) for name in self.names], dim=1)

    def widths(self, structures: int) -> list[int]:
        """Return how many entries of a row each number takes."""
        return [structures * math.prod(shape) for shape in self.shapes]

    def unpack(self, rows: Tensor, structures: int) -> CaseStatistics:
        """Return the cases that `pack` turned into rows."""
        parts = rows.split(self.widths(structures), dim=1)
        return CaseStatistics(
            {
                name: part.reshape(len(rows), structures, *shape)
                for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
            }
        )


@torch.no_grad()
def measure_cases(
    columns: Columns,
    members: Tensor,
    masks: Tensor,
    valid: Tensor,
    spacing: Tensor | None,
    structures: Sequence[str] | None,
    contents: Members,
    settings: MetricSettings,
    region: Tensor | None = None,
    readout: Readout = MEMBERS,
) -> CaseStatistics:
    """Compute the chosen numbers of each case, with one case's maps in memory at a time.

    Args:
        columns: chosen numbers.
        members: `[B, M, K, *S]`, B at least 1.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        spacing: `[B, n]`, mm along each spatial axis; None for 1.
        structures: names of the K structures; None for their numbers.
        contents: contents of `members`, logits or probabilities.
        settings: see `MetricSettings`.
        region: `[B, *S]` bool, the voxels that count; None if all do.
        readout: how the maps are read from the members.

    Raises:
        ValueError: see `case_statistics`.
        UserError: see `case_statistics`.
    """
    check_batch(members, masks, valid, spacing, structures, contents, region)
    if readout.count(members.shape[1]) < 1:
        raise ValueError(
            f"members must hold at least one member before the maps {', '.join(readout.own_maps)}, "
            f"not {members.shape[1]} channels in all"
        )
    if not bool(torch.isfinite(members).all()):
        raise UserError("the model predicts NaN or infinity: its training diverged; lower optimizer.learning_rate")
    if contents == "probabilities" and not bool(((members >= 0) & (members <= 1)).all()):
        raise UserError("probabilities must lie between 0 and 1; pass contents='logits' for logits")
    if spacing is None:
        spacing = torch.ones(len(members), members.ndim - 3)
    named = tuple(structures or map(str, range(members.shape[2])))
    settings.check(named)
    regions = [None] * len(members) if region is None else list(region)
    cases = (
        Case(*parts, contents, settings, named, inside, readout)
        for parts, inside in zip(zip(members, masks, valid, spacing, strict=True), regions, strict=True)
    )
    return CaseStatistics.concatenate([_measure(case, columns) for case in cases])


def check_batch(
    members: Tensor,
    masks: Tensor,
    valid: Tensor,
    spacing: Tensor | None,
    structures: Sequence[str] | None,
    contents: Members,
    region: Tensor | None = None,
) -> None:
    """Check types and shapes of a batch of cases; `Case` checks the values of the masks.

    Raises:
        ValueError: naming the argument, what it is, and what it must be.
    """
    if contents not in get_args(Members):
        raise ValueError(f"contents must be one of {', '.join(get_args(Members))}, not {contents!r}")
    if not members.is_floating_point():
        raise ValueError(
            f"members must be floating-point {contents}, not {members.dtype}; masks are the second argument"
        )
    if members.ndim < 4 or not members.numel():
        raise ValueError(f"members must be [B, M, K, *S], none of them 0, not {list(members.shape)}")
    cases, _, count, *size = members.shape
    if masks.ndim != members.ndim or [masks.shape[0], *masks.shape[2:]] != [cases, count, *size]:
        wanted = ", ".join(map(str, (cases, "R", count, *size)))
        raise ValueError(
            f"masks must be [B, R, K, *S] = [{wanted}], since members are {list(members.shape)}, not "
            f"{list(masks.shape)}"
        )
    if masks.is_complex():
        raise ValueError(f"masks must be bool, or numbers 0 and 1, not {masks.dtype}")
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, not {valid.dtype}; for numbers 0 and 1 pass valid > 0")
    if valid.shape != masks.shape[:2]:
        raise ValueError(f"valid must be [B, R] = {list(masks.shape[:2])}, as the masks are, not {list(valid.shape)}")
    if spacing is not None:
        if spacing.shape != (cases, len(size)):
            raise ValueError(
                f"spacing must be [B, n] = {[cases, len(size)]}, one row per case, not {list(spacing.shape)}"
            )
        if not bool(((spacing > 0) & torch.isfinite(spacing)).all()):
            raise ValueError(f"spacing must be positive and finite (mm), not {spacing.tolist()}")
    if region is not None:
        if region.dtype != torch.bool or region.shape != (cases, *size):
            raise ValueError(f"region must be bool [B, *S] = {[cases, *size]}, not {region.dtype} {list(region.shape)}")
        if not bool(region.flatten(1).any(dim=1).all()):
            raise ValueError("region must hold at least one voxel of each case")
    if structures is not None and len(structures) != count:
        raise ValueError(
            f"members have K = {count} structures, but {len(structures)} are named: {', '.join(structures)}"
        )


def _checked(name: str, value: Tensor, shape: list[int]) -> Tensor:
    if not isinstance(value, Tensor) or list(value.shape) != shape:
        given = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise UserError(
            f"metric {name}: must return a tensor {shape} for each case, one entry per structure, not {given}; "
            "correct the metric's code"
        )
    return value.double()


def _measure(case: Case, columns: Columns) -> CaseStatistics:
    found: dict[str, Tensor] = {}
    for statistic in columns.statistics:
        if case.n_raters >= statistic.fewest_raters:
            values: Sequence[Tensor] = statistic.compute(case)
        else:
            values = [torch.full_like(case.mean[:, 0], torch.nan)] * len(statistic.names)
        for name, value in zip(statistic.names, values, strict=True):
            found[name] = _checked(name, value, [len(case.structures), *statistic.shape])
    return CaseStatistics({name: found[name][None] for name in columns.names})
