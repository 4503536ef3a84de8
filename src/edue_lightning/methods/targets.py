"""Training targets of the members: one rater each, or a consensus."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.uncertainty.exclusive import plurality
from edue_lightning.uncertainty.maps import Tie, majority, rater_mean

Target = Literal["majority", "soft_majority", "random_rater", "rater_per_member"]
"""Training target of a network:

- `majority`: the mask of voxels that most of the valid raters marked; see `Tie` for exactly half of them, and
    `plurality` for structures that exclude each other;
- `soft_majority`: the share q of the valid raters;
- `random_rater`: one valid rater, drawn anew for each case and epoch;
- `rater_per_member`: member m always learns from rater m, see `fixed_raters`.
"""

# odd 64-bit constants of the splitmix64 generator (Steele et al., OOPSLA 2014), as signed integers
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift_right(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _splitmix64(state: Tensor) -> Tensor:
    bits = state + _GOLDEN_GAMMA
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def draw_raters(valid: Tensor, draw_key: Tensor, draws: int) -> Tensor:
    """Draw raters uniformly among the valid ones, each draw independently.

    The draws depend on the keys alone: they are the same on every device and in every batch. They are computed on the
    device of the tensors, without a synchronisation.

    Args:
        valid: `[B, R]` bool, at least one true in each row.
        draw_key: `[B]` int64.
        draws: number of raters to draw for each case.

    Returns:
        `[B, draws]` int64, positions on the rater axis.
    """
    raters = valid.shape[1]
    # a rater's lot does not depend on the number of padded raters in the batch
    lane = torch.arange(draws, device=valid.device)[:, None] * 2**20 + torch.arange(raters, device=valid.device)
    lots = _splitmix64(_splitmix64(draw_key[:, None, None]) + lane)
    lots = _shift_right(lots, 1).masked_fill(~valid[:, None, :], -1)
    return lots.argmax(dim=2)


def fixed_raters(valid: Tensor, member: int) -> Tensor:
    """Return the rater of each case that member `member` learns from.

    It is rater `member`; if that rater is missing or does not exist, the case's valid raters take turns: the one at
    position `member` modulo their number. So it depends on the case alone, and not on the batch.

    Args:
        valid: `[B, R]` bool, at least one true in each row.
        member: position of the member, from 0.

    Returns:
        `[B, 1]` int64, positions on the rater axis.
    """
    # a batch's padding adds raters, so their number decides nothing
    own = torch.full_like(valid[:, 0], min(member, valid.shape[1] - 1), dtype=torch.int64)
    rank_wanted = member % valid.sum(dim=1)
    rank = valid.cumsum(dim=1) - 1
    substitute = ((rank == rank_wanted[:, None]) & valid).to(torch.int64).argmax(dim=1)
    own_is_valid = valid.gather(1, own[:, None])[:, 0] & (member < valid.shape[1])
    return torch.where(own_is_valid, own, substitute)[:, None]


def select_raters(masks: Tensor, raters: Tensor) -> Tensor:
    """Pick masks by rater: `[B, R, K, *S]` and positions `[B, n]` to `[B, n, K, *S]`."""
    rows = torch.arange(masks.shape[0], device=masks.device)[:, None]
    return masks[rows, raters]


def member_target(
    batch: RaterBatch, target: Target, member: int = 0, tie: Tie = "foreground", exclusive: bool = False
) -> Tensor:
    """Return the training target of one member, `[B, 1, K, *S]` float32 in [0, 1].

    Args:
        batch: the cases.
        target: kind of target.
        member: position of the member, for `rater_per_member`.
        tie: class of a voxel that exactly half of the raters marked, for `majority`.
        exclusive: whether the structures exclude each other, so that `majority` is the class of most raters.
    """
    if target == "random_rater":
        return select_raters(batch.masks, draw_raters(batch.valid, batch.draw_key, 1)).float()
    if target == "rater_per_member":
        return select_raters(batch.masks, fixed_raters(batch.valid, member)).float()
    share = rater_mean(batch.masks, batch.valid)[:, None]
    if target == "soft_majority":
        return share
    return (plurality(share, tie, dim=2) if exclusive else majority(share, tie)).float()
