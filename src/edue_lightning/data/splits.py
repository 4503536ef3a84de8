"""Division of cases into training, validation and test, never tearing a patient apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from edue_lightning.data.source import CaseRecord, Split


@dataclass(frozen=True)
class SplitFractions:
    """Shares of the groups (patients) that go to validation and test; the rest trains.

    Attributes:
        val: share for validation.
        test: share for testing.
        seed: of the division alone, so that runs of different seeds are compared on the same test cases.
    """

    val: float = 0.15
    test: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.val <= 0 or self.test <= 0 or self.val + self.test >= 1:
            raise ValueError(f"shares must be positive and leave some to train: val={self.val}, test={self.test}")


def split_cases(records: Sequence[CaseRecord], fractions: SplitFractions) -> dict[Split, list[CaseRecord]]:
    """Divide the cases: as the data set prescribes where it does, by drawing groups elsewhere.

    A data set that prescribes test (or validation) cases gets no others drawn for it. Each stratum gives its share to
    every drawn split.

    Returns:
        the cases of each split, in the order of `records`; none where there are too few.
    """
    prescribed = {record.split for record in records}
    drawn = [record for record in records if record.split is None]
    order = _stratified_order(drawn, np.random.default_rng(fractions.seed))
    split_of_group: dict[str, Split] = dict.fromkeys(order, "train")
    rest = list(order)
    shares: tuple[tuple[Split, float], ...] = (("test", fractions.test), ("val", fractions.val))
    for split, share in shares:
        if split not in prescribed and order:
            count = max(1, round(share * len(order)))
            split_of_group.update(dict.fromkeys(rest[:count], split))
            rest = rest[count:]
    splits: dict[Split, list[CaseRecord]] = {split: [] for split in get_args(Split)}
    for record in records:
        splits[record.split or split_of_group[record.group]].append(record)
    return splits


def _stratified_order(records: Sequence[CaseRecord], rng: np.random.Generator) -> list[str]:
    """Return the groups in random order, such that any stretch from the start holds its share of each stratum."""
    groups_of: defaultdict[str, set[str]] = defaultdict(set)
    stratum_of_group: dict[str, str] = {}
    for record in records:
        stratum = stratum_of_group.setdefault(record.group, record.stratum)
        groups_of[stratum].add(record.group)
    ranked: list[tuple[float, str, str]] = []
    for stratum in sorted(groups_of):
        groups = sorted(groups_of[stratum])
        shuffled = [groups[position] for position in rng.permutation(len(groups))]
        ranked += [((rank + 0.5) / len(groups), stratum, group) for rank, group in enumerate(shuffled)]
    return [group for *_, group in sorted(ranked, key=lambda entry: entry[:2])]
