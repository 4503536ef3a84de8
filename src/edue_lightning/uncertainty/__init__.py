"""Disagreement maps and the image-level scores made from them."""

from edue_lightning.uncertainty.maps import (
    enough_raters,
    member_variance,
    predictive_entropy,
    rater_mean,
    rater_variance,
    total_variance,
)

__all__ = [
    "enough_raters",
    "member_variance",
    "predictive_entropy",
    "rater_mean",
    "rater_variance",
    "total_variance",
]
