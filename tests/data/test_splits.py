"""Splits drawn by a hash of each group: a new case moves no other."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any, Literal

import pytest
from scipy.stats import binom

from edue_lightning.data import CaseRecord, RaterDataModule, SplitFractions, SyntheticFundus, split_cases
from edue_lightning.data.source import Split
from edue_lightning.data.splits import Fold, fold_cases
from edue_lightning.errors import UserError


def records(number: int, cases_per_group: int = 1, stratum: str = "") -> list[CaseRecord]:
    """Return cases of numbered patients."""
    return [
        CaseRecord(f"{stratum}{group}_{case}", f"{stratum}patient{group}", stratum=stratum)
        for group in range(number)
        for case in range(cases_per_group)
    ]


def split_of_case(cases: list[CaseRecord], fractions: SplitFractions) -> dict[str, str]:
    return {record.case_id: split for split, of in split_cases(cases, fractions).items() for record in of}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [30, 39, 150])
def test_a_new_case_moves_no_other(number: int, seed: int) -> None:
    fractions = SplitFractions(seed=seed)
    before = split_of_case(records(number), fractions)
    for new in (CaseRecord("new", "new"), CaseRecord("0", "0"), CaseRecord("zz", "patient3"), CaseRecord("n", "n")):
        after = split_of_case([new, *records(number)], fractions)
        assert {case: after[case] for case in before} == before
    # a further case of a known patient stays with the patient
    assert split_of_case([*records(number), CaseRecord("zz", "patient3")], fractions)["zz"] == before["3_0"]
    # nor does the removal of cases, or another order
    fewer = split_of_case(list(reversed(records(number)))[5:], fractions)
    assert fewer == {case: before[case] for case in fewer}


def test_the_permutation_of_earlier_versions_moves_others() -> None:
    fractions = SplitFractions(draw="permutation")
    before = split_of_case(records(39), fractions)
    after = split_of_case([*records(39), CaseRecord("new", "new")], fractions)
    assert any(after[case] != before[case] for case in before)


def test_shares_hold_on_average_in_each_stratum() -> None:
    sizes = {"large": 400, "small": 100}
    cases = [record for stratum, number in sizes.items() for record in records(number, 2, stratum)]
    splits = split_cases(cases, SplitFractions(val=0.2, test=0.3))
    for split, share in (("val", 0.2), ("test", 0.3), ("train", 0.5)):
        groups = {(record.stratum, record.group) for record in splits[split]}
        found = Counter(stratum for stratum, _ in groups)
        for stratum, number in sizes.items():
            low, high = binom.ppf([1e-4, 1 - 1e-4], number, share)
            assert low <= found[stratum] <= high
    groups_of = [{record.group for record in of} for of in splits.values()]
    assert sum(map(len, groups_of)) == len(set().union(*groups_of)) == 500


@pytest.mark.parametrize("number", [3, 4, 6])
def test_few_groups_still_give_each_split_one_and_a_warning_says_so(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    warned = 0
    for seed in range(40):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            splits = split_cases(records(number), SplitFractions(seed=seed))
        assert all(splits[split] for split in ("train", "val", "test"))
        warned += "too few to draw" in caplog.text
    assert 0 < warned <= 40


def test_too_few_groups_leave_a_split_empty() -> None:
    splits = split_cases(records(2), SplitFractions())
    assert sorted(map(len, splits.values())) == [0, 1, 1]
    assert split_cases([], SplitFractions()) == {"train": [], "val": [], "test": []}


def test_official_splits_are_used_alone() -> None:
    prescribed = [CaseRecord(f"t{number}", f"t{number}", "test") for number in range(5)]
    splits = split_cases([*prescribed, *records(60)], SplitFractions(val=0.2, test=0.3), official=True)
    assert splits["test"] == prescribed
    assert len(splits["val"]) + len(splits["train"]) == 60
    assert splits["val"]
    # the others stay where they would be without a prescribed test
    drawn = split_cases(records(60), SplitFractions(val=0.2, test=0.3))
    assert splits["val"] == drawn["val"]
    trained = [CaseRecord("a", "a", "train"), CaseRecord("b", "b", "val"), *records(1)]
    assert [record.case_id for record in split_cases(trained, SplitFractions(), official=True)["test"]] == ["0_0"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_new_case_with_a_prescribed_split_moves_no_other(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    before = split_of_case(records(39), SplitFractions())
    with caplog.at_level(logging.WARNING):
        after = split_of_case([CaseRecord("new", "new", split), *records(39)], SplitFractions())
    assert after.pop("new") == split
    assert after == before
    assert ("1 cases are prescribed for" in caplog.text) == (split != "train")


def test_a_share_of_0_draws_none_beside_prescribed_cases() -> None:
    prescribed = [CaseRecord(f"t{number}", f"t{number}", "test") for number in range(5)]
    splits = split_cases([*prescribed, *records(60)], SplitFractions(val=0.2, test=0))
    assert splits["test"] == prescribed
    assert splits["val"]
    for share in (-0.1, math.nan):
        with pytest.raises(ValueError, match="must not be negative"):
            SplitFractions(val=share)


@pytest.mark.parametrize("draw", ["hash", "permutation"])
def test_a_share_of_0_draws_none(draw: Literal["hash", "permutation"]) -> None:
    prescribed = [CaseRecord(f"v{number}", f"v{number}", "val") for number in range(5)]
    splits = split_cases([*prescribed, *records(60)], SplitFractions(val=0, test=0.2, draw=draw))
    assert splits["val"] == prescribed
    assert splits["test"]
    folded = fold_cases(records(40), SplitFractions(val=0, draw=draw), Fold(5, 2))
    assert not folded["val"]
    assert len(folded["train"]) + len(folded["test"]) == 40


@pytest.mark.parametrize("draw", ["hash", "permutation"])
@pytest.mark.parametrize("folds", [2, 5])
def test_over_all_folds_each_case_is_tested_once_and_patients_stay_whole(draw: Any, folds: int) -> None:
    cases = [*records(80, 3, "a"), *records(40, 2, "b"), CaseRecord("t", "t", "test"), CaseRecord("v", "v", "val")]
    fractions = SplitFractions(draw=draw)
    tested: Counter[str] = Counter()
    for number in range(folds):
        splits = fold_cases(cases, fractions, Fold(folds, number))
        assert sum(map(len, splits.values())) == len(cases)
        groups = {split: {record.group for record in of} for split, of in splits.items()}
        assert sum(map(len, groups.values())) == 122
        tested.update(record.case_id for record in splits["test"])
        for stratum, size in (("a", 80), ("b", 40)):
            of_stratum = {record.group for record in splits["test"] if record.stratum == stratum}
            low, high = binom.ppf([1e-4, 1 - 1e-4], size, 1 / folds)
            assert low <= len(of_stratum) <= high
        # validation has its share of all patients, drawn from those that are not tested
        low, high = binom.ppf([1e-4, 1 - 1e-4], 122, fractions.val)
        assert low <= len(groups["val"]) <= high
    assert tested == {case.case_id: 1 for case in cases}


@pytest.mark.parametrize("number", range(5))
def test_a_new_case_moves_no_other_between_folds(number: int) -> None:
    def division(cases: list[CaseRecord]) -> dict[str, str]:
        splits = fold_cases(cases, SplitFractions(), Fold(5, number))
        return {record.case_id: split for split, of in splits.items() for record in of}

    before = division(records(39))
    for new in (CaseRecord("new", "new"), CaseRecord("zz", "patient3"), CaseRecord("t", "t", "test")):
        after = division([new, *reversed(records(39))])
        assert {case: after[case] for case in before} == before


def test_few_groups_give_each_fold_one() -> None:
    for seed in range(20):
        tested = [fold_cases(records(6), SplitFractions(seed=seed), Fold(5, k))["test"] for k in range(5)]
        assert all(tested)
        assert sum(map(len, tested)) == 6


def test_impossible_folds_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.folds must be at least 2"):
        Fold(1, 0)
    with pytest.raises(UserError, match=r"data\.fold must be at least 0 and at most 4, not 5"):
        Fold(5, 5)
    with pytest.raises(UserError, match=r"val=0\.6: leaves no case to train"):
        fold_cases(records(9), SplitFractions(val=0.6, test=0.1), Fold(2, 0))
    source = SyntheticFundus(n_cases=20, size=24)
    with pytest.raises(UserError, match=r"data\.folds=5 and data\.fold=null: set both"):
        RaterDataModule("synthetic", source, folds=5)
    data = RaterDataModule("synthetic", source, folds=5, fold=2)
    assert {record.case_id for record in data.records("test")} == {
        record.case_id for record in fold_cases(source.cases(), SplitFractions(), Fold(5, 2))["test"]
    }


def test_seeds_draw_differently_and_others_are_refused() -> None:
    first, second = (split_of_case(records(50), SplitFractions(seed=seed)) for seed in (0, 1))
    assert first != second
    with pytest.raises(ValueError, match="must not be negative"):
        SplitFractions(seed=-1)
    with pytest.raises(ValueError, match="hash or permutation"):
        SplitFractions(draw="other")


def test_a_patient_in_two_prescribed_splits_is_refused() -> None:
    records = [CaseRecord("a", "p", "test"), CaseRecord("b", "p"), CaseRecord("c", "q")]
    with pytest.raises(UserError, match="patient 'p' has cases of no split and test"):
        split_cases(records, SplitFractions())
