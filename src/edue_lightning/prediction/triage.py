"""Rules that flag cases for review: a threshold set on the validation cases, and the range of the training cases.

Quality control finds poor segmentations, those with a low Dice, by their uncertainty (Abutalip et al., Fig. 2). On the
validation cases, whose Dice is known, the score that orders them best is chosen, an uncertainty score or the Dice
predicted from all of them, with the threshold that flags the requested share of the poor cases. The checkpoint holds
both, and the scores of these cases, so that another share can be requested later.

Scores and Dice of these cases are computed exactly as those of new images, see `estimate`: one image at a time, in
float32, whatever the precision of the training. So thresholds belong to predictions in float32, as `predict` and the
exported programs make them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data import RaterDataModule, RaterSample
from edue_lightning.data.source import Subset
from edue_lightning.errors import UserError
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import SCORES, MetricSettings, case_statistics
from edue_lightning.metrics.selective import risk_coverage
from edue_lightning.metrics.ties import tied
from edue_lightning.prediction.estimate import Estimate, estimate
from edue_lightning.prediction.expected_dice import SIZE_FEATURE, ExpectedDice, fit_expected_dice
from edue_lightning.prediction.limits import FALSE_ALARMS, Range, fit_ranges
from edue_lightning.runtime.devices import on_device
from edue_lightning.runtime.processes import merged, own_share
from edue_lightning.text import reason_of
from edue_lightning.uncertainty import CASE_SCORES, VARIANCE_SCORES, Readout

log = logging.getLogger(__name__)

Array = NDArray[np.float64]

MEASURED: Mapping[str, int] = {
    **{score: sign for score, sign in SCORES.values() if score in CASE_SCORES},
    "layer_agreement": -1,
}
"""Uncertainty scores by name, with their sign: -1 where low values mean a poor segmentation."""

EXPECTED_DICE = "expected_dice"
CANDIDATES: Mapping[str, int] = {**MEASURED, EXPECTED_DICE: -1}
"""Scores that may order the cases: the uncertainty scores, and the Dice predicted from them."""

RANGE_SCORES = (*MEASURED, "predicted_area")
SIZE_SCORES = (*VARIANCE_SCORES, "predicted_area")
"""Scores measured in mm² or mm³, or in pixels or voxels."""

INTENSITY_PERCENTILES = (1, 50, 99)
_EARLIER_MARGIN = 0.1
"""Share of the range by which a value could lie beyond it in checkpoints of earlier versions."""

_CONFIDENCE = "soft_dice_confidence"
# by which a score may differ between two computations of one case, relative to its value
_ROUNDING = 1e-5
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST_LOGARITHM = 700.0


@dataclass(frozen=True)
class Threshold:
    """A threshold for flags, and its effect on the validation cases.

    Attributes:
        value: uncertainty from which on a case is flagged, see `StructureTriage.uncertainty`; None if no validation
            case was poor, so that no threshold can be set.
        sensitivity: share of the poor cases that it flags, NaN without poor cases.
        flagged: share of all cases that it flags.
    """

    value: float | None
    sensitivity: float
    flagged: float


@dataclass(frozen=True)
class StructureTriage:
    """Results of the validation and training cases for one structure.

    Attributes:
        score: name of the score that orders the cases.
        poor_dice: Dice below which a segmentation is poor.
        dice: Dice of the N validation cases, `[N]`.
        uncertainties: uncertainty of the same cases, `[N]`; high for poor ones, infinite where the score is undefined,
            as for an empty mask.
        ranges: smallest and largest value of a score that count as within the training's range, by the score's name:
            the size of the mask, in checkpoints of earlier versions also scores of uncertainty.
        expected_dice: regression behind the score of that name, None for other scores.
    """

    score: str
    poor_dice: float
    dice: Array
    uncertainties: Array
    ranges: Mapping[str, Range]
    expected_dice: ExpectedDice | None = None

    @property
    def needs_unit(self) -> bool:
        """Whether the score depends on the unit in which sizes are measured."""
        return self.score in SIZE_SCORES or (
            self.expected_dice is not None and SIZE_FEATURE in self.expected_dice.terms
        )

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the score of a case, NaN where it is undefined."""
        return scores[self.score] if self.expected_dice is None else self.expected_dice(scores)

    def uncertainty(self, scores: Mapping[str, float]) -> float:
        """Return the score of a case with a sign such that poor cases have high values."""
        return float(_uncertainty(np.array(self.value(scores)), self.score))

    def measured(self, uncertainty: float) -> float:
        """Return the value of the score that corresponds to an uncertainty."""
        return CANDIDATES[self.score] * uncertainty

    def percentile(self, uncertainty: float) -> float:
        """Return the share of the validation cases that are less uncertain, in per cent: the same scale everywhere.

        Cases of equal uncertainty count half. 0 for the surest, 100 for a case less sure than all of them.
        """
        if not len(self.uncertainties):
            return math.nan
        values = tied(np.append(self.uncertainties, uncertainty))
        known, own = values[:-1], values[-1]
        below, equal = (known < own).mean(), (known == own).mean()
        return float(100 * (below + equal / 2))

    def threshold(self, sensitivity: float) -> Threshold:
        """Return the threshold that flags at least a share of the poor validation cases, and as few others as it can.

        It lies midway between the last case that must be flagged, with those tied with it (`tied`), and the next lower
        uncertainty, so that rounding changes no flag; where no case is lower, it lies below the last one by more than
        rounding.
        """
        uncertainties = tied(self.uncertainties)
        poor = np.sort(uncertainties[self.dice < self.poor_dice])[::-1]
        if not len(poor):
            return Threshold(None, math.nan, 0.0)
        last = float(poor[max(math.ceil(round(sensitivity * len(poor), 9)), 1) - 1])
        below = uncertainties[uncertainties < last]
        if not math.isfinite(last):
            value = last
        elif len(below):
            middle = (last + float(below.max())) / 2
            # no number lies between the smallest ones of float64
            value = middle if middle > below.max() else last
        else:
            value = last - max(_ROUNDING * abs(last), _SMALLEST)
        return Threshold(value, float((poor >= value).mean()), float((uncertainties >= value).mean()))

    def outside(self, scores: Mapping[str, float]) -> list[str]:
        """Return the scores outside of the training cases' range, in words."""
        return _outside(scores, self.ranges)

    def reason(self, scores: Mapping[str, float], threshold: float) -> str:
        """Return in words why a case is flagged whose uncertainty reaches the threshold, see `Threshold.value`."""
        value = self.value(scores)
        if math.isnan(value):
            return f"{self.score} is undefined, as for an empty mask"
        side = "at least" if CANDIDATES[self.score] > 0 else "at most"
        return f"{self.score} {value:.4g} is {side} {self.measured(threshold):.4g}"


