"""Calibration of the mean prediction, from bin sums that add up over cases, batches and devices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edue_lightning.metrics.functional.flat_case import FlatCase, flat_cases

N_BINS = 15
"""Bins of equal width in [0, 1], as in Naeini et al., AAAI 2015."""


class CalibrationBins(NamedTuple):
    """Sums over the labels of each bin; a label is one voxel as one valid rater saw it.

    Attributes:
        count: number of labels, `[..., bins]`.
        probability: sum of the foreground probabilities, `[..., bins]`.
        label: number of foreground labels, `[..., bins]`.
    """

    count: Tensor
    probability: Tensor
    label: Tensor


class ReliabilityCurve(NamedTuple):
    """What a reliability diagram shows of each bin; NaN in an empty one.

    Attributes:
        edges: of the bins, `[bins + 1]`.
        count: number of labels, `[..., bins]`.
        mean_probability: `[..., bins]`.
        frequency: share of foreground labels, `[..., bins]`.
    """

    edges: Tensor
    count: Tensor
    mean_probability: Tensor
    frequency: Tensor


def calibration_bins(logits: Tensor, masks: Tensor, valid: Tensor, n_bins: int = N_BINS) -> CalibrationBins:
    """Return the bin sums of each case, by foreground probability and against every valid rater's label.

    A bin includes its lower edge; the last one includes 1 as well.

    Args:
        logits: member logits, `[B, M, K, *S]`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        n_bins: of equal width.

    Returns:
        `[B, K, bins]` float64 each; all 0 for a case without a valid rater.
    """
    bins = [case_calibration_bins(case, n_bins) for case in flat_cases(logits, masks, valid)]
    return CalibrationBins(*(torch.stack(column) for column in zip(*bins, strict=True)))


def expected_calibration_error(bins: CalibrationBins) -> Tensor:
    """Return the mean distance between the probability and the frequency of a bin, weighted by the bin's labels.

    Source: Naeini et al., AAAI 2015, by foreground probability. Labels are pooled: a case with more voxels or more
    raters weighs more. With background in the first bin mostly, the value depends on the field of view.

    Args:
        bins: sums over whatever the error is wanted of, `[..., bins]`.

    Returns:
        `[...]` float64 in [0, 1], lower is better; NaN without a label.
    """
    return (bins.probability - bins.label).abs().sum(dim=-1) / bins.count.sum(dim=-1)


def reliability_curve(bins: CalibrationBins) -> ReliabilityCurve:
    """Return the mean probability and the frequency of foreground in each bin, `[..., bins]` each."""
    edges = torch.linspace(0, 1, bins.count.shape[-1] + 1, dtype=torch.float64)
    return ReliabilityCurve(edges, bins.count, bins.probability / bins.count, bins.label / bins.count)


def case_calibration_bins(case: FlatCase, n_bins: int) -> CalibrationBins:
    """Return `calibration_bins` of one case, `[K, bins]` each."""
    probability = case.mean_probability
    n_structures = probability.shape[0]
    bins = (probability * n_bins).long().clamp_max(n_bins - 1)
    # one row of bins a structure; index_add is exact under deterministic algorithms too, bincount is not allowed there
    bins += n_bins * torch.arange(n_structures, device=bins.device).unsqueeze(1)
    sums = []
    for values in (torch.full_like(probability, case.n_raters), probability * case.n_raters, case.votes):
        total = values.new_zeros(n_structures * n_bins)
        sums.append(total.index_add_(0, bins.flatten(), values.flatten()).reshape(n_structures, n_bins))
    return CalibrationBins(*sums)
