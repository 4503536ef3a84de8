"""Correlation of two maps over the voxels of a case, and of two scores over cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.metrics.definition import Array, Definition, Statistic, mean_over_cases, over_pairs
from edue_lightning.metrics.metric import CaseMetric, functional
from edue_lightning.metrics.scores import CORRELATED_SCORES, MODEL_SCORES, RATER_SCORES
from edue_lightning.metrics.ties import tied

FEWEST_CASES_FOR_CORRELATION = 3

# smallest range of a series over cases, as a share of its largest value, that is no rounding of a constant
_ROUNDING = 1e-9


def map_correlation(
    first: Tensor, second: Tensor, first_rounding: Tensor | float = 0.0, second_rounding: Tensor | float = 0.0
) -> Tensor:
    """Return Pearson's correlation of two maps over their voxels, in float64.

    Args:
        first: `[..., V]`.
        second: `[..., V]`.
        first_rounding: largest range of the first map that rounding alone can explain, `[...]`.
        second_rounding: same for the second map.

    Returns:
        `[...]` in [-1, 1]; NaN where either map is constant but for rounding.
    """
    first, second = first.double(), second.double()
    constant = (_range(first) <= first_rounding) | (_range(second) <= second_rounding)
    first, second = (part - part.mean(dim=-1, keepdim=True) for part in (first, second))
    norm = (torch.linalg.vecdot(first, first) * torch.linalg.vecdot(second, second)).sqrt()
    return (torch.linalg.vecdot(first, second) / norm).clamp(-1, 1).masked_fill(constant, torch.nan)


def _range(values: Tensor) -> Tensor:
    # two passes, since `aminmax` takes several times as long
    return values.amax(dim=-1) - values.amin(dim=-1)


def cross_entropy_correlation(
    mean: Tensor, mean_log: tuple[Tensor, Tensor], masks: Tensor, rounding: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return S_NCC of PHiSeg (Baumgartner et al., MICCAI 2019), a correlation of cross-entropy maps, not of variances.

    For each rater: the correlation over voxels of the members' mean cross-entropy against their own mean prediction
    with that against the rater's mask; then the mean over raters.

    Args:
        mean: mean prediction p, `[..., V]`.
        mean_log: means over members of log p and log (1 - p), each `[..., V]`.
        masks: the raters' masks, `[R, ..., V]` bool.
        rounding: function from maps `[..., V]` to the largest range that rounding alone can explain, `[...]`; None
            for 0.

    Returns:
        `[...]` in [-1, 1]; NaN if a map is constant but for rounding, and without raters.
    """
    rounding = rounding or (lambda values: torch.zeros_like(values[..., 0]))
    log_p, log_not_p = mean_log
    own = -(mean * log_p + (1 - mean) * log_not_p)
    of_raters = -torch.where(masks, log_p, log_not_p)
    return map_correlation(own, of_raters, rounding(own), rounding(of_raters)).mean(dim=0)


def weighted_pearson(first: Array, second: Array, weights: Array) -> Array:
    """Return Pearson's correlation over N cases, each counted `weights` times.

    Args:
        first: `[N]`, or `[W, N]` where it depends on the weights.
        second: as `first`.
        weights: `[W, N]`, whole numbers.

    Returns:
        `[W]` in [-1, 1]; NaN where a series is constant but for rounding, or fewer than three cases have a weight.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    count = weights.sum(axis=1, keepdims=True)
    drawn = weights > 0
    varies = _varies(first, drawn) & _varies(second, drawn)
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (part - (weights * part).sum(axis=1, keepdims=True) / count for part in (first, second))
        power = (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
        result = (weights * first * second).sum(axis=1) / np.sqrt(power)
    defined = varies & (drawn.sum(axis=1) >= FEWEST_CASES_FOR_CORRELATION)
    return np.where(defined, np.clip(result, -1, 1), np.nan)


def weighted_spearman(first: Array, second: Array, weights: Array) -> Array:
    """Return Spearman's rank correlation: as `weighted_pearson`, of average ranks, for `[N]` and `[N]`."""
    drawn = weights > 0
    # ranks would make a series of the rounding of a constant
    varies = _varies(first[None], drawn) & _varies(second[None], drawn)
    return np.where(varies, weighted_pearson(_ranks(first, weights), _ranks(second, weights), weights), np.nan)


