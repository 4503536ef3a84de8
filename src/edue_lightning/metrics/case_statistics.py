"""What one case contributes to every metric: a row of numbers a structure, however many voxels it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.uncertainty.maps import (
    enough_raters,
    member_variance,
    predictive_entropy,
    rater_mean,
    rater_variance,
    total_variance,
)
from edue_lightning.uncertainty.scores import (
    area_under_layer_agreement,
    layer_agreement,
    mask_dice,
    model_agreement,
    sum_of_variances,
)

RELIABILITY_BINS = 15


@dataclass(frozen=True)
class CaseStatistics:
    """Sufficient statistics of N cases for every metric; float64 `[N, K]` unless noted.

    A value that a case does not define is NaN: everything for a case without a valid rater, and what is marked (2)
    for a case with fewer than two valid raters.

    Attributes:
        dice: mean prediction (p >= 0.5) against the soft-majority mask (q >= 0.5); 1 where both are empty.
        dice_per_rater: mean over raters of the Dice of the mean prediction against each rater's mask.
        nll: cross-entropy of the mean prediction in nats, mean over voxels and raters.
        brier: squared error of the mean prediction, mean over voxels and raters.
        sv: sum of the variance between members, mm² or mm³.
        sv_star: (2) sum of the variance between raters, mm² or mm³.
        sv_total: sum of p (1 - p) of the mean prediction, mm² or mm³.
        pixel_pearson: (2) correlation over the voxels of V with V*; NaN where either is constant.
        pixel_pearson_total: (2) the same of p (1 - p) with V*.
        entropy: sum of the predictive entropy, nats times mm² or mm³.
        layer_agreement: mean Dice of neighbouring members; NaN for one member.
        aula: area under the layer agreement; NaN for fewer than three members.
        model_agreement: mean Dice over pairs of members; NaN for one member.
        area: of the soft-majority mask, mm² or mm³.
        n_raters: valid raters, the same for every structure.
        bins: `[N, K, 15, 3]`: for each bin of predicted probability the number of voxel-rater pairs, the sum of
            their probabilities and the number of them that the rater marked. Zero for a case without a rater.
    """

    dice: Tensor
    dice_per_rater: Tensor
    nll: Tensor
    brier: Tensor
    sv: Tensor
    sv_star: Tensor
    sv_total: Tensor
    pixel_pearson: Tensor
    pixel_pearson_total: Tensor
    entropy: Tensor
    layer_agreement: Tensor
    aula: Tensor
    model_agreement: Tensor
    area: Tensor
    n_raters: Tensor
    bins: Tensor

    def __len__(self) -> int:
        return len(self.dice)

    def select(self, cases: Tensor) -> CaseStatistics:
        """Return the statistics of some cases: positions or a mask over N."""
        return CaseStatistics(**{field.name: getattr(self, field.name)[cases] for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[CaseStatistics]) -> CaseStatistics:
        """Return the cases of all parts one after the other."""
        return CaseStatistics(
            **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(CaseStatistics)}
        )


def log_mean_probability(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p and log (1 - p) of the members' mean probability p, finite for every finite logit.

    Args:
        logits: `[B, M, K, *S]` float64.

    Returns:
        two tensors `[B, K, *S]`.
    """
    log_members = torch.log(torch.tensor(float(logits.shape[1]), dtype=logits.dtype))
    return (
        torch.logsumexp(F.logsigmoid(logits), dim=1) - log_members,
        torch.logsumexp(F.logsigmoid(-logits), dim=1) - log_members,
    )


