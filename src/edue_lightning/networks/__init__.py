"""Networks: plain modules from an image `[B, C, *S]` to member logits `[B, M, K, *S]`, or to a latent distribution."""

from edue_lightning.networks.gaussian_encoder import DiagonalGaussian, GaussianEncoder
from edue_lightning.networks.unet import HeadLayout, MultiHeadUNet

__all__ = ["DiagonalGaussian", "GaussianEncoder", "HeadLayout", "MultiHeadUNet"]
