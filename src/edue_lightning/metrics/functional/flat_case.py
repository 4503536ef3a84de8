"""One case with its voxels in a row: what the metrics of a case share is computed once.

Everything is float64. In float32, `logsumexp(...) - log M` errs by 1e-7 at each voxel, which is no longer small
against the likelihood of a confident background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from edue_lightning.uncertainty.maps import member_variance, predictive_entropy, total_variance

ReadOut = Literal["member_variance", "total_variance"]
"""How a model's disagreement map is read: V between the members, or p (1 - p) of their mean p."""

ROUNDING = 1e-28
"""Variance that float64 rounding alone can leave between equal members (members 1e-14 apart)."""


@dataclass(frozen=True)
class FlatCase:
    """A case's member logits and the masks of its valid raters, N voxels in a row.

    Attributes:
        logits: `[M, K, N]` float64.
        masks: `[R, K, N]` bool, the valid raters' only; R may be 0.
    """

    logits: Tensor
    masks: Tensor

    @property
    def n_raters(self) -> int:
        """Number of valid raters."""
        return self.masks.shape[0]

    @cached_property
    def votes(self) -> Tensor:
        """Number of valid raters who marked a voxel, `[K, N]` (counts, so that a tie stays a tie)."""
        return self.masks.sum(dim=0).to(torch.float64)

    @cached_property
    def rater_mean(self) -> Tensor:
        """The share q of the valid raters, `[K, N]`; NaN without one."""
        return self.votes / self.n_raters

    @cached_property
    def rater_variance(self) -> Tensor:
        """V* = q (1 - q), `[K, N]`; NaN with fewer than two valid raters, who cannot disagree."""
        if self.n_raters < 2:
            return torch.full_like(self.votes, torch.nan)
        return self.rater_mean * (1 - self.rater_mean)

    @cached_property
    def consensus(self) -> Tensor:
        """The soft majority q >= 0.5, `[K, N]` bool; meaningless without a valid rater."""
        return 2 * self.votes >= self.n_raters

    @cached_property
    def probabilities(self) -> Tensor:
        """Of each member, `[M, K, N]`."""
        return torch.sigmoid(self.logits)

    @cached_property
    def mean_probability(self) -> Tensor:
        """p, the members' mean, `[K, N]`."""
        return self.probabilities.mean(dim=0)

    @cached_property
    def predicted(self) -> Tensor:
        """The mean prediction p >= 0.5, `[K, N]` bool."""
        return self.mean_probability >= 0.5

    @cached_property
    def log_foreground(self) -> Tensor:
        """The logarithm of p, `[K, N]`, finite for finite logits."""
        return self._log_mean_sigmoid(self.logits)

    @cached_property
    def log_background(self) -> Tensor:
        """The logarithm of 1 - p, `[K, N]`, finite for finite logits."""
        return self._log_mean_sigmoid(-self.logits)

    @cached_property
    def member_variance(self) -> Tensor:
        """V, `[K, N]`; exactly 0 where the members are equal up to rounding."""
        variance = member_variance(self.probabilities.unsqueeze(0))[0]
        return torch.where(variance > ROUNDING, variance, 0.0)

    @cached_property
    def total_variance(self) -> Tensor:
        """The variance p (1 - p) of the mean prediction, `[K, N]`."""
        return total_variance(self.probabilities.unsqueeze(0))[0]

    @cached_property
    def entropy(self) -> Tensor:
        """Of the mean prediction, in nats, `[K, N]`."""
        return predictive_entropy(self.probabilities.unsqueeze(0))[0]

    def disagreement(self, read_out: ReadOut) -> Tensor:
        """Return the model's disagreement map, `[K, N]`."""
        return self.member_variance if read_out == "member_variance" else self.total_variance

    def undefined(self) -> Tensor:
        """Return NaN for each structure, `[K]`."""
        return self.votes.new_full(self.votes.shape[:1], torch.nan)

    @staticmethod
    def _log_mean_sigmoid(logits: Tensor) -> Tensor:
        return torch.logsumexp(F.logsigmoid(logits), dim=0) - math.log(logits.shape[0])


def flat_cases(logits: Tensor, masks: Tensor, valid: Tensor) -> Iterator[FlatCase]:
    """Yield the cases of a batch one by one, so that no more than one is held in float64.

    Args:
        logits: `[B, M, K, *S]`, of any floating type.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.

    Raises:
        ValueError: if the shapes do not fit, or a logit is not finite (a case without a value would drop out of
            every mean, and a diverged model would look better for it).
    """
    _check(logits, masks, valid)
    for case_logits, case_masks, case_valid in zip(logits, masks, valid, strict=True):
        case_logits = case_logits.detach().flatten(2).to(torch.float64)
        if not torch.isfinite(case_logits).all():
            raise ValueError("logits must be finite: the model has diverged or overflowed")
        yield FlatCase(case_logits, case_masks[case_valid].flatten(2).bool())


def each_case(
    measure: Callable[[FlatCase], Tensor], logits: Tensor, masks: Tensor, valid: Tensor, *, needs_raters: int = 0
) -> Tensor:
    """Return a measure of each case, stacked to `[B, K]`; NaN for cases with fewer valid raters than it needs."""
    cases = flat_cases(logits, masks, valid)
    return torch.stack([measure(case) if case.n_raters >= needs_raters else case.undefined() for case in cases])


def check_read_out(read_out: ReadOut) -> None:
    """Raise `ValueError` for anything but a known read-out."""
    if read_out not in get_args(ReadOut):
        raise ValueError(f"read_out must be one of {', '.join(get_args(ReadOut))}, not {read_out!r}")


def _check(logits: Tensor, masks: Tensor, valid: Tensor) -> None:
    fits = (
        logits.ndim in (5, 6)
        and logits.is_floating_point()
        and masks.ndim == logits.ndim
        and logits.shape[0] == masks.shape[0]
        and logits.shape[2:] == masks.shape[2:]
        and valid.dtype == torch.bool
        and valid.shape == masks.shape[:2]
    )
    if not fits:
        raise ValueError(
            "expected logits [B, M, K, *S] in 2D or 3D, masks [B, R, K, *S] and bool valid [B, R], got "
            f"{list(logits.shape)}, {list(masks.shape)} and {valid.dtype} {list(valid.shape)}"
        )