def map_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of two maps over their voxels, in float64.

    Args:
        first: `[B, K, *S]`.
        second: `[B, K, *S]`.

    Returns:
        `[B, K]` in [-1, 1]; NaN where either map is constant.
    """
    first, second = (part.flatten(2).double() for part in (first, second))
    constant = (first == first[..., :1]).all(dim=2) | (second == second[..., :1]).all(dim=2)
    first, second = (part - part.mean(dim=2, keepdim=True) for part in (first, second))
    norm = (first.square().sum(dim=2) * second.square().sum(dim=2)).sqrt()
    return ((first * second).sum(dim=2) / norm).clamp(-1, 1).masked_fill(constant, torch.nan)


def reliability_bins(probability: Tensor, marked: Tensor, raters: Tensor) -> Tensor:
    """Count predictions against every rater's label in 15 bins of equal width.

    Args:
        probability: `[B, K, *S]`; bin b holds p in [b / 15, (b + 1) / 15), the last one p = 1 too.
        marked: number of raters who marked the voxel, `[B, K, *S]`.
        raters: number of valid raters, `[B]`.

    Returns:
        `[B, K, 15, 3]` float64: voxel-rater pairs, sum of their probabilities, marked pairs.
    """
    probability = probability.flatten(2).double()
    position = (probability * RELIABILITY_BINS).long().clamp_max(RELIABILITY_BINS - 1)
    count = raters[:, None, None].double().expand_as(probability)
    values = torch.stack([count, probability * count, marked.flatten(2).double()], dim=-1)
    bins = torch.zeros(*probability.shape[:2], RELIABILITY_BINS, 3, dtype=torch.float64, device=probability.device)
    return bins.scatter_add_(2, position[..., None].expand_as(values), values)


def case_statistics(logits: Tensor, masks: Tensor, valid: Tensor, voxel_size: Tensor) -> CaseStatistics:
    """Measure cases one by one, in float64, so that memory holds one case's maps at a time.

    Args:
        logits: member logits `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        voxel_size: `[B]`, mm² or mm³.

    Raises:
        UserError: if a logit is not finite, as those of a diverged model are. As missing values they would drop out
            of the means and flatter it.
    """
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the model predicts NaN or infinity: its training diverged; lower optimizer.learning_rate")
    parts = [
        _one_case(logits[i : i + 1], masks[i : i + 1], valid[i : i + 1], voxel_size[i : i + 1])
        for i in range(len(logits))
    ]
    return CaseStatistics.concatenate(parts)


def _one_case(logits: Tensor, masks: Tensor, valid: Tensor, voxel_size: Tensor) -> CaseStatistics:
    # in float32 the logarithm of a mean of many sure members is off by more than the metric itself
    logits = logits.double()
    masks = masks[:, valid[0]]
    raters = valid.sum(dim=1)
    share = rater_mean(masks, valid[:, valid[0]])
    consensus = share >= 0.5
    probabilities = torch.sigmoid(logits)
    mean = probabilities.mean(dim=1)
    predicted = mean >= 0.5
    member_masks = probabilities >= 0.5

    log_p, log_not_p = log_mean_probability(logits)
    # the labels are 0 or 1, so the mean over raters of each of these needs no more than q
    nll = -(share * log_p + (1 - share) * log_not_p)
    brier = share * (1 - mean).square() + (1 - share) * mean.square()

    expert = rater_variance(masks, valid[:, valid[0]])
    between, total = member_variance(probabilities), total_variance(probabilities)
    agreement = layer_agreement(member_masks)
    per_rater = [mask_dice(predicted, masks[:, r] > 0) for r in range(masks.shape[1])]
    undefined = torch.full(mean.shape[:2], torch.nan, dtype=torch.float64, device=mean.device)
    has_rater, has_two = (raters >= 1)[:, None], enough_raters(valid)[:, None]

    def if_rated(value: Tensor) -> Tensor:
        return torch.where(has_rater, value, undefined)

    def if_two_raters(value: Tensor) -> Tensor:
        return torch.where(has_two, value, undefined)

    return CaseStatistics(
        dice=if_rated(mask_dice(predicted, consensus)),
        dice_per_rater=torch.stack(per_rater).mean(dim=0) if per_rater else undefined,
        nll=if_rated(nll.flatten(2).mean(dim=2, dtype=torch.float64)),
        brier=if_rated(brier.flatten(2).mean(dim=2, dtype=torch.float64)),
        sv=if_rated(sum_of_variances(between, voxel_size)),
        sv_star=if_two_raters(sum_of_variances(expert, voxel_size)),
        sv_total=if_rated(sum_of_variances(total, voxel_size)),
        pixel_pearson=if_two_raters(map_correlation(between, expert)),
        pixel_pearson_total=if_two_raters(map_correlation(total, expert)),
        entropy=if_rated(sum_of_variances(predictive_entropy(probabilities), voxel_size)),
        layer_agreement=if_rated(agreement.mean(dim=1)),
        aula=if_rated(area_under_layer_agreement(agreement)),
        model_agreement=if_rated(model_agreement(member_masks)),
        area=if_rated(sum_of_variances(consensus.float(), voxel_size)),
        n_raters=raters[:, None].double().expand_as(undefined).clone(),
        bins=reliability_bins(mean, masks.sum(dim=1, dtype=torch.float32), raters),
    )
