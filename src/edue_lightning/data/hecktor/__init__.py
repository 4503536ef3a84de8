"""HECKTOR: head-and-neck PET/CT."""

from edue_lightning.data.hecktor.source import HecktorSource

__all__ = ["HecktorSource"]
