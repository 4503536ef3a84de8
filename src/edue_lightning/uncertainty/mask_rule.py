"""Rules by which a mask is taken from a prediction: a threshold per image and structure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor

from edue_lightning.uncertainty.exclusive import first_largest
from edue_lightning.uncertainty.maps import Tie

Rule = Literal["half", "raters", "validation", "expected_dice"]
"""Choice of the threshold:

- `half`: the decision map at 0.5, as a model is trained;
- `raters`: the probability at the value from which on most of R raters mark the voxel more often than not, if each of
  them marks it with this probability on their own, see `majority_threshold`;
- `validation`: the decision map at the threshold of the largest mean Dice on the validation cases;
- `expected_dice`: the decision map at the threshold of the largest expected Dice in each image.
"""

NO_MASK = math.inf
"""Threshold of an empty mask."""

# voxels below a floor are counted in the expected Dice, but are no candidates for the mask
_FLOOR, _LOWER_FLOOR = 0.02, 1e-4
# a voxel of probability p raises the expected Dice D of a mask only if about 2p > D, so the search is complete where
# the largest D found is this many times the floor
_SAFE = 4.0
# of the series of log(1 - p) for p below the floor; the next one is 1e-11 at most
_POWERS = 5
# nodes of Gauss and Legendre on each part of the integral; a part is half as long as the one before, and the last is so
# short that the integrand hardly changes on it
_NODES, _SMALL = 8, 1e-3
# exp(-80) and less do not count
_NEGLIGIBLE = 80.0

ArrayOrTensor = TypeVar("ArrayOrTensor", Tensor, NDArray[Any])


@dataclass(frozen=True)
class MaskRule:
    """Threshold of the decision map, for each structure the same in all images unless the rule is `expected_dice`.

    Attributes:
        rule: see `Rule`.
        raters: R for the rule `raters`.
        majority_tie: class of a voxel that exactly half of the raters marked, for the rule `raters`.
        thresholds: threshold of each structure by name, for the rule `validation`.

    Raises:
        ValueError: if a value is missing or out of its range.
    """

    rule: Rule = "half"
    raters: int | None = None
    majority_tie: Tie = "foreground"
    thresholds: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"mask.rule must be one of {', '.join(get_args(Rule))}, not {self.rule!r}")
        if self.raters is not None and self.raters < 1:
            raise ValueError(f"mask.raters must be at least 1, not {self.raters}")
        for name, value in (self.thresholds or {}).items():
            if not 0 < value <= 1:
                raise ValueError(f"mask.thresholds.{name} must be above 0 and at most 1, not {value}")

    @property
    def takes_probability(self) -> bool:
        """Whether the mask is taken from the probability, whatever else the method's decision is."""
        return self.rule == "raters"

    def fixed(self, structures: tuple[str, ...]) -> list[float] | None:
        """Return the threshold of each structure, or None if it depends on the image.

        Raises:
            ValueError: if the rule lacks a number that it needs.
        """
        if self.rule == "expected_dice":
            return None
        if self.rule == "raters":
            if self.raters is None:
                raise ValueError("mask.rule=raters needs mask.raters, the number of raters")
            return [majority_threshold(self.raters, self.majority_tie)] * len(structures)
        if self.rule == "validation":
            missing = [name for name in structures if name not in (self.thresholds or {})]
            if self.thresholds is None or missing:
                raise ValueError(f"mask.rule=validation needs mask.thresholds for {', '.join(missing)}")
            return [float(self.thresholds[name]) for name in structures]
        return [0.5] * len(structures)

    @property
    def options(self) -> str:
        """Options of a command that take masks by this rule, such as `mask=raters mask.raters=4`."""
        options = f"mask={self.rule}"
        if self.rule == "raters":
            options += f" mask.raters={self.raters}"
        if self.rule == "validation":
            listed = ", ".join(f"{name}: {value:.9g}" for name, value in (self.thresholds or {}).items())
            options += f" 'mask.thresholds={{{listed}}}'"
        return options

    def of_image(self, decision: Tensor, structures: tuple[str, ...]) -> Tensor:
        """Return the threshold of each structure in one image, `[K]` float32.

        Args:
            decision: map that the mask is taken from, `[K, *V]`.
            structures: names of the K structures.
        """
        fixed = self.fixed(structures)
        if fixed is not None:
            return torch.tensor(fixed, dtype=torch.float32)
        return torch.tensor([largest_expected_dice(values)[0] for values in decision], dtype=torch.float32)


HALF = MaskRule()
"""The decision map at 0.5, the default."""


def reached(values: ArrayOrTensor, threshold: float) -> ArrayOrTensor:
    """Return where a map reaches a threshold, both rounded to float32, see `foreground`."""
    if isinstance(values, Tensor):
        return values.float() >= torch.tensor(threshold, dtype=torch.float32, device=values.device)
    return values.astype(np.float32) >= np.float32(threshold)


