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
    member_variance,
    predictive_entropy,
    rater_mean,
    rater_variance,
    total_variance,
)
from edue_lightning.uncertainty.overlap import PairOverlap, dice_of_counts, pair_overlap
from edue_lightning.uncertainty.readout import MAPS, MEMBERS, Readout, level_variance, majority_level
from edue_lightning.uncertainty.scores import (
    area_under_layer_agreement,
    layer_agreement,
    model_agreement,
    sum_of_variances,
)

__all__ = [
    "CASE_SCORES",
    "MAPS",
    "MASK_SCORES",
    "MEMBERS",
    "VARIANCE_SCORES",
    "PairOverlap",
    "Readout",
    "Tie",
    "area_under_layer_agreement",
    "case_scores",
    "dice_of_counts",
    "disagreement_map",
    "enough_raters",
    "foreground",
    "layer_agreement",
    "level_variance",
    "majority",
    "majority_level",
    "map_sums",
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
