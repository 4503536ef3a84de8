"""Quality control and selective segmentation: the ability of a score of uncertainty to find poor segmentations.

Cases are ordered by the score. Cases with equal scores (see `ties`) have no order, so every curve is the mean over
all their orders.
All functions count case n `weights[n]` times, for W weightings (bootstrap resamples) at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edue_lightning.metrics.case_statistics import CaseStatistics
from edue_lightning.metrics.definition import Array, Definition, Estimate, Statistic, StructureCases, over_pairs
from edue_lightning.metrics.metric import CaseMetric, CasesOfOneMetric, functional
from edue_lightning.metrics.overlap import DICE
from edue_lightning.metrics.scores import MODEL_SCORES, SCORES, WHOLE_MAP_SCORES
from edue_lightning.metrics.settings import MetricSettings
from edue_lightning.metrics.ties import tied


class QualityControl(NamedTuple):
    """The quality-control curve, from its start at (0, share of poor segmentations).

    Attributes:
        flagged: x, fraction of the cases that are flagged.
        missed: y, poor segmentations that remain unflagged, as a fraction of all cases.
    """

    flagged: Array
    missed: Array


def quality_control_curve(uncertainty: Array, poor: Array) -> QualityControl:
    """Return the curve of one set of cases, flagged from the most uncertain on (the paper's Fig. 2).

    The ideal line leads from (0, p) straight to (p, 0), with p the share of poor ones; that of a score without
    information from (0, p) to (1, 0).

    Args:
        uncertainty: `[N]`, high for cases to be flagged first.
        poor: `[N]`, 1 for a poor segmentation, 0 for any other.

    Returns:
        one point per distinct score, and the start.
    """
    counts, poor_counts = _by_score(-uncertainty, poor, np.ones((1, len(poor))))
    flagged = np.append(0.0, np.cumsum(counts[0])) / max(len(poor), 1)
    missed = (poor_counts[0].sum() - np.append(0.0, np.cumsum(poor_counts[0]))) / max(len(poor), 1)
    return QualityControl(flagged, missed)


def distance_to_ideal_area(uncertainty: Array, poor: Array, weights: Array) -> Array:
    """Return d-AUC, the area under the quality-control curve minus that under its ideal line, p²/2 (Fig. 2).

    Args:
        uncertainty: `[N]`.
        poor: `[N]`, 1 or 0.
        weights: `[W, N]`.

    Returns:
        `[W]` in [0, 0.25]; NaN where no case or every case is poor (or there is none).
    """
    counts, poor_counts = _by_score(-uncertainty, poor, weights)
    cases = counts.sum(axis=1, keepdims=True)
    all_poor = poor_counts.sum(axis=1, keepdims=True)
    after = all_poor - np.cumsum(poor_counts, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (counts * (after + poor_counts / 2)).sum(axis=1) / cases[:, 0] ** 2
        share = (all_poor / cases)[:, 0]
    # not below 0 by rounding
    return np.where((share > 0) & (share < 1), np.maximum(area - share**2 / 2, 0), np.nan)


class RiskCoverage(NamedTuple):
    """Areas under risk-coverage curves, each `[W]`.

    Attributes:
        area: AURC, the area for the score.
        optimum: area for the best possible order, by the risk itself.
        random: area for a score without information, which is the mean risk.
    """

    area: Array
    optimum: Array
    random: Array

    @property
    def excess(self) -> Array:
        """E-AURC, the area minus the optimum (Geifman et al. 2019)."""
        return self.area - self.optimum

    @property
    def normalised(self) -> Array:
        """The excess as a share of the difference of random and optimum; NaN if all cases have the same risk."""
        span = self.random - self.optimum
        # equal risks differ by rounding, since the sums have different orders
        apart = span > 1e-12 * np.abs(self.random)
        return np.where(apart, self.excess / np.where(apart, span, 1), np.nan)


def risk_coverage(uncertainty: Array, risk: Array, weights: Array) -> RiskCoverage:
    """Return the areas under the curve of mean risk over the n surest cases, n = 1 to N (Geifman et al., ICLR 2019).

    Args:
        uncertainty: `[N]`, low for the surest cases.
        risk: `[N]`, not negative, such as 1 - Dice.
        weights: `[W, N]`, whole numbers.

    Returns:
        areas, see `RiskCoverage`; NaN where no case has a weight.
    """
    cases = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        random = (weights @ risk) / cases
    return RiskCoverage(_area(uncertainty, risk, weights), _area(risk, risk, weights), random)


def _area(score: Array, risk: Array, weights: Array) -> Array:
    counts, risks = _by_score(score, risk, weights)
    before, risk_before = np.cumsum(counts, axis=1) - counts, np.cumsum(risks, axis=1) - risks
    # mean over the orders of n cases of one score: each adds their mean risk r, so with c cases of sum s before them
    # the curve is (s + j r) / (c + j) at their j-th, and these sum to n r + (s - c r) (H(c + n) - H(c))
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, int(counts.sum(axis=1).max(initial=0)) + 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counts > 0, risks / counts, 0)
        steps = harmonic[(before + counts).astype(int)] - harmonic[before.astype(int)]
        area: Array = (risks + (risk_before - before * mean) * steps).sum(axis=1) / counts.sum(axis=1)
    return area


def _by_score(score: Array, values: Array, weights: Array) -> tuple[Array, Array]:
    """Return the weights and the weighted values of the cases of each distinct score, ascending, each `[W, G]`."""
    score = tied(score)
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    ordered = weights[:, order]
    return np.add.reduceat(ordered, starts, axis=1), np.add.reduceat(ordered * values[order], starts, axis=1)


def quality_control_curves(
    cases: CaseStatistics, structures: Sequence[str], settings: MetricSettings, score: str = "sv", sign: int = 1
) -> list[QualityControl]:
    """Return each structure's quality-control curve of a score, over the cases that define the score and Dice.

    Args:
        cases: statistics of the cases, with the score and `dice`.
        structures: names of the K structures.
        settings: see `MetricSettings`.
        score: name of the statistic.
        sign: -1 where a small score means an uncertain case.
    """
    curves = []
    for k, structure in enumerate(structures):
        values, dice = (cases[name][:, k].cpu().numpy() for name in (score, "dice"))
        defined = ~(np.isnan(values) | np.isnan(dice))
        poor = dice[defined] < settings.poor_dice_of(structure)
        curves.append(quality_control_curve(sign * values[defined], poor.astype(float)))
    return curves


def _statistic(score: str) -> Statistic:
    return WHOLE_MAP_SCORES if score in WHOLE_MAP_SCORES.names else MODEL_SCORES


def _quality_control(suffix: str) -> Definition:
    """Define d-AUC of a score of `SCORES`."""
    score, sign = SCORES[suffix]

    def estimate(cases: StructureCases, weights: Array) -> Estimate:
        def area(uncertainty: Array, dice: Array, counted: Array) -> Array:
            return distance_to_ideal_area(uncertainty, (dice < cases.poor_dice).astype(float), counted)

        return over_pairs(area, score, "dice", sign)(cases, weights)

    return Definition(f"d_auc{suffix}", (_statistic(score), DICE), estimate, (score, "dice"), "low")


def _selective(name: str, area: Callable[[RiskCoverage], Array], suffix: str) -> Definition:
    """Define an area under the risk-coverage curve of a score of `SCORES`."""
    score, sign = SCORES[suffix]

    def of_dice(uncertainty: Array, dice: Array, weights: Array) -> Array:
        return area(risk_coverage(uncertainty, 1 - dice, weights))

    estimate = over_pairs(of_dice, score, "dice", sign)
    return Definition(f"{name}{suffix}", (_statistic(score), DICE), estimate, (score, "dice"), "low")


_D_AUC = {suffix: _quality_control(suffix) for suffix in SCORES}
_AURC = {suffix: _selective("aurc", lambda curve: curve.area, suffix) for suffix in SCORES}
_E_AURC = {suffix: _selective("e_aurc", lambda curve: curve.excess, suffix) for suffix in SCORES}
_NORMALISED = {suffix: _selective("normalised_aurc", lambda curve: curve.normalised, suffix) for suffix in SCORES}


class QualityControlArea(CaseMetric):
    """d-AUC: area between the quality-control curve of SV and its ideal line (the paper, Fig. 2).

    In [0, 0.25], lower is better. Cases are flagged from the largest SV on; y is the share of all cases that are poor
    (Dice below `MetricSettings.poor_dice`) and not yet flagged. NaN if no case or every case is poor. `d_auc_total` and
    others in `METRICS` flag by other scores.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> d_auc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(0.2222, dtype=torch.float64)
    """

    definition = _D_AUC[""]
    plot_lower_bound = 0.0
    plot_upper_bound = 0.25


d_auc = functional(QualityControlArea)


class RiskCoverageArea(CaseMetric):
    """AURC: mean over n of the mean risk, 1 - Dice, of the n cases with the smallest SV (Geifman et al. 2019).

    In [0, 1], lower is better; it holds the quality of the segmentations and that of their order.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> aurc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(0.3825, dtype=torch.float64)
    """

    definition = _AURC[""]
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


aurc = functional(RiskCoverageArea)


class ExcessRiskCoverageArea(CaseMetric):
    """E-AURC: `RiskCoverageArea` minus that of the best order, by the risk itself (Geifman et al. 2019).

    In [0, 1], lower is better.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> e_aurc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(0.2762, dtype=torch.float64)
    """

    definition = _E_AURC[""]
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


e_aurc = functional(ExcessRiskCoverageArea)


class NormalisedRiskCoverageArea(CaseMetric):
    """`ExcessRiskCoverageArea` as a share of that of an order without information (Zenk et al., arXiv 2406.03323).

    0 for the best order, 1 for one without information, above for a misleading one; lower is better. NaN if all cases
    have the same risk.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> normalised_aurc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(1.9551, dtype=torch.float64)
    """

    definition = _NORMALISED[""]
    plot_lower_bound = 0.0


normalised_aurc = functional(NormalisedRiskCoverageArea)


class QualityControlCurve(CasesOfOneMetric):
    """The curve behind `QualityControlArea`, to draw.

    >>> members = torch.tensor([[1.0, 1.0], [0.5, 0.75], [0.0, 0.25]]).reshape(3, 2, 1, 1, 1)
    >>> metric = QualityControlCurve(contents="probabilities")
    >>> metric.update(members, torch.ones(3, 1, 1, 1, 1), torch.ones(3, 1, dtype=torch.bool))
    >>> flagged, missed = metric.compute()[0]  # the second and the third case have the same SV, the third is poor
    >>> missed
    tensor([0.3333, 0.0000, 0.0000], dtype=torch.float64)
    """

    definition = QualityControlArea.definition

    def compute(self) -> list[tuple[Tensor, Tensor]]:
        """Return the fractions flagged and missed of each structure, over the cases that define SV and Dice."""
        curves = quality_control_curves(self._cases(), self.structures, self.settings)
        return [(torch.from_numpy(curve.flagged), torch.from_numpy(curve.missed)) for curve in curves]


METRICS = (*_D_AUC.values(), *_AURC.values(), *_E_AURC.values(), *_NORMALISED.values())
