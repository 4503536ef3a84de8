"""LIDC-IDRI: lung nodules with the outlines of up to four radiologists, on one slice each."""

from edue_lightning.data.sources.lidc.source import LidcContours, LidcScans

__all__ = ["LidcContours", "LidcScans"]
