"""What one case contributes to every metric: a row of numbers a structure, however many voxels it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edue_lightning.errors import UserError
from edue_lightning.metrics.calibration import RELIABILITY_BINS, adaptive_calibration_error, reliability_bins
from edue_lightning.metrics.case import Case
from edue_lightning.metrics.correlation import cross_entropy_correlation, map_correlation
from edue_lightning.metrics.distribution import energy_distance, gaussian_crps
from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.metrics.surface import hausdorff_distance_95, normalised_surface_dice, surface_distances
from edue_lightning.uncertainty import (
    area_under_layer_agreement,
    dice_of_counts,
    layer_agreement,
    model_agreement,
    predictive_entropy,
)

BINS = "bins"
D_SOFT_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Statistic:
    """A group of numbers that are computed together.

    Attributes:
        names: of the numbers.
        compute: from a case with at least one valid rater, one tensor a name: `[K]`, or `[K, 15, 3]` for `bins`.
        fewest_raters: a case with fewer valid raters does not define them.
    """

    names: tuple[str, ...]
    compute: Callable[[Case], Sequence[Tensor]]
    fewest_raters: int = 1


def _dice(case: Case) -> Sequence[Tensor]:
    dice = case.overlap.dice()[:, 0]
    return dice[:, 1], dice[:, case.of_raters].mean(dim=1)


def _d_soft(case: Case) -> Sequence[Tensor]:
    scores = []
    # in float32 7 of 10 raters reach 0.7, and so does a prediction that was stored as one
    mean, share = case.mean.float(), case.share.float()
    for threshold in D_SOFT_THRESHOLDS:
        predicted, wanted = mean >= threshold, share >= threshold
        first, second, both = (mask.count_nonzero(dim=1).double() for mask in (predicted, wanted, predicted & wanted))
        scores.append(dice_of_counts(both, first + second))
    return (torch.stack(scores).mean(dim=0),)


def _surface(case: Case) -> Sequence[Tensor]:
    hausdorff, surface_dice = (torch.full_like(case.mean[:, 0], torch.nan) for _ in range(2))
    masks = zip(case.on_grid(case.predicted), case.on_grid(case.consensus), case.structures, strict=True)
    for k, (predicted, consensus, structure) in enumerate(masks):
        distances = surface_distances(predicted, consensus, case.spacing)
        if distances is not None:
            hausdorff[k] = hausdorff_distance_95(distances)
            surface_dice[k] = normalised_surface_dice(distances, case.settings.surface_tolerance_of(structure))
        else:
            surface_dice[k] = float(not predicted.any() and not consensus.any())
    return hausdorff, surface_dice


def _likelihood(case: Case) -> Sequence[Tensor]:
    # the labels are 0 or 1, so the mean over raters of each of these needs no more than q
    log_p, log_not_p = case.log_mean
    nll = -(case.share * log_p + (1 - case.share) * log_not_p).mean(dim=1)
    brier = (case.share * (1 - case.mean).square() + (1 - case.share) * case.mean.square()).mean(dim=1)
    return nll, brier


def _model_scores(case: Case) -> Sequence[Tensor]:
    entropy = predictive_entropy(case.mean[None, None])[0]
    area = case.predicted.sum(dim=1) * case.voxel_size
    between, total, entropy = (part.sum(dim=1) * case.voxel_size for part in (case.between, case.total, entropy))
    if case.n_members < 2:
        between = torch.full_like(between, torch.nan)
    return between, total, entropy, between / torch.where(area > 0, area, torch.nan), area


def _rater_scores(case: Case) -> Sequence[Tensor]:
    area = case.consensus.sum(dim=1) * case.voxel_size
    sum_of_variances = case.expert.sum(dim=1) * case.voxel_size
    return sum_of_variances, sum_of_variances / torch.where(area > 0, area, torch.nan)


def _agreement(case: Case) -> Sequence[Tensor]:
    pair_dice = case.overlap.dice()[:, case.of_members, case.of_members]
    neighbours = layer_agreement(pair_dice)
    return neighbours.mean(dim=1), area_under_layer_agreement(neighbours), model_agreement(pair_dice)


def _energy(case: Case) -> Sequence[Tensor]:
    overlap = case.overlap
    similarity = overlap.intersection_over_union() if case.settings.ged_distance == "iou" else overlap.dice()
    distance, members, raters = 1 - similarity, case.of_members, case.of_raters
    blocks = [(members, raters), (members, members), (raters, raters)]
    return (energy_distance(*(distance[:, rows, columns] for rows, columns in blocks)),)


def _volume(case: Case) -> Sequence[Tensor]:
    predicted, drawn = (part.sum(dim=-1, dtype=torch.float64) * case.voxel_size for part in (case.mean, case.masks))
    return (gaussian_crps(predicted, drawn),)


STATISTICS = (
    Statistic(("dice", "dice_per_rater"), _dice),
    Statistic(("d_soft",), _d_soft),
    Statistic(("hd95", "nsd"), _surface),
    Statistic(("nll", "brier"), _likelihood),
    Statistic(("adaptive_ece",), lambda case: (adaptive_calibration_error(case.mean, case.share),)),
    Statistic(("ged2",), _energy),
    Statistic(("volume_crps",), _volume),
    Statistic(("sv", "sv_total", "entropy", "sv_normalised", "predicted_area"), _model_scores),
    Statistic(("sv_star", "sv_star_normalised"), _rater_scores, fewest_raters=2),
    Statistic(("pixel_pearson",), lambda case: (map_correlation(case.between, case.expert),), fewest_raters=2),
    Statistic(("pixel_pearson_total",), lambda case: (map_correlation(case.total, case.expert),), fewest_raters=2),
    Statistic(
        ("pixel_s_ncc",),
        lambda case: (cross_entropy_correlation(case.mean, case.mean_log, case.masks),),
        fewest_raters=2,
    ),
    Statistic(("layer_agreement", "aula", "model_agreement"), _agreement),
    Statistic(("area",), lambda case: (case.consensus.sum(dim=1) * case.voxel_size,)),
    Statistic(("n_raters",), lambda case: (torch.full_like(case.mean[:, 0], case.n_raters),), fewest_raters=0),
    Statistic((BINS,), lambda case: (reliability_bins(case.mean, case.marked, case.n_raters),)),
)
"""Every number that is kept of a case, by name; `[K]` float64 a case, NaN where the case does not define it.

