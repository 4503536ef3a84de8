"""Detection of images unlike the training data by an image-level score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from edue_lightning.metrics.ties import tied


def ood_auroc(score: Tensor, distorted: Tensor) -> Tensor:
    """Return the area under the ROC curve of a score that should be higher for distorted images than for clean ones.

    In [0, 1], higher is better, 0.5 for a score without information. The share of pairs of a distorted and
    a clean image in which the distorted one has the higher score; equal scores count half, see
    `edue_lightning.metrics.ties`. Exact, in float64.

    Args:
        score: `[N]`, such as SV or minus the layer agreement.
        distorted: `[N]` bool, true for images unlike the training data.

    Returns:
        scalar float64; NaN if all images are of one kind, or a score is NaN.

    Raises:
        ValueError: if an argument has another type or shape.

    >>> ood_auroc(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, False, True, True]))
    tensor(0.7500, dtype=torch.float64)
    """
    counts = _per_score(score, distorted)
    if counts is None:
        return _undefined(score)
    positive, negative = counts
    below = negative.cumsum(0) - negative
    return (positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum())


def ood_aupr(score: Tensor, distorted: Tensor) -> Tensor:
    """Return the area under the precision-recall curve (average precision), distorted images being the positives.

    In [0, 1], higher is better; the share of distorted images for a score without information. Arguments and undefined
    values as `ood_auroc`.

    >>> ood_aupr(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, False, True, True]))
    tensor(0.8333, dtype=torch.float64)
    """
    counts = _per_score(score, distorted)
    if counts is None:
        return _undefined(score)
    positive, negative = (part.flip(0) for part in counts)
    found = positive.cumsum(0)
    precision = found / (found + negative.cumsum(0))
    return (positive * precision).sum() / positive.sum()


def _per_score(score: Tensor, distorted: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the numbers of distorted and of clean images of each distinct score, from the lowest score on.

    Returns:
        two tensors `[D]` float64; None if the images are of one kind, or a score is NaN.
    """
    _check(score, distorted)
    if bool(score.isnan().any()) or bool(distorted.all()) or not bool(distorted.any()):
        return None
    distinct, position = torch.unique(
        torch.from_numpy(tied(score.detach().double().cpu().numpy())), return_inverse=True
    )
    position = position.to(score.device)
    positive, negative = (
        torch.bincount(position[chosen], minlength=len(distinct)).double() for chosen in (distorted, ~distorted)
    )
    return positive, negative


def _undefined(score: Tensor) -> Tensor:
    return torch.tensor(torch.nan, dtype=torch.float64, device=score.device)


def _check(score: Tensor, distorted: Tensor) -> None:
    if distorted.dtype != torch.bool:
        raise ValueError(f"distorted must be bool, not {distorted.dtype}; for numbers 0 and 1 pass distorted > 0")
    if score.ndim != 1 or score.shape != distorted.shape:
        raise ValueError(f"score and distorted must both be [N], not {list(score.shape)} and {list(distorted.shape)}")


class _Detection(Metric):
    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    scores: list[Tensor]
    distorted: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("distorted", default=[], dist_reduce_fx="cat")

    def update(self, score: Tensor, distorted: Tensor) -> None:
        """Add images: their scores `[N]`, and whether each is distorted `[N]` bool.

        Raises:
            ValueError: if an argument has another type or shape.
        """
        _check(score, distorted)
        self.scores.append(score.double())
        self.distorted.append(distorted.double())

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value or a series of values of `compute`; see `CaseMetric.plot`."""
        return self._plot(val, ax)

    def _states(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.scores), dim_zero_cat(self.distorted) > 0


class OutOfDistributionAUROC(_Detection):
    """Area under the ROC curve of a score for distorted against clean images; see `ood_auroc`.

    >>> metric = OutOfDistributionAUROC()
    >>> metric.update(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, False, True, True]))
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the area, a scalar."""
        return ood_auroc(*self._states())


class OutOfDistributionAUPR(_Detection):
    """Area under the precision-recall curve of a score for distorted images; see `ood_aupr`.

    >>> metric = OutOfDistributionAUPR()
    >>> metric.update(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, False, True, True]))
    >>> metric.compute()
    tensor(0.8333, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the area, a scalar."""
        return ood_aupr(*self._states())
