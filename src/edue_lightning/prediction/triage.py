"""Which cases a human must look at: a threshold that validation cases set, and the range of the training cases.

Quality control finds poor segmentations, whose Dice is too low, by their uncertainty (Abutalip et al., Fig. 2). On the
validation cases, whose Dice is known, the score that orders them best is chosen, be it a score of uncertainty or the
Dice that all of them together let expect, and the threshold from which on the wanted share of the poor ones lies. Both
travel in the checkpoint, with the scores of these cases, so that another share can be asked for later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data import RaterDataModule
from edue_lightning.errors import UserError
from edue_lightning.methods import Measuring, SegmentationMethod
from edue_lightning.metrics import SCORES, CaseStatistics, CaseTable, MetricSettings
from edue_lightning.metrics.selective import risk_coverage
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.prediction.expected_dice import ExpectedDice, fit_expected_dice
from edue_lightning.text import reason_of

Array = NDArray[np.float64]

MEASURED: Mapping[str, int] = {**dict(SCORES.values()), "layer_agreement": -1}
"""Scores of uncertainty, and their sign: -1 where a small one tells of a poor segmentation."""

EXPECTED_DICE = "expected_dice"
CANDIDATES: Mapping[str, int] = {**MEASURED, EXPECTED_DICE: -1}
"""All that may order the cases: the scores, and the Dice that they let expect."""

RANGE_SCORES = (*MEASURED, "predicted_area")
INTENSITY_PERCENTILES = (1, 50, 99)
MARGIN = 0.1
"""Share of the training cases' range by which a value may lie beyond it before it counts as outside."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Threshold:
    """From where on a case is flagged, and what that meant on the validation cases.

    Attributes:
        value: of the uncertainty, see `StructureTriage.uncertainty`; None where no validation case was poor, so that
            nothing tells where to put it.
        sensitivity: share of the poor cases that it flags, NaN without such.
        flagged: share of all cases that it flags.
    """

    value: float | None
    sensitivity: float
    flagged: float


@dataclass(frozen=True)
class StructureTriage:
    """What validation and training cases told of one structure.

    Attributes:
        score: name of the score that orders the cases.
        poor_dice: a segmentation below is a poor one.
        dice: of the N validation cases, `[N]`.
        uncertainties: of the same cases, `[N]`; high for a poor one, infinite where the score is not defined, as of an
            empty mask.
        ranges: smallest and largest value of each score among the training cases.
        expected_dice: what tells the score of that name, else None.
    """

    score: str
    poor_dice: float
    dice: Array
    uncertainties: Array
    ranges: Mapping[str, Range]
    expected_dice: ExpectedDice | None = None

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the score of a case as it is measured; NaN where it is not defined."""
        return scores[self.score] if self.expected_dice is None else self.expected_dice(scores)

    def uncertainty(self, scores: Mapping[str, float]) -> float:
        """Return the score of a case with its sign turned such that poor cases have a high one."""
        return float(_uncertainty(np.array(self.value(scores)), self.score))

    def measured(self, uncertainty: float) -> float:
        """Return the value of the score that an uncertainty is of."""
        return CANDIDATES[self.score] * uncertainty

    def relative(self, uncertainty: float) -> float:
        """Return an uncertainty in interquartile ranges above the validation median: alike for all structures."""
        finite = self.uncertainties[np.isfinite(self.uncertainties)]
        if not len(finite):
            return uncertainty
        low, middle, high = np.percentile(finite, [25, 50, 75])
        return float((uncertainty - middle) / max(high - low, 1e-12))

    def threshold(self, sensitivity: float) -> Threshold:
        """Return the highest threshold that flags a share of the poor validation cases, at least `sensitivity`."""
        poor = np.sort(self.uncertainties[self.dice < self.poor_dice])[::-1]
        if not len(poor):
            return Threshold(None, math.nan, 0.0)
        value = float(poor[math.ceil(round(sensitivity * len(poor), 9)) - 1])
        return Threshold(value, float((poor >= value).mean()), float((self.uncertainties >= value).mean()))

    def outside(self, scores: Mapping[str, float]) -> list[str]:
        """Return what lies outside of the training cases' range, in words."""
        return _outside(scores, self.ranges)


