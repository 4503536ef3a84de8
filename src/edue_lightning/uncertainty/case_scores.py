"""Image-level scores of one case, from sums over its voxels and the overlap of its members' masks.

Tables, prediction slab by slab, and exported graphs all take their scores from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.uncertainty.maps import (
    expected_entropy,
    mutual_information,
    predictive_entropy,
    total_variance,
)
from edue_lightning.uncertainty.overlap import PairOverlap
from edue_lightning.uncertainty.readout import MEMBERS, Readout
from edue_lightning.uncertainty.scores import area_under_layer_agreement, layer_agreement, model_agreement

VARIANCE_SCORES = ("sv", "sv_total", "entropy", "expected_entropy", "mutual_information")
"""Scores that are sums of a map over the voxels, times the size of a voxel."""

MASK_SCORES = (
    *("sv_normalised", "sv_total_normalised", "soft_dice_confidence"),
    *("layer_agreement", "aula", "model_agreement", "predicted_area"),
)
"""Scores computed from thresholded masks: rounding can change them by a step where a probability is one half."""

CASE_SCORES = (*VARIANCE_SCORES, *MASK_SCORES)
"""All scores of a case; `docs/metrics.md` defines them.

- sv, sv_total, entropy: sums of V, of p (1 - p) and of the entropy (nats) of p, mm² or mm³.
- expected_entropy, mutual_information: sums of the members' mean entropy, and of the entropy of their mean beyond it.
- sv_normalised, sv_total_normalised: sv and sv_total over predicted_area.
- soft_dice_confidence: see `soft_dice_confidence`.
- layer_agreement, aula, model_agreement: agreement of the members' masks.
- predicted_area: size of the predicted mask, mm² or mm³.
"""

MAP_SCORES = ("sv_patch", "sv_top")
"""Scores that need the whole disagreement map at once: `patch_maximum` and `top_mean`.

They stand in tables of measurements; predictions slab by slab and exported graphs do not have them.
"""

PATCH = 10
"""Edge of the windows of `patch_maximum`, voxels along each axis."""

_MAJORITY_SUMS = ("majority", "majority_in_mask")
"""Sums of the majority probability m over all voxels, and over those of the predicted mask."""


def score_maps(channels: Tensor, readout: Readout = MEMBERS, log_odds: Tensor | None = None) -> dict[str, Tensor]:
    """Return p and the maps whose sums `case_scores` needs, beside `majority_maps`, by name, `[B, K, *S]` float64 each.

    Args:
        channels: probabilities `[B, M + n, K, *S]`, see `Readout`; their maps are computed in float64.
        readout: how the maps are read from them.
        log_odds: `Readout.log_odds` that they are the sigmoid of; None to compute them.

    Returns:
        p under `probability`; V under `sv`, NaN where the prediction defines none; p (1 - p) and the entropy of p;
        expected entropy and mutual information of the members, the latter NaN for a single one.
    """
    channels = channels.double()
    probability, members = readout.probability(channels), readout.members(channels)
    if readout.has_disagreement(channels.shape[1]):
        variance = readout.disagreement(channels)
    else:
        variance = torch.full_like(probability, torch.nan)
    expected = expected_entropy(members, None if log_odds is None else readout.members(log_odds))
    own, single = "probability" in readout.own_maps, members.shape[1] == 1
    entropy = expected if single and not own else predictive_entropy(probability[:, None])
    if single:
        information = torch.full_like(expected, torch.nan)
    else:
        information = mutual_information(members, predictive_entropy(members) if own else entropy, expected)
    return {
        "probability": probability,
        "sv": variance,
        "sv_total": total_variance(probability[:, None]),
        "entropy": entropy,
        "expected_entropy": expected,
        "mutual_information": information,
    }


def majority_maps(majority: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the maps whose sums `case_scores` needs for `soft_dice_confidence`, each like the majority probability.

    Args:
        majority: `Readout.majority_probability`.
        mask: predicted mask, by the rule of the read-out, which may depend on the whole image.
    """
    return dict(zip(_MAJORITY_SUMS, (majority, majority * mask), strict=True))


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


