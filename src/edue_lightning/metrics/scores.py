"""Statistics of a case that several families share: its scores of uncertainty, its size, its raters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edue_lightning.metrics.case import Case
from edue_lightning.metrics.definition import Statistic
from edue_lightning.uncertainty import (
    CASE_SCORES,
    MAP_SCORES,
    case_scores,
    decision_maps,
    entropy_maps,
    map_sums,
    patch_maximum,
    predictive_entropy,
    top_mean,
)

CORRELATED_SCORES = {
    "": ("sv", 1),
    "_total": ("sv_total", 1),
    "_normalised": ("sv_normalised", 1),
    "_entropy": ("entropy", 1),
    "_aula": ("aula", -1),
    "_model_agreement": ("model_agreement", -1),
}
"""Image-level scores of disagreement by the suffix of the metrics that use them: the statistic, and its sign."""

SCORES = {
    **CORRELATED_SCORES,
    "_expected_entropy": ("expected_entropy", 1),
    "_mutual_information": ("mutual_information", 1),
    "_total_normalised": ("sv_total_normalised", 1),
    "_soft_dice": ("soft_dice_confidence", -1),
    "_patch": ("sv_patch", 1),
    "_top": ("sv_top", 1),
}
"""Image-level scores that may find poor segmentations or unusual images, likewise."""


def _model_scores(case: Case) -> Sequence[Tensor]:
    variance = case.disagreement if case.has_disagreement else torch.full_like(case.mean, torch.nan)
    of_members = entropy_maps(case.probabilities[None])
    maps = {
        "sv": variance,
        "sv_total": case.total,
        # the entropy depends on p alone
        "entropy": predictive_entropy(case.mean[None, None])[0],
        **{name: values[0] for name, values in of_members.items()},
        **decision_maps(case.decision, case.predicted),
    }
    sums = map_sums({name: values[None] for name, values in maps.items()})
    scores = case_scores({name: values[0] for name, values in sums.items()}, case.members_overlap, case.voxel_size)
    return [scores[name] for name in CASE_SCORES]


def _map_scores(case: Case) -> Sequence[Tensor]:
    shown = case.disagreement if case.has_disagreement else case.total
    return patch_maximum(case.on_grid(shown)), top_mean(shown, case.predicted.sum(dim=1))


def _consensus_area(case: Case) -> Tensor:
    return case.consensus.sum(dim=1, dtype=torch.float64) * case.voxel_size


def _rater_scores(case: Case) -> Sequence[Tensor]:
    area = _consensus_area(case)
    sum_of_variances = case.expert.sum(dim=1) * case.voxel_size
    return sum_of_variances, sum_of_variances / torch.where(area > 0, area, torch.nan)


MODEL_SCORES = Statistic(CASE_SCORES, _model_scores)
"""The `CASE_SCORES` of `edue_lightning.uncertainty`."""

WHOLE_MAP_SCORES = Statistic(MAP_SCORES, _map_scores)
"""The `MAP_SCORES` of `edue_lightning.uncertainty`, of V, or of p (1 - p) where there is no V."""

RATER_SCORES = Statistic(("sv_star", "sv_star_normalised"), _rater_scores, fewest_raters=2)
"""Sum of V* (mm² or mm³), and that over the area of the soft-majority mask, NaN where the mask is empty."""

AREA = Statistic(("area",), lambda case: (_consensus_area(case),))
"""Size of the soft-majority mask, mm² or mm³."""

RATERS = Statistic(("n_raters",), lambda case: (torch.full_like(case.mean[:, 0], case.n_raters),), fewest_raters=0)
"""Number of valid raters."""
