"""The probabilistic U-Net: a latent vector per image, with a learned prior, decides the mask (arXiv 1806.05034)."""

from __future__ import annotations

import math
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import cross_entropy_terms, within
from edue_lightning.methods.base import MethodParts, NetworkMethod
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import DiagonalGaussian, GaussianEncoder, HeadLayout
from edue_lightning.uncertainty.maps import at_least_float32


class _Described(Protocol):
    """Attributes of a network from which encoders like its own are made."""

    spatial_dims: Literal[2, 3]
    in_channels: int
    features: tuple[int, ...]
    heads: nn.Module


class LatentCombination(nn.Module):
    """Three 1x1 convolutions that combine a U-Net's last features with a latent vector, the same at every voxel.

    A convolution of features and latent vector together is the sum of one of each. The first convolution of the
    features is the network's own head, so it runs once for all latent vectors.

    Args:
        spatial_dims: 2 or 3.
        width: number of features, W.
        latent_dim: length of the latent vector, L.
        structures: number of structures, K.
    """

    def __init__(self, spatial_dims: Literal[2, 3], width: int, latent_dim: int, structures: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.latent = nn.Linear(latent_dim, width)
        self.second = convolution(width, width, kernel_size=1)
        self.last = convolution(width, structures, kernel_size=1)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """Return logits `[B, n, K, *S]` for features `[B, W, *S]` and latent vectors `[B, n, L]`."""
        shifts = self.latent(latents.to(self.latent.weight.dtype))
        axes = (1,) * (features.ndim - 2)
        # one latent vector at a time: the hidden features of all would not fit into memory for a volume
        return torch.stack(
            [
                self.last(F.relu(self.second(F.relu(features + shift.unflatten(1, (-1, *axes))))))
                for shift in shifts.unbind(dim=1)
            ],
            dim=1,
        )


class ProbabilisticUNet(NetworkMethod):
    """The probabilistic U-Net (Kohl et al., NeurIPS 2018): members are masks of latent vectors drawn from the prior.

    A prior network maps the image, and a posterior network image and mask, to a normal distribution with independent
    components over a latent vector z. 1x1 convolutions combine z with the U-Net's last features. Training maximises the
    evidence lower bound of one rater's mask y, drawn anew for each case and epoch: `log p(y | x, z) - beta * KL(q(z |
    x, y) || p(z | x))` with z from the posterior q.

    The noise behind the members is fixed, and the same for every case, as in `StochasticSegmentation`: a prediction is
    the same each time and on every device, does not depend on the batch, and leaves the global random state alone. It
    does not depend on the image's size either. Window by window, member m lies at the same place of each window's own
    prior, which has seen images of a window's size in training: so it stays one opinion across their borders as far as
    the priors agree. One vector for all windows would need a prior of the whole image, which no training has seen.

    Differences from the authors' code (github.com/SimonKohl/probabilistic_unet): each structure has a sigmoid of its
    own, as structures may nest, unless they exclude each other; the bound is divided by the number of voxels and
    structures, else the usual clipping of gradients would cut every step; the U-Net is the one of all methods; the
    encoders have two convolutions per stage like that U-Net, and no weight penalty of their own.

    Args:
        parts: see `MethodParts`. The network's attributes `spatial_dims`, `in_channels` and `features` describe the
            encoders; its attribute `heads` ends in the bias of the logits. The loss is not used: the bound replaces it.
        latent_dim: length of z, at least one.
        beta: weight of the divergence; 1 for the bound itself.
        free_bits: nats of each component of z that cost nothing (Kingma et al., NeurIPS 2016): its divergence,
            averaged over the batch, counts from there on; 0 for the bound itself.
        width: channels of the 1x1 convolutions, at least one per structure.
        samples: M, members of a prediction, at least two.
        seed: seed of the noise behind the members.

    Raises:
        ValueError: if a number is out of its range, or the network does not describe itself.
    """

    noise: Tensor

    takes_loss = takes_structure_weights = False

    def __init__(
        self,
        parts: MethodParts,
        latent_dim: int = 6,
        beta: float = 1.0,
        free_bits: float = 0.0,
        width: int = 32,
        samples: int = 16,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("latent_dim", latent_dim, 1), ("width", width, 1), ("samples", samples, 2)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        for name, weight in (("beta", beta), ("free_bits", free_bits)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be finite and not negative: {weight}")
        structures = len(parts.structures)
        super().__init__(parts, HeadLayout("last", per_stage=-(-width // structures)))
        self.beta = beta
        self.free_bits = free_bits
        self.samples = samples
        network = self._described()
        dims, channels, features = network.spatial_dims, network.in_channels, network.features
        self.prior = GaussianEncoder(dims, channels, features, latent_dim)
        self.posterior = GaussianEncoder(dims, channels + structures, features, latent_dim)
        width = -(-width // structures) * structures
        self.combination = LatentCombination(dims, width, latent_dim, structures)
        # the network's first bias, the prior of the foreground, belongs to the logits
        for name, parameter in network.heads.named_parameters():
            if name.endswith("bias"):
                self.combination.last.bias.data.copy_(parameter.data[:structures])
                nn.init.zeros_(parameter)
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(1, samples, latent_dim, generator=generator, device="cpu")
        self.register_buffer("noise", noise, persistent=False)

    def _described(self) -> _Described:
        missing = [name for name in _Described.__annotations__ if not hasattr(self.network, name)]
        if missing:
            raise ValueError(
                f"probabilistic_unet needs a network with the attributes {', '.join(missing)}; choose network=unet"
            )
        return cast(_Described, self.network)

    @property
    def label(self) -> str:
        """`probabilistic_unet`."""
        return "probabilistic_unet"

    def compile_networks(self) -> None:
        """Compile the U-Net, the encoders and the combination in place."""
        for module in (self.network, self.prior, self.posterior, self.combination):
            module.compile()

    def forward(self, image: Tensor) -> Tensor:
        """Return the members' logits, `[B, M, K, *S]`, float32 or better."""
        features = self.network(image).flatten(1, 2)
        return at_least_float32(self.combination(features, self.prior(image).draws(self.noise)))

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, the negative bound per voxel and structure, and its parts per case, `reconstruction` and `kl`.

        All are in nats.
        """
        features = self.network(batch.image).flatten(1, 2)
        target = within(member_target(batch, "random_rater"), batch.region)
        prior = self.prior(batch.image)
        # centred like the image
        posterior = self.posterior(torch.cat([batch.image, target[:, 0].to(batch.image.dtype) - 0.5], dim=1))
        latents = posterior.draws(torch.randn_like(posterior.mean)[:, None])
        logits = at_least_float32(self.combination(features, latents))
        reconstruction = cross_entropy_terms(logits, target.to(logits.dtype), 2, self.exclusive)
        terms = reconstruction.shape[2]
        reconstruction = within(reconstruction, batch.region).flatten(1).sum(dim=1).mean()
        divergence = divergence_cost(posterior, prior, self.free_bits)
        counted: Tensor | int = terms * target[0, 0, 0].numel()
        if batch.region is not None:
            # on average over the batch
            counted = (terms * batch.region.sum() / len(batch)).clamp_min(1)
        loss = (reconstruction + self.beta * divergence) / counted
        return {"loss": loss, "reconstruction": reconstruction, "kl": divergence}


def divergence_cost(posterior: DiagonalGaussian, prior: DiagonalGaussian, free_bits: float = 0.0) -> Tensor:
    """Return the divergence of the posterior from the prior, averaged over the batch and summed over components, nats.

    Args:
        posterior: distributions of z given image and mask.
        prior: distributions of z given the image.
        free_bits: least cost of each component, see `ProbabilisticUNet`.
    """
    return posterior.divergence_from(prior).mean(dim=0).clamp_min(free_bits).sum()
