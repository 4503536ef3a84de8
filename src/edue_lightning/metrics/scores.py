"""Statistics of a case that several families share: its scores of uncertainty, its size, its raters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edue_lightning.metrics.case_batch import CaseBatch
from edue_lightning.metrics.definition import Statistic
from edue_lightning.uncertainty import (
    CASE_SCORES,
    MAP_SCORES,
    case_scores,
    majority_maps,
    map_sums,
    patch_maximum,
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


def _model_scores(cases: CaseBatch) -> Sequence[Tensor]:
    variance = cases.disagreement if cases.has_disagreement else torch.full_like(cases.mean, torch.nan)
    maps = {
        "sv": variance,
        "sv_total": cases.total,
        **cases.entropies,
        **majority_maps(cases.majority, cases.predicted),
    }
    scores = case_scores(map_sums(maps), cases.members_overlap, cases.voxel_size)
    return [scores[name] for name in CASE_SCORES]


def _map_scores(cases: CaseBatch) -> Sequence[Tensor]:
    shown = cases.disagreement if cases.has_disagreement else cases.total
    largest = patch_maximum(cases.on_grid(shown), len(cases.shape))
    return largest, top_mean(shown, cases.predicted.count_nonzero(dim=-1))


def _consensus_area(cases: CaseBatch) -> Tensor:
    return cases.consensus.count_nonzero(dim=-1) * cases.voxel_size


def _rater_scores(cases: CaseBatch) -> Sequence[Tensor]:
    area = _consensus_area(cases)
    # the sum of whole numbers is exact, so its order does not matter
    sum_of_variances = cases.disputes.sum(dim=-1) / cases.n_raters**2 * cases.voxel_size
    return sum_of_variances, sum_of_variances / torch.where(area > 0, area, torch.nan)


MODEL_SCORES = Statistic(CASE_SCORES, _model_scores)
"""The `CASE_SCORES` of `edue_lightning.uncertainty`."""

WHOLE_MAP_SCORES = Statistic(MAP_SCORES, _map_scores)
"""The `MAP_SCORES` of `edue_lightning.uncertainty`, of V, or of p (1 - p) where there is no V."""

RATER_SCORES = Statistic(("sv_star", "sv_star_normalised"), _rater_scores, fewest_raters=2)
"""Sum of V* (mm² or mm³), and that over the area of the soft-majority mask, NaN where the mask is empty."""

AREA = Statistic(("area",), lambda cases: (_consensus_area(cases),))
"""Size of the soft-majority mask, mm² or mm³."""

RATERS = Statistic(("n_raters",), lambda cases: (torch.full_like(cases.mean[..., 0], cases.n_raters),), fewest_raters=0)
"""Number of valid raters."""
