"""Losses of MONAI in the form that all methods share: per member, for soft targets and regions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from monai.losses import TverskyLoss
from monai.losses.focal_loss import sigmoid_focal_loss
from monai.losses.unified_focal_loss import AsymmetricFocalLoss, AsymmetricFocalTverskyLoss
from torch import Tensor, nn

from edue_lightning.losses.region import voxel_mean, within
from edue_lightning.losses.structures import checked_weights, structure_mean
from edue_lightning.uncertainty.exclusive import exclusive_log_odds
from edue_lightning.uncertainty.maps import at_least_float32


class MemberLoss(nn.Module):
    """The loss of one member against its target, as the mean over structures, weighted where weights are given.

    Each structure is a class against all that is not it. Of structures that exclude each other, its probability is that
    of the softmax with the background.

    Args:
        structure_weights: positive weight of each structure in the mean; None for equal weights.
        exclusive: whether the structures exclude each other.

    Raises:
        ValueError: if a weight is not positive and finite.

    Attributes:
        takes_soft_targets: whether targets between 0 and 1 have a meaning.
    """

    takes_soft_targets = True

    def __init__(self, structure_weights: Sequence[float] | None = None, exclusive: bool = False) -> None:
        super().__init__()
        self.structure_weights = checked_weights(structure_weights)
        self.exclusive = exclusive

    @abstractmethod
    def of_structures(self, logits: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """Return the loss of each structure, `[N, K]`.

        Args:
            logits: `[N, K, *S]`, N cases and members; their sigmoid are the probabilities.
            target: `[N, K, *S]` in [0, 1].
            region: `[N, *S]` bool, or None.
        """

    def forward(self, logits: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
        """Return the loss of each member, `[B, M]`.

        Args:
            logits: `[B, M, K, *S]`.
            target: `[B, M, K, *S]` in [0, 1].
            region: `[B, *S]` bool, the voxels that count; None if all do.

        Raises:
            ValueError: if there are not as many weights as structures.
        """
        flat = at_least_float32(logits).flatten(0, 1)
        if self.exclusive:
            flat = exclusive_log_odds(flat, dim=1)
        inside = None if region is None else region.repeat_interleave(target.shape[1], dim=0)
        losses = self.of_structures(flat, target.to(flat.dtype).flatten(0, 1), inside)
        return structure_mean(losses, self.structure_weights).unflatten(0, target.shape[:2])


class Tversky(MemberLoss):
    """MONAI's Tversky loss (Salehi et al., arXiv 1706.05721), for soft targets in the form of Wang et al. (2023).

    With p the probability, q the target, and the sums over voxels: `1 - TP / (TP + alpha FP + beta FN)`, where
    `TP = (sum p + sum q - sum |p - q|) / 2`, `FP = sum p - TP` and `FN = sum q - TP`. Its optimum is the target itself.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives.
        structure_weights: see `MemberLoss`.
        exclusive: see `MemberLoss`.

    Raises:
        ValueError: if a weight is not positive.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        structure_weights: Sequence[float] | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(structure_weights, exclusive)
        if not (0 < alpha < math.inf and 0 < beta < math.inf):
            raise ValueError(f"alpha and beta must be above 0, not alpha={alpha}, beta={beta}")
        self.tversky = TverskyLoss(sigmoid=True, alpha=alpha, beta=beta, soft_label=True, reduction="none")

    def of_structures(self, logits: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """Return the loss of each structure, see `MemberLoss`."""
        if region is not None:
            logits = logits.masked_fill(~region[:, None], -torch.inf)
        found: Tensor = self.tversky(logits, within(target, region))
        return found.flatten(1)


class Focal(MemberLoss):
    """MONAI's focal loss (Lin et al., arXiv 1708.02002), mean over voxels.

    With p the probability of the right class: `-(1 - p) ** gamma log p`. A soft target q gives the expected loss over
    raters who mark a voxel with probability q. It is no proper score: its optimum lies nearer to 0.5 than q.

    Args:
        gamma: exponent; 0 gives the cross-entropy.
        alpha: weight of the foreground, `1 - alpha` being that of the background; None for weights of 1.
        structure_weights: see `MemberLoss`.
        exclusive: see `MemberLoss`.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | None = None,
        structure_weights: Sequence[float] | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(structure_weights, exclusive)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be at least 0, not {gamma}")
        if alpha is not None and not 0 < alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, or be null, not {alpha}")
        self.gamma, self.alpha = gamma, alpha

    def of_structures(self, logits: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """Return the loss of each structure, see `MemberLoss`."""
        # MONAI's form is that of hard targets; the expectation is linear in the target
        marked = sigmoid_focal_loss(logits, torch.ones_like(logits), self.gamma, self.alpha)
        unmarked = sigmoid_focal_loss(logits, torch.zeros_like(logits), self.gamma, self.alpha)
        losses = target * marked + (1 - target) * unmarked
        return torch.stack([voxel_mean(losses[:, k], region) for k in range(losses.shape[1])], dim=1)


class UnifiedFocal(MemberLoss):
    """MONAI's asymmetric unified focal loss (Yeung et al., Computerized Medical Imaging and Graphics 2022).

    It is `weight` times the asymmetric focal loss plus `1 - weight` times the asymmetric focal Tversky loss, of
    background and foreground. It is defined for hard targets: with the share of the raters as target, its optimum would
    be neither the share nor a mask, so methods refuse it for soft targets.

    Args:
        weight: weight of the focal loss against the focal Tversky loss.
        gamma: exponent of both; 0 gives plain losses.
        delta: weight of the foreground, and of false negatives.
        structure_weights: see `MemberLoss`.
        exclusive: see `MemberLoss`.

    Raises:
        ValueError: if a number is out of its range.
    """

    takes_soft_targets = False

    def __init__(
        self,
        weight: float = 0.5,
        gamma: float = 0.5,
        delta: float = 0.7,
        structure_weights: Sequence[float] | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(structure_weights, exclusive)
        for name, value in (("weight", weight), ("delta", delta)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}")
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must be at least 0 and below 1, not {gamma}")
        self.weight = weight
        self.focal = AsymmetricFocalLoss(delta=delta, gamma=gamma, reduction="none")
        self.tversky = AsymmetricFocalTverskyLoss(delta=delta, gamma=gamma, reduction="none")

    def of_structures(self, logits: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """Return the loss of each structure, see `MemberLoss`."""
        return torch.stack([self._of_one(logits[:, k], target[:, k], region) for k in range(logits.shape[1])], dim=1)

    def _of_one(self, logits: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        probability = torch.sigmoid(logits)
        # MONAI takes probabilities of the two classes, and means over them
        predicted = torch.stack([1 - probability, probability], dim=1)
        wanted = torch.stack([1 - target, target], dim=1)
        focal = voxel_mean(self.focal(predicted, wanted), region)
        # in float32 the score of a confident and right prediction rounds to 1, where the root has no finite slope
        inside = (within(maps, region).double() for maps in (predicted, wanted))
        tversky = self.tversky(*inside).mean(dim=1).to(focal.dtype)
        return self.weight * focal + (1 - self.weight) * tversky
