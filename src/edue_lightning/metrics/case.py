"""One case as the metrics see it: each shared map is computed once, on first use."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.uncertainty import (
    MEMBERS,
    PairOverlap,
    Readout,
    foreground,
    majority,
    masks_of,
    pair_overlap,
    total_variance,
)

PROBABILITY_FLOOR = 1e-7
"""Smallest given probability, and smallest 1 - p, inside a logarithm, so that one wrong sure voxel costs 16 nats and
not infinity. Logits need no floor."""

# a prediction counts as constant if its values differ by less than this many roundings
_ROUNDINGS = 32

_SMALLEST_EXACT = 1e-300

_PART = 2**20
"""Number of voxels processed at a time, so that a large volume needs one copy of the members only."""


class Case:
    """The prediction and the raters' masks of one case, with its V voxels in a row, in float64.

    Where the case has a region, V counts the voxels within it alone.

    In float32 the logarithm of a mean of many sure members would be too inexact.

    Args:
        members: `[M, K, *S]`, and behind them the maps of `readout.own_maps`.
        masks: `[R, K, *S]` in {0, 1}.
        valid: `[R]` bool; the masks of other raters are ignored.
        spacing: `[n]`, mm along each spatial axis; 1 where it is unknown.
        contents: contents of `members`, logits or probabilities.
        settings: see `MetricSettings`.
        structures: names of the K structures.
        region: `[*S]` bool, the voxels that count; None if all do. The others take no part in anything.
        readout: how the maps are read from the members.

    Raises:
        ValueError: if a mask of a valid rater holds another number than 0 and 1.
    """

    def __init__(
        self,
        members: Tensor,
        masks: Tensor,
        valid: Tensor,
        spacing: Tensor,
        contents: Members,
        settings: MetricSettings,
        structures: tuple[str, ...],
        region: Tensor | None = None,
        readout: Readout = MEMBERS,
    ) -> None:
        self._inside = None if region is None else region.flatten()
        self._channels = self._counted(members.flatten(2))
        self._members = readout.members(self._channels[None])[0]
        self.readout = readout
        self._contents = contents
        # coarser types hold exact multiples of theirs, but are computed in float32
        coarsest = torch.finfo(torch.float32).eps
        self._rounding = _ROUNDINGS * min(torch.finfo(members.dtype).eps, coarsest)
        self.masks = self._counted(_as_bool(masks[valid]).flatten(2))
        self.shape = members.shape[2:]
        self.spacing = spacing
        self.settings = settings
        self.structures = structures

    @property
    def n_members(self) -> int:
        """Number of members, M."""
        return self._members.shape[0]

    @property
    def n_raters(self) -> int:
        """Number of valid raters."""
        return self.masks.shape[0]

    @property
    def voxel_size(self) -> float:
        """Size of a voxel, mm² or mm³."""
        return float(self.spacing.double().prod())

    @cached_property
    def channels(self) -> Tensor:
        """Probabilities of the members and of the prediction's own maps, see `Readout`, `[M + n, K, V]`."""
        if self._contents == "probabilities":
            return self._channels.double()
        return self._channels.to(torch.float64, copy=True).sigmoid_()

    @property
    def probabilities(self) -> Tensor:
        """Member probabilities, `[M, K, V]`."""
        return self.readout.members(self.channels[None])[0]

    @cached_property
    def mean(self) -> Tensor:
        """Probability p, the mean of the members unless the prediction has its own, `[K, V]`."""
        return self.readout.probability(self.channels[None])[0]

    @property
    def has_disagreement(self) -> bool:
        """Whether V is defined: a single opinion has no variance."""
        return self.readout.has_disagreement(len(self._channels))

    @cached_property
    def marked(self) -> Tensor:
        """Number of raters who marked each voxel, `[K, V]`."""
        return self.masks.sum(dim=0, dtype=torch.float64)

    @cached_property
    def share(self) -> Tensor:
        """Share q of the raters who marked each voxel, `[K, V]`; a tie is exactly 0.5."""
        return self.marked / max(self.n_raters, 1)

    @cached_property
    def disagreement(self) -> Tensor:
        """Disagreement V, `[K, V]`; 0 where it is undefined, or rounding explains all of a structure's V."""
        variance = _by_parts(lambda part: self.readout.disagreement(part[None])[0], self.channels)
        if "disagreement" in self.readout.own_maps:
            return variance
        rounding = self._rounding * self._largest_member
        # sums over cases of such variances would correlate with anything
        variance[variance.amax(dim=1) <= (rounding if self.readout.levels else rounding.square())] = 0
        return variance

    @cached_property
    def _largest_member(self) -> Tensor:
        # levels enter V one by one, opinions relative to their mean
        return self.probabilities.amax(dim=(0, 2)) if self.readout.levels else self.mean.amax(dim=1)

    @cached_property
    def total(self) -> Tensor:
        """p (1 - p), `[K, V]`."""
        return total_variance(self.mean[None, None])[0]

    @cached_property
    def expert(self) -> Tensor:
        """Variance V* = q (1 - q) between the raters, `[K, V]`."""
        return total_variance(self.share[None, None])[0]

    @property
    def variance_rounding(self) -> Tensor:
        """Largest range of V over the voxels that rounding of the predictions alone can explain, `[K]`."""
        largest = self.disagreement.amax(dim=1)
        if "disagreement" in self.readout.own_maps:
            return self._rounding * largest
        rounding = self._rounding * self._largest_member
        # of the square of a spread that is known up to the rounding of p; levels enter V linearly
        return rounding if self.readout.levels else rounding * (largest.sqrt() + rounding)

    def rounding_of(self, values: Tensor) -> Tensor:
        """Return the largest range of a map that rounding of the predictions alone can explain, `[K, V]` to `[K]`.

        Args:
            values: p (1 - p), or a map of logarithms.
        """
        largest = values.abs().amax(dim=1)
        if self._contents == "probabilities":
            # p near 1 is rounded as coarsely as 1, and 1 - p with it
            largest = torch.maximum(largest, self.mean.amax(dim=1))
        return self._rounding * largest

    @cached_property
    def decision(self) -> Tensor:
        """Map that the mask is taken from, p unless the read-out has another, `[K, V]`."""
        return self.readout.decision(self.channels[None])[0]

    @cached_property
    def predicted(self) -> Tensor:
        """Predicted mask, the decision at the threshold of the read-out's `MaskRule` in float32, `[K, V]`."""
        return masks_of(self.decision, self.readout.mask.of_image(self.decision, self.structures))

    def share_reached(self, share: float) -> Tensor:
        """Return the mask of the voxels that at least a share of the raters is expected to mark, `[K, V]`."""
        return self.readout.share_reached(self.channels[None], share)[0]

    @cached_property
    def consensus(self) -> Tensor:
        """Soft-majority mask, q >= 0.5 (or > 0.5, see `MetricSettings`), `[K, V]`."""
        return majority(self.share, self.settings.majority_tie)

    @cached_property
    def log_mean(self) -> tuple[Tensor, Tensor]:
        """Log p and log (1 - p), each `[K, V]` and finite for every finite logit."""
        if self._contents == "probabilities":
            return _floored_log(self.mean), _floored_log(1 - self.mean)
        own = self.readout.own_map(self._channels[None], "probability")
        if own is not None:
            return F.logsigmoid(own[0].double()), F.logsigmoid(-own[0].double())
        log_p = _log_mean_sigmoid(self._members, self.mean)
        return log_p, _by_parts(lambda part: _log_mean_sigmoid(-part.double()), self._members)

    @cached_property
    def mean_log(self) -> tuple[Tensor, Tensor]:
        """Mean over members of log p and of log (1 - p), each `[K, V]`."""
        if self._contents == "probabilities":
            return (
                _by_parts(lambda part: _floored_log(part).mean(dim=0), self.probabilities),
                _by_parts(lambda part: _floored_log(1 - part).mean(dim=0), self.probabilities),
            )
        log_p = _mean_log_sigmoid(self._members, self.probabilities)
        # log (1 - sigmoid(x)) = log sigmoid(x) - x
        return log_p, log_p - self._members.mean(dim=0, dtype=torch.float64)

    @cached_property
    def overlap(self) -> PairOverlap:
        """Overlap of the masks: predicted, consensus, the M members', the R raters', `[K, 2 + M + R, 2 + M + R]`."""
        stacked = [self.predicted[None], self.consensus[None], foreground(self.probabilities), self.masks]
        return pair_overlap(torch.cat(stacked).transpose(0, 1))

    @property
    def members_overlap(self) -> PairOverlap:
        """Overlap of the masks: predicted, the M members', `[K, 1 + M, 1 + M]`."""
        return self.overlap.select([0, *range(2, 2 + self.n_members)])

    @property
    def of_members(self) -> slice:
        """Positions of the members' masks in `overlap`."""
        return slice(2, 2 + self.n_members)

    @property
    def of_raters(self) -> slice:
        """Positions of the raters' masks in `overlap`."""
        return slice(2 + self.n_members, None)

    def on_grid(self, values: Tensor) -> Tensor:
        """Return values `[K, V]` on the image's grid, `[K, *S]`; zero outside of the region."""
        if self._inside is not None:
            placed = values.new_zeros(len(values), len(self._inside))
            placed[:, self._inside] = values
            values = placed
        return values.unflatten(1, self.shape)

    def _counted(self, values: Tensor) -> Tensor:
        return values if self._inside is None else values[..., self._inside]


