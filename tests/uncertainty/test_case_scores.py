"""The scores of a case from sums and overlaps, against those of its maps and masks, whole and in slabs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edue_lightning.metrics.scores import MODEL_SCORES, SCORES
from edue_lightning.runs.files import DISTORTION_SCORES
from edue_lightning.uncertainty import (
    CASE_SCORES,
    MASK_SCORES,
    VARIANCE_SCORES,
    PairOverlap,
    case_scores,
    disagreement_map,
    layer_agreement,
    map_sums,
    member_variance,
    model_agreement,
    pair_overlap,
    predictive_entropy,
    score_maps,
    sum_of_variances,
    total_variance,
)


def overlap_of(members: Tensor) -> PairOverlap:
    """Return the overlap of the mean prediction's mask and the members', for probabilities `[M, K, *S]`."""
    masks = torch.cat([members.mean(dim=0, keepdim=True) >= 0.5, members >= 0.5])
    return pair_overlap(masks.transpose(0, 1).flatten(2))


@pytest.mark.parametrize("members", [1, 2, 5])
def test_scores_are_those_of_maps_and_masks(members: int) -> None:
    p = torch.rand(members, 2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(members))
    found = case_scores({name: part[0] for name, part in map_sums(score_maps(p[None])).items()}, overlap_of(p), 1.5)
    assert tuple(found) == CASE_SCORES == (*VARIANCE_SCORES, *MASK_SCORES)
    size = torch.tensor([1.5])
    maps = {"sv": member_variance, "sv_total": total_variance, "entropy": predictive_entropy}
    for name, function in maps.items():
        if members > 1 or name != "sv":
            torch.testing.assert_close(found[name], sum_of_variances(function(p[None]), size)[0])
    area = (p.mean(dim=0) >= 0.5).flatten(1).sum(dim=1) * 1.5
    torch.testing.assert_close(found["predicted_area"], area.double())
    if members == 1:
        for name in ("sv", "sv_normalised", "layer_agreement", "aula", "model_agreement"):
            assert found[name].isnan().all()
        return
    torch.testing.assert_close(found["sv_normalised"], found["sv"] / area)
    dice = pair_overlap((p >= 0.5).transpose(0, 1).flatten(2)).dice()
    torch.testing.assert_close(found["layer_agreement"], layer_agreement(dice).mean(dim=-1))
    torch.testing.assert_close(found["model_agreement"], model_agreement(dice))
    expected = np.trapezoid(layer_agreement(dice).numpy(), axis=-1) if members > 2 else np.full(2, np.nan)
    np.testing.assert_allclose(found["aula"], expected)


def test_sums_and_overlaps_add_up_over_slabs() -> None:
    p = torch.rand(3, 2, 10, 8, dtype=torch.float64)
    slabs = p.split(4, dim=2)
    sums = [map_sums(score_maps(slab[None])) for slab in slabs]
    added = {name: sum(part[name][0] for part in sums) for name in VARIANCE_SCORES}
    overlap = PairOverlap(sum(overlap_of(slab).intersection for slab in slabs))
    whole = case_scores({name: part[0] for name, part in map_sums(score_maps(p[None])).items()}, overlap_of(p))
    for name, values in case_scores(added, overlap).items():
        torch.testing.assert_close(values, whole[name], msg=name)


def test_a_single_member_shows_its_own_variance() -> None:
    p = torch.rand(1, 2, 1, 4, 4)
    assert disagreement_map(score_maps(p), True) is not None
    torch.testing.assert_close(disagreement_map(score_maps(p), True), member_variance(p))
    torch.testing.assert_close(disagreement_map(score_maps(p[:, :1]), False), total_variance(p[:, :1]))


def test_every_list_of_scores_is_the_one_list() -> None:
    assert MODEL_SCORES.names == CASE_SCORES
    assert {score for score, _ in SCORES.values()} <= set(CASE_SCORES)
    assert set(DISTORTION_SCORES) == set(CASE_SCORES) - {"predicted_area"}
