"""Disagreement maps and the image-level scores made from them."""

from edue_lightning.uncertainty.case_scores import (
    CASE_SCORES,
    MASK_SCORES,
    VARIANCE_SCORES,
    case_scores,
    disagreement_map,
    map_sums,
    score_maps,
)
from edue_lightning.uncertainty.maps import (
    Tie,
    enough_raters,
    foreground,
    majority,
    mean_probability,
    member_variance,
    predictive_entropy,
    rater_mean,
    rater_variance,
    total_variance,
)
from edue_lightning.uncertainty.overlap import PairOverlap, dice_of_counts, pair_overlap
from edue_lightning.uncertainty.scores import (
    area_under_layer_agreement,
    layer_agreement,
    model_agreement,
    sum_of_variances,
)

__all__ = [
    "CASE_SCORES",
    "MASK_SCORES",
    "VARIANCE_SCORES",
    "PairOverlap",
    "Tie",
    "area_under_layer_agreement",
    "case_scores",
    "dice_of_counts",
    "disagreement_map",
    "enough_raters",
    "foreground",
    "layer_agreement",
    "majority",
    "map_sums",
    "mean_probability",
    "member_variance",
    "model_agreement",
    "pair_overlap",
    "predictive_entropy",
    "rater_mean",
    "rater_variance",
    "score_maps",
    "sum_of_variances",
    "total_variance",
]
