"""Networks: plain modules from an image `[B, C, *S]` to member logits `[B, M, K, *S]`, or to a latent distribution."""

from edue_lightning.networks.encoders import EncoderUNet
from edue_lightning.networks.gaussian_encoder import DiagonalGaussian, GaussianEncoder
from edue_lightning.networks.heads import HeadLayout
from edue_lightning.networks.monai_networks import AttentionUNet, DynUNet, SegResNet, SwinUNETR
from edue_lightning.networks.nnunet import NnUNet
from edue_lightning.networks.staged import StagedNetwork
from edue_lightning.networks.unet import MultiHeadUNet

__all__ = [
    "AttentionUNet",
    "DiagonalGaussian",
    "DynUNet",
    "EncoderUNet",
    "GaussianEncoder",
    "HeadLayout",
    "MultiHeadUNet",
    "NnUNet",
    "SegResNet",
    "StagedNetwork",
    "SwinUNETR",
]
