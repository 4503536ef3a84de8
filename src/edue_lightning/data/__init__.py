"""Multi-rater data: one contract, one data module, and the sources that know where cases come from."""

from edue_lightning.data.augmentation import Augmentation
from edue_lightning.data.lidc import LidcContours
from edue_lightning.data.manifest import ManifestSource
from edue_lightning.data.module import RaterDataModule
from edue_lightning.data.patches import PatchSampling
from edue_lightning.data.sample import Grid, RaterBatch, RaterSample, collate_samples
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.data.splits import SplitFractions, split_cases
from edue_lightning.data.synthetic import SyntheticFundus, SyntheticPetCt

__all__ = [
    "Augmentation",
    "CaseRecord",
    "CaseSource",
    "Grid",
    "LidcContours",
    "ManifestSource",
    "PatchSampling",
    "RaterBatch",
    "RaterDataModule",
    "RaterSample",
    "SplitFractions",
    "SyntheticFundus",
    "SyntheticPetCt",
    "collate_samples",
    "split_cases",
]
