"""Losses: pure functions of member logits, masks and the validity of the raters."""

from edue_lightning.losses.boundary import Boundary, signed_distance
from edue_lightning.losses.exclusive import categorical_cross_entropy, cross_entropy_terms
from edue_lightning.losses.levels import level_targets
from edue_lightning.losses.library import Focal, MemberLoss, Tversky, UnifiedFocal
from edue_lightning.losses.mean_likelihood import mean_prediction_nll
from edue_lightning.losses.region import voxel_mean, within
from edue_lightning.losses.segmentation import SegmentationLoss
from edue_lightning.losses.variance_guidance import VarianceGuidance, map_distance

__all__ = [
    "Boundary",
    "Focal",
    "MemberLoss",
    "SegmentationLoss",
    "Tversky",
    "UnifiedFocal",
    "VarianceGuidance",
    "categorical_cross_entropy",
    "cross_entropy_terms",
    "level_targets",
    "map_distance",
    "mean_prediction_nll",
    "signed_distance",
    "voxel_mean",
    "within",
]