@dataclass(frozen=True)
class Triage:
    """The triage data of a checkpoint, from the cases it was validated and trained on.

    Attributes:
        sensitivity: share of the poor cases to flag unless another is requested.
        structures: results by structure.
        intensities: smallest and largest value of the percentiles of each channel that count as within the training's
            range, by name, see `intensities_of`.
        training_cases: number of training cases.
        spaced: whether sums and sizes are in mm² or mm³, since all voxel sizes were known; in pixels or voxels if not.
        false_alarms: probability that a case like those of the training lies outside of the range of intensities or
            sizes, at most; None in checkpoints of earlier versions.
        by_majority: whether `soft_dice_confidence` was that of the majority probability, and not of the decision, as in
            checkpoints of earlier versions.
    """

    sensitivity: float
    structures: Mapping[str, StructureTriage]
    intensities: Mapping[str, Range]
    training_cases: int
    spaced: bool
    false_alarms: float | None = None
    by_majority: bool = True

    @property
    def validation_cases(self) -> int:
        """Number of validation cases."""
        return max((len(one.dice) for one in self.structures.values()), default=0)

    @property
    def takes_confidence(self) -> bool:
        """Whether a threshold depends on `soft_dice_confidence`."""
        return any(
            one.score == _CONFIDENCE or (one.expected_dice is not None and _CONFIDENCE in one.expected_dice.terms)
            for one in self.structures.values()
        )

    def outside(self, image: Tensor) -> list[str]:
        """Return the properties of a prepared image `[C, *S]` outside of the training cases' range, in words."""
        return _outside(intensities_of(image), self.intensities)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        return {
            "sensitivity": self.sensitivity,
            "training_cases": self.training_cases,
            "spaced": self.spaced,
            "false_alarms": self.false_alarms,
            "by_majority": self.by_majority,
            "intensities": {name: list(ends) for name, ends in self.intensities.items()},
            "structures": {
                name: {
                    "score": one.score,
                    "poor_dice": one.poor_dice,
                    "dice": torch.from_numpy(one.dice.copy()),
                    "uncertainties": torch.from_numpy(one.uncertainties.copy()),
                    "ranges": {score: list(ends) for score, ends in one.ranges.items()},
                    "expected_dice": None if one.expected_dice is None else one.expected_dice.as_dict(),
                }
                for name, one in self.structures.items()
            },
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], where: str) -> Triage:
        """Return the triage data that `as_dict` described.

        Args:
            stored: entry of a checkpoint.
            where: path of the checkpoint for error messages.

        Raises:
            UserError: if the entry is damaged.
        """
        try:
            # earlier versions stored the values of the training cases themselves
            margin = 0.0 if "false_alarms" in stored else _EARLIER_MARGIN
            structures = {
                str(name): StructureTriage(
                    str(one["score"]),
                    float(one["poor_dice"]),
                    _column(one["dice"]),
                    _column(one["uncertainties"]),
                    _ranges(one["ranges"], margin),
                    None if one.get("expected_dice") is None else ExpectedDice.from_dict(one["expected_dice"]),
                )
                for name, one in stored["structures"].items()
            }
            for one in structures.values():
                unknown = [*({one.score} - {*CANDIDATES}), *({*one.ranges} - {*RANGE_SCORES})]
                if unknown:
                    raise ValueError(f"unknown score {unknown[0]!r}")
                if (one.score == EXPECTED_DICE) != (one.expected_dice is not None):
                    raise ValueError(f"score {one.score!r} and its regression")
                if len(one.dice) != len(one.uncertainties):
                    raise ValueError(f"{len(one.dice)} Dice for {len(one.uncertainties)} cases")
            ranges = _ranges(stored["intensities"], margin)
            rate = stored.get("false_alarms")
            sensitivity = float(stored["sensitivity"])
            if not 0 < sensitivity <= 1:
                raise ValueError(f"sensitivity {sensitivity}")
            return cls(
                sensitivity,
                structures,
                ranges,
                int(stored["training_cases"]),
                bool(stored.get("spaced", True)),
                None if rate is None else float(rate),
                bool(stored.get("by_majority", False)),
            )
        # damaged values raise errors of any type
        except Exception as error:
            raise UserError(
                f"{where}: its triage data is damaged ({reason_of(error)}); train again or use another checkpoint"
            ) from error