def _varies(values: Array, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether a series `[1, N]` or `[W, N]` varies by more than rounding over the drawn cases `[W, N]`."""
    high = np.where(drawn, values, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(drawn, values, np.inf).min(axis=1, initial=np.inf)
    largest = np.maximum(np.abs(high), np.abs(low))
    with np.errstate(invalid="ignore"):
        varies: NDArray[np.bool_] = high - low > _ROUNDING * largest
    return varies


def _ranks(values: Array, weights: Array) -> Array:
    """Return average ranks `[W, N]` of values that occur `weights` times each; see `tied`."""
    _, group = np.unique(tied(values), return_inverse=True)
    per_group = np.zeros((len(weights), group.max(initial=0) + 1))
    np.add.at(per_group.T, group, weights.T)
    below = np.cumsum(per_group, axis=1) - per_group
    return (below + (per_group + 1) / 2)[:, group]


# three statistics, since the maps of each cost time
PIXEL_PEARSON = Statistic(
    ("pixel_pearson",),
    lambda cases: (map_correlation(cases.disagreement, cases.expert, cases.variance_rounding),),
    fewest_raters=2,
)
TOTAL_PIXEL_PEARSON = Statistic(
    ("pixel_pearson_total",),
    lambda cases: (map_correlation(cases.total, cases.expert, cases.rounding_of(cases.total)),),
    fewest_raters=2,
)
PIXEL_S_NCC = Statistic(
    ("pixel_s_ncc",),
    lambda cases: (
        cross_entropy_correlation(cases.mean, cases.mean_log, cases.masks.transpose(0, 1), cases.rounding_of),
    ),
    fewest_raters=2,
)


def _over_cases(name: str, correlation: Callable[[Array, Array, Array], Array], suffix: str) -> Definition:
    """Define the correlation of a score of `CORRELATED_SCORES` with the raters' score."""
    score, sign = CORRELATED_SCORES[suffix]
    # a score by size is compared with the raters' score by size
    raters = "sv_star_normalised" if suffix == "_normalised" else "sv_star"
    estimate = over_pairs(correlation, score, raters, sign)
    return Definition(f"{name}{suffix}", (MODEL_SCORES, RATER_SCORES), estimate, (score, raters), "high")


_PEARSON = {suffix: _over_cases("image_pearson", weighted_pearson, suffix) for suffix in CORRELATED_SCORES}
_SPEARMAN = {suffix: _over_cases("image_spearman", weighted_spearman, suffix) for suffix in CORRELATED_SCORES}


class PixelPearson(CaseMetric):
    """Correlation over voxels of the variance between members with that between raters, mean over cases.

    In [-1, 1], higher is better. Cases in which either map is constant, or with fewer than two raters, take no part.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> masks = torch.tensor([[1, 0, 0], [1, 1, 0]]).reshape(1, 2, 1, 1, 3)
    >>> pixel_pearson(logits, masks, torch.ones(1, 2, dtype=torch.bool)).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    definition = mean_over_cases("pixel_pearson", PIXEL_PEARSON, "high")
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


pixel_pearson = functional(PixelPearson)


class TotalPixelPearson(CaseMetric):
    """As `PixelPearson`, with p (1 - p) of the mean prediction in the place of the variance between members.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> masks = torch.tensor([[1, 0, 0], [1, 1, 0]]).reshape(1, 2, 1, 1, 3)
    >>> pixel_pearson_total(logits, masks, torch.ones(1, 2, dtype=torch.bool)).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    definition = mean_over_cases("pixel_pearson_total", TOTAL_PIXEL_PEARSON, "high")
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


pixel_pearson_total = functional(TotalPixelPearson)


class PixelSNCC(CaseMetric):
    """S_NCC of PHiSeg (Baumgartner et al. 2019): correlation of cross-entropy maps, rater by rater, mean over cases.

    In [-1, 1], higher is better; see `cross_entropy_correlation`. Cases as in `PixelPearson`.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> masks = torch.tensor([[1, 0, 0], [1, 1, 0]]).reshape(1, 2, 1, 1, 3)
    >>> pixel_s_ncc(logits, masks, torch.ones(1, 2, dtype=torch.bool)).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    definition = mean_over_cases("pixel_s_ncc", PIXEL_S_NCC, "high")
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


pixel_s_ncc = functional(PixelSNCC)


class ImagePearson(CaseMetric):
    """Pearson's correlation over cases of SV, the sum of the variance between members, with the raters' SV*.

    In [-1, 1], higher is better. NaN for fewer than three cases with two raters, or a constant series.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> found = image_pearson(masks.double(), masks, torch.ones(3, 3, dtype=torch.bool), contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    definition = _PEARSON[""]
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


image_pearson = functional(ImagePearson)


class ImageSpearman(CaseMetric):
    """Spearman's rank correlation over cases of SV with the raters' SV*; otherwise as `ImagePearson`.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> found = image_spearman(masks.double(), masks, torch.ones(3, 3, dtype=torch.bool), contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    definition = _SPEARMAN[""]
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


image_spearman = functional(ImageSpearman)


class NormalisedImagePearson(CaseMetric):
    """As `ImagePearson`, of scores by size: SV over the predicted area with SV* over that of the soft-majority mask.

    A large structure has more boundary, so more variance; this correlation depends less on size. Cases in which either
    mask is empty take no part.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> valid = torch.ones(3, 3, dtype=torch.bool)
    >>> found = image_pearson_normalised(masks.double(), masks, valid, contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    definition = _PEARSON["_normalised"]
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


image_pearson_normalised = functional(NormalisedImagePearson)


class NormalisedImageSpearman(CaseMetric):
    """As `ImageSpearman`, of the scores by size of `NormalisedImagePearson`.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> valid = torch.ones(3, 3, dtype=torch.bool)
    >>> found = image_spearman_normalised(masks.double(), masks, valid, contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    definition = _SPEARMAN["_normalised"]
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0


image_spearman_normalised = functional(NormalisedImageSpearman)

STATISTICS = (PIXEL_PEARSON, TOTAL_PIXEL_PEARSON, PIXEL_S_NCC)
METRICS = (
    PixelPearson.definition,
    TotalPixelPearson.definition,
    PixelSNCC.definition,
    *_PEARSON.values(),
    *_SPEARMAN.values(),
)
