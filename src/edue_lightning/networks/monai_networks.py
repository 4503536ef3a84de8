"""Networks of MONAI with segmentation heads on their stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from monai.networks import nets
from torch import nn
from torch.overrides import TorchFunctionMode

from edue_lightning.networks.heads import HeadLayout
from edue_lightning.networks.staged import StagedNetwork
from edue_lightning.networks.topology import stage_kernels, stage_strides, total_strides


class DynUNet(StagedNetwork):
    """MONAI's DynUNet, a U-Net of nnU-Net's kind (Isensee et al., Nature Methods 2021).

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels C.
        structures: number of structures K.
        heads: places and number of the heads.
        features: channels of each stage, at least three stages.
        residual: residual blocks.
        dropout: probability in every block.
        foreground_prior: see `MultiHeadUNet`.
        strides: reduction along each axis at the beginning of each stage, `[stages][axes]`, the first of 1; None for 2
            along all axes.
        kernels: kernel size along each axis of each stage, `[stages][axes]`; None for 3 along all axes.

    Raises:
        ValueError: for fewer than three stages, or strides or kernels of another number of stages or axes.
    """

    least_stages = 3

    def __init__(
        self,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        structures: int,
        heads: HeadLayout,
        features: Sequence[int] = (32, 64, 128, 256),
        residual: bool = False,
        dropout: float = 0.0,
        foreground_prior: float = 0.05,
        strides: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if len(features) < self.least_stages:
            raise ValueError(f"a DynUNet needs at least three stages, not features={list(features)}")
        reductions = stage_strides(strides, len(features), spatial_dims)
        network = partial(
            nets.DynUNet,
            kernel_size=stage_kernels(kernels, len(features), spatial_dims),
            strides=reductions,
            upsample_kernel_size=reductions[1:],
            filters=list(features),
            dropout=dropout or None,
            res_block=residual,
        )
        super().__init__(
            spatial_dims,
            in_channels,
            structures,
            heads,
            network,
            decoder=r"upsamples\.\d+",
            encoder=r"input_block|downsamples\.\d+|bottleneck",
            multiple=total_strides(reductions),
            foreground_prior=foreground_prior,
        )


class SegResNet(StagedNetwork):
    """MONAI's SegResNet, a residual encoder with a small decoder (Myronenko, arXiv 1810.11654).

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels C.
        structures: number of structures K.
        heads: places and number of the heads.
        features: channels of the first stage, a multiple of 8; doubled from stage to stage.
        blocks_down: residual blocks in each stage of the encoder.
        blocks_up: residual blocks in each stage of the decoder, one stage fewer.
        dropout: probability after the first convolution.
        foreground_prior: see `MultiHeadUNet`.

    Raises:
        ValueError: if the numbers of stages do not fit.
    """

    def __init__(
        self,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        structures: int,
        heads: HeadLayout,
        features: int = 16,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
        foreground_prior: float = 0.05,
    ) -> None:
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(f"blocks_up={list(blocks_up)} needs one stage fewer than blocks_down={list(blocks_down)}")
        if features < 8 or features % 8:
            raise ValueError(f"features must be a multiple of 8, the groups of its normalisation, not {features}")
        network = partial(
            nets.SegResNet,
            init_filters=features,
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
            dropout_prob=dropout or None,
        )
        super().__init__(
            spatial_dims,
            in_channels,
            structures,
            heads,
            network,
            decoder=r"up_layers\.\d+",
            encoder=r"down_layers\.\d+",
            multiple=2 ** (len(blocks_down) - 1),
            foreground_prior=foreground_prior,
        )


class _StepsOnCpu(TorchFunctionMode):
    """Mode in which `torch.linspace` has values, whatever the device: SwinUNETR reads them while it is constructed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "cpu"} if func is torch.linspace else kwargs))


class SwinUNETR(StagedNetwork):
    """MONAI's SwinUNETR, a transformer with shifted windows and a convolutional decoder (Hatamizadeh et al., 2022).

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels C.
        structures: number of structures K.
        heads: places and number of the heads.
        features: channels of the first stage, a multiple of 12.
        depths: transformer layers in each of the four stages.
        attention_heads: attention heads in each of the four stages.
        window: edge of the attention's windows, in tokens.
        dropout: probability in the attention's projections and perceptrons.
        foreground_prior: see `MultiHeadUNet`.

    Raises:
        ValueError: if `features` is no multiple of 12.
    """

    def __init__(
        self,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        structures: int,
        heads: HeadLayout,
        features: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        attention_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        dropout: float = 0.0,
        foreground_prior: float = 0.05,
    ) -> None:
        if features < 12 or features % 12:
            raise ValueError(f"features must be a multiple of 12, not {features}")

        def network(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
            with _StepsOnCpu():
                return nets.SwinUNETR(
                    in_channels,
                    out_channels,
                    feature_size=features,
                    depths=tuple(depths),
                    num_heads=tuple(attention_heads),
                    window_size=window,
                    drop_rate=dropout,
                    spatial_dims=spatial_dims,
                )

        super().__init__(
            spatial_dims,
            in_channels,
            structures,
            heads,
            network,
            decoder=r"decoder[1-5]",
            encoder=r"encoder([1-4]|10)",
            # a token is 2 pixels, and four stages halve the tokens' grid
            multiple=32,
            foreground_prior=foreground_prior,
        )


class AttentionUNet(StagedNetwork):
    """MONAI's AttentionUnet, a U-Net whose skip connections are weighted by attention gates (arXiv 1804.03999).

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels C.
        structures: number of structures K.
        heads: places and number of the heads.
        features: channels of each stage, at least two stages.
        dropout: probability in every block.
        foreground_prior: see `MultiHeadUNet`.

    Raises:
        ValueError: for fewer than two stages.
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
    ) -> None:
        if len(features) < 2:
            raise ValueError(f"an attention U-Net needs at least two stages, not features={list(features)}")
        network = partial(
            nets.AttentionUnet, channels=tuple(features), strides=(2,) * (len(features) - 1), dropout=dropout
        )
        super().__init__(
            spatial_dims,
            in_channels,
            structures,
            heads,
            network,
            decoder=r".*\.merge",
            encoder="|".join(map(re.escape, _attention_encoder(len(features)))),
            multiple=2 ** (len(features) - 1),
            foreground_prior=foreground_prior,
        )


def _attention_encoder(stages: int) -> list[str]:
    """Return the names of the encoder's blocks in MONAI's AttentionUnet, whose stages lie within each other."""
    inner = ["model.1" + ".submodule.1" * depth for depth in range(stages - 1)]
    return ["model.0", *(f"{name}.submodule.0" for name in inner[:-1]), f"{inner[-1]}.submodule"]
