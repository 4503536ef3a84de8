"""Members and raters as samples of two distributions: of masks, and of volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from edue_lightning.metrics.case_batch import CaseBatch
from edue_lightning.metrics.definition import Statistic, mean_over_cases
from edue_lightning.metrics.metric import CaseMetric, functional


def energy_distance(between: Tensor, members: Tensor, raters: Tensor) -> Tensor:
    """Return the squared generalised energy distance `2 E d(s, y) - E d(s, s') - E d(y, y')` (Kohl et al. 2018).

    All pairs count, a mask with itself too, as in the public code of the probabilistic U-Net and of PHiSeg.

    Args:
        between: distances of every member to every rater, `[..., M, R]`.
        members: distances of each pair of members, `[..., M, M]`.
        raters: distances of each pair of raters, `[..., R, R]`.

    Returns:
        `[...]` in [0, 2]; NaN without raters.
    """
    return 2 * between.mean(dim=(-2, -1)) - members.mean(dim=(-2, -1)) - raters.mean(dim=(-2, -1))


def gaussian_crps(value: Tensor, samples: Tensor) -> Tensor:
    """Return the continuous ranked probability score of a value under a Gaussian fitted to samples.

    In closed form (Gneiting and Raftery 2007, equation 21), where the public code of the CURVAS challenge integrates
    numerically over three standard deviations to either side and so can never exceed them. The fit has the population
    standard deviation, as there; if all samples agree (or there is one), the score is the distance to it.

    Args:
        value: `[...]`.
        samples: `[R, ...]`.

    Returns:
        `[...]`, not negative, in the unit of the value; NaN without samples.
    """
    if not len(samples):
        return torch.full_like(value, torch.nan)
    centre, spread = samples.mean(dim=0), samples.std(dim=0, correction=0)
    off = value - centre
    scaled = off / torch.where(spread > 0, spread, 1)
    density = torch.exp(-scaled.square() / 2) / math.sqrt(2 * math.pi)
    score = spread * (scaled * torch.erf(scaled / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    return torch.where(spread > 0, score, off.abs())


def best_sample_similarity(similarity: Tensor) -> Tensor:
    """Return the similarity of each rater to the member most like it, mean over the raters.

    Args:
        similarity: similarity of every member to every rater, `[..., M, R]`.

    Returns:
        `[...]`; NaN without raters.
    """
    return similarity.amax(dim=-2).mean(dim=-1)


def matched_similarity(similarity: Tensor, repeat_raters: bool) -> Tensor:
    """Return the mean similarity of the pairs of the best one-to-one matching of members and raters.

    Args:
        similarity: similarity of every member to every rater, `[..., M, R]`.
        repeat_raters: whether members and raters are both repeated up to their least common multiple, so that every
            member counts (Kohl et al. 2019, and MoSE's code); else each rater gets a member of its own, members are
            repeated only as often as that takes, and members without a rater do not count (D-Persona's code).

    Returns:
        `[...]`; NaN without raters.
    """
    *leading, members, raters = similarity.shape
    if not raters:
        return similarity.new_full(leading, torch.nan)
    common = math.lcm(members, raters)
    copies = (common // members, common // raters) if repeat_raters else (-(-raters // members), 1)
    repeated = similarity.flatten(0, -3).repeat(1, *copies).cpu().numpy()
    means = [float(values[linear_sum_assignment(values, maximize=True)].mean()) for values in repeated]
    return similarity.new_tensor(means).reshape(leading)


def _energy(cases: CaseBatch) -> Sequence[Tensor]:
    overlap = cases.overlap
    similarity = overlap.intersection_over_union() if cases.settings.ged_distance == "iou" else overlap.dice()
    distance, members, raters = 1 - similarity, cases.of_members, cases.of_raters
    blocks = [(members, raters), (members, members), (raters, raters)]
    return (energy_distance(*(distance[..., rows, columns] for rows, columns in blocks)),)


def _matched(cases: CaseBatch) -> Sequence[Tensor]:
    dice, iou = (
        values[..., cases.of_members, cases.of_raters]
        for values in (cases.overlap.dice(), cases.overlap.intersection_over_union())
    )
    return best_sample_similarity(dice), matched_similarity(dice, False), matched_similarity(iou, True)


def _volume(cases: CaseBatch) -> Sequence[Tensor]:
    drawn = cases.overlap.size[..., cases.of_raters].movedim(-1, 0)
    return (gaussian_crps(cases.mean.sum(dim=-1) * cases.voxel_size, drawn * cases.voxel_size),)


ENERGY = Statistic(("ged2",), _energy)
MATCHED = Statistic(("d_max", "d_match", "matched_iou"), _matched)
VOLUME = Statistic(("volume_crps",), _volume)


class GeneralisedEnergyDistance(CaseMetric):
    """GED²: `2 E d(s, y) - E d(s, s') - E d(y, y')` of members s and raters y over all pairs, mean over cases.

    In [0, 2], lower is better; d = 1 - IoU, or 1 - Dice by `MetricSettings.ged_distance`. Two empty masks have d = 0,
    one empty mask has d = 1 (Kohl et al. 2018; Baumgartner et al. 2019).

    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> generalised_energy_distance(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.2500, dtype=torch.float64)
    """

    definition = mean_over_cases("ged2", ENERGY, "low")
    plot_lower_bound = 0.0
    plot_upper_bound = 2.0


generalised_energy_distance = functional(GeneralisedEnergyDistance)


class MaximumDice(CaseMetric):
    """D_max: Dice of each rater and the member most like it, mean over raters and then cases (Wu et al., CVPR 2024).

    In [0, 1], higher is better; it never falls with more members. Two empty masks score 1, one empty mask 0.

    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> d_max(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.8333, dtype=torch.float64)
    """

    definition = mean_over_cases("d_max", MATCHED, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


d_max = functional(MaximumDice)


class MatchedDice(CaseMetric):
    """D_match: Dice of raters and members in the best one-to-one matching, mean over raters and then cases.

    In [0, 1], higher is better (Wu et al., CVPR 2024). Each rater has a member of its own; with fewer members than
    raters, each member is repeated as often as needed. Two empty masks score 1, one empty mask 0.

    >>> logits = torch.tensor([[4.0, -4.0, -4.0, -4.0], [4.0, 4.0, 4.0, -4.0]]).reshape(1, 2, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> d_match(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.7500, dtype=torch.float64)
    """

    definition = mean_over_cases("d_match", MATCHED, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


d_match = functional(MatchedDice)


class MatchedIoU(CaseMetric):
    """Hungarian-matched IoU: IoU of members and raters in the best one-to-one matching, mean over pairs and then cases.

    In [0, 1], higher is better (Kohl et al. 2019). Members and raters are repeated up to their least common multiple,
    so every member and every rater counts equally. Two empty masks score 1, one empty mask 0.

    >>> logits = torch.tensor([[4.0, -4.0, -4.0, -4.0], [4.0, 4.0, 4.0, -4.0]]).reshape(1, 2, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> matched_iou(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.6667, dtype=torch.float64)
    """

    definition = mean_over_cases("matched_iou", MATCHED, "high")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


matched_iou = functional(MatchedIoU)


class VolumeCRPS(CaseMetric):
    """CRPS of the predicted volume (summed mean probability) under a Gaussian fitted to the raters', mean over cases.

    In [0, inf) mm² or mm³, lower is better (CURVAS, arXiv 2505.08685). Where the raters agree in volume, or there is
    one, the distance to it.

    >>> volume_crps(torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 2, 1, 2, 2), torch.ones(1, 2, dtype=torch.bool))
    tensor(2., dtype=torch.float64)
    """

    definition = mean_over_cases("volume_crps", VOLUME, "low")
    plot_lower_bound = 0.0


volume_crps = functional(VolumeCRPS)

STATISTICS = (ENERGY, MATCHED, VOLUME)
METRICS = (
    GeneralisedEnergyDistance.definition,
    MaximumDice.definition,
    MatchedDice.definition,
    MatchedIoU.definition,
    VolumeCRPS.definition,
)
