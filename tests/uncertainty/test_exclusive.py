"""Structures that exclude each other: softmax with the background, and at most one structure at each voxel."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edue_lightning.uncertainty import (
    MaskRule,
    Readout,
    capped_log_odds,
    exclusive_decision,
    exclusive_log_odds,
    first_largest,
    foreground,
    majority,
    masks_of,
    masks_of_images,
    plurality,
)


def softmax_with_background(logits: Tensor, dim: int) -> Tensor:
    background = torch.zeros_like(logits.narrow(dim, 0, 1))
    return torch.softmax(torch.cat([logits, background], dim), dim).narrow(dim, 0, logits.shape[dim])


@pytest.mark.parametrize("structures", [1, 2, 5])
def test_the_sigmoid_of_the_log_odds_is_the_softmax(structures: int) -> None:
    logits = torch.randn(2, 3, structures, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6
    found = exclusive_log_odds(logits, dim=2)
    torch.testing.assert_close(found.sigmoid(), softmax_with_background(logits, dim=2), atol=1e-14, rtol=0)
    if structures == 1:
        assert torch.equal(found, logits)


def test_log_odds_are_exact_and_finite_where_a_softmax_rounds() -> None:
    # p_1 = 1 - 2e-87, p_2 = e^-200, both for a background of e^-200
    found = exclusive_log_odds(torch.tensor([200.0, 0.0, -1e4]), dim=0)
    torch.testing.assert_close(found, torch.tensor([200 - math.log(2), -200.0, -1e4 - 200]))
    assert exclusive_log_odds(torch.tensor([1.0], dtype=torch.bfloat16), dim=0).dtype == torch.float32


def test_log_odds_have_the_right_gradient() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: exclusive_log_odds(values, dim=1), logits)


def test_levels_of_structures_share_the_raters() -> None:
    logits = torch.randn(2, 4, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 4 - 2
    before, found = logits.sigmoid(), capped_log_odds(logits).sigmoid()
    total = before.mean(dim=1).sum(dim=1)
    assert 0.1 < (total > 1).double().mean() < 0.9
    for case, voxel in itertools.product(range(2), range(50)):
        divisor = max(1.0, sum(before[case, :, k, voxel].mean().item() for k in range(3)))
        torch.testing.assert_close(found[case, :, :, voxel], before[case, :, :, voxel] / divisor)
    assert found.mean(dim=1).sum(dim=1).max() <= 1 + 1e-12
    order = logits.argsort(dim=1)
    assert torch.equal(found.argsort(dim=1), order)


def test_levels_stay_finite_for_every_finite_logit() -> None:
    extreme = torch.tensor([200.0, -200.0, 1e4, -1e4]).repeat(2, 1).T.reshape(1, 4, 2, 1)
    for logits in (extreme, torch.full((1, 2, 3, 1), 500.0)):
        assert capped_log_odds(logits).isfinite().all()


def test_the_decision_is_for_the_most_probable_class() -> None:
    logits = torch.randn(2, 3, 400, generator=torch.Generator().manual_seed(2)) * 2
    probability = softmax_with_background(logits.double(), dim=1)
    found = exclusive_decision(probability, dim=1)
    for case, voxel in itertools.product(range(2), range(400)):
        p = probability[case, :, voxel].tolist()
        background = 1 - sum(p)
        for k in range(3):
            rival = max([background, *p[:k], *p[k + 1 :]])
            assert found[case, k, voxel].item() == pytest.approx(p[k] / (p[k] + rival), abs=1e-6)
            assert (found[case, k, voxel] >= 0.5) == (p[k] > rival)
    # so that between two voxels at most one exceeds one half
    for first, second in itertools.combinations(range(3), 2):
        assert (found[:, first] + found[:, second]).max() <= 1 + 1e-9


def test_one_structure_has_the_decision_and_mask_of_its_probability() -> None:
    near = [0.5, math.nextafter(0.5, 0), 0.5 - 2**-27, 0.5 - 2**-25, 0.0, 1.0, 0.3]
    probability = torch.tensor(near, dtype=torch.float64)[None, None]
    found = exclusive_decision(probability, dim=1)
    torch.testing.assert_close(found, probability, atol=1e-7, rtol=0)
    assert torch.equal(foreground(found), foreground(probability))


@pytest.mark.parametrize(
    ("probability", "chosen"),
    [
        ([0.4, 0.4, 0.1], 0),  # of equal structures the first
        ([0.25, 0.25, 0.25], 0),  # the background, with 0.25, is no more probable
        ([0.1, 0.45, 0.0], 1),
        ([0.1, 0.5, 0.0], 1),
        ([0.2, 0.3, 0.0], None),
        ([1 / 3, 1 / 3 + 1e-9, 1 / 3], 0),  # equal in float32, as it is stored
        ([0.0, 0.0, 0.0], None),
        ([0.0, 0.0, 1.0], 2),
        ([0.6, 0.6, 0.1], 0),  # rounding may let them exceed 1
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_first_structure(probability: list[float], chosen: int | None, dtype: torch.dtype) -> None:
    decision = exclusive_decision(torch.tensor(probability, dtype=dtype), dim=0)
    for values in (decision, decision.float()):
        assert (values >= 0.5).tolist() == [k == chosen for k in range(3)]
    assert torch.equal(foreground(decision), decision >= 0.5)


@pytest.mark.parametrize(
    ("votes", "raters", "foreground_tie", "background_tie"),
    [
        ((2, 2), 4, 0, 0),  # two structures with equally many raters
        ((2, 1), 4, 0, 0),  # no majority: one rater for the background
        ((2, 0), 4, 0, None),  # as many raters for the background
        ((1, 1), 3, 0, None),  # a third each, whose sum is inexact
        ((1, 2), 5, 1, None),
        ((0, 3), 7, None, None),
        ((0, 4), 7, 1, 1),
        ((0, 0), 3, None, None),
        ((0, 0), 0, None, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plurality_of_the_raters_is_one_class(
    votes: tuple[int, int], raters: int, foreground_tie: int | None, background_tie: int | None, dtype: torch.dtype
) -> None:
    share = torch.tensor(votes, dtype=dtype) / max(raters, 1)
    for tie, wanted in (("foreground", foreground_tie), ("background", background_tie)):
        assert plurality(share, tie, dim=0).tolist() == [k == wanted for k in range(2)]


def test_the_plurality_of_one_structure_is_the_majority() -> None:
    for raters in range(1, 12):
        share = torch.arange(raters + 1, dtype=torch.float32)[None] / raters
        for tie in ("foreground", "background"):
            assert torch.equal(plurality(share, tie, dim=0), majority(share, tie))


def test_no_rule_for_masks_lets_structures_overlap() -> None:
    logits = torch.randn(1, 3, 500, generator=torch.Generator().manual_seed(3)) * 2
    probability = softmax_with_background(logits, dim=1)
    names = ("a", "b", "c")
    thresholds = {"a": 0.2, "b": 0.3, "c": 0.1}
    for rule in (
        MaskRule(),
        MaskRule("raters", raters=4),
        MaskRule("validation", thresholds=thresholds),
        MaskRule("expected_dice"),
    ):
        readout = Readout(exclusive=True, mask=rule)
        decision = readout.decision(probability[:, None])
        masks = masks_of_images(decision, rule, names, exclusive=True)
        own = masks_of_images(decision, rule, names)
        assert masks.sum(dim=1).max() == 1
        assert torch.equal(masks, own & first_largest(decision, dim=1))
        assert torch.equal(masks[0], masks_of(decision[0], rule.of_image(decision[0], names), exclusive=True))
        if rule.rule == "validation":
            assert own.sum(dim=1).max() > 1
        if rule.rule == "half":
            assert torch.equal(masks, own)


def test_the_read_out_of_members_is_that_of_their_softmax() -> None:
    logits = torch.randn(2, 4, 3, 6, 5, generator=torch.Generator().manual_seed(4))
    readout = Readout(own_maps=("disagreement", "decision"), exclusive=True)
    channels = readout.log_odds(logits).sigmoid()
    expected = softmax_with_background(logits, dim=2)
    expected[:, 2] = logits[:, 2].sigmoid()  # a variance is no class
    torch.testing.assert_close(channels, expected)
    torch.testing.assert_close(readout.probability(channels), expected[:, :2].mean(dim=1))
    torch.testing.assert_close(readout.decision(channels), exclusive_decision(expected[:, 3], dim=1))
    masks = readout.member_masks(readout.members(channels))
    classes = torch.cat([expected[:, :2], 1 - expected[:, :2].sum(dim=2, keepdim=True)], dim=2).argmax(dim=2)
    assert torch.equal(masks, torch.stack([classes == k for k in range(3)], dim=2))


def test_levels_decide_by_the_expected_share_of_the_raters() -> None:
    logits = torch.randn(2, 4, 3, 30, generator=torch.Generator().manual_seed(5)).sort(dim=1, descending=True).values
    readout = Readout(levels=True, exclusive=True)
    levels = readout.log_odds(logits).sigmoid()
    torch.testing.assert_close(levels, capped_log_odds(logits).sigmoid())
    torch.testing.assert_close(readout.decision(levels), exclusive_decision(levels.mean(dim=1), dim=1))
    # two structures may both have two of four votes
    assert torch.equal(readout.member_masks(levels), foreground(levels))
    assert torch.equal(readout.share_reached(levels, 0.5), foreground(levels[:, 1]))


def test_structures_that_may_overlap_are_read_as_before() -> None:
    logits = torch.randn(1, 3, 2, 10)
    assert Readout().log_odds(logits) is logits
    assert Readout.from_dict({"levels": False, "own_maps": [], "majority_tie": "foreground"}) == Readout()
    exclusive = Readout(exclusive=True)
    assert Readout.from_dict(exclusive.as_dict()) == exclusive == replace(Readout(), exclusive=True)
    with pytest.raises(ValueError, match="exclusive must be true or false"):
        Readout.from_dict({**exclusive.as_dict(), "exclusive": "yes"})
