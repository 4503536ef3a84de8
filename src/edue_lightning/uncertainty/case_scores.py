"""Image-level scores of one case, from sums over its voxels and the overlap of its members' masks.

Tables, prediction slab by slab, and exported graphs all take their scores from here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edue_lightning.uncertainty.maps import predictive_entropy, total_variance
from edue_lightning.uncertainty.overlap import PairOverlap
from edue_lightning.uncertainty.readout import MEMBERS, Readout
from edue_lightning.uncertainty.scores import area_under_layer_agreement, layer_agreement, model_agreement

VARIANCE_SCORES = ("sv", "sv_total", "entropy")
"""Scores that are sums of a map over the voxels, times the size of a voxel."""

MASK_SCORES = ("sv_normalised", "layer_agreement", "aula", "model_agreement", "predicted_area")
"""Scores computed from thresholded masks: rounding can change them by a step where a probability is one half."""

CASE_SCORES = (*VARIANCE_SCORES, *MASK_SCORES)
"""All scores of a case; `docs/metrics.md` defines them.

- sv, sv_total, entropy: sums of V, of p (1 - p) and of the entropy (nats) of p, mm² or mm³.
- sv_normalised: sv over predicted_area.
- layer_agreement, aula, model_agreement: agreement of the members' masks.
- predicted_area: size of the predicted mask, mm² or mm³.
"""


def score_maps(channels: Tensor, readout: Readout = MEMBERS) -> dict[str, Tensor]:
    """Return the maps whose sums are the `VARIANCE_SCORES` by name, `[B, K, *S]` each.

    Args:
        channels: probabilities `[B, M + n, K, *S]`, see `Readout`.
        readout: how the maps are read from them.

    Returns:
        V under `sv`, NaN where the prediction defines none; p (1 - p) and the entropy of p.
    """
    mean = readout.probability(channels)[:, None]
    if readout.has_disagreement(channels.shape[1]):
        variance = readout.disagreement(channels)
    else:
        variance = torch.full_like(mean[:, 0], torch.nan)
    return dict(zip(VARIANCE_SCORES, (variance, total_variance(mean), predictive_entropy(mean)), strict=True))


def map_sums(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum of each map over its voxels: `[B, K, *S]` to `[B, K]` float64."""
    return {name: values.flatten(2).sum(dim=2, dtype=torch.float64) for name, values in maps.items()}


def disagreement_map(maps: Mapping[str, Tensor], has_disagreement: bool) -> Tensor:
    """Return the map that a model shows as its disagreement, `[B, K, *S]`.

    Args:
        maps: see `score_maps`.
        has_disagreement: see `Readout.has_disagreement`.

    Returns:
        V; p (1 - p) for a prediction that defines no V.
    """
    return maps["sv"] if has_disagreement else maps["sv_total"]


def case_scores(sums: Mapping[str, Tensor], overlap: PairOverlap, voxel_size: float = 1.0) -> dict[str, Tensor]:
    """Return the `CASE_SCORES` by name, each `[...]` float64; NaN where one is undefined.

    Args:
        sums: sums over the voxels by name (`VARIANCE_SCORES`), `[...]` float64; NaN for an undefined one.
        overlap: overlap of 1 + M masks, the predicted one first and then the members' in their order, with
            an intersection `[..., 1 + M, 1 + M]`.
        voxel_size: mm² or mm³; 1 for scores in pixels or voxels.
    """
    scores = {name: sums[name] * voxel_size for name in VARIANCE_SCORES}
    area = overlap.size[..., 0] * voxel_size
    undefined = torch.full_like(area, torch.nan)
    if overlap.size.shape[-1] > 2:
        pair_dice = overlap.dice()[..., 1:, 1:]
        neighbours = layer_agreement(pair_dice)
        scores["layer_agreement"] = neighbours.mean(dim=-1)
        scores["aula"] = area_under_layer_agreement(neighbours)
        scores["model_agreement"] = model_agreement(pair_dice)
    else:
        # a branch, since runtimes of exported graphs disagree on the mean of no values
        scores |= dict.fromkeys(("layer_agreement", "aula", "model_agreement"), undefined)
    scores["sv_normalised"] = scores["sv"] / torch.where(area > 0, area, undefined)
    scores["predicted_area"] = area
    return {name: scores[name] for name in CASE_SCORES}
