"""Disagreement maps and the image-level scores made from them."""

from edue_lightning.uncertainty.maps import (
    enough_raters,
    member_variance,
    predictive_entropy,
    rater_mean,
    rater_variance,
    total_variance,
)
from edue_lightning.uncertainty.scores import (
    area_under_layer_agreement,
    layer_agreement,
    mask_dice,
    model_agreement,
    sum_of_variances,
)

__all__ = [
    "area_under_layer_agreement",
    "enough_raters",
    "layer_agreement",
    "mask_dice",
    "member_variance",
    "model_agreement",
    "predictive_entropy",
    "rater_mean",
    "rater_variance",
    "sum_of_variances",
    "total_variance",
]
