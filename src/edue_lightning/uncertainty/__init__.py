"""Disagreement maps and the image-level scores made from them."""

from edue_lightning.uncertainty.maps import (
    enough_raters,
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
    "PairOverlap",
    "area_under_layer_agreement",
    "dice_of_counts",
    "enough_raters",
    "layer_agreement",
    "member_variance",
    "model_agreement",
    "pair_overlap",
    "predictive_entropy",
    "rater_mean",
    "rater_variance",
    "sum_of_variances",
    "total_variance",
]
