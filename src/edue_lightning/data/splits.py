"""Division of cases into training, validation and test that keeps all cases of a patient together."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
        val: share for validation; 0 to draw none, where the data set prescribes validation cases.
        test: share for testing; 0 likewise.
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
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise ValueError(
                f"shares must not be negative and must leave some to train: val={self.val}, test={self.test}"
            )
        if self.draw not in ("hash", "permutation"):
            raise ValueError(f"data.fractions.draw must be hash or permutation, not {self.draw}")
        if self.seed < 0:
            raise ValueError(f"data.fractions.seed must not be negative: {self.seed}")


@dataclass(frozen=True)
class Fold:
    """One of several folds of a cross-validation.

    Attributes:
        count: number of folds.
        number: position of the fold whose cases are tested, from 0.
    """

    count: int
    number: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UserError(f"data.folds must be at least 2, not {self.count}; set null for a single division")
        if not 0 <= self.number < self.count:
            raise UserError(f"data.fold must be at least 0 and at most {self.count - 1}, not {self.number}")


def split_cases(
    records: Sequence[CaseRecord], fractions: SplitFractions, official: bool = False
) -> dict[Split, list[CaseRecord]]:
    """Divide the cases: as the data set prescribes where it does, by a draw of groups elsewhere.

    The place of a group decides its split, whatever others prescribe, so that a new case moves no other one. Each split
    that is neither prescribed nor excluded gets at least one group if there are enough; a warning says so where a draw
    of few groups left one empty.

    Args:
        records: all cases.
        fractions: shares of the splits.
        official: whether prescribed splits are those of the publication, and complete: groups drawn for a split that is
            prescribed are for training. Always so for the permutation of earlier versions.

    Returns:
        the cases of each split, in the order of `records`; an empty list if there are too few groups.
    """
    _require_whole_groups(records)
    prescribed = {record.split for record in records if record.split is not None}
    free = [record for record in records if record.split is None]
    shares: dict[Split, float] = {"test": fractions.test, "val": fractions.val}
    if fractions.draw == "hash":
        split_of_group = _by_hash(free, shares, fractions.seed, prescribed)
    else:
        shares = {split: share for split, share in shares.items() if split not in prescribed}
        split_of_group = _by_permutation(free, shares, fractions.seed)
    if official:
        split_of_group = {group: "train" if split in prescribed else split for group, split in split_of_group.items()}
    elif fractions.draw == "hash":
        _report_mixed(records, split_of_group, prescribed)
    return _of_splits(records, {**split_of_group, **{one.group: one.split for one in records if one.split is not None}})


def fold_cases(records: Sequence[CaseRecord], fractions: SplitFractions, fold: Fold) -> dict[Split, list[CaseRecord]]:
    """Divide the cases for one fold: its groups are tested, validation is drawn from the others.

    Over all folds each case is tested once, so prescribed splits are not used. A hash of the seed and the group's name
    alone places a group in its fold and, outside its own fold, in validation or training: a new case moves no other.
    The share `fractions.val` of all groups is for validation; `fractions.test` has no effect.

    Args:
        records: all cases.
        fractions: share for validation, seed and draw. The folds of a `permutation` are equally large.
        fold: number of folds, and the one to test.

    Returns:
        the cases of each split, in the order of `records`; an empty list if there are too few groups.

    Raises:
        UserError: if validation leaves nothing to train.
    """
    share = fractions.val * fold.count / (fold.count - 1)
    if share >= 1:
        raise UserError(f"data.fractions.val={fractions.val}: leaves no case to train with data.folds={fold.count}")
    prescribed = sum(record.split is not None for record in records)
    if prescribed:
        log.warning(
            "data.folds=%d: the splits that the data set prescribes for %d of %d cases are not used; every case is "
            "tested in one fold",
            fold.count,
            prescribed,
            len(records),
        )
    if fractions.draw == "hash":
        ends = [number / fold.count for number in range(1, fold.count)]
        fold_of = _ranked(
            records, f"{fractions.seed} fold", ends, range(fold.count), [f"fold {k}" for k in range(fold.count)]
        )
        rest = [record for record in records if fold_of[record.group] != fold.number]
        # also a hash without the fold: a group is for validation in all folds, or in none
        needed = range(2) if share > 0 else [1]
        part_of = _ranked(rest, f"{fractions.seed} validation", [share], needed, ["val", "train"])
    else:
        order = _stratified_order(records, np.random.default_rng(fractions.seed))
        fold_of = {group: rank * fold.count // len(order) for rank, group in enumerate(order)}
        rest = [record for record in records if fold_of[record.group] != fold.number]
        drawn = _by_permutation(rest, {"val": share}, fractions.seed)
        part_of = {group: int(split == "train") for group, split in drawn.items()}
    names: tuple[Split, Split] = ("val", "train")
    return _of_splits(
        records, {group: "test" if own == fold.number else names[part_of[group]] for group, own in fold_of.items()}
    )


def _of_splits(records: Sequence[CaseRecord], split_of_group: Mapping[str, Split]) -> dict[Split, list[CaseRecord]]:
    splits: dict[Split, list[CaseRecord]] = {split: [] for split in get_args(Split)}
    for record in records:
        splits[split_of_group[record.group]].append(record)
    return splits


def _report_mixed(records: Sequence[CaseRecord], split_of_group: Mapping[str, Split], prescribed: set[Split]) -> None:
    """Warn that a split has prescribed cases and drawn ones."""
    for split in ("test", "val"):
        drawn = sum(of_group == split for of_group in split_of_group.values())
        if split in prescribed and drawn:
            log.warning(
                "%d cases are prescribed for %s, and %d patients without a prescribed split are drawn for it too; set "
                "data.fractions.%s=0 to draw none",
                sum(record.split == split for record in records),
                split,
                drawn,
                split,
            )


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
    records: Sequence[CaseRecord], shares: Mapping[Split, float], seed: int, prescribed: set[Split]
) -> dict[str, Split]:
    """Return the split of each group: a place in [0, 1) from its hash, in which each split has its interval."""
    wanted: list[Split] = [*shares, "train"]
    # no group need be drawn for a split that has prescribed ones, or an empty interval
    needed = [number for number, split in enumerate(wanted) if split not in prescribed and shares.get(split, 1) > 0]
    numbers = _ranked(records, str(seed), list(accumulate(shares.values())), needed, wanted)
    return {group: wanted[number] for group, number in numbers.items()}


def _ranked(
    records: Sequence[CaseRecord], seed: str, ends: Sequence[float], needed: Sequence[int], names: Sequence[str]
) -> dict[str, int]:
    """Return for each group the number of the interval of [0, 1) in which the hash of its name lies.

    Args:
        records: cases of the groups.
        seed: text that the hash takes along.
        ends: ends of all intervals but the last, ascending.
        needed: numbers of the intervals that get the nearest group if the hash leaves them empty.
        names: names of the intervals, for the warning.
    """
    places = {group: _place(group, seed) for group in {record.group for record in records}}
    order = sorted(places, key=lambda group: (places[group], group))
    bounds = [0, *(bisect_left([places[group] for group in order], end) for end in ends), len(order)]
    counts = [high - low for low, high in pairwise(bounds)]
    filled = []
    for number in needed:
        largest = max(range(len(counts)), key=lambda one: counts[one])
        if counts[number] == 0 and counts[largest] > 1:
            counts[largest] -= 1
            counts[number] += 1
            filled.append(names[number])
    if filled:
        log.warning(
            "%d groups are too few to draw %s by chance: the nearest one is taken, and a new case may move others",
            len(order),
            ", ".join(filled),
        )
    rank_of = [number for number, count in enumerate(counts) for _ in range(count)]
    return dict(zip(order, rank_of, strict=True))


def _place(group: str, seed: str) -> float:
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _by_permutation(records: Sequence[CaseRecord], shares: Mapping[Split, float], seed: int) -> dict[str, Split]:
    """Return the split of each group: consecutive parts of a shuffled list, with the share of each stratum in each."""
    order = _stratified_order(records, np.random.default_rng(seed))
    split_of_group: dict[str, Split] = dict.fromkeys(order, "train")
    rest = list(order)
    for split, share in shares.items():
        if order and share > 0:
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
