"""The Dice that a case's scores let expect, by a linear regression on cases whose Dice is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST_CASES = 20
_PENALTIES = np.logspace(-1, 3, 9)
_SMALLEST = 1e-12


class Term(NamedTuple):
    """A feature's weight, and the range within which cases have shown it; beyond, it counts as the range's end."""

    weight: float
    low: float
    high: float


@dataclass(frozen=True)
class ExpectedDice:
    """`intercept + sum of weight * clip(feature, low, high)`.

    Attributes:
        intercept: Dice.
        terms: by feature, see `features`.
    """

    intercept: float
    terms: Mapping[str, Term]

    def __call__(self, scores: Mapping[str, float]) -> float:
        """Return the expected Dice of a case, NaN of an empty mask, which has no features.

        Args:
            scores: by name, see `edue_lightning.prediction.estimate.Estimate`.
        """
        found = features({name: np.array([value]) for name, value in scores.items()})
        parts = [term.weight * np.clip(found[name][0], term.low, term.high) for name, term in self.terms.items()]
        return float(self.intercept + math.fsum(parts)) if np.isfinite(parts).all() else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"intercept": self.intercept, "terms": {name: list(term) for name, term in self.terms.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ExpectedDice:
        """Return what `as_dict` gave.

        Raises:
            ValueError: if it is not whole; other errors where values have another type.
        """
        terms = {str(name): Term(*map(float, term)) for name, term in stored["terms"].items()}
        unknown = set(terms) - set(features({name: np.ones(1) for name in _NEEDED}))
        numbers = [float(stored["intercept"]), *(value for term in terms.values() for value in term)]
        if unknown or not all(map(math.isfinite, numbers)):
            raise ValueError(f"no regression: {sorted(unknown) or numbers}")
        return cls(numbers[0], terms)


class Fitted(NamedTuple):
    """A regression, and what it expects of each case where that one was left out, `[N]`; NaN of an empty mask."""

    expected_dice: ExpectedDice
    left_out: Array


_NEEDED = ("entropy", "sv_total", "sv", "layer_agreement", "model_agreement", "predicted_area")


def features(scores: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the regression looks at: uncertainty by size, on a logarithm, agreement of the members, and size.

    Args:
        scores: `[N]` by name, with `sv`, `sv_total`, `entropy`, `layer_agreement`, `model_agreement` and
            `predicted_area`.

    Returns:
        `[N]` by name; NaN where the mask is empty or a score is not defined.
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
        "log(predicted_area)": np.log(area),
    }


def fit_expected_dice(scores: Mapping[str, Array], dice: Array) -> Fitted | None:
    """Fit a ridge regression whose penalty has the smallest error on cases that are left out, one at a time.

    Features that no case has, as the variance between the members of a single network, or all cases alike, are none.

    Args:
        scores: `[N]` by name, see `features`.
        dice: `[N]`.

    Returns:
        the regression; None for fewer than `FEWEST_CASES` cases with a mask, which could not tell anything.
    """
    found = features(scores)
    mask = np.isfinite(found["log(predicted_area)"])
    used = {name: values for name, values in found.items() if np.isfinite(values[mask]).all()}
    used = {name: values for name, values in used.items() if mask.any() and np.ptp(values[mask]) > 0}
    if mask.sum() < FEWEST_CASES or not used:
        return None
    columns = np.stack([values[mask] for values in used.values()], axis=1)
    middle, scale = columns.mean(axis=0), columns.std(axis=0)
    standard, wanted = (columns - middle) / scale, dice[mask] - dice[mask].mean()
    fits = [_ridge(standard, wanted, penalty) for penalty in _PENALTIES]
    weights, errors = min(fits, key=lambda fit: float(np.square(fit[1]).mean()))
    left_out = np.full(len(dice), np.nan)
    left_out[mask] = dice[mask] - errors
    slopes = weights / scale
    terms = {
        name: Term(float(slope), float(column.min()), float(column.max()))
        for name, slope, column in zip(used, slopes, columns.T, strict=True)
    }
    return Fitted(ExpectedDice(float(dice[mask].mean() - slopes @ middle), terms), left_out)


def _ridge(standard: Array, wanted: Array, penalty: float) -> tuple[Array, Array]:
    """Return weights `[F]` of centred columns `[N, F]`, and each case's error when it is left out, `[N]`.

    The latter by the diagonal of the hat matrix, in which the mean counts too (Hastie et al., The Elements of
    Statistical Learning, 7.10); columns keep the mean and scale of all cases.
    """
    inverse = np.linalg.inv(standard.T @ standard + penalty * np.eye(standard.shape[1]))
    weights = inverse @ standard.T @ wanted
    leverage = np.einsum("nf,fg,ng->n", standard, inverse, standard) + 1 / len(wanted)
    return weights, (wanted - standard @ weights) / (1 - leverage)
