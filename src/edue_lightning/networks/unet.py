"""A U-Net, in 2D and 3D, with segmentation heads on any of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

from edue_lightning.networks.heads import HeadLayout, set_foreground_prior, stack_heads

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class _UpCat(UpCat):
    """MONAI's decoder stage, without a copy of the features if no padding is needed."""

    def forward(self, x: Tensor, x_e: Tensor | None) -> Tensor:
        """Return the features of this stage, from the features of the coarser stage and of the encoder."""
        assert x_e is not None
        upsampled = self.upsample(x)
        for axis in range(2, x_e.ndim):
            # equal to `pad`, whose gradient cannot be compiled with deterministic algorithms (torch 2.13)
            if x_e.shape[axis] != upsampled.shape[axis]:
                upsampled = torch.cat([upsampled, upsampled.narrow(axis, -1, 1)], dim=axis)
        return self.convs(torch.cat([x_e, upsampled], dim=1))


class MultiHeadUNet(nn.Module):
    """U-Net whose heads each segment all structures at the input's size.

    Encoder stage 1 has the full size, each later stage half the size of the one before; the decoder stages return
    to the full size. Heads are ordered by depth: encoder 1 (shallow) to the bottleneck, then the decoder from the
    coarsest stage to the full-size one; so the last head is the plain U-Net's own. A head on a coarse stage predicts
    at that stage's size, and its logits are interpolated.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels C.
        structures: number of structures K.
        heads: places and number of the heads.
        features: channels of each encoder stage, at least two stages; a decoder stage has as many as the
            encoder stage of its size.
        dropout: probability in every convolution block.
        foreground_prior: probability that every head predicts everywhere before training. With a small one the first
            epochs need not learn that most voxels are background (Lin et al., ICCV 2017, section 4.1).
        channels_last: store and compute with the channels innermost in memory, which is faster in half precision on
            recent GPUs; the results differ by rounding only.

    Shapes:
        input `[B, C, *S]`, every axis at least `2 ** (len(features) - 1)` and at least one of them twice that;
        output logits `[B, M, K, *S]`. With four stages, `decoder` gives M = 3 and `encoder+decoder` M = 7.

    Raises:
        ValueError: if there are fewer than two stages, one without channels, or the foreground prior does not lie
            between 0 and 1.
    """

    def __init__(
        self,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        structures: int,
        heads: HeadLayout,
        features: Sequence[int] = (16, 32, 64, 128),
        dropout: float = 0.0,
        foreground_prior: float = 0.05,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if len(features) < 2:
            raise ValueError(f"a U-Net needs at least two stages, not features={list(features)}")
        if min(features) < 1:
            raise ValueError(f"features must be positive, not {list(features)}")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.structures = structures
        self.features = tuple(features)
        self.stride = 2 ** (len(features) - 1)
        block: dict[str, Any] = {
            "act": ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
            "norm": ("instance", {"affine": True}),
            "bias": True,
            "dropout": dropout,
        }
        self.encoder = nn.ModuleList([TwoConv(spatial_dims, in_channels, features[0], **block)])
        self.decoder = nn.ModuleList()
        for shallow, deep in pairwise(features):
            self.encoder.append(Down(spatial_dims, shallow, deep, **block))
            self.decoder.insert(0, _UpCat(spatial_dims, deep, shallow, shallow, **block))

        widths = [*features, *reversed(features[:-1])]
        first = {"last": len(widths) - 1, "decoder": len(features), "encoder+decoder": 0}[heads.stages]
        self._first_head_stage = first
        self.heads = nn.ModuleList(
            Convolution(
                spatial_dims,
                width,
                heads.per_stage * structures,
                kernel_size=heads.kernel_size,
                conv_only=True,
            )
            for width in widths[first:]
        )
        self.members = heads.per_stage * len(self.heads)
        set_foreground_prior(self.heads, foreground_prior)
        self._memory_format = _CHANNELS_LAST[spatial_dims] if channels_last else torch.contiguous_format
        self.to(memory_format=self._memory_format)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """Return member logits `[B, M, K, *S]` for an image `[B, C, *S]`.

        Raises:
            ValueError: if the image is too small for the number of stages.
        """
        size = image.shape[2:]
        # axis by axis, since an exported graph for images of any size cannot contain the minimum
        if any(length < self.stride for length in size) or all(length < 2 * self.stride for length in size):
            raise ValueError(
                f"image of size {list(size)} is too small for a U-Net that halves it to 1/{self.stride}: "
                "pad the images, or give the network fewer stages (network.features)"
            )
        stages = []
        x = image.contiguous(memory_format=self._memory_format)
        for stage in self.encoder:
            x = stage(x)
            stages.append(x)
        for stage, skip in zip(self.decoder, reversed(stages[:-1]), strict=True):
            x = stage(x, skip)
            stages.append(x)
        logits = [head(features) for head, features in zip(self.heads, stages[self._first_head_stage :], strict=True)]
        return stack_heads(logits, size, self.structures)
