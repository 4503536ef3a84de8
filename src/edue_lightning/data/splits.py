"""Division of cases into training, validation and test, never tearing a patient apart."""

from __future__ import annotations

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

    Returns:
        the cases of each split, in the order of `records`; none where there are too few.
    """
    drawn_groups = sorted({record.group for record in records if record.split is None})
    order = np.random.default_rng(fractions.seed).permutation(len(drawn_groups))
    n_test, n_val = (
        max(1, round(share * len(drawn_groups))) if drawn_groups else 0 for share in (fractions.test, fractions.val)
    )
    split_of_group: dict[str, Split] = {}
    for rank, position in enumerate(order):
        split: Split = "test" if rank < n_test else "val" if rank < n_test + n_val else "train"
        split_of_group[drawn_groups[position]] = split

    splits: dict[Split, list[CaseRecord]] = {split: [] for split in get_args(Split)}
    for record in records:
        splits[record.split or split_of_group[record.group]].append(record)
    return splits
