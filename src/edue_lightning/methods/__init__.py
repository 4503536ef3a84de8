"""The methods that are compared: EDUE, layer ensembles, deep ensembles and a single network."""

from edue_lightning.methods.base import NetworkFactory, OptimizerSettings, SegmentationMethod, parameter_count
from edue_lightning.methods.deep_ensemble import DeepEnsemble
from edue_lightning.methods.edue import EDUE
from edue_lightning.methods.inference import Inference
from edue_lightning.methods.layer_ensemble import LayerEnsemble
from edue_lightning.methods.single import SingleNetwork

__all__ = [
    "EDUE",
    "DeepEnsemble",
    "Inference",
    "LayerEnsemble",
    "NetworkFactory",
    "OptimizerSettings",
    "SegmentationMethod",
    "SingleNetwork",
    "parameter_count",
]
