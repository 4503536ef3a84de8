"""Metrics of segmentation, calibration and disagreement against several raters."""

from edue_lightning.metrics.case_statistics import CaseStatistics, case_statistics
from edue_lightning.metrics.case_table import (
    BrierScore,
    CaseTable,
    Dice,
    ExpectedCalibrationError,
    ImagePearson,
    ImageSpearman,
    IndexedCases,
    NegativeLogLikelihood,
    PixelPearson,
)
from edue_lightning.metrics.summary import (
    LOWER_IS_BETTER,
    METRICS,
    MetricRow,
    ReliabilityRow,
    Summary,
    interval,
    resample_counts,
    summarise,
)

__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "BrierScore",
    "CaseStatistics",
    "CaseTable",
    "Dice",
    "ExpectedCalibrationError",
    "ImagePearson",
    "ImageSpearman",
    "IndexedCases",
    "MetricRow",
    "NegativeLogLikelihood",
    "PixelPearson",
    "ReliabilityRow",
    "Summary",
    "case_statistics",
    "interval",
    "resample_counts",
    "summarise",
]
