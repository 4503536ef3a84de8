"""HECKTOR: head-and-neck PET/CT."""

from edue_lightning.data.sources.hecktor.source import HecktorSource

__all__ = ["HecktorSource"]
