"""Names of quantities and scores as readers say them."""

from __future__ import annotations

from collections.abc import Sequence

from edue_lightning.metrics import MEAN_STRUCTURE
from edue_lightning.text import listed

_MOST_NAMED = 4

SCORE_TITLES = {
    "sv": "sum of variances SV",
    "sv_normalised": "variance by size",
    "sv_total": "sum of p(1 - p)",
    "sv_total_normalised": "p(1 - p) by size",
    "sv_patch": "largest window of the disagreement map",
    "sv_top": "largest values of the disagreement map",
    "entropy": "entropy",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
    "soft_dice_confidence": "soft Dice confidence",
    "layer_agreement": "layer agreement",
    "aula": "area under the layer agreement",
    "model_agreement": "model agreement",
    "density": "distance from the training images (density)",
}
"""Names of the scores of uncertainty by their columns in tables."""


def score_title(score: str) -> str:
    """Return the name of a score in titles and sentences."""
    return SCORE_TITLES.get(score, score.replace("_", " "))


def place_title(data: str, split: str, structure: str = "") -> str:
    """Return where numbers come from, such as `lidc_four: nodule`; the split only if it is not the test."""
    named = {"": "", MEAN_STRUCTURE: "mean over structures"}.get(structure, structure)
    where = data if split == "test" else f"{data} ({split} cases)"
    return f"{where}: {named}" if named else where


def some_of(names: Sequence[str]) -> str:
    """Return names as a list in a title or a sentence, at most four of them; see `listed`."""
    return listed(names, _MOST_NAMED)
