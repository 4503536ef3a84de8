"""Cases of one shape as the metrics see them: each shared map is computed once for all of them, on first use."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.uncertainty import (
    MEMBERS,
    PairOverlap,
    Readout,
    expected_entropy,
    level_variance,
    majority,
    masks_of_images,
    member_variance,
    mutual_information,
    pair_overlap,
    plurality,
    predictive_entropy,
)

PROBABILITY_FLOOR = 1e-7
"""Smallest given probability, and smallest 1 - p, inside a logarithm, so that one wrong sure voxel costs 16 nats and
not infinity. Logits need no floor."""

# a prediction counts as constant if its values differ by less than this many roundings
_ROUNDINGS = 32

_SMALLEST_EXACT = 1e-300

_PART = 2**22
"""Number of the members' values processed at a time, so that large volumes need one copy of the members only."""


class MemberMaps(NamedTuple):
    """Maps of the members' logarithms, each `[B, K, V]`.

    Attributes:
        mean_log_p: mean over the members of log p.
        mean_log_not_p: mean over the members of log (1 - p).
        log_mean_not_p: log of the mean over the members of 1 - p.
    """

    mean_log_p: Tensor
    mean_log_not_p: Tensor
    log_mean_not_p: Tensor


class CaseBatch:
    """Predictions and raters' masks of B cases with as many valid raters and V voxels each, in a row, in float64.

    Where cases have a region, V counts the voxels within it alone.

    In float32 the logarithm of a mean of many sure members would be too inexact.

    Args:
        members: `[B, M, K, V]`, and behind them the maps of `readout.own_maps`.
        masks: masks of the valid raters, `[B, R, K, V]` bool.
        spacing: `[B, n]`, mm along each spatial axis; 1 where it is unknown.
        shape: shape of the images, `*S`.
        contents: contents of `members`, logits (whose sigmoid are the probabilities, see `Readout.log_odds`) or
            probabilities.
        settings: see `MetricSettings`.
        structures: names of the K structures.
        positions: position of each voxel in the flattened image, `[B, V]`; None if V is the whole image.
        readout: how the maps are read from the members.
    """

    def __init__(
        self,
        members: Tensor,
        masks: Tensor,
        spacing: Tensor,
        shape: tuple[int, ...],
        contents: Members,
        settings: MetricSettings,
        structures: tuple[str, ...],
        positions: Tensor | None = None,
        readout: Readout = MEMBERS,
    ) -> None:
        self._channels = members
        self._members = readout.members(members)
        self._positions = positions
        self.readout = readout
        self._contents = contents
        # coarser types hold exact multiples of theirs, but are computed in float32
        coarsest = torch.finfo(torch.float32).eps
        self._rounding = _ROUNDINGS * min(torch.finfo(members.dtype).eps, coarsest)
        self.masks = masks
        self.shape = shape
        self.spacing = spacing
        self.settings = settings
        self.structures = structures

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def n_members(self) -> int:
        """Number of members, M."""
        return self._members.shape[1]

    @property
    def n_raters(self) -> int:
        """Number of valid raters."""
        return self.masks.shape[1]

    @cached_property
    def voxel_size(self) -> Tensor:
        """Size of a voxel, mm² or mm³, `[B, 1]`."""
        return self.spacing.double().prod(dim=1, keepdim=True).to(self._channels.device)

    @cached_property
    def channels(self) -> Tensor:
        """Probabilities of the members and of the prediction's own maps, see `Readout`, `[B, M + n, K, V]`."""
        if self._contents == "probabilities":
            return self._channels.double()
        return self._channels.to(torch.float64, copy=True).sigmoid_()

    @property
    def probabilities(self) -> Tensor:
        """Member probabilities, `[B, M, K, V]`."""
        return self.readout.members(self.channels)

    @cached_property
    def mean(self) -> Tensor:
        """Probability p, the mean of the members unless the prediction has its own, `[B, K, V]`."""
        return self.readout.probability(self.channels)

    @property
    def has_disagreement(self) -> bool:
        """Whether V is defined: a single opinion has no variance."""
        return self.readout.has_disagreement(self._channels.shape[1])

    @cached_property
    def marked(self) -> Tensor:
        """Number of raters who marked each voxel, `[B, K, V]`."""
        return self.masks.view(torch.uint8).sum(dim=1, dtype=torch.int32).double()

    @cached_property
    def share(self) -> Tensor:
        """Share q of the raters who marked each voxel, `[B, K, V]`; a tie is exactly 0.5."""
        return self.marked / max(self.n_raters, 1)

    @cached_property
    def disagreement(self) -> Tensor:
        """Disagreement V, `[B, K, V]`; 0 where it is undefined, or rounding explains all of a structure's V."""
        if "disagreement" in self.readout.own_maps:
            return _by_parts(self.readout.disagreement, self.channels)
        return self._member_variance

    @cached_property
    def _member_variance(self) -> Tensor:
        """Variance between the members, or levels, `[B, K, V]`; 0 if rounding explains all of a structure's."""
        variance = _by_parts(level_variance if self.readout.levels else member_variance, self.probabilities)
        rounding = self._rounding * self._largest_member
        # sums over cases of such variances would correlate with anything
        explained = variance.amax(dim=-1) <= (rounding if self.readout.levels else rounding.square())
        return variance.masked_fill(explained[..., None], 0)

    @cached_property
    def _largest_member(self) -> Tensor:
        # levels enter V one by one, opinions relative to their mean
        return self.probabilities.amax(dim=(1, 3)) if self.readout.levels else self.mean.amax(dim=-1)

    @cached_property
    def total(self) -> Tensor:
        """p (1 - p), `[B, K, V]`."""
        return self.mean * (1 - self.mean)

    @cached_property
    def expert(self) -> Tensor:
        """Variance V* = q (1 - q) between the raters, `[B, K, V]`; the same number for q and 1 - q."""
        return self.disputes / max(self.n_raters, 1) ** 2

    @property
    def disputes(self) -> Tensor:
        """Pairs of a rater who marked a voxel and one who did not, R² V*, whole numbers `[B, K, V]`."""
        return self.marked * (self.n_raters - self.marked)

    @property
    def variance_rounding(self) -> Tensor:
        """Largest range of V over the voxels that rounding of the predictions alone can explain, `[B, K]`."""
        largest = self.disagreement.amax(dim=-1)
        if "disagreement" in self.readout.own_maps:
            return self._rounding * largest
        rounding = self._rounding * self._largest_member
        # of the square of a spread that is known up to the rounding of p; levels enter V linearly
        return rounding if self.readout.levels else rounding * (largest.sqrt() + rounding)

    def rounding_of(self, values: Tensor) -> Tensor:
        """Return the largest range of maps that rounding of the predictions alone can explain, `[..., V]` to `[...]`.

        Args:
            values: p (1 - p), or maps of logarithms, `[..., B, K, V]`.
        """
        largest = torch.maximum(-values.amin(dim=-1), values.amax(dim=-1))
        if self._contents == "probabilities":
            # p near 1 is rounded as coarsely as 1, and 1 - p with it
            largest = torch.maximum(largest, self.mean.amax(dim=-1))
        return self._rounding * largest

    @cached_property
    def decision(self) -> Tensor:
        """Map that the mask is taken from, p unless the read-out has another, `[B, K, V]`."""
        if self.readout.decides_by_probability:
            return self.mean
        return self.readout.decision(self.channels)

    @cached_property
    def majority(self) -> Tensor:
        """Probability that the majority of the raters marks a voxel, see `Readout`, `[B, K, V]`."""
        return self.readout.majority_probability(self.channels, self.mean)

    @cached_property
    def predicted(self) -> Tensor:
        """Predicted mask, the decision at the threshold of the read-out's `MaskRule` in float32, `[B, K, V]`."""
        return masks_of_images(self.decision, self.readout.mask, self.structures, self.readout.exclusive)

    def share_reached(self, share: float) -> Tensor:
        """Return the mask of the voxels that at least a share of the raters is expected to mark, `[B, K, V]`."""
        return self.readout.share_reached(self.channels, share, self.mean)

    @cached_property
    def consensus(self) -> Tensor:
        """Soft-majority mask, q >= 0.5 (or > 0.5, see `MetricSettings`), `[B, K, V]`.

        Of structures that exclude each other it is the class of most raters, see `plurality`.
        """
        if self.readout.exclusive:
            return plurality(self.share, self.settings.majority_tie, dim=1)
        return majority(self.share, self.settings.majority_tie)

    @cached_property
    def log_mean(self) -> tuple[Tensor, Tensor]:
        """Log p and log (1 - p), each `[B, K, V]` and finite for every finite logit."""
        if self._contents == "probabilities":
            return _floored_log(self.mean), _floored_log(1 - self.mean)
        own = self.readout.own_map(self._channels, "probability")
        if own is not None:
            return F.logsigmoid(own.double()), F.logsigmoid(-own.double())
        return _log_mean_sigmoid(self._members, self.mean), self._member_maps.log_mean_not_p

    @cached_property
    def _member_maps(self) -> MemberMaps:
        """Maps of the logarithms of logits."""
        found = [_member_maps(part) for part in _parts(self._members)]
        return MemberMaps(*(torch.cat(maps, dim=-1) for maps in zip(*found, strict=True)))

    @cached_property
    def mean_log(self) -> tuple[Tensor, Tensor]:
        """Mean over members of log p and of log (1 - p), each `[B, K, V]`."""
        if self._contents == "probabilities":
            return (
                _by_parts(lambda part: _floored_log(part).mean(dim=1), self.probabilities),
                _by_parts(lambda part: _floored_log(1 - part).mean(dim=1), self.probabilities),
            )
        return self._member_maps.mean_log_p, self._member_maps.mean_log_not_p

    @cached_property
    def entropies(self) -> dict[str, Tensor]:
        """Entropy of p, expected entropy and mutual information by name, `[B, K, V]`; see `score_maps`.

        The latter is 0 if rounding explains all of the differences between a structure's members.
        """
        if self._contents == "probabilities":
            entropy = predictive_entropy(self.mean[:, None])
            expected = expected_entropy(self.probabilities)
        else:
            log_p, log_not_p = self.log_mean
            entropy = -(self.mean * log_p + (1 - self.mean) * log_not_p)
            expected = expected_entropy(self.probabilities, self._members)
        if self.n_members == 1:
            information = torch.full_like(expected, torch.nan)
        else:
            is_mean = self._contents == "probabilities" and "probability" not in self.readout.own_maps
            of_members = entropy if is_mean else predictive_entropy(self.probabilities)
            differ = self._member_variance.amax(dim=-1, keepdim=True) > 0
            information = mutual_information(self.probabilities, of_members, expected).masked_fill(~differ, 0)
        return {"entropy": entropy, "expected_entropy": expected, "mutual_information": information}

    @cached_property
    def overlap(self) -> PairOverlap:
        """Overlap of the masks: predicted, consensus, M members', R raters', `[B, K, 2 + M + R, 2 + M + R]`."""
        of_members = self.readout.member_masks(self.probabilities)
        stacked = [self.predicted[:, None], self.consensus[:, None], of_members, self.masks]
        return pair_overlap(torch.cat(stacked, dim=1).transpose(1, 2))

    @property
    def members_overlap(self) -> PairOverlap:
        """Overlap of the masks: predicted, the M members', `[B, K, 1 + M, 1 + M]`."""
        return self.overlap.select([0, *range(2, 2 + self.n_members)])

    @property
    def of_members(self) -> slice:
        """Positions of the members' masks in `overlap`."""
        return slice(2, 2 + self.n_members)

    @property
    def of_raters(self) -> slice:
        """Positions of the raters' masks in `overlap`."""
        return slice(2 + self.n_members, None)

    def on_grid(self, values: Tensor, cases: slice = slice(None)) -> Tensor:
        """Return values `[B, K, V]` on the image's grid, `[B, K, *S]`; zero outside of the region.

        Args:
            values: values of some of the cases.
            cases: which of the cases.
        """
        if self._positions is not None:
            placed = values.new_zeros(*values.shape[:2], math.prod(self.shape))
            values = placed.scatter_(2, self._positions[cases, None].expand_as(values), values)
        return values.unflatten(2, self.shape)