- dice: mean prediction (p >= 0.5) against the soft-majority mask; 1 where both are empty.
- dice_per_rater: mean over raters of the Dice of the mean prediction against each rater's mask.
- d_soft: mean over thresholds t of the Dice of (p >= t) against (q >= t).
- hd95, nsd: mm and share; distances of the surfaces of the two masks of `dice`.
- nll, brier: of the mean prediction, mean over voxels and raters.
- adaptive_ece: calibration error over ranges of equally many voxels.
- ged2: squared generalised energy distance of members and raters.
- volume_crps: mm² or mm³; of the predicted area or volume under the raters'.
- sv, sv_total, entropy: mm² or mm³; sums of V (NaN for a single member), and of p (1 - p) and the entropy (nats) of the
  mean prediction.
- predicted_area, area: mm² or mm³, of the predicted and of the soft-majority mask.
- sv_normalised: sv over predicted_area; NaN for an empty prediction.
- sv_star: mm² or mm³, sum of V*. sv_star_normalised: over the area of the soft-majority mask; NaN where it is empty.
- pixel_pearson, pixel_pearson_total: correlation over voxels of V, of p (1 - p), with V*.
- pixel_s_ncc: see `cross_entropy_correlation`.
- layer_agreement, aula, model_agreement: of the members' masks.
- n_raters: valid raters.
- bins: `[K, 15, 3]`, see `reliability_bins`; 0 for a case without a rater.
"""

STATISTIC_NAMES = tuple(name for statistic in STATISTICS for name in statistic.names)


@dataclass(frozen=True)
class CaseStatistics:
    """Numbers of N cases.

    Attributes:
        columns: by name (see `STATISTICS`), `[N, K]` float64, `bins` `[N, K, 15, 3]`.
    """

    columns: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    @property
    def scalars(self) -> dict[str, Tensor]:
        """The columns of one number a case and structure."""
        return {name: values for name, values in self.columns.items() if name != BINS}

    @staticmethod
    def concatenate(parts: Sequence[CaseStatistics]) -> CaseStatistics:
        """Return the cases of all parts one after the other."""
        return CaseStatistics({name: torch.cat([part[name] for part in parts]) for name in parts[0].columns})


@torch.no_grad()
def case_statistics(
    members: Tensor,
    masks: Tensor,
    valid: Tensor,
    spacing: Tensor | None = None,
    structures: Sequence[str] | None = None,
    *,
    contents: Members = "logits",
    settings: MetricSettings | None = None,
    names: Sequence[str] = STATISTIC_NAMES,
) -> CaseStatistics:
    """Measure cases one by one, so that memory holds one case's maps at a time.

    Args:
        members: `[B, M, K, *S]`, B at least 1.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        spacing: `[B, n]`, mm along each spatial axis; None for 1.
        structures: names of the K structures, by which settings differ; None for their numbers.
        contents: what `members` holds.
        settings: see `MetricSettings`.
        names: of the numbers wanted; what only others need is not computed.

    Raises:
        UserError: if a prediction is not finite, as those of a diverged model are (as missing values they would drop
            out of the means and flatter it), or a probability lies outside [0, 1].
    """
    if not bool(torch.isfinite(members).all()):
        raise UserError("the model predicts NaN or infinity: its training diverged; lower optimizer.learning_rate")
    if contents == "probabilities" and not bool(((members >= 0) & (members <= 1)).all()):
        raise UserError("probabilities must lie between 0 and 1; pass contents='logits' for logits")
    chosen = settings or MetricSettings()
    if spacing is None:
        spacing = torch.ones(len(members), members.ndim - 3)
    named = tuple(structures or map(str, range(members.shape[2])))
    cases = (Case(*parts, contents, chosen, named) for parts in zip(members, masks, valid, spacing, strict=True))
    return CaseStatistics.concatenate([_measure(case, names) for case in cases])


def _measure(case: Case, names: Sequence[str]) -> CaseStatistics:
    columns: dict[str, Tensor] = {}
    for statistic in STATISTICS:
        if not set(statistic.names) & set(names):
            continue
        if case.n_raters >= statistic.fewest_raters:
            values: Sequence[Tensor] = statistic.compute(case)
        else:
            values = [_undefined(name, case) for name in statistic.names]
        columns.update(zip(statistic.names, values, strict=True))
    return CaseStatistics({name: columns[name][None] for name in names})


def _undefined(name: str, case: Case) -> Tensor:
    like = case.mean[:, 0]
    if name == BINS:
        return like.new_zeros(len(like), RELIABILITY_BINS, 3)
    return torch.full_like(like, torch.nan)