def applicable(triage: Triage | None, readout: Readout, where: str) -> Triage | None:
    """Return the triage data, or log a warning and return None if its thresholds are for an earlier version's scores.

    Args:
        triage: triage data of a checkpoint, None if it has none.
        readout: read-out of the checkpoint's method.
        where: path of the checkpoint for messages.
    """
    if triage is None or triage.by_majority or not triage.takes_confidence or "decision" not in readout.own_maps:
        return triage
    log.warning(
        "%s: its thresholds are for the %s of an earlier version, which was that of the mask head, so no case will be "
        "flagged; train again to flag cases",
        where,
        _CONFIDENCE,
    )
    return None


def fit_triage(
    method: SegmentationMethod,
    data: RaterDataModule,
    settings: MetricSettings,
    sensitivity: float,
    trainer: pl.Trainer,
) -> Triage:
    """Choose each structure's score and the range of the training's cases on the validation cases.

    The range of a property is that of the training cases, widened by a common share of its width, so small that a case
    like the validation cases lies outside with a probability of at most half of `FALSE_ALARMS`, see
    `limits.fit_ranges`. The density of the images has the other half.

    In a distributed run every process takes part and gets the result.

    Args:
        method: trained method.
        data: data module it was trained on.
        settings: settings of the metrics, with the Dice below which a segmentation is poor.
        sensitivity: see `Triage`.
        trainer: trainer whose device the predictions are made on.
    """
    method.eval()
    with on_device(method, trainer.strategy.root_device):
        measured = _measured(method, data, "val", settings)
        training = _measured(method, data, "train", settings)
    # one unit for all cases: mm² or mm³ if every voxel size is known
    spaced = all(case.voxel_size is not None for case in (*measured, *training))
    intensities, sizes, false_alarms = _fitted_ranges(training, measured, len(method.structures), spaced)
    structures = {}
    for k, name in enumerate(method.structures):
        dice = np.array([case.dice[k] for case in measured])
        columns = {score: np.array([case.score(score, k, spaced) for case in measured]) for score in RANGE_SCORES}
        uncertainties = {score: _uncertainty(columns[score], score) for score in MEASURED}
        fitted = fit_expected_dice(columns, dice)
        if fitted is not None:
            uncertainties[EXPECTED_DICE] = _uncertainty(fitted.left_out, EXPECTED_DICE)
        score = best_score(uncertainties, dice)
        chosen = uncertainties[score]
        if fitted is not None and score == EXPECTED_DICE:
            # a case among those that the regression was fitted to is not to be missed either
            chosen = np.minimum(chosen, _uncertainty(fitted.fitted, EXPECTED_DICE))
        structures[name] = StructureTriage(
            score,
            settings.poor_dice_of(name),
            dice,
            chosen,
            {"predicted_area": sizes[k]},
            fitted.expected_dice if fitted is not None and score == EXPECTED_DICE else None,
        )
    return Triage(sensitivity, structures, intensities, len(training), spaced, false_alarms)


