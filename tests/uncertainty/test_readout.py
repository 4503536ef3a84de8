"""Maps read from opinions, from nested levels and from maps of their own, against naive loops and known values."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edue_lightning.metrics import case_statistics
from edue_lightning.metrics.overlap import D_SOFT_THRESHOLDS
from edue_lightning.uncertainty import (
    MAPS,
    MaskRule,
    Readout,
    Tie,
    exclusive_decision,
    foreground,
    level_variance,
    majority,
    majority_level,
    member_variance,
    rater_mean,
    rater_variance,
    score_maps,
    total_variance,
)


def levels_of(masks: Tensor) -> Tensor:
    """Return the levels of raters' masks `[B, R, K, *S]`: level k is 1 where at least k raters marked."""
    return masks.double().sort(dim=1, descending=True).values


def random_levels(count: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(2, count, *shape, dtype=torch.float64, generator=generator).sort(dim=1, descending=True).values


def test_by_default_maps_are_the_members_mean_and_variance() -> None:
    p = torch.rand(2, 3, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    readout = Readout()
    torch.testing.assert_close(readout.probability(p), p.mean(dim=1))
    torch.testing.assert_close(readout.decision(p), p.mean(dim=1))
    torch.testing.assert_close(readout.disagreement(p), p.var(dim=1, correction=0))
    assert torch.equal(readout.members(p), p)
    for share in D_SOFT_THRESHOLDS:
        assert torch.equal(readout.share_reached(p, share), p.mean(dim=1) >= share)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("tie", ["foreground", "background"])
def test_maps_of_levels_are_those_of_a_naive_loop(count: int, tie: Tie) -> None:
    p, readout = random_levels(count, 2, 3, 4), Readout(levels=True, majority_tie=tie)
    found = {name: getattr(readout, name)(p) for name in MAPS}
    for place in itertools.product(range(2), range(2), range(3), range(4)):
        b, *voxel = place
        pi = [float(p[b, k, *voxel]) for k in range(count)]
        assert float(found["probability"][place]) == pytest.approx(sum(pi) / count)
        variance = sum((count + 1 - 2 * k) * pi[k - 1] for k in range(1, count + 1)) / count**2
        assert float(found["disagreement"][place]) == pytest.approx(variance, abs=1e-12)
        wins = [k for k in range(1, count + 1) if (k / count >= 0.5 if tie == "foreground" else k / count > 0.5)]
        assert float(found["decision"][place]) == pi[min(wins) - 1]


@given(st.integers(2, 9), st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_the_variance_of_descending_levels_lies_between_0_and_a_quarter(count: int, values: list[float]) -> None:
    levels = torch.tensor(sorted(values[:count], reverse=True)).reshape(1, count, 1, 1)
    variance = float(level_variance(levels))
    assert 0 <= variance <= 0.25 + 1e-6
    # E[q (1 - q)] is at most E[q] (1 - E[q])
    assert variance <= float(total_variance(levels)) + 1e-6
    equal = torch.full((1, count, 1, 1), values[0])
    assert float(level_variance(equal)) == 0


@given(st.integers(2, 6), st.data())
def test_levels_of_the_raters_give_their_share_variance_and_majority(raters: int, data: st.DataObject) -> None:
    marks = data.draw(st.lists(st.booleans(), min_size=raters * 6, max_size=raters * 6))
    tie = data.draw(st.sampled_from(["foreground", "background"]))
    masks = torch.tensor(marks, dtype=torch.uint8).reshape(1, raters, 1, 6)
    valid, readout = torch.ones(1, raters, dtype=torch.bool), Readout(levels=True, majority_tie=tie)
    levels = levels_of(masks)
    share = rater_mean(masks, valid)
    torch.testing.assert_close(readout.probability(levels).float(), share)
    torch.testing.assert_close(readout.disagreement(levels).float(), rater_variance(masks, valid), atol=1e-7, rtol=0)
    assert torch.equal(foreground(readout.decision(levels)), majority(share, tie))
    for threshold in (*D_SOFT_THRESHOLDS, 1.0):
        wanted = masks.sum(dim=1) >= math.ceil(round(threshold * raters, 9))
        assert torch.equal(readout.share_reached(levels, threshold), wanted)


def test_the_majority_of_an_even_number_depends_on_ties() -> None:
    assert [majority_level(count, "foreground") for count in range(1, 7)] == [1, 1, 2, 2, 3, 3]
    assert [majority_level(count, "background") for count in range(1, 7)] == [1, 2, 2, 3, 3, 4]


def test_maps_of_its_own_replace_those_of_the_members() -> None:
    channels = torch.rand(1, 5, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    readout = Readout(levels=True, own_maps=("decision", "probability"))
    assert readout.count(5) == 3
    assert torch.equal(readout.members(channels), channels[:, :3])
    assert torch.equal(readout.decision(channels), channels[:, 3])
    # the decision may be trained for masks alone; the second of three levels is the majority
    assert torch.equal(readout.majority_probability(channels), channels[:, 1])
    assert torch.equal(readout.probability(channels), channels[:, 4])
    torch.testing.assert_close(readout.disagreement(channels), level_variance(channels[:, :3]))
    opinions = Readout(own_maps=("decision", "probability"))
    assert torch.equal(opinions.majority_probability(channels), channels[:, 4])
    exclusive = replace(opinions, exclusive=True)
    torch.testing.assert_close(exclusive.majority_probability(channels), exclusive_decision(channels[:, 4], dim=1))
    by_probability = replace(readout, mask=MaskRule("raters", raters=3))
    assert torch.equal(by_probability.decision(channels), channels[:, 4])
    assert torch.equal(by_probability.majority_probability(channels), channels[:, 1])
    single = Readout(own_maps=("disagreement",))
    assert single.has_disagreement(2)
    assert torch.equal(score_maps(channels[:, :2], single)["sv"], channels[:, 1])
    assert not Readout().has_disagreement(1)
    assert score_maps(channels[:, :1])["sv"].isnan().all()


def test_an_invalid_read_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"own_maps must be some of probability, disagreement, decision.*'mask'"):
        Readout(own_maps=("mask",))
    with pytest.raises(ValueError, match="each once"):
        Readout(own_maps=("decision", "decision"))
    with pytest.raises(ValueError, match="majority_tie must be one of"):
        Readout(majority_tie="both")  # type: ignore[arg-type]


def test_a_read_out_is_rebuilt_from_plain_values() -> None:
    readout = Readout(True, ("decision",), "background")
    assert Readout.from_dict(readout.as_dict()) == readout


@pytest.mark.parametrize("contents", ["logits", "probabilities"])
def test_tables_use_the_maps_that_a_method_hands_over(contents: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 2, 8, 8, dtype=torch.float64, generator=generator) * 2
    logits[:, :4] = logits[:, :4].sort(dim=1, descending=True).values
    p = logits.sigmoid()
    masks = torch.randint(0, 2, (2, 4, 2, 8, 8), generator=generator, dtype=torch.uint8)
    valid, readout = torch.ones(2, 4, dtype=torch.bool), Readout(levels=True, own_maps=("decision",))
    given_as = {"logits": logits, "probabilities": p}[contents]
    found = case_statistics(given_as, masks, valid, contents=contents, readout=readout)  # type: ignore[arg-type]
    mask = p[:, 4] >= 0.5
    wanted = rater_mean(masks, valid) >= 0.5
    both, total = (mask & wanted).flatten(2).sum(2), (mask.flatten(2).sum(2) + wanted.flatten(2).sum(2))
    torch.testing.assert_close(found["dice"], (2 * both / total).double())
    torch.testing.assert_close(found["predicted_area"], mask.flatten(2).sum(2).double())
    torch.testing.assert_close(found["sv"], level_variance(p[:, :4]).flatten(2).sum(2))
    torch.testing.assert_close(found["sv_total"], total_variance(p[:, :4]).flatten(2).sum(2))
    share = rater_mean(masks, valid).double()
    mean = p[:, :4].mean(dim=1)
    nll = -(share * mean.log() + (1 - share) * (1 - mean).log())
    torch.testing.assert_close(found["nll"], nll.flatten(2).mean(2))
    expected = []
    for threshold in D_SOFT_THRESHOLDS:
        own = p[:, math.ceil(round(threshold * 4, 9)) - 1] >= 0.5
        reached = share.float() >= threshold
        intersection = (own & reached).flatten(2).sum(2)
        expected.append(2 * intersection / (own.flatten(2).sum(2) + reached.flatten(2).sum(2)))
    torch.testing.assert_close(found["d_soft"], torch.stack(expected).mean(dim=0).double())
    # the members are the levels, without the map behind them
    without = case_statistics(p[:, :4], masks, valid, contents="probabilities", readout=Readout(levels=True))
    for name in ("ged2", "nll", "sv", "pixel_pearson", "d_soft", "layer_agreement"):
        torch.testing.assert_close(found[name], without[name], msg=name)
    assert not torch.allclose(found["dice"], without["dice"])


def test_levels_that_agree_but_for_rounding_have_no_disagreement() -> None:
    logits = torch.full((1, 4, 1, 6, 6), 0.3) + 1e-8 * torch.randn(1, 4, 1, 6, 6)
    masks, valid = torch.randint(0, 2, (1, 4, 1, 6, 6)), torch.ones(1, 4, dtype=torch.bool)
    found = case_statistics(logits, masks, valid, readout=Readout(levels=True))
    assert float(found["sv"]) == 0
    assert found["pixel_pearson"].isnan().all()
    assert float(member_variance(logits.sigmoid()).sum()) < 1e-12


def test_a_prediction_of_maps_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one member before the maps decision"):
        case_statistics(
            torch.zeros(1, 1, 1, 2, 2),
            torch.zeros(1, 1, 1, 2, 2),
            torch.ones(1, 1) > 0,
            readout=Readout(own_maps=("decision",)),
        )
