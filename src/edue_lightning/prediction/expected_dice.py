"""Prediction of a case's Dice from its uncertainty scores, by ridge regression on cases with known Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST_CASES = 20
SIZE_FEATURE = "log(predicted_area)"
"""Only feature that depends on the unit of sizes."""

_PENALTIES = np.logspace(-1, 3, 9)
_SMALLEST = 1e-12
# range of a feature, a logarithm or a share, that rounding can explain
_ROUNDING = 1e-5


class Term(NamedTuple):
    """Weight of a feature, and its range among the fitted cases, to which values are clipped."""

    weight: float
    low: float
    high: float


@dataclass(frozen=True)
class ExpectedDice:
    """`intercept + sum of weight * clip(feature, low, high)`.

    Attributes:
        intercept: Dice at features of 0.
        terms: weight and range by feature, see `features`.
    """

    intercept: float
    terms: Mapping[str, Term]

    def __call__(self, scores: Mapping[str, float]) -> float:
        """Return the expected Dice of a case; NaN for an empty mask, whose features are undefined.

        Args:
            scores: scores by name, see `edue_lightning.prediction.estimate.Estimate`.
        """
        found = features({name: np.array([value]) for name, value in scores.items()})
        parts = [term.weight * np.clip(found[name][0], term.low, term.high) for name, term in self.terms.items()]
        return float(self.intercept + math.fsum(parts)) if np.isfinite(parts).all() else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"intercept": self.intercept, "terms": {name: list(term) for name, term in self.terms.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ExpectedDice:
        """Return the regression that `as_dict` described.

        Raises:
            ValueError: if it is incomplete; other errors for values of other types.
        """
        terms = {str(name): Term(*map(float, term)) for name, term in stored["terms"].items()}
        unknown = set(terms) - set(features({name: np.ones(1) for name in _NEEDED}))
        numbers = [float(stored["intercept"]), *(value for term in terms.values() for value in term)]
        if unknown or not all(map(math.isfinite, numbers)):
            raise ValueError(f"invalid regression: {sorted(unknown) or numbers}")
        return cls(numbers[0], terms)


class Fitted(NamedTuple):
    """A regression and its predictions for the N cases it was fitted to, NaN for empty masks.

    Attributes:
        expected_dice: the regression.
        left_out: prediction for each case by a fit without that case, `[N]`.
        fitted: prediction for each case by the regression itself, `[N]`.
    """

    expected_dice: ExpectedDice
    left_out: Array
    fitted: Array


_NEEDED = (
    *("entropy", "sv_total", "sv", "layer_agreement", "model_agreement", "soft_dice_confidence"),
    "predicted_area",
)


def features(scores: Mapping[str, Array]) -> dict[str, Array]:
    """Return the features of the regression: uncertainty by size, agreement of the members, confidence, size.

    Args:
        scores: scores of N cases by name, `[N]` each, with `sv`, `sv_total`, `entropy`, `layer_agreement`,
            `model_agreement`, `soft_dice_confidence` and `predicted_area`.

    Returns:
        features by name, `[N]` each; NaN where the mask is empty or a score is undefined.
    """
    area = np.where(scores["predicted_area"] > 0, scores["predicted_area"], np.nan)
    by_size = {
        f"log({name} / predicted_area)": np.log(np.maximum(scores[name] / area, _SMALLEST))
        for name in ("entropy", "sv_total", "sv")
    }
    return {
        **by_size,
        "layer_agreement": scores["layer_agreement"],
        "model_agreement": scores["model_agreement"],
        "soft_dice_confidence": scores["soft_dice_confidence"],
        SIZE_FEATURE: np.log(area),
    }


def fit_expected_dice(scores: Mapping[str, Array], dice: Array) -> Fitted | None:
    """Fit a ridge regression, with the penalty of the smallest leave-one-out error.

    Features that are undefined, such as the variance between the members of a single network, or constant but for
    rounding are left out. Cases without a Dice get a prediction, but are not fitted to.

    Args:
        scores: scores of N cases by name, see `features`.
        dice: Dice of the cases, `[N]`; NaN for a case without raters.

    Returns:
        the regression; None for fewer than `FEWEST_CASES` cases with a mask and a Dice, too few to fit it.
    """
    found = features(scores)
    defined = np.isfinite(found[SIZE_FEATURE])
    known = defined & np.isfinite(dice)
    if known.sum() < FEWEST_CASES:
        return None
    used = {name: values for name, values in found.items() if np.isfinite(values[defined]).all()}
    used = {name: values for name, values in used.items() if np.ptp(values[known]) > _ROUNDING}
    if not used:
        return None
    columns = np.stack([values[known] for values in used.values()], axis=1)
    middle, scale = columns.mean(axis=0), columns.std(axis=0)
    standard, mean = (columns - middle) / scale, dice[known].mean()
    fits = [_ridge(standard, dice[known] - mean, penalty) for penalty in _PENALTIES]
    weights, errors = min(fits, key=lambda fit: float(np.square(fit[1]).mean()))
    slopes = weights / scale
    terms = {
        name: Term(float(slope), float(column.min()), float(column.max()))
        for name, slope, column in zip(used, slopes, columns.T, strict=True)
    }
    fitted = np.full(len(dice), np.nan)
    # clipped to the range of the fitted cases, as for new ones
    clipped = np.stack([np.clip(found[name][defined], term.low, term.high) for name, term in terms.items()], axis=1)
    fitted[defined] = mean + (clipped - middle) / scale @ weights
    left_out = fitted.copy()
    left_out[known] = dice[known] - errors
    return Fitted(ExpectedDice(float(mean - slopes @ middle), terms), left_out, fitted)


def _ridge(standard: Array, wanted: Array, penalty: float) -> tuple[Array, Array]:
    """Return weights `[F]` for centred columns `[N, F]`, and the leave-one-out error of each case, `[N]`.

    The errors follow from the diagonal of the hat matrix, including the intercept's share (Hastie et al., The Elements
    of Statistical Learning, 7.10); mean and scale of the columns remain those of all cases.
    """
    inverse = np.linalg.inv(standard.T @ standard + penalty * np.eye(standard.shape[1]))
    weights = inverse @ standard.T @ wanted
    leverage = np.einsum("nf,fg,ng->n", standard, inverse, standard) + 1 / len(wanted)
    return weights, (wanted - standard @ weights) / (1 - leverage)
