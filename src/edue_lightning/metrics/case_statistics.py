"""The statistics of cases: a row of numbers per case and structure, however many voxels the case has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.metrics.case_batch import CaseBatch
from edue_lightning.metrics.definition import Statistic
from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.uncertainty import MEMBERS, Readout

# largest number of the members' values of cases that are measured together: on a CPU as many as its cache holds, on a
# GPU so many that starting the computations takes no time beside them
_VALUES_ON_CPU, _VALUES_ELSEWHERE = 2**18, 2**24


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
    """Compute the chosen numbers of cases, several at a time where their maps are small.

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
    # the smallest and largest of values with NaN are NaN
    low, high = torch.stack([members.amin(), members.amax()]).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError("the model predicts NaN or infinity: its training diverged; lower optimizer.learning_rate")
    if contents == "probabilities" and not (low >= 0 and high <= 1):
        raise UserError("probabilities must lie between 0 and 1; pass contents='logits' for logits")
    if spacing is None:
        spacing = torch.ones(len(members), members.ndim - 3)
    named = tuple(structures or map(str, range(members.shape[2])))
    settings.check(named)
    shape = tuple(members.shape[3:])
    members, masks = members.flatten(3), masks.flatten(3)
    order: list[int] = []
    parts = []
    for group in _groups(valid, region, _cases_at_once(members)):
        chosen = torch.tensor(group.cases, device=members.device)
        batch = CaseBatch(
            _chosen(members, group.cases, None, group.positions),
            _as_bool(_chosen(masks, group.cases, group.raters, group.positions)),
            spacing[chosen.to(spacing.device)],
            shape,
            contents,
            settings,
            named,
            group.positions,
            readout,
        )
        parts.append(_measure(batch, columns))
        order += group.cases
    found = CaseStatistics.concatenate(parts)
    if order == sorted(order):
        return found
    back = torch.tensor(order, device=members.device).argsort()
    return CaseStatistics({name: values[back] for name, values in found.columns.items()})


@dataclass(frozen=True)
class _Group:
    """Cases of a batch with equally many valid raters and voxels within their regions.

    Attributes:
        cases: positions of the cases in the batch.
        raters: positions of the valid raters of each case.
        positions: positions of the voxels within the regions, `[B, V]`; None without regions.
    """

    cases: list[int]
    raters: list[list[int]]
    positions: Tensor | None


def _groups(valid: Tensor, region: Tensor | None, at_once: int) -> Iterator[_Group]:
    """Yield the cases of a batch in groups of at most `at_once`; the host waits once for each of the arguments."""
    raters = [[r for r, known in enumerate(row) if known] for row in valid.tolist()]
    inside: Sequence[Tensor | None] = [None] * len(raters)
    if region is not None:
        case, positions = region.flatten(1).nonzero(as_tuple=True)
        inside = positions.split(torch.bincount(case, minlength=len(raters)).tolist())
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (known, own) in enumerate(zip(raters, inside, strict=True)):
        groups.setdefault((len(known), -1 if own is None else len(own)), []).append(i)
    for cases in groups.values():
        for start in range(0, len(cases), at_once):
            chosen = cases[start : start + at_once]
            within = [part for part in (inside[i] for i in chosen) if part is not None]
            yield _Group(chosen, [raters[i] for i in chosen], torch.stack(within) if within else None)


def _cases_at_once(members: Tensor) -> int:
    most = _VALUES_ON_CPU if members.device.type == "cpu" else _VALUES_ELSEWHERE
    return max(most // members[0].numel(), 1)


def _chosen(values: Tensor, cases: list[int], channels: list[list[int]] | None, positions: Tensor | None) -> Tensor:
    """Return some cases, channels and voxels of `[B, N, K, V]`, copied only where some are left out."""
    if cases == list(range(cases[0], cases[0] + len(cases))):
        values = values[cases[0] : cases[0] + len(cases)]
    else:
        values = values[torch.tensor(cases, device=values.device)]
    if channels is not None and any(len(own) < values.shape[1] for own in channels):
        rows = torch.arange(len(cases), device=values.device)[:, None]
        values = values[rows, torch.tensor(channels, dtype=torch.long, device=values.device)]
    if positions is not None:
        values = values.gather(3, positions[:, None, None].expand(*values.shape[:3], -1))
    return values


def _as_bool(masks: Tensor) -> Tensor:
    """Return masks in {0, 1} as bool.

    Raises:
        ValueError: if they hold another number.
    """
    if masks.dtype == torch.bool or not masks.numel():
        return masks.bool()
    low, high = (end.item() for end in masks.aminmax())
    whole = not masks.is_floating_point() or bool(((masks == 0) | (masks == 1)).all())
    if not (low >= 0 and high <= 1 and whole):
        raise ValueError(
            f"masks must hold 0 and 1 only, not values from {low:g} to {high:g}; threshold soft masks (masks >= 0.5), "
            "and divide masks of 0 and 255 by 255"
        )
    # one byte of 0 or 1 each
    return masks.view(torch.bool) if masks.dtype == torch.uint8 else masks > 0


def check_batch(
    members: Tensor,
    masks: Tensor,
    valid: Tensor,
    spacing: Tensor | None,
    structures: Sequence[str] | None,
    contents: Members,
    region: Tensor | None = None,
) -> None:
    """Check types and shapes of a batch of cases; `measure_cases` checks the values of the masks.

    Args:
        members: `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        spacing: `[B, n]`, mm along each spatial axis, or None.
        structures: names of the K structures, or None.
        contents: contents of `members`, logits or probabilities.
        region: `[B, *S]` bool, or None.

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


def _measure(cases: CaseBatch, columns: Columns) -> CaseStatistics:
    found: dict[str, Tensor] = {}
    for statistic in columns.statistics:
        if cases.n_raters >= statistic.fewest_raters:
            values: Sequence[Tensor] = statistic.compute(cases)
        else:
            undefined = cases.mean.new_full((len(cases), len(cases.structures), *statistic.shape), torch.nan)
            values = [undefined] * len(statistic.names)
        found |= {name: value.double() for name, value in zip(statistic.names, values, strict=True)}
    return CaseStatistics({name: found[name] for name in columns.names})