def masks_of(decision: Tensor, thresholds: Tensor, exclusive: bool = False) -> Tensor:
    """Return the masks of one image's maps, `[K, *V]` and thresholds `[K]` to `[K, *V]` bool, see `reached`.

    Args:
        decision: map that each mask is taken from.
        thresholds: threshold of each structure.
        exclusive: whether the structures exclude each other; then only the one with the largest value is in a mask.
    """
    masks = torch.stack([reached(values, float(one)) for values, one in zip(decision, thresholds, strict=True)])
    return masks & first_largest(decision.float(), dim=0) if exclusive else masks


def masks_of_images(decision: Tensor, rule: MaskRule, structures: tuple[str, ...], exclusive: bool = False) -> Tensor:
    """Return the masks of several images by a rule, `[B, K, *V]` bool, see `masks_of`.

    Args:
        decision: maps that the masks are taken from, `[B, K, *V]`.
        rule: rule for the thresholds.
        structures: names of the K structures.
        exclusive: whether the structures exclude each other.
    """
    fixed = rule.fixed(structures)
    if fixed is None:
        return torch.stack([masks_of(values, rule.of_image(values, structures), exclusive) for values in decision])
    thresholds = torch.tensor(fixed, dtype=torch.float32, device=decision.device)
    masks = decision.float() >= thresholds.reshape(-1, *[1] * (decision.ndim - 2))
    return masks & first_largest(decision.float(), dim=1) if exclusive else masks


def majority_threshold(raters: int, tie: Tie) -> float:
    """Return the p at which `P(Binomial(R, p) >= k) = 1/2` for the smallest majority k: 0.386 for R = 4 with ties.

    It is the median of the beta distribution of the parameters k and R - k + 1. For an odd number of raters it is 1/2.
    """
    wins = (raters + 1) // 2 if tie == "foreground" else raters // 2 + 1
    return float(beta.median(wins, raters - wins + 1))


def largest_expected_dice(probability: Tensor) -> tuple[float, float]:
    """Return the threshold of the mask with the largest expected Dice, and that Dice.

    Voxels are taken as independent, each foreground with its own probability; the best mask then holds the n most
    probable voxels for some n (Dai and Li, JMLR 2023, arXiv 2206.13086). For each n the expectation is exact: with
    `1 / (n + m) = integral of x^(n + m - 1)` over [0, 1], it is the integral of `2 x^n G(x) sum_j p_j / (1 - p_j (1 -
    x))` over the voxels j of the mask, where `G(x) = prod_i (1 - p_i (1 - x))`. Two empty masks have a Dice of 1.

    Args:
        probability: probabilities of the voxels, of any shape; values below 1e-4 count, but are not put into a mask.

    Returns:
        threshold, the smallest probability within the mask (infinite for an empty mask), and expected Dice.
    """
    values = probability.double().flatten().cpu().numpy()
    threshold, dice = _largest_expected_dice(values, _FLOOR)
    return (threshold, dice) if dice >= _SAFE * _FLOOR else _largest_expected_dice(values, _LOWER_FLOOR)


def _largest_expected_dice(values: NDArray[np.float64], floor: float) -> tuple[float, float]:
    """Return `largest_expected_dice` of masks of voxels that reach the floor, for values `[V]`."""
    is_candidate = values >= floor
    ordered = np.sort(values[is_candidate])[::-1]
    rest = values[~is_candidate]
    # -log(1 - p t) of small p, as a series
    powers_of_rest = [float((rest**power).sum()) / power for power in range(1, _POWERS + 1)]
    total = float(values.sum())
    sizes = np.arange(1, len(ordered) + 1)
    expected = np.zeros(len(ordered))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    # t = 1 - x; most of the integral lies near t = 0, so the parts [1/2, 1], [1/4, 1/2], ... and [0, 2^-n]
    parts = max(math.ceil(math.log2((len(ordered) + total + 1) / _SMALL)), 1)
    edges = np.append(2.0 ** -np.arange(parts), 0.0)
    for high, low in pairwise(edges):
        if low * total > _NEGLIGIBLE:
            continue
        for node, weight in zip(nodes, weights, strict=True):
            t = low + (high - low) * (node + 1) / 2
            left = 1 - ordered * t
            log_g = np.log(left).sum() - sum(part * t**power for power, part in enumerate(powers_of_rest, start=1))
            powers = np.exp(sizes * np.log1p(-t) + log_g)
            expected += weight * (high - low) * powers * np.cumsum(ordered / left)
    with np.errstate(divide="ignore"):
        empty = float(np.exp(np.log1p(-ordered).sum() - sum(powers_of_rest)))
    if not len(ordered) or empty >= expected.max():
        return NO_MASK, empty
    best = int(expected.argmax())
    return float(ordered[best]), float(expected[best])
