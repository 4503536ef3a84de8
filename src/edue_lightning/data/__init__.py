"""Multi-rater data: one contract, one data module, and the sources that know where cases come from."""

from edue_lightning.data.augmentation import Augmentation
from edue_lightning.data.module import RaterDataModule
from edue_lightning.data.patches import PatchSampling
from edue_lightning.data.sample import Grid, RaterBatch, RaterSample, collate_samples
from edue_lightning.data.slices import Slicing
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.data.sources.curvas.source import CurvasSource
from edue_lightning.data.sources.dicom.source import DicomSource
from edue_lightning.data.sources.drishti.source import DrishtiSource
from edue_lightning.data.sources.hecktor import HecktorSource
from edue_lightning.data.sources.lidc import LidcContours, LidcScans
from edue_lightning.data.sources.lidc_slices.source import LidcSlices
from edue_lightning.data.sources.manifest.source import ManifestSource
from edue_lightning.data.sources.nnunet.source import NnunetSource
from edue_lightning.data.sources.papila.source import PapilaSource
from edue_lightning.data.sources.qubiq.source import QubiqSource
from edue_lightning.data.sources.retinal_vessels.source import RetinalVessels
from edue_lightning.data.sources.riga import RigaSource
from edue_lightning.data.sources.synthetic import SyntheticFundus, SyntheticPetCt
from edue_lightning.data.splits import SplitFractions, split_cases

__all__ = [
    "Augmentation",
    "CaseRecord",
    "CaseSource",
    "CurvasSource",
    "DicomSource",
    "DrishtiSource",
    "Grid",
    "HecktorSource",
    "LidcContours",
    "LidcScans",
    "LidcSlices",
    "ManifestSource",
    "NnunetSource",
    "PapilaSource",
    "PatchSampling",
    "QubiqSource",
    "RaterBatch",
    "RaterDataModule",
    "RaterSample",
    "RetinalVessels",
    "RigaSource",
    "Slicing",
    "SplitFractions",
    "SyntheticFundus",
    "SyntheticPetCt",
    "collate_samples",
    "split_cases",
]
