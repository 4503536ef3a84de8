"""The compared methods: EDUE, its rivals, and their common base.

The rivals are layer ensembles, deep ensembles, Monte Carlo dropout, stochastic segmentation networks, the probabilistic
U-Net, test-time augmentation, and a single network.
"""

from edue_lightning.methods.base import (
    MethodParts,
    NetworkFactory,
    NetworkMethod,
    OptimizerSettings,
    SegmentationMethod,
    SGDSettings,
    parameter_count,
)
from edue_lightning.methods.deep_ensemble import DeepEnsemble
from edue_lightning.methods.density import Density
from edue_lightning.methods.edue import EDUE
from edue_lightning.methods.edue_levels import EDUELevels
from edue_lightning.methods.layer_ensemble import LayerEnsemble
from edue_lightning.methods.level_ensemble import LevelEnsemble
from edue_lightning.methods.measuring import Measuring
from edue_lightning.methods.monte_carlo_dropout import MonteCarloDropout
from edue_lightning.methods.probabilistic_unet import ProbabilisticUNet
from edue_lightning.methods.single import SingleNetwork
from edue_lightning.methods.slice_by_slice import SliceBySlice
from edue_lightning.methods.sliding_window import Inference, InferenceChanges
from edue_lightning.methods.stochastic_segmentation import StochasticSegmentation
from edue_lightning.methods.test_time_augmentation import TestTimeAugmentation

__all__ = [
    "EDUE",
    "DeepEnsemble",
    "Density",
    "EDUELevels",
    "Inference",
    "InferenceChanges",
    "LayerEnsemble",
    "LevelEnsemble",
    "Measuring",
    "MethodParts",
    "MonteCarloDropout",
    "NetworkFactory",
    "NetworkMethod",
    "OptimizerSettings",
    "ProbabilisticUNet",
    "SGDSettings",
    "SegmentationMethod",
    "SingleNetwork",
    "SliceBySlice",
    "StochasticSegmentation",
    "TestTimeAugmentation",
    "parameter_count",
]