def _parts(members: Tensor) -> tuple[Tensor, ...]:
    """Return members `[B, M, K, V]` in parts of their voxels."""
    return members.split(max(_PART // math.prod(members.shape[:-1]), 1), dim=-1)


def _by_parts(function: Callable[[Tensor], Tensor], members: Tensor) -> Tensor:
    """Apply a voxelwise function from `[B, M, K, v]` to `[B, K, v]`, to a part of the voxels at a time."""
    return torch.cat([function(part) for part in _parts(members)], dim=-1)


def _floored_log(probability: Tensor) -> Tensor:
    return probability.clamp_min(PROBABILITY_FLOOR).log()


def _log_mean_sigmoid(logits: Tensor, mean: Tensor) -> Tensor:
    """Return the log of the members' mean sigmoid, `[B, M, K, V]` to `[B, K, V]`; `mean` is that sigmoid."""
    result = mean.log()
    # below this a sigmoid loses digits, and then is 0
    tiny = mean < _SMALLEST_EXACT
    if bool(tiny.any()):
        chosen = logits.transpose(0, 1)[:, tiny].double()
        result[tiny] = F.logsigmoid(chosen).logsumexp(dim=0) - math.log(logits.shape[1])
    return result


def _member_maps(logits: Tensor) -> MemberMaps:
    """Return the maps of a part of the voxels, `[B, M, K, v]` to `[B, K, v]`."""
    logits = logits.double()
    mean_log_p = F.logsigmoid(logits).mean(dim=1)
    # log (1 - sigmoid(x)) = log sigmoid(x) - x
    mean_log_not_p = mean_log_p - logits.mean(dim=1)
    opposite = -logits
    log_mean_not_p = _log_mean_sigmoid(opposite, torch.sigmoid(opposite).mean(dim=1))
    return MemberMaps(mean_log_p, mean_log_not_p, log_mean_not_p)