@dataclass(frozen=True)
class Triage:
    """What a checkpoint knows of the cases it was validated and trained on.

    Attributes:
        sensitivity: share of the poor cases that is to be flagged, unless another is asked for.
        structures: by name.
        intensities: range of the percentiles of each channel among the training cases, by name, see `intensities_of`.
        training_cases: how many there were.
        spaced: whether their voxel size was known, so that sums and sizes are in mm² or mm³.
    """

    sensitivity: float
    structures: Mapping[str, StructureTriage]
    intensities: Mapping[str, Range]
    training_cases: int
    spaced: bool

    def outside(self, image: Tensor, spaced: bool) -> list[str]:
        """Return what of an image lies outside of the training cases' range, in words.

        Args:
            image: `[C, *S]`, as it was prepared.
            spaced: whether its voxel size is known.
        """
        lines = _outside(intensities_of(image), self.intensities)
        if spaced != self.spaced:
            known = ("not known", "known")
            lines.append(f"voxel size {known[spaced]}, in training it was {known[self.spaced]}: scores are not alike")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, for a checkpoint."""
        return {
            "sensitivity": self.sensitivity,
            "training_cases": self.training_cases,
            "spaced": self.spaced,
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
        """Return what `as_dict` gave.

        Args:
            stored: from a checkpoint.
            where: its path, for the message.

        Raises:
            UserError: if it is not whole.
        """
        try:
            structures = {
                str(name): StructureTriage(
                    str(one["score"]),
                    float(one["poor_dice"]),
                    _column(one["dice"]),
                    _column(one["uncertainties"]),
                    _ranges(one["ranges"]),
                    None if one.get("expected_dice") is None else ExpectedDice.from_dict(one["expected_dice"]),
                )
                for name, one in stored["structures"].items()
            }
            for one in structures.values():
                unknown = [*({one.score} - {*CANDIDATES}), *({*one.ranges} - {*RANGE_SCORES})]
                if unknown:
                    raise ValueError(f"no score {unknown[0]!r}")
                if (one.score == EXPECTED_DICE) != (one.expected_dice is not None):
                    raise ValueError(f"score {one.score!r} and its regression")
                if len(one.dice) != len(one.uncertainties):
                    raise ValueError(f"{len(one.dice)} Dice for {len(one.uncertainties)} cases")
            ranges = _ranges(stored["intensities"])
            sensitivity = float(stored["sensitivity"])
            if not 0 < sensitivity <= 1:
                raise ValueError(f"sensitivity {sensitivity}")
            return cls(sensitivity, structures, ranges, int(stored["training_cases"]), bool(stored.get("spaced", True)))
        # what values of any type at any place make the code stumble over
        except Exception as error:
            raise UserError(
                f"{where}: what it tells of its validation cases is damaged ({reason_of(error)})"
            ) from error


def fit_triage(
    method: SegmentationMethod,
    data: RaterDataModule,
    validation: CaseStatistics,
    settings: MetricSettings,
    sensitivity: float,
    trainer: pl.Trainer,
) -> Triage:
    """Choose each structure's score on the validation cases, and note the range of the training cases.

    Every process of a distributed run takes part and gets the result.

    Args:
        method: trained.
        data: that it was trained on.
        validation: statistics of the validation cases.
        settings: of the metrics; they say what is poor.
        sensitivity: see `Triage`.
        trainer: runs the prediction of the training cases.
    """
    names = method.structures
    table = CaseTable(names, (), settings, statistics=RANGE_SCORES)
    trainer.test(Measuring(method, table), dataloaders=data.evaluation_dataloader("train"), verbose=False)
    training = table.cases().statistics
    structures = {}
    for k, name in enumerate(names):
        columns = {name: validation[name][:, k].cpu().numpy() for name in (*RANGE_SCORES, "dice")}
        uncertainties = {score: _uncertainty(columns[score], score) for score in MEASURED}
        fitted = fit_expected_dice(columns, columns["dice"])
        if fitted is not None:
            uncertainties[EXPECTED_DICE] = _uncertainty(fitted.left_out, EXPECTED_DICE)
        score = best_score(uncertainties, columns["dice"])
        structures[name] = StructureTriage(
            score,
            settings.poor_dice_of(name),
            columns["dice"],
            uncertainties[score],
            _finite({one: _range(training[one][:, k].cpu().numpy()) for one in RANGE_SCORES}),
            fitted.expected_dice if fitted is not None and score == EXPECTED_DICE else None,
        )
    cases = data.records("train")
    samples = (data.source.load(case.case_id) for case in cases)
    found, spaced = zip(
        *((intensities_of(sample.image), sample.spacing is not None) for sample in samples), strict=True
    )
    intensities = {name: _range(np.array([one[name] for one in found])) for name in found[0]}
    return Triage(sensitivity, structures, intensities, len(cases), all(spaced))


def intensities_of(image: Tensor) -> dict[str, float]:
    """Return percentiles of each channel of a prepared image `[C, *S]`, by a name for a reader."""
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

    A score that no case defines, as the variance between the members of a single network, is none.

    Args:
        uncertainties: `[N]` by score, infinite where it is not defined.
        dice: `[N]`.
    """
    one_each = np.ones((1, len(dice)))
    areas = {
        score: float(risk_coverage(uncertainty, 1 - dice, one_each).area[0])
        for score, uncertainty in uncertainties.items()
        if np.isfinite(uncertainty).any()
    }
    return min(areas, key=lambda score: areas[score])


def _uncertainty(values: Array, score: str) -> Array:
    return np.where(np.isnan(values), np.inf, CANDIDATES[score] * values)


def _range(values: Array) -> Range:
    defined = values[np.isfinite(values)]
    return (float(defined.min()), float(defined.max())) if len(defined) else (math.nan, math.nan)


def _finite(ranges: Mapping[str, Range]) -> dict[str, Range]:
    return {name: ends for name, ends in ranges.items() if all(map(math.isfinite, ends))}


def _ranges(stored: Mapping[str, Sequence[float]]) -> dict[str, Range]:
    return {str(name): (float(low), float(high)) for name, (low, high) in stored.items()}


def _column(stored: Tensor) -> Array:
    """Return one number a case; a tensor that repeats a few numbers could claim any size."""
    if stored.ndim != 1 or not stored.is_contiguous():
        raise ValueError(f"no column of numbers: {list(stored.shape)}")
    return stored.detach().double().numpy()


def _outside(values: Mapping[str, float], ranges: Mapping[str, Range]) -> list[str]:
    lines = []
    for name, (low, high) in ranges.items():
        margin = MARGIN * (high - low)
        # an undefined score, as of an empty mask, is told by others
        value = values.get(name, math.nan)
        if value < low - margin or value > high + margin:
            lines.append(f"{name} {value:.4g} outside {low:.4g} to {high:.4g}")
    return lines
