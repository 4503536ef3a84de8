"""Distortions of images by scanners, cameras or transfers, for tests beyond the training data."""

from edue_lightning.distortions.distortions import KINDS, SEVERITIES, Distortions
from edue_lightning.distortions.kinds import KIND_FUNCTIONS

__all__ = ["KINDS", "KIND_FUNCTIONS", "SEVERITIES", "Distortions"]
