"""RIGA: fundus photographs with six ophthalmologists' outlines of optic disc and cup."""

from edue_lightning.data.sources.riga.source import RigaSource

__all__ = ["RigaSource"]
