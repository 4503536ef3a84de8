"""Dice of masks by other rules than that of the run, against loops and against runs with that rule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from metric_cases import random_cases
from scipy.stats import binom
from torch import Tensor

from edue_lightning.metrics import DiceByRule, DSoftByExpectedDice, MetricSettings, case_statistics
from edue_lightning.uncertainty import MaskRule, Readout, largest_expected_dice

RULES = MetricSettings(
    extra={
        "dice_by_raters": DiceByRule("raters"),
        "dice_by_expected_dice": DiceByRule("expected_dice"),
        "d_soft_by_expected_dice": DSoftByExpectedDice(),
    }
)
MASK_HEAD = Readout(levels=True, own_maps=("decision",))


def dice(first: Tensor, second: Tensor) -> float:
    both, total = int((first & second).sum()), int(first.sum() + second.sum())
    return 2 * both / total if total else 1.0


@pytest.mark.parametrize("readout", [Readout(), Readout(levels=True), MASK_HEAD], ids=["members", "levels", "head"])
@pytest.mark.parametrize("rule", ["raters", "expected_dice"])
def test_it_is_the_dice_of_a_run_with_that_rule(readout: Readout, rule: Literal["raters", "expected_dice"]) -> None:
    cases = random_cases(3, cases=6)
    raters = cases.valid.shape[1]
    found = case_statistics(*cases, settings=RULES, readout=readout, names=[f"dice_by_{rule}", "dice"])
    with_rule = replace(readout, mask=MaskRule(rule, raters=raters))
    wanted = case_statistics(*cases, readout=with_rule, names=["dice"])
    complete = cases.valid.all(dim=1)
    assert complete.any()
    torch.testing.assert_close(found[f"dice_by_{rule}"][complete], wanted["dice"][complete])
    assert not torch.equal(found[f"dice_by_{rule}"], found["dice"])


def test_the_threshold_is_that_of_the_number_of_raters_of_each_case() -> None:
    # P(Binomial(2, p) >= 1) = 1/2 at p = 0.293, P(Binomial(3, p) >= 2) = 1/2 at p = 0.5
    p = torch.tensor([0.29, 0.30, 0.49, 0.51]).reshape(1, 1, 1, 2, 2).repeat(2, 1, 1, 1, 1)
    masks = torch.ones(2, 3, 1, 2, 2, dtype=torch.uint8)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    found = case_statistics(p, masks, valid, contents="probabilities", settings=RULES, names=["dice_by_raters"])
    assert found["dice_by_raters"][:, 0].tolist() == pytest.approx([2 * 3 / (3 + 4), 2 * 1 / (1 + 4)])


@pytest.mark.parametrize("readout", [Readout(), Readout(levels=True), MASK_HEAD], ids=["members", "levels", "head"])
def test_soft_dice_takes_the_best_mask_of_each_share(readout: Readout) -> None:
    generator = torch.Generator().manual_seed(5)
    p = torch.rand(4, 5, 2, 3, 4, generator=generator, dtype=torch.float64).sort(dim=1, descending=True)[0] ** 2
    masks = torch.randint(0, 2, (4, 3, 2, 3, 4), generator=generator, dtype=torch.uint8)
    valid = torch.ones(4, 3, dtype=torch.bool)
    valid[2, 1] = False
    found = case_statistics(p, masks, valid, contents="probabilities", settings=RULES, readout=readout)
    for case in range(4):
        own = masks[case, valid[case]].double()
        n = len(own)
        for structure in range(2):
            q = own[:, structure].mean(dim=0)
            scores = []
            for t in (0.1, 0.3, 0.5, 0.7, 0.9):
                if readout.levels:
                    levels = readout.count(5)
                    chance = p[case, math.ceil(t * levels - 1e-9) - 1, structure]
                else:
                    mean = p[case, :, structure].mean(dim=0)
                    chance = torch.from_numpy(binom.sf(math.ceil(t * n - 1e-9) - 1, n, mean.numpy()))
                threshold, _ = largest_expected_dice(chance)
                scores.append(dice(chance.float() >= torch.tensor(threshold), q >= t - 1e-9))
            assert float(found["d_soft_by_expected_dice"][case, structure]) == pytest.approx(sum(scores) / 5)


def test_a_case_without_raters_is_undefined_and_two_empty_masks_agree() -> None:
    p = torch.zeros(2, 1, 1, 2, 2)
    masks = torch.zeros(2, 3, 1, 2, 2, dtype=torch.uint8)
    valid = torch.tensor([[True, True, True], [False, False, False]])
    found = case_statistics(p, masks, valid, contents="probabilities", settings=RULES)
    for name in RULES.extra:
        assert found[name][0, 0] == 1
        assert found[name][1, 0].isnan()