@dataclass(frozen=True)
class _MeasuredCase:
    """One predicted case: its scores by name in pixels or voxels and its Dice, `[K]`, intensities, size of a voxel."""

    scores: Mapping[str, Array]
    dice: Array
    intensities: Mapping[str, float]
    voxel_size: float | None

    def score(self, name: str, structure: int, spaced: bool) -> float:
        """Return a score, in mm² or mm³ if `spaced`."""
        unit = self.voxel_size if spaced and name in SIZE_SCORES and self.voxel_size is not None else 1.0
        return float(self.scores[name][structure]) * unit


def _measured(
    method: SegmentationMethod, data: RaterDataModule, split: Subset, settings: MetricSettings
) -> list[_MeasuredCase]:
    """Predict the cases of a split, as new images are, each by one of the processes of a distributed run."""
    count = len(data.records(split))
    cases = merged(
        {position: _measure(method, data.sample(split, position), settings) for position in own_share(count)}
    )
    return [cases[position] for position in range(count)]


def _measure(method: SegmentationMethod, sample: RaterSample, settings: MetricSettings) -> _MeasuredCase:
    found = estimate(method, sample.image)
    scores = {name: found.scores[name].numpy() for name in RANGE_SCORES}
    voxel_size = None if sample.spacing is None else float(np.prod(sample.spacing))
    dice = case_statistics(
        # as a member of its own: the mask may be taken at any threshold
        found.mask[None, None].double(),
        sample.masks[None],
        sample.valid[None],
        structures=method.structures,
        contents="probabilities",
        settings=settings,
        names=["dice"],
        region=None if sample.region is None else sample.region[None],
        readout=Readout(exclusive=method.exclusive),
    )["dice"]
    return _MeasuredCase(scores, dice[0].numpy(), intensities_of(sample.image), voxel_size)


def intensities_of(image: Tensor) -> dict[str, float]:
    """Return percentiles of each channel of a prepared image `[C, *S]`, by readable names."""
    found = {}
    for number, channel in enumerate(image, 1):
        for percentile, value in zip(
            INTENSITY_PERCENTILES, np.percentile(channel.numpy(), INTENSITY_PERCENTILES), strict=True
        ):
            found[f"percentile {percentile} of channel {number}"] = float(value)
    return found


