"""Correlation between a model's disagreement and the raters', by image and by voxel."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from edue_lightning.metrics.functional.flat_case import FlatCase, ReadOut, check_read_out, each_case
from edue_lightning.uncertainty.scores import sum_of_variances

FEWEST_PAIRS = 3
"""Two points always lie on a line."""

CONSTANT = 1e-13
"""A standard deviation below this share of the largest magnitude is float64 rounding."""


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation over the last axis; pairs with a NaN are left out.

    Args:
        first: `[..., N]`.
        second: `[..., N]`.

    Returns:
        `[...]` float64 in [-1, 1]; NaN with fewer than three pairs, or where one side is constant.
    """
    defined = ~(first.isnan() | second.isnan())
    product = _unit_deviations(first, defined) * _unit_deviations(second, defined)
    return torch.where(defined.sum(dim=-1) >= FEWEST_PAIRS, product.sum(dim=-1).clamp(-1, 1), torch.nan)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation over the last axis (ties share their mean rank); otherwise as `pearson`."""
    defined = ~(first.isnan() | second.isnan())
    return pearson(_ranks(first, defined), _ranks(second, defined))


def pixel_correlation(
    logits: Tensor, masks: Tensor, valid: Tensor, read_out: ReadOut = "member_variance"
) -> Tensor:
    """Return Pearson's correlation over the voxels of a case between the model's and the raters' variance maps.

    Source: the paper's pixel-level correlation. VALUES' `ncc` (Kahl et al., ICLR 2024) is this times `(N - 1) / N`.

    Args:
        logits: member logits, `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        read_out: the model's map: `member_variance` V, or `total_variance` p (1 - p).

    Returns:
        `[B, K]` float64 in [-1, 1], higher is better; NaN for a case with fewer than two valid raters, or where
        either map is constant (raters who agree everywhere, a single member).
    """
    check_read_out(read_out)
    return each_case(partial(case_pixel_correlation, read_out=read_out), logits, masks, valid)


def image_scores(
    logits: Tensor, masks: Tensor, valid: Tensor, voxel_size: Tensor, read_out: ReadOut = "member_variance"
) -> tuple[Tensor, Tensor]:
    """Return the sums of the model's and the raters' variance maps, the two sides of the image-level correlation.

    Args:
        logits: member logits, `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        voxel_size: mm² or mm³ a voxel, `[B]`.
        read_out: the model's map: `member_variance` V, or `total_variance` p (1 - p).

    Returns:
        SV and SV*, `[B, K]` float64 each, at least 0, in mm² or mm³; SV* is NaN with fewer than two valid raters.
    """
    check_read_out(read_out)
    model = each_case(lambda case: case.disagreement(read_out), logits, masks, valid)
    raters = each_case(lambda case: case.rater_variance, logits, masks, valid)
    return sum_of_variances(model, voxel_size), sum_of_variances(raters, voxel_size)


def case_pixel_correlation(case: FlatCase, read_out: ReadOut) -> Tensor:
    """Return `pixel_correlation` of one case, `[K]`."""
    return pearson(case.disagreement(read_out), case.rater_variance)


def _unit_deviations(values: Tensor, defined: Tensor) -> Tensor:
    """Return the deviations from the mean, scaled to a norm of 1; 0 where undefined, all NaN if constant."""
    values = torch.where(defined, values.to(torch.float64), 0.0)
    largest = values.abs().amax(dim=-1, keepdim=True)
    # dividing first keeps the squares of small variances from underflow
    values = values / largest
    count = defined.sum(dim=-1, keepdim=True)
    deviations = torch.where(defined, values - values.sum(dim=-1, keepdim=True) / count, 0.0)
    norm = torch.linalg.vector_norm(deviations, dim=-1, keepdim=True)
    varies = (largest > 0) & (norm > CONSTANT * count.sqrt())
    return torch.where(varies, deviations / norm, torch.nan)


def _ranks(values: Tensor, defined: Tensor) -> Tensor:
    # undefined values rank last, and so leave the ranks of the others alone
    ranks = rankdata(torch.where(defined, values, torch.inf).cpu().numpy(), axis=-1)
    return torch.where(defined, torch.from_numpy(np.asarray(ranks)).to(values.device), torch.nan)
