"""Read-out of a prediction: probability, disagreement and decision from its members."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from scipy.special import betainc
from torch import Tensor

from edue_lightning.uncertainty.exclusive import capped_log_odds, exclusive_decision, exclusive_log_odds
from edue_lightning.uncertainty.maps import Tie, at_least_float32, foreground, member_mean, member_variance
from edue_lightning.uncertainty.mask_rule import HALF, MaskRule

MAPS = ("probability", "disagreement", "decision")
"""Maps of a prediction, `[B, K, *S]` in [0, 1]:

- probability: p, the expected share of the raters who mark a voxel;
- disagreement: V, the expected variance between the raters;
- decision: the map whose mask is `decision >= 0.5`, or another threshold of the `MaskRule`.
"""

# decimals of a share times a number of levels, so that 0.7 of 10 levels is level 7
_DECIMALS = 9


@dataclass(frozen=True)
class Readout:
    """Read-out of a prediction's maps from its channels: pure functions of each voxel.

    A prediction has the channels `[B, M + n, K, *S]`: the M members, and then n maps of its own, in the order of
    `own_maps`. All channels are logits before, probabilities after the sigmoid of their `log_odds`; sliding windows
    average logits.

    Members are either exchangeable opinions (the default) or nested levels: member k = 1..M is then
    `pi_k = P(q >= k / M)`, the probability that at least k of M raters mark the voxel, in descending order.

    | map | opinions | levels |
    |---|---|---|
    | probability | mean of the members | mean of the members, `E[q]` |
    | disagreement | variance between the members | `1/M^2 sum_k (M + 1 - 2k) pi_k = E[q (1 - q)]` |
    | decision | probability | `pi_k` of the smallest k with a majority |
    | mask of at least a share t | `probability >= t` | `pi_k >= 0.5` of the smallest `k >= t M` |

    Of structures that exclude each other, the logits are those of a softmax (of levels see `capped_log_odds`), so that
    probabilities add up to 1 with that of the background, and the decision is the `exclusive_decision` of the
    probability, or of the prediction's own decision.

    Attributes:
        levels: whether the members are nested levels.
        own_maps: names of the maps (of `MAPS`) that the prediction has channels for; each replaces what would be read
            from the members.
        majority_tie: class of a voxel that exactly half of the raters marked, which chooses the level of the decision.
        mask: threshold of the decision, and whether it is the probability after all. It is no part of `as_dict`: it is
            chosen anew for each use.
        exclusive: whether the structures exclude each other.

    Raises:
        ValueError: if a map is unknown or named twice, or the tie is unknown.
    """

    levels: bool = False
    own_maps: tuple[str, ...] = ()
    majority_tie: Tie = "foreground"
    mask: MaskRule = HALF
    exclusive: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.own_maps if name not in MAPS]
        if unknown or len(set(self.own_maps)) < len(self.own_maps):
            raise ValueError(f"own_maps must be some of {', '.join(MAPS)}, each once, not {list(self.own_maps)}")
        if self.majority_tie not in get_args(Tie):
            raise ValueError(f"majority_tie must be one of {', '.join(get_args(Tie))}, not {self.majority_tie!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return the read-out as plain values."""
        return {
            "levels": self.levels,
            "own_maps": list(self.own_maps),
            "majority_tie": self.majority_tie,
            "exclusive": self.exclusive,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Readout:
        """Return the read-out that `as_dict` described.

        Raises:
            ValueError: if a value is invalid; KeyError or TypeError if one is missing or of another type.
        """
        levels, own_maps, tie = stored["levels"], stored["own_maps"], stored["majority_tie"]
        if not isinstance(levels, bool) or not isinstance(own_maps, list | tuple):
            raise ValueError(f"levels must be true or false and own_maps a list, not {levels!r} and {own_maps!r}")
        # those of earlier versions have no such entry
        exclusive = stored.get("exclusive", False)
        if not isinstance(exclusive, bool):
            raise ValueError(f"exclusive must be true or false, not {exclusive!r}")
        return cls(levels, tuple(map(str, own_maps)), tie, exclusive=exclusive)

    def count(self, channels: int) -> int:
        """Return M, the number of members among some channels."""
        return channels - len(self.own_maps)

    def has_disagreement(self, channels: int) -> bool:
        """Return whether a prediction of so many channels has a disagreement: a single opinion has no variance."""
        return self.count(channels) > 1 or "disagreement" in self.own_maps

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return the logits whose sigmoid are the probabilities, `[B, M + n, K, *S]`: the one place of the softmax.

        They are the logits themselves, unless the structures exclude each other.

        Args:
            logits: logits `[B, M + n, K, *S]` of a method, after sliding windows have averaged them.
        """
        if not self.exclusive:
            return logits
        logits = at_least_float32(logits)
        members = self.members(logits)
        parts = [capped_log_odds(members) if self.levels else exclusive_log_odds(members, dim=2)]
        for position, name in enumerate(self.own_maps, start=members.shape[1]):
            own = logits[:, position : position + 1]
            # a variance is no probability of a class
            parts.append(own if name == "disagreement" else exclusive_log_odds(own, dim=2))
        return torch.cat(parts, dim=1) if self.own_maps else parts[0]

    def members(self, channels: Tensor) -> Tensor:
        """Return the members of a prediction, `[B, M + n, K, *S]` to `[B, M, K, *S]`."""
        return channels[:, : self.count(channels.shape[1])]

    def own_map(self, channels: Tensor, name: str) -> Tensor | None:
        """Return a map that the prediction has a channel for, `[B, K, *S]`, or None."""
        if name not in self.own_maps:
            return None
        return channels[:, self.count(channels.shape[1]) + self.own_maps.index(name)]

    def probability(self, channels: Tensor) -> Tensor:
        """Return p, `[B, K, *S]`, for probabilities `[B, M + n, K, *S]`, in float32 or better."""
        own = self.own_map(channels, "probability")
        return member_mean(self.members(channels)) if own is None else at_least_float32(own)

    def disagreement(self, channels: Tensor) -> Tensor:
        """Return V, `[B, K, *S]`, for probabilities `[B, M + n, K, *S]`; 0 for a single opinion, which has none."""
        own = self.own_map(channels, "disagreement")
        if own is not None:
            return at_least_float32(own)
        members = self.members(channels)
        return level_variance(members) if self.levels else member_variance(members)

    @property
    def decides_by_probability(self) -> bool:
        """Whether the decision is the probability."""
        return self.mask.takes_probability or not (self.exclusive or self.levels or "decision" in self.own_maps)

    def decision(self, channels: Tensor) -> Tensor:
        """Return the map that the mask is taken from, `[B, K, *S]`, for probabilities `[B, M + n, K, *S]`."""
        if self.decides_by_probability:
            return self.probability(channels)
        own = self.own_map(channels, "decision")
        if own is None:
            return self.majority_probability(channels)
        return exclusive_decision(own, dim=1) if self.exclusive else at_least_float32(own)

    def majority_probability(self, channels: Tensor, probability: Tensor | None = None) -> Tensor:
        """Return the probability that the majority of the raters marks a voxel, `[B, K, *S]`, as the members give it.

        It is `pi_k` of the smallest k with a majority, p of opinions, and of structures that exclude each other the
        `exclusive_decision` of p. A decision of the prediction's own is no such probability: it may be trained for
        masks alone.

        Args:
            channels: probabilities `[B, M + n, K, *S]`.
            probability: `probability(channels)`, if it is known already.
        """
        if self.levels and not self.exclusive:
            members = self.members(channels)
            return at_least_float32(members[:, majority_level(members.shape[1], self.majority_tie) - 1])
        p = self.probability(channels) if probability is None else probability
        return exclusive_decision(p, dim=1) if self.exclusive else p

    def member_masks(self, members: Tensor) -> Tensor:
        """Return the masks of the members, `[B, M, K, *S]` bool: of at least one half, or the most probable class.

        Args:
            members: probabilities `[B, M, K, *S]`. Levels are no opinions, so those of two structures may overlap.
        """
        if self.exclusive and not self.levels:
            return foreground(exclusive_decision(members, dim=2))
        return foreground(members)

    def share_reached(self, channels: Tensor, share: float, probability: Tensor | None = None) -> Tensor:
        """Return the mask of the voxels that at least a share of the raters is expected to mark, `[B, K, *S]` bool.

        Args:
            channels: probabilities `[B, M + n, K, *S]`.
            share: above 0, at most 1.
            probability: `probability(channels)`, if it is known already.
        """
        if not self.levels:
            # as in float32, in which 7 of 10 raters reach 0.7
            return (self.probability(channels) if probability is None else probability).float() >= share
        return foreground(self._level_of_share(channels, share))

    def share_probability(
        self, channels: Tensor, share: float, raters: int, probability: Tensor | None = None
    ) -> Tensor:
        """Return the probability that at least a share of the raters marks a voxel, `[B, K, *S]`.

        Of levels it is `pi_k` of the smallest k >= share * M. Otherwise the raters count as independent, each of them
        marking the voxel with the probability p: `P(Binomial(R, p) >= share * R)`.

        Args:
            channels: probabilities `[B, M + n, K, *S]`.
            share: above 0, at most 1.
            raters: R, the number of raters; levels do not depend on it.
            probability: `probability(channels)`, if it is known already.
        """
        if self.levels:
            return at_least_float32(self._level_of_share(channels, share))
        count = _count_of_share(share, raters)
        p = self.probability(channels) if probability is None else probability
        # the tail of a binomial distribution, as the regularised incomplete beta function
        tail = betainc(count, raters - count + 1, p.double().cpu().numpy())
        return torch.as_tensor(tail, dtype=p.dtype, device=p.device)

    def _level_of_share(self, channels: Tensor, share: float) -> Tensor:
        """Return `pi_k` of the smallest k >= share * M, `[B, K, *S]`."""
        members = self.members(channels)
        return members[:, _count_of_share(share, members.shape[1]) - 1]


MEMBERS = Readout()
"""Read-out of exchangeable members, the default."""


def _count_of_share(share: float, raters: int) -> int:
    """Return the smallest number of raters that is at least a share of them."""
    return math.ceil(round(share * raters, _DECIMALS))


def majority_level(levels: int, tie: Tie) -> int:
    """Return the smallest k that is a majority of as many raters as there are levels."""
    return (levels + 1) // 2 if tie == "foreground" else levels // 2 + 1


def level_variance(levels: Tensor) -> Tensor:
    """Return `1/M^2 sum_k (M + 1 - 2k) pi_k`, the expectation of V* = q (1 - q), `[B, M, K, *S]` to `[B, K, *S]`.

    It is linear in the probabilities of the levels, so unbiased where these are, and at least 0 where they descend.

    Args:
        levels: `pi_k`, the probability that at least k of M raters mark the voxel, in descending order.
    """
    parts = at_least_float32(levels).unbind(dim=1)
    count = len(parts)
    total = torch.zeros_like(parts[0])
    # the weights are antisymmetric; from differences, equal levels give exactly 0 and descending ones nothing below it
    for number in range(count // 2):
        total.add_(parts[number] - parts[-1 - number], alpha=count - 1 - 2 * number)
    return total.div_(count**2)
