"""Which rater, or which consensus, a member learns from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.uncertainty.maps import rater_mean

Target = Literal["majority", "soft_majority", "random_rater", "rater_per_member"]
"""What a network is trained on:

- `majority`: the mask of voxels that at least half of the valid raters marked;
- `soft_majority`: the share q of the valid raters itself;
- `random_rater`: one valid rater, drawn anew for each case and epoch;
- `rater_per_member`: member m learns from rater m (modulo the number of raters), always.
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
    """Draw raters uniformly among the valid ones, each draw on its own.

    The draws follow from the keys alone: the same on every device, and whatever else is in the batch. They are
    made where the tensors lie, without waiting for the device.

    Args:
        valid: `[B, R]` bool, at least one true in each row.
        draw_key: `[B]` int64.
        draws: how many raters to draw for each case.

    Returns:
        `[B, draws]` int64, positions on the rater axis.
    """
    raters = valid.shape[1]
    # a rater's lot must not depend on how many padded raters the batch happens to have
    lane = torch.arange(draws, device=valid.device)[:, None] * 2**20 + torch.arange(raters, device=valid.device)
    lots = _splitmix64(_splitmix64(draw_key[:, None, None]) + lane)
    lots = _shift_right(lots, 1).masked_fill(~valid[:, None, :], -1)
    return lots.argmax(dim=2)


def fixed_raters(valid: Tensor, member: int) -> Tensor:
    """Return the rater that member `member` learns from in each case.

    It is rater `member` modulo the number of raters R; where that rater is missing, one of the valid raters takes
    the place, always the same one.

    Args:
        valid: `[B, R]` bool, at least one true in each row.
        member: counted from 0.

    Returns:
        `[B, 1]` int64, positions on the rater axis.
    """
    own = torch.full_like(valid[:, 0], member % valid.shape[1], dtype=torch.int64)
    rank_wanted = member % valid.sum(dim=1)
    rank = valid.cumsum(dim=1) - 1
    substitute = ((rank == rank_wanted[:, None]) & valid).to(torch.int64).argmax(dim=1)
    own_is_valid = valid.gather(1, own[:, None])[:, 0]
    return torch.where(own_is_valid, own, substitute)[:, None]


def select_raters(masks: Tensor, raters: Tensor) -> Tensor:
    """Pick masks by rater: `[B, R, K, *S]` and positions `[B, n]` to `[B, n, K, *S]`."""
    rows = torch.arange(masks.shape[0], device=masks.device)[:, None]
    return masks[rows, raters]


def member_target(batch: RaterBatch, target: Target, member: int = 0) -> Tensor:
    """Return what one member is trained on, `[B, 1, K, *S]` float32 in [0, 1]; ties of a majority are foreground."""
    if target == "random_rater":
        return select_raters(batch.masks, draw_raters(batch.valid, batch.draw_key, 1)).float()
    if target == "rater_per_member":
        return select_raters(batch.masks, fixed_raters(batch.valid, member)).float()
    share = rater_mean(batch.masks, batch.valid)[:, None]
    return share if target == "soft_majority" else (share >= 0.5).float()