def _as_bool(masks: Tensor) -> Tensor:
    if masks.dtype == torch.bool:
        return masks
    marked = masks > 0
    if masks.is_floating_point():
        binary = torch.equal(marked.to(masks.dtype), masks)
    else:
        # one pass over whole numbers, several times as fast
        binary = not masks.numel() or all(0 <= int(end) <= 1 for end in masks.aminmax())
    if not binary:
        low, high = masks.min().item(), masks.max().item()
        raise ValueError(
            f"masks must hold 0 and 1 only, not values from {low:g} to {high:g}; threshold soft masks (masks >= 0.5), "
            "and divide masks of 0 and 255 by 255"
        )
    return marked


def _by_parts(function: Callable[[Tensor], Tensor], members: Tensor) -> Tensor:
    """Apply a voxelwise function from `[M, K, v]` to `[K, v]`, to a part of the voxels at a time."""
    return torch.cat([function(part) for part in members.split(_PART, dim=-1)], dim=-1)


def _floored_log(probability: Tensor) -> Tensor:
    return probability.clamp_min(PROBABILITY_FLOOR).log()


def _log_mean_sigmoid(logits: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return the log of the members' mean sigmoid, `[M, K, V]` to `[K, V]`; `mean` is that sigmoid if already known."""
    mean = torch.sigmoid(logits).mean(dim=0) if mean is None else mean
    result = mean.log()
    # below this a sigmoid loses digits, and then is 0
    tiny = mean < _SMALLEST_EXACT
    if bool(tiny.any()):
        result[tiny] = F.logsigmoid(logits[:, tiny].double()).logsumexp(dim=0) - math.log(len(logits))
    return result


def _mean_log_sigmoid(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the members' mean log sigmoid, `[M, K, V]` to `[K, V]`; `probabilities` are the sigmoids."""
    # one logarithm per voxel instead of M
    product = probabilities.prod(dim=0)
    result = product.log() / len(logits)
    tiny = product < _SMALLEST_EXACT
    if bool(tiny.any()):
        result[tiny] = F.logsigmoid(logits[:, tiny].double()).mean(dim=0)
    return result
