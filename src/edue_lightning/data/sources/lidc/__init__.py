"""LIDC-IDRI: outlines of up to four radiologists on one slice of each nodule."""

from edue_lightning.data.sources.lidc.source import LidcContours, LidcScans

__all__ = ["LidcContours", "LidcScans"]
