"""Random cases, and every number of a case computed independently, with widely used packages."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.integrate import quad
from scipy.optimize import linprog
from scipy.stats import norm, pearsonr
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor


class Cases(NamedTuple):
    """Arguments of a metric's `update`."""

    logits: Tensor
    masks: Tensor
    valid: Tensor
    spacing: Tensor

    def select(self, cases: Tensor | slice) -> Cases:
        """Return some of the cases."""
        return Cases(*(part[cases] for part in self))


def random_cases(
    seed: int,
    *,
    cases: int = 3,
    members: int = 3,
    raters: int = 4,
    structures: int = 2,
    size: Sequence[int] = (9, 8),
) -> Cases:
    """Return random cases; with several raters, every second case lacks one."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(cases, members, structures, *size, generator=generator)
    shared = torch.rand(cases, 1, structures, *size, generator=generator)
    own = torch.rand(cases, raters, structures, *size, generator=generator)
    valid = torch.ones(cases, raters, dtype=torch.bool)
    if raters > 1:
        valid[1::2, 0] = False
    masks = ((shared + 0.5 * own > 0.8) & valid.reshape(cases, raters, *[1] * (len(size) + 1))).to(torch.uint8)
    return Cases(logits, masks, valid, torch.rand(cases, len(size), generator=generator) + 0.4)


def naive_dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2 * int((first & second).sum()) / total


def naive_iou(first: np.ndarray, second: np.ndarray) -> float:
    union = int((first | second).sum())
    return 1.0 if union == 0 else int((first & second).sum()) / union


def naive_ged2(members: np.ndarray, raters: np.ndarray) -> float:
    def expectation(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean([1 - naive_iou(a, b) for a in first for b in second]))

    return 2 * expectation(members, raters) - expectation(members, members) - expectation(raters, raters)


def naive_transport(similarity: np.ndarray, of_member: float, at_most: bool, of_rater: float) -> float:
    """Return the largest total similarity of a plan that gives each rater and each member a share, as a linear program.

    Args:
        similarity: `[M, R]`.
        of_member: share of each member.
        at_most: whether a member may have less than its share.
        of_rater: share of each rater.
    """
    members, raters = similarity.shape
    rows = np.kron(np.eye(members), np.ones(raters))
    columns = np.kron(np.ones(members), np.eye(raters))
    shares = {"A_eq": columns, "b_eq": np.full(raters, of_rater)}
    if at_most:
        shares |= {"A_ub": rows, "b_ub": np.full(members, of_member)}
    else:
        shares = {"A_eq": np.r_[columns, rows], "b_eq": np.r_[shares["b_eq"], np.full(members, of_member)]}
    return -float(linprog(-similarity.ravel(), **shares).fun)


def naive_matches(members: np.ndarray, raters: np.ndarray) -> dict[str, float]:
    dice, iou = (np.array([[function(a, b) for b in raters] for a in members]) for function in (naive_dice, naive_iou))
    copies = int(np.ceil(len(raters) / len(members)))
    return {
        "d_max": float(np.mean([max(column) for column in dice.T])),
        "d_match": naive_transport(dice, copies, True, 1.0) / len(raters),
        "matched_iou": naive_transport(iou, 1 / len(members), False, 1 / len(raters)),
    }


def naive_entropy(probability: np.ndarray) -> np.ndarray:
    return -(probability * np.log(probability) + (1 - probability) * np.log(1 - probability))


def naive_patch(shown: np.ndarray) -> float:
    """Return the largest mean over windows of ten voxels along each axis, or as many as there are."""
    window = tuple(min(10, length) for length in shown.shape)
    axes = tuple(range(-shown.ndim, 0))
    return float(np.lib.stride_tricks.sliding_window_view(shown, window).mean(axis=axes).max())


def naive_adaptive_error(probability: np.ndarray, share: np.ndarray) -> float:
    """Cut each voxel into 15 equal parts, so that 15 ranges of equally many parts can be cut exactly."""
    order = np.argsort(probability, kind="stable")
    p, q = (np.repeat(part[order], 15).reshape(15, -1) for part in (probability, share))
    return float(np.abs(p.mean(axis=1) - q.mean(axis=1)).mean())


def naive_crps(value: float, samples: np.ndarray) -> float:
    centre, spread = samples.mean(), samples.std()
    if spread == 0:
        return abs(value - centre)
    below = quad(lambda x: norm.cdf(x, centre, spread) ** 2, -np.inf, value)[0]
    above = quad(lambda x: (norm.cdf(x, centre, spread) - 1) ** 2, value, np.inf)[0]
    return below + above


def naive_s_ncc(p: np.ndarray, y: np.ndarray) -> float:
    def cross_entropy(member: np.ndarray, label: np.ndarray) -> np.ndarray:
        return -(label * np.log(member) + (1 - label) * np.log(1 - member))

    own = np.mean([cross_entropy(member, p.mean(axis=0)) for member in p], axis=0).ravel()
    per_rater = [np.mean([cross_entropy(member, label) for member in p], axis=0).ravel() for label in y]
    return float(np.mean([pearsonr(own, other)[0] for other in per_rater]))


def naive_surface(predicted: np.ndarray, consensus: np.ndarray, spacing: list[float]) -> tuple[float, float]:
    masks = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, consensus)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hausdorff = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
        dice = compute_surface_dice(*masks, class_thresholds=[1.0], include_background=True, spacing=spacing)
    return float(hausdorff), float(dice)


def naive_winner(of_structures: np.ndarray, k: int, whole: float = 1.0) -> np.ndarray:
    """Return where structure k is the class with the most, voxel by voxel, of `[K, *S]`; of equal ones the first.

    The background is the last class, with the rest of the whole.
    """
    found = np.zeros(of_structures.shape[1:], dtype=bool)
    for place in np.ndindex(found.shape):
        values = [float(value) for value in of_structures[(slice(None), *place)]]
        found[place] = max(values) >= whole - sum(values) and values.index(max(values)) == k
    return found


def naive_statistics(cases: Cases, i: int, k: int, exclusive: bool = False) -> dict[str, float]:
    """Compute one case and structure in float64 with NumPy, SciPy, scikit-learn and MONAI.

    Args:
        cases: the cases; of structures that exclude each other the logits are those of a softmax.
        i: position of the case.
        k: position of the structure.
        exclusive: whether the structures exclude each other.
    """
    logits, masks, valid, spacing = cases
    p = 1 / (1 + np.exp(-logits[i, :, k].double().numpy()))
    y = masks[i, valid[i], k].numpy().astype(bool)
    own = p >= 0.5
    if exclusive:
        odds = np.exp(logits[i].double().numpy())
        softmax = odds / (1 + odds.sum(axis=1, keepdims=True))
        p = softmax[:, k]
        own = np.stack([naive_winner(member, k) for member in softmax])
    scale = float(spacing[i].double().prod())
    mean, share = p.mean(axis=0), y.mean(axis=0)
    predicted, consensus, majority = mean >= 0.5, share >= 0.5, mean
    if exclusive:
        means = softmax.mean(axis=0)
        predicted = naive_winner(means, k)
        consensus = naive_winner(masks[i, valid[i]].double().numpy().sum(axis=0), k, len(y))
        rivals = np.concatenate([np.delete(means, k, axis=0), 1 - means.sum(axis=0, keepdims=True)])
        majority = mean / (mean + rivals.max(axis=0))
    expert, between, total = y.var(axis=0), p.var(axis=0), mean * (1 - mean)
    disputed = y.any(axis=0) & ~y.all(axis=0)
    labels = y.reshape(len(y), -1)
    repeated = np.broadcast_to(mean.ravel(), labels.shape)
    pairs = list(itertools.combinations(own, 2))
    neighbours = [naive_dice(a, b) for a, b in itertools.pairwise(own)]
    two, varies = len(y) >= 2, len(p) >= 2
    hausdorff, surface_dice = naive_surface(predicted, consensus, spacing[i].tolist())
    return {
        "dice": naive_dice(predicted, consensus),
        "dice_per_rater": float(np.mean([naive_dice(predicted, mask) for mask in y])),
        "d_soft": float(np.mean([naive_dice(mean >= t, share >= t) for t in (0.1, 0.3, 0.5, 0.7, 0.9)])),
        "hd95": hausdorff,
        "nsd": surface_dice,
        **naive_matches(own, y),
        "dice_consensus": naive_dice(predicted & (y.all(axis=0) | ~y.any(axis=0)), y.all(axis=0)) if two else np.nan,
        "dice_dissensus": naive_dice(predicted[disputed], consensus[disputed]) if disputed.any() else np.nan,
        "nll": log_loss(labels.ravel(), repeated.ravel(), labels=[0, 1]),
        "brier": brier_score_loss(labels.ravel(), repeated.ravel()),
        "adaptive_ece": naive_adaptive_error(mean.ravel(), share.ravel()),
        "ged2": naive_ged2(own, y),
        "volume_crps": naive_crps(mean.sum() * scale, labels.sum(axis=1) * scale),
        "sv": between.sum() * scale if varies else np.nan,
        "sv_total": total.sum() * scale,
        "entropy": naive_entropy(mean).sum() * scale,
        "expected_entropy": naive_entropy(p).mean(axis=0).sum() * scale,
        "mutual_information": (naive_entropy(mean) - naive_entropy(p).mean(axis=0)).sum() * scale if varies else np.nan,
        "sv_normalised": between.sum() / predicted.sum() if varies else np.nan,
        "sv_total_normalised": total.sum() / predicted.sum(),
        "soft_dice_confidence": 2 * majority[predicted].sum() / (majority.sum() + predicted.sum()),
        "sv_patch": naive_patch(between if varies else total),
        "sv_top": float(np.sort((between if varies else total).ravel())[::-1][: predicted.sum()].mean()),
        "predicted_area": predicted.sum() * scale,
        "sv_star": expert.sum() * scale if two else np.nan,
        "sv_star_normalised": expert.sum() / consensus.sum() if two else np.nan,
        "pixel_pearson": pearsonr(between.ravel(), expert.ravel())[0] if two and varies else np.nan,
        "pixel_pearson_total": pearsonr(total.ravel(), expert.ravel())[0] if two else np.nan,
        "pixel_s_ncc": naive_s_ncc(p, y) if two else np.nan,
        "layer_agreement": float(np.mean(neighbours)) if neighbours else np.nan,
        "aula": float(np.trapezoid(neighbours)) if len(neighbours) >= 2 else np.nan,
        "model_agreement": float(np.mean([naive_dice(a, b) for a, b in pairs])) if pairs else np.nan,
        "area": consensus.sum() * scale,
        "n_raters": float(len(y)),
    }
