"""Metrics of structures that exclude each other: every number of a case by a naive loop, and what all rules share."""

from __future__ import annotations

import pytest
import torch
from metric_cases import Cases, naive_dice, naive_statistics, random_cases

from edue_lightning.metrics import MetricSettings, case_statistics, dice
from edue_lightning.metrics.thresholds import BestThresholds
from edue_lightning.uncertainty import MaskRule, Readout, exclusive_decision, first_largest

EXCLUSIVE = Readout(exclusive=True)


def exclusive_cases(
    seed: int, *, members: int = 3, raters: int = 4, structures: int = 3, size: tuple[int, ...] = (9, 8)
) -> Cases:
    """Return random cases whose raters give each voxel to one structure at most."""
    cases = random_cases(seed, members=members, raters=raters, structures=structures, size=size)
    earlier = cases.masks.cumsum(dim=2) - cases.masks
    return cases._replace(masks=(cases.masks * (earlier == 0)).to(torch.uint8))


@pytest.mark.parametrize("size", [(9, 8), (5, 6, 7)])
@pytest.mark.parametrize(("members", "raters", "structures"), [(1, 2, 2), (3, 4, 3), (4, 3, 2), (3, 4, 1), (2, 6, 4)])
def test_equals_a_naive_loop(size: tuple[int, ...], members: int, raters: int, structures: int) -> None:
    cases = exclusive_cases(members + raters, members=members, raters=raters, structures=structures, size=size)
    log_odds = cases._replace(logits=EXCLUSIVE.log_odds(cases.logits))
    found = case_statistics(*log_odds, readout=EXCLUSIVE)
    for i in range(3):
        for k in range(structures):
            for name, value in naive_statistics(cases, i, k, exclusive=True).items():
                assert float(found[name][i, k]) == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_one_structure_is_measured_as_before() -> None:
    cases = random_cases(0, structures=1)
    found, expected = case_statistics(*cases, readout=EXCLUSIVE), case_statistics(*cases)
    for name in expected.columns:
        torch.testing.assert_close(found[name], expected[name], equal_nan=True, msg=name)


def test_probabilities_of_a_softmax_give_what_its_logits_give() -> None:
    cases = exclusive_cases(1)
    log_odds = EXCLUSIVE.log_odds(cases.logits.double())
    first = case_statistics(log_odds, *cases[1:], readout=EXCLUSIVE)
    second = case_statistics(log_odds.sigmoid(), *cases[1:], contents="probabilities", readout=EXCLUSIVE)
    for name in first.columns:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-7, equal_nan=True, msg=name)


def test_levels_are_measured_by_the_share_that_they_expect() -> None:
    cases = exclusive_cases(2, members=4)
    readout = Readout(levels=True, exclusive=True)
    levels = readout.log_odds(cases.logits.sort(dim=1, descending=True).values)
    found = case_statistics(levels, *cases[1:], readout=readout)
    share = levels.double().sigmoid().mean(dim=1)
    assert share.sum(dim=1).max() <= 1 + 1e-6
    predicted = exclusive_decision(share, dim=1) >= 0.5
    for i in range(3):
        for k in range(3):
            y = cases.masks[i, cases.valid[i]].double().mean(dim=0)
            background = 1 - y.sum(dim=0)
            first = [(y[k] > y[j] + 1e-6) if j < k else (y[k] >= y[j] - 1e-6) for j in range(3) if j != k]
            consensus = torch.stack([*first, y[k] >= background - 1e-6]).all(dim=0)
            assert float(found["dice"][i, k]) == pytest.approx(naive_dice(predicted[i, k].numpy(), consensus.numpy()))


def test_the_tie_with_the_background_is_an_option() -> None:
    # two of four raters mark the voxel, one of them each structure; and two of four one structure
    masks = torch.zeros(1, 4, 2, 1, 2, dtype=torch.uint8)
    masks[0, 0, 0, 0, 0] = masks[0, 1, 1, 0, 0] = masks[0, 0, 1, 0, 1] = masks[0, 1, 1, 0, 1] = 1
    logits = EXCLUSIVE.log_odds(torch.tensor([[9.0, -9.0], [-9.0, 9.0]]).reshape(1, 1, 2, 1, 2))
    valid = torch.ones(1, 4, dtype=torch.bool)
    found = {
        tie: dice(logits, masks, valid, readout=EXCLUSIVE, settings=MetricSettings(majority_tie=tie)).tolist()
        for tie in ("foreground", "background")
    }
    # in the first voxel the background has two raters, and a structure one
    assert found["foreground"] == [0.0, 1.0]
    assert found["background"] == [0.0, 0.0]


def test_chosen_thresholds_have_the_dice_that_they_were_chosen_for() -> None:
    cases = exclusive_cases(3, size=(20, 20))
    logits, names = EXCLUSIVE.log_odds(cases.logits - 1.5), ("a", "b", "c")
    search = BestThresholds(names, readout=EXCLUSIVE)
    search.update(logits, *cases[1:])
    chosen = search.thresholds()
    found = {}
    for value in (None, *torch.arange(1, 100).div(100).tolist()):
        thresholds = chosen if value is None else dict.fromkeys(names, value)
        readout = Readout(exclusive=True, mask=MaskRule("validation", thresholds=thresholds))
        found[value] = dice(logits, *cases[1:], structures=names, readout=readout)
    for k in range(3):
        best = max(float(values[k]) for values in found.values())
        assert float(found[None][k]) == pytest.approx(best, abs=1e-9)
    assert min(chosen.values()) < 0.5


def test_masks_of_low_thresholds_do_not_overlap() -> None:
    cases = exclusive_cases(4)
    logits = EXCLUSIVE.log_odds(cases.logits)
    thresholds = dict.fromkeys(("0", "1", "2"), 0.05)
    rule = MaskRule("validation", thresholds=thresholds)
    areas = case_statistics(logits, *cases[1:3], names=["predicted_area"], readout=Readout(exclusive=True, mask=rule))[
        "predicted_area"
    ]
    probability = logits.double().sigmoid().mean(dim=1)
    decision = exclusive_decision(probability, dim=1)
    masks = (decision >= 0.05) & first_largest(probability, dim=1)
    assert torch.equal(areas, masks.flatten(2).sum(dim=2).double())
    assert (decision >= 0.05).sum(dim=1).max() > 1
