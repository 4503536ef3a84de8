"""Synthetic images whose raters' distribution is known, so that a disagreement map can be checked against the truth."""

from edue_lightning.data.sources.synthetic.fundus import SyntheticFundus
from edue_lightning.data.sources.synthetic.petct import SyntheticPetCt

__all__ = ["SyntheticFundus", "SyntheticPetCt"]
