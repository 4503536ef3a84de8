"""Networks: plain modules from an image `[B, C, *S]` to member logits `[B, M, K, *S]`."""

from edue_lightning.networks.unet import HeadLayout, MultiHeadUNet

__all__ = ["HeadLayout", "MultiHeadUNet"]
