"""Division of cases into training, validation and test that keeps all cases of a patient together."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, get_args

import numpy as np

from edue_lightning.data.source import CaseRecord, Split
from edue_lightning.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitFractions:
    """Shares of the groups (patients) that go to validation and test; the others are for training.

    Attributes:
        val: share for validation.
        test: share for testing.
        seed: seed of the division alone, so that runs of different seeds are compared on the same test cases.
        draw: `hash` places each group by a hash of the seed and its name alone: a new case moves no other one, and the
            shares hold on average, as in independent draws. `permutation`, the draw of earlier versions, shuffles the
            list of groups: the shares are exact, in each stratum too, but a new case may move all others.
    """

    val: float = 0.15
    test: float = 0.25
    seed: int = 0
    draw: Literal["hash", "permutation"] = "hash"

    def __post_init__(self) -> None:
        if self.val <= 0 or self.test <= 0 or self.val + self.test >= 1:
            raise ValueError(f"shares must be positive and leave some to train: val={self.val}, test={self.test}")
        if self.draw not in ("hash", "permutation"):
            raise ValueError(f"data.fractions.draw must be hash or permutation, not {self.draw}")
        if self.seed < 0:
            raise ValueError(f"data.fractions.seed must not be negative: {self.seed}")


def split_cases(records: Sequence[CaseRecord], fractions: SplitFractions) -> dict[Split, list[CaseRecord]]:
    """Divide the cases: as the data set prescribes where it does, by a draw of groups elsewhere.

    No test (or validation) cases are drawn if the data set prescribes some. Each split that is drawn gets at least one
    group if there are enough; a warning says so where a draw of few groups left one empty.

    Returns:
        the cases of each split, in the order of `records`; an empty list if there are too few groups.
    """
    _require_whole_groups(records)
    prescribed = {record.split for record in records if record.split is not None}
    free = [record for record in records if record.split is None]
    shares: dict[Split, float] = {"test": fractions.test, "val": fractions.val}
    shares = {split: share for split, share in shares.items() if split not in prescribed}
    draw = _by_hash if fractions.draw == "hash" else _by_permutation
    split_of_group = draw(free, shares, fractions.seed, "train" in prescribed)
    splits: dict[Split, list[CaseRecord]] = {split: [] for split in get_args(Split)}
    for record in records:
        splits[record.split or split_of_group[record.group]].append(record)
    return splits


def _require_whole_groups(records: Sequence[CaseRecord]) -> None:
    """Check that all cases of a patient are prescribed one split, or none.

    Raises:
        UserError: naming a patient with several.
    """
    splits_of: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        splits_of[record.group].add(record.split or "no split")
    torn = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if torn:
        raise UserError(
            f"patient {torn[0]!r} has cases of {' and '.join(sorted(splits_of[torn[0]]))} ({len(torn)} such patients); "
            "give all cases of a patient the same split"
        )


def _by_hash(
    records: Sequence[CaseRecord], shares: dict[Split, float], seed: int, train_prescribed: bool
) -> dict[str, Split]:
    """Return the split of each group: a place in [0, 1) from its hash, in which each split has its interval."""
    places = {group: _place(group, seed) for group in {record.group for record in records}}
    order = sorted(places, key=lambda group: (places[group], group))
    wanted: list[Split] = [*shares, "train"]
    ends = list(accumulate(shares.values()))
    bounds = [0, *(bisect_left([places[group] for group in order], end) for end in ends), len(order)]
    counts = [high - low for low, high in pairwise(bounds)]
    drawn = list(counts)
    # training needs no drawn group if it has prescribed ones
    needed = [split for split in wanted if split != "train" or not train_prescribed]
    for split in needed:
        number = wanted.index(split)
        largest = max(range(len(counts)), key=lambda one: counts[one])
        if counts[number] == 0 and counts[largest] > 1:
            counts[largest] -= 1
            counts[number] += 1
    if counts != drawn:
        log.warning(
            "%d groups are too few to draw %s by chance: the nearest one is taken, and a new case may move others",
            len(order),
            ", ".join(split for split, before in zip(wanted, drawn, strict=True) if not before),
        )
    split_of_rank = [split for split, count in zip(wanted, counts, strict=True) for _ in range(count)]
    return dict(zip(order, split_of_rank, strict=True))


def _place(group: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _by_permutation(
    records: Sequence[CaseRecord],
    shares: dict[Split, float],
    seed: int,
    train_prescribed: bool,  # noqa: ARG001
) -> dict[str, Split]:
    """Return the split of each group: consecutive parts of a shuffled list, with the share of each stratum in each."""
    order = _stratified_order(records, np.random.default_rng(seed))
    split_of_group: dict[str, Split] = dict.fromkeys(order, "train")
    rest = list(order)
    for split, share in shares.items():
        if order:
            count = max(1, round(share * len(order)))
            split_of_group.update(dict.fromkeys(rest[:count], split))
            rest = rest[count:]
    return split_of_group


def _stratified_order(records: Sequence[CaseRecord], rng: np.random.Generator) -> list[str]:
    """Return the groups in random order, such that each part of the order has its share of each stratum."""
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