def scores_of(estimate: Estimate, structure: int) -> dict[str, float]:
    """Return the scores of one structure as plain numbers."""
    return {name: float(values[structure]) for name, values in estimate.scores.items()}


def best_score(uncertainties: Mapping[str, Array], dice: Array) -> str:
    """Return the score whose order of the cases has the smallest area under the risk-coverage curve.

    Scores undefined for all cases, such as the variance between the members of a single network, are left out; so are
    cases without a Dice.

    Args:
        uncertainties: uncertainty of the cases by score, `[N]` each, infinite where the score is undefined.
        dice: Dice of the cases, `[N]`; NaN for a case without raters.
    """
    known = ~np.isnan(dice)
    one_each = np.ones((1, int(known.sum())))
    areas = {
        score: float(risk_coverage(uncertainty[known], 1 - dice[known], one_each).area[0])
        for score, uncertainty in uncertainties.items()
        if np.isfinite(uncertainty).any()
    }
    return min(areas, key=lambda score: areas[score])


def _uncertainty(values: Array, score: str) -> Array:
    return np.where(np.isnan(values), np.inf, CANDIDATES[score] * values)


def _fitted_ranges(
    training: Sequence[_MeasuredCase], validation: Sequence[_MeasuredCase], structures: int, spaced: bool
) -> tuple[dict[str, Range], list[Range], float]:
    """Return the range of each intensity by name, of each structure's size, and their `Triage.false_alarms`.

    Intensities are measured in the span of their channel's values among the training cases, and sizes in the width of
    their logarithm's range, at least a factor of two. An empty mask counts as half of the smallest voxel.
    """
    half_a_voxel = 0.5 * (min(case.voxel_size or 1.0 for case in (*training, *validation)) if spaced else 1.0)
    sizes = [f"size of structure {k}" for k in range(structures)]
    known, unseen = (
        {
            **{name: np.array([case.intensities[name] for case in cases]) for name in cases[0].intensities},
            **{
                name: np.log([max(case.score("predicted_area", k, spaced), half_a_voxel) for case in cases])
                for k, name in enumerate(sizes)
            },
        }
        for cases in (training, validation)
    )
    units = {name: max(float(np.ptp(known[name])), math.log(2)) for name in sizes}
    names = [*training[0].intensities]
    for channel in zip(*[iter(names)] * len(INTENSITY_PERCENTILES), strict=True):
        values = np.concatenate([known[name] for name in channel])
        # images of a single value differ by rounding alone
        units |= dict.fromkeys(channel, max(float(np.ptp(values)), 1e-3 * float(np.abs(values).max()), 1e-6))
    ranges, false_alarms = fit_ranges(known, unseen, units, FALSE_ALARMS / 2)
    of_sizes = [np.exp(np.minimum(ranges[name], _LARGEST_LOGARITHM)).tolist() for name in sizes]
    return (
        {name: ranges[name] for name in names},
        # empty masks are within a range from half a voxel on
        [(0.0 if low <= half_a_voxel else low, high) for low, high in of_sizes],
        false_alarms,
    )


def _ranges(stored: Mapping[str, Sequence[float]], margin: float) -> dict[str, Range]:
    """Return stored ranges, widened by a share of their width on both sides."""
    ends = {str(name): (float(low), float(high)) for name, (low, high) in stored.items()}
    return {name: (low - margin * (high - low), high + margin * (high - low)) for name, (low, high) in ends.items()}


def _column(stored: Tensor) -> Array:
    """Return one number per case; a tensor that repeats a few stored numbers could have any size."""
    if stored.ndim != 1 or not stored.is_contiguous():
        raise ValueError(f"not a column of numbers: {list(stored.shape)}")
    return stored.detach().double().numpy()


def _outside(values: Mapping[str, float], ranges: Mapping[str, Range]) -> list[str]:
    lines = []
    for name, (low, high) in ranges.items():
        # an undefined size, as where the voxel size is unknown, cannot be compared
        value = values.get(name, math.nan)
        if value < low or value > high:
            lines.append(f"{name} {value:.4g} outside {low:.4g} to {high:.4g}")
    return lines
