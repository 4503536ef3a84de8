import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from edue_lightning.data import RaterBatch
from edue_lightning.methods.targets import draw_raters, fixed_raters, member_target


def batch(masks: torch.Tensor, valid: torch.Tensor) -> RaterBatch:
    cases = masks.shape[0]
    return RaterBatch(
        image=torch.zeros(cases, 1, *masks.shape[3:]),
        masks=masks,
        valid=valid,
        spacing=torch.ones(cases, 2),
        case_index=torch.arange(cases),
        draw_key=torch.arange(cases) + 12345,
    )


def masks_naming_their_rater(cases: int, raters: int) -> torch.Tensor:
    """Return masks whose 4 x 4 voxels spell the rater's number in binary."""
    numbers = torch.arange(raters)
    bits = (numbers[:, None] >> torch.arange(16)) & 1
    return bits.reshape(1, raters, 1, 4, 4).expand(cases, -1, -1, -1, -1).to(torch.uint8)


def spelled_rater(mask: torch.Tensor) -> torch.Tensor:
    return (mask.flatten(-2).long() << torch.arange(16)).sum(-1)


def test_draws_are_uniform_over_valid_raters_and_independent_between_members() -> None:
    keys = torch.from_numpy(np.random.default_rng(0).integers(0, 2**63, size=6000))
    valid = torch.tensor([True, False, True, True, False, True]).expand(6000, -1)
    draws = draw_raters(valid, keys, draws=2)
    joint = torch.bincount(draws[:, 0] * 6 + draws[:, 1], minlength=36).reshape(6, 6)
    allowed = [0, 2, 3, 5]
    counts = joint[allowed][:, allowed].flatten().numpy()
    assert counts.sum() == 6000  # a missing rater is never drawn
    assert chisquare(counts).pvalue > 1e-3


def test_sequential_keys_are_as_good_as_random_ones() -> None:
    draws = draw_raters(torch.ones(6000, 4, dtype=torch.bool), torch.arange(6000), draws=1)
    assert chisquare(torch.bincount(draws[:, 0]).numpy()).pvalue > 1e-3


def test_a_draw_depends_on_nothing_but_its_key() -> None:
    keys = torch.tensor([3, 99, 2**62])
    valid = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
    alone = torch.cat([draw_raters(valid[i : i + 1], keys[i : i + 1], draws=5) for i in range(3)])
    padded = torch.cat([valid, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(draw_raters(padded, keys, draws=5), alone)
    torch.testing.assert_close(draw_raters(valid, keys, draws=2), alone[:, :2])


def test_fixed_raters_are_constant_and_valid() -> None:
    valid = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    by_member = [fixed_raters(valid, member)[:, 0].tolist() for member in range(5)]
    assert [row[0] for row in by_member] == [0, 1, 2, 0, 1]
    assert [row[1] for row in by_member] == [0, 2, 2, 2, 0]
    assert [row[2] for row in by_member] == [2, 2, 2, 2, 2]


def test_each_member_of_an_ensemble_sees_its_rater() -> None:
    masks = masks_naming_their_rater(cases=2, raters=4)
    valid = torch.ones(2, 4, dtype=torch.bool)
    for member in range(6):
        target = member_target(batch(masks, valid), "rater_per_member", member)
        assert target.shape == (2, 1, 1, 4, 4)
        assert spelled_rater(target).unique().tolist() == [member % 4]


def test_consensus_targets() -> None:
    masks = torch.zeros(1, 4, 1, 1, 4, dtype=torch.uint8)
    for rater, marked in enumerate([4, 3, 2, 4]):
        masks[0, rater, 0, 0, :marked] = 1
    valid = torch.tensor([[True, True, True, False]])
    masks[0, 3] = 1  # a missing rater must not count
    share = member_target(batch(masks, valid), "soft_majority").flatten()
    torch.testing.assert_close(share, torch.tensor([1, 1, 2 / 3, 1 / 3]))
    assert member_target(batch(masks, valid), "majority").flatten().tolist() == [1, 1, 1, 0]
    tie = torch.tensor([[True, False, True, False]])
    assert member_target(batch(masks, tie), "majority").flatten().tolist() == [1, 1, 1, 1]
    assert member_target(batch(masks, tie), "majority", tie="background").flatten().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("member", range(8))
def test_fixed_raters_do_not_depend_on_the_padding_of_the_batch(member: int) -> None:
    rng = torch.Generator().manual_seed(member)
    for raters in range(1, 6):
        valid = torch.rand(20, raters, generator=rng) < 0.6
        valid[:, 0] |= ~valid.any(dim=1)
        alone = fixed_raters(valid, member)
        for padding in range(1, 9):
            padded = torch.cat([valid, torch.zeros(20, padding, dtype=torch.bool)], dim=1)
            assert torch.equal(fixed_raters(padded, member), alone)
        assert valid.gather(1, alone).all()
        if member < raters:
            own = valid[:, member]
            assert (alone[own] == member).all()