def case_scores(
    sums: Mapping[str, Tensor], overlap: PairOverlap, voxel_size: float | Tensor = 1.0
) -> dict[str, Tensor]:
    """Return the `CASE_SCORES` by name, each `[...]` float64; NaN where one is undefined.

    Args:
        sums: sums over the voxels by name, see `score_maps` and `majority_maps`, `[...]` float64; NaN for an undefined
            one.
        overlap: overlap of 1 + M masks, the predicted one first and then the members' in their order, with
            an intersection `[..., 1 + M, 1 + M]`.
        voxel_size: mm² or mm³, a number or `[..., 1]`; 1 for scores in pixels or voxels.
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
    for name in ("sv", "sv_total"):
        scores[f"{name}_normalised"] = scores[name] / torch.where(area > 0, area, undefined)
    whole, inside = (sums[name] for name in _MAJORITY_SUMS)
    scores["soft_dice_confidence"] = soft_dice_confidence(whole, inside, overlap.size[..., 0])
    scores["predicted_area"] = area
    return {name: scores[name] for name in CASE_SCORES}


def soft_dice_confidence(whole: Tensor, inside: Tensor, size: Tensor) -> Tensor:
    """Return `2 sum(m mask) / (sum m + sum mask)` of the majority probability m, in [0, 1] (arXiv 2402.10665).

    It is close to the expected Dice of the mask with the majority of the raters, for any mask. So m is not the map that
    the mask is taken from, unless that is the probability too.

    Args:
        whole: sum of m over all voxels, `[...]`.
        inside: sum of m over the voxels of the mask, `[...]`.
        size: number of voxels of the mask, `[...]`.

    Returns:
        `[...]`; 0 for an empty mask, but 1 if m is 0 everywhere too: the reference that m expects is empty, and the
        Dice of two empty masks is 1. The formula itself is 0 / 0 there.
    """
    total = whole + size
    return torch.where(total > 0, 2 * inside / torch.where(total > 0, total, 1.0), 1.0)


def patch_maximum(disagreement: Tensor, axes: int) -> Tensor:
    """Return the largest mean of a disagreement map over a window of `PATCH` voxels along each axis.

    The patch aggregation of VALUES (Kahl et al., ICLR 2024), with the mean in place of the sum. A window is no longer
    than the image.

    Args:
        disagreement: `[..., K, *S]`.
        axes: number of the axes S.

    Returns:
        `[..., K]` float64.
    """
    values = disagreement.double()
    for axis in range(-axes, 0):
        window = min(PATCH, values.shape[axis])
        values = _window_sums(values, axis, window) / window
    return values.flatten(-axes).amax(dim=-1)


def _window_sums(values: Tensor, axis: int, window: int) -> Tensor:
    """Return the sums over all windows along an axis, each from a few sums of windows half as long."""
    length = values.shape[axis] - window + 1
    # sums over windows of 1, 2, 4, ... voxels; those that make up the window are added behind each other
    total, start, width = None, 0, 1
    while True:
        if window & width:
            part = values.narrow(axis, start, length)
            total = part if total is None else total + part
            start += width
        if 2 * width > window:
            assert total is not None
            return total
        count = values.shape[axis] - width
        values = values.narrow(axis, 0, count) + values.narrow(axis, width, count)
        width *= 2


def top_mean(disagreement: Tensor, size: Tensor) -> Tensor:
    """Return the mean of the largest values of a disagreement map, as many as the predicted mask has voxels.

    The threshold aggregation of VALUES (Kahl et al., ICLR 2024): the mean over the voxels above the quantile of the map
    that leaves the share of the foreground. Their threshold is that of a data set, this one the case's own.

    Args:
        disagreement: `[..., V]`.
        size: number of voxels of the predicted mask, `[...]`.

    Returns:
        `[...]` float64; NaN for an empty mask.
    """
    if disagreement.device.type == "cpu":
        rows = zip(disagreement.reshape(-1, disagreement.shape[-1]).numpy(), size.flatten().tolist(), strict=True)
        means = [_mean_of_largest(values, int(count)) for values, count in rows]
        return torch.tensor(means, dtype=torch.float64).reshape(size.shape)
    sums = disagreement.double().sort(dim=-1, descending=True).values.cumsum(dim=-1)
    last = (size.long() - 1).clamp_min(0)[..., None]
    return (sums.gather(-1, last)[..., 0] / size).masked_fill(size == 0, torch.nan)


def _mean_of_largest(values: NDArray[Any], count: int) -> float:
    # NumPy selects several times as fast as torch
    if not count:
        return math.nan
    return float(np.partition(values, len(values) - count)[len(values) - count :].mean(dtype=np.float64))
