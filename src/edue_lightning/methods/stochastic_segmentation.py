"""Stochastic segmentation networks: one normal distribution over all logits of an image (arXiv 2006.06015)."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import cross_entropy_terms, within
from edue_lightning.methods.base import MethodParts, NetworkMethod
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import HeadLayout
from edue_lightning.uncertainty.maps import at_least_float32

_FIRST_LOG_VARIANCE = -5.0
_FIRST_SCALE = 0.1
_EPSILON = 1e-5  # added to the diagonal of the covariance, as in the authors' code


class LogitDistribution(NamedTuple):
    """Normal distributions of low rank over the logits of all voxels and structures, one per case.

    Each has the covariance `factors^T factors + diag(variance)`, so logits far apart may vary together.

    Attributes:
        mean: `[B, K, *S]`.
        variance: `[B, K, *S]`, own variance of each logit.
        factors: `[B, rank, K, *S]`.
    """

    mean: Tensor
    variance: Tensor
    factors: Tensor

    @classmethod
    def of(cls, output: Tensor) -> LogitDistribution:
        """Return the distributions of a network's output `[B, rank + 2, K, *S]`, in float32 or better.

        The second axis holds the mean, the logarithm of the variance, and the factors.
        """
        output = at_least_float32(output)
        return cls(output[:, 0], output[:, 1].exp() + _EPSILON, output[:, 2:])

    def logits(self, shared: Tensor, own: Tensor) -> Tensor:
        """Return the logits `[B, n, K, *S]` of standard normal noise, without inverting a covariance.

        Args:
            shared: `[B or 1, n, rank]`, noise along the factors, the same for all voxels.
            own: `[B or 1, n, K, *S]`, noise of each logit alone.
        """
        shared = shared.expand(self.mean.shape[0], -1, -1)
        # a product of matrices would be made in half precision where that is on
        with torch.autocast(self.mean.device.type, enabled=False):
            together = torch.einsum("bnr,br...->bn...", shared, self.factors)
        return self.mean[:, None] + together + self.variance.sqrt()[:, None] * own


class StochasticSegmentation(NetworkMethod):
    """Stochastic segmentation networks (Monteiro et al., NeurIPS 2020): members are draws of whole logit maps.

    A network with one head gives mean and covariance of the logits. It is trained on the likelihood of one rater's
    mask, drawn anew for each case and epoch, integrated over draws of logits.

    The noise behind the members is fixed, and the same for every case: a prediction is the same each time (on one kind
    of device; CPU and GPU draw differently), does not depend on the batch, and leaves the global random state alone.
    Window by window, member m moves along the factors alike in each window, so that it stays one opinion across their
    borders; noise of single voxels repeats in each window, and is averaged where windows overlap.

    Differences from the authors' code (github.com/biomedia-mira/stochastic_segmentation_networks): each structure
    has a sigmoid of its own, as structures may nest, unless they exclude each other; the loss is per voxel rather
    than per image, else the usual clipping of gradients would cut every step; the covariance starts small, and the
    mean may be trained alone at first; draws need no inverse.

    Args:
        parts: see `MethodParts`. The network's attribute `heads` holds its heads, each a stack that ends in the bias
            of the logits. The loss is not used: the likelihood replaces it.
        rank: number of factors, at least one.
        samples: M, members of a prediction, at least two.
        training_samples: draws for the likelihood, an even number: they come in pairs on either side of the mean.
        seed: seed of the noise behind the members.
        warm_up_epochs: number of first epochs in which the mean alone is trained, without noise; None for the first
            half of the training. The likelihood depends on the luckiest draw almost alone, so that a mean which is
            still poor stays so, under a covariance that grows until one draw in twenty fits.

    Raises:
        ValueError: if a number is out of its range.
    """

    takes_loss = takes_structure_weights = False

    def __init__(
        self,
        parts: MethodParts,
        rank: int = 10,
        samples: int = 16,
        training_samples: int = 20,
        seed: int = 0,
        warm_up_epochs: int | None = None,
    ) -> None:
        if warm_up_epochs is not None and warm_up_epochs < 0:
            raise ValueError(f"warm_up_epochs must not be negative: {warm_up_epochs}")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        if samples < 2:
            raise ValueError(f"samples must be at least 2, not {samples}")
        if training_samples < 2 or training_samples % 2:
            raise ValueError(f"training_samples must be an even number of at least 2, not {training_samples}")
        super().__init__(parts, HeadLayout("last", per_stage=rank + 2))
        self.rank = rank
        self.samples = samples
        self.training_samples = training_samples
        self.seed = seed
        self.warm_up_epochs = warm_up_epochs
        self.first_epochs = warm_up_epochs or 0
        means = len(self.structures)
        # the covariance starts small; the network's first bias (the prior of the foreground) is for the mean alone
        for name, parameter in cast(nn.Module, self.network.heads).named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter.data[means : 2 * means], _FIRST_LOG_VARIANCE)
                nn.init.zeros_(parameter.data[2 * means :])
            else:
                parameter.data[means:] *= _FIRST_SCALE

    @property
    def label(self) -> str:
        """`stochastic_segmentation`."""
        return "stochastic_segmentation"

    def forward(self, image: Tensor) -> Tensor:
        """Return the members' logits, `[B, M, K, *S]`, float32 or better."""
        distribution = LogitDistribution.of(self.network(image))
        mean = distribution.mean
        generator = torch.Generator(mean.device).manual_seed(self.seed)
        # the shared noise first: it must not depend on the size of the image
        shared = _noise(mean, (1, self.samples, self.rank), generator)
        own = _noise(mean, (1, self.samples, *mean.shape[1:]), generator)
        return distribution.logits(shared, own)

    @property
    def complete(self) -> bool:
        """Whether the covariance has been trained."""
        return self.global_step > self._half if self.warm_up_epochs is None else super().complete

    @property
    def _trains_mean_alone(self) -> bool:
        if self.warm_up_epochs is None:
            return self.global_step < self._half
        return not self.complete

    @property
    def _half(self) -> int:
        return int(self.trainer.estimated_stepping_batches) // 2

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, the negative log-likelihood of a drawn rater's mask per voxel and structure (nats)."""
        distribution = LogitDistribution.of(self.network(batch.image))
        target = member_target(batch, "random_rater")
        if self._trains_mean_alone:
            return {
                "loss": negative_log_likelihood(distribution.mean[:, None], target, batch.region, self.exclusive).mean()
            }
        mean, pairs = distribution.mean, self.training_samples // 2
        shared = _noise(mean, (len(mean), pairs, self.rank))
        own = _noise(mean, (len(mean), pairs, *mean.shape[1:]))
        logits = distribution.logits(torch.cat([shared, -shared], dim=1), torch.cat([own, -own], dim=1))
        return {"loss": negative_log_likelihood(logits, target, batch.region, self.exclusive).mean()}


def negative_log_likelihood(
    logits: Tensor, target: Tensor, region: Tensor | None = None, exclusive: bool = False
) -> Tensor:
    """Return `-log(1/n sum_i p(y | logits_i))` of each case per voxel and structure, `[B]`, in nats.

    The log-probabilities of a draw's voxels are summed before draws are averaged.

    Args:
        logits: `[B, n, K, *S]`, n draws.
        target: `[B, 1, K, *S]` in {0, 1}.
        region: `[B, *S]` bool, the voxels that count; None if all do.
        exclusive: whether the structures exclude each other, as the classes of a softmax; then it is per voxel.
    """
    target = target.to(logits.dtype).expand_as(logits)
    cross_entropy = cross_entropy_terms(logits, target, 2, exclusive)
    summed = within(cross_entropy, region).flatten(2).sum(dim=2)
    likelihood = torch.logsumexp(-summed, dim=1) - math.log(logits.shape[1])
    counted = cross_entropy[0, 0].numel() if region is None else cross_entropy.shape[2] * region.flatten(1).sum(dim=1)
    return -likelihood / torch.as_tensor(counted, device=logits.device).clamp_min(1)


def _noise(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
