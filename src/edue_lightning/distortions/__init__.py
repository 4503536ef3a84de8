"""Distortions of images, as a scanner, a camera or a transfer may cause them, for tests beyond the training data."""

from edue_lightning.distortions.distortions import KINDS, SEVERITIES, Distortions
from edue_lightning.distortions.kinds import KIND_FUNCTIONS

__all__ = ["KINDS", "KIND_FUNCTIONS", "SEVERITIES", "Distortions"]
