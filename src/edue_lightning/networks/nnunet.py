"""nnU-Net's networks with segmentation heads on their stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from edue_lightning.networks.heads import HeadLayout
from edue_lightning.networks.staged import NOT_INSTALLED, StagedNetwork
from edue_lightning.networks.topology import stage_kernels, stage_strides, total_strides

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


class NnUNet(StagedNetwork):
    """nnU-Net's own U-Net, plain or with a residual encoder, from `dynamic-network-architectures`.

    Instance normalisation and leaky ReLU, as nnU-Net configures them (Isensee et al., Nature Methods 2021; residual
    encoder: Isensee et al., MICCAI 2024).

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels C.
        structures: number of structures K.
        heads: places and number of the heads.
        features: channels of each stage, at least two stages.
        residual: residual blocks in the encoder.
        blocks: convolutions, or residual blocks, in each stage of the encoder: one number, or one per stage.
        dropout: probability after every convolution.
        foreground_prior: see `MultiHeadUNet`.
        strides: reduction along each axis at the beginning of each stage, `[stages][axes]`, the first of 1; None for 2
            along all axes.
        kernels: kernel size along each axis of each stage, `[stages][axes]`; None for 3 along all axes.

    Raises:
        ValueError: if the library is missing, or the numbers of stages or axes do not fit.
    """

    def __init__(
        self,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        structures: int,
        heads: HeadLayout,
        features: Sequence[int] = (32, 64, 128, 256, 512),
        residual: bool = False,
        blocks: int | Sequence[int] = 2,
        dropout: float = 0.0,
        foreground_prior: float = 0.05,
        strides: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
    ) -> None:
        try:
            from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
        except ImportError as error:
            raise ValueError(NOT_INSTALLED.format("nnU-Net's networks", error)) from error
        stages = len(features)
        per_stage = [blocks] * stages if isinstance(blocks, int) else list(blocks)
        if stages < 2 or len(per_stage) != stages:
            raise ValueError(
                f"features={list(features)} needs two or more stages, and blocks={blocks} one number for each"
            )
        reductions = stage_strides(strides, stages, spatial_dims)
        kernel_sizes = stage_kernels(kernels, stages, spatial_dims)

        def network(in_channels: int, out_channels: int) -> nn.Module:
            counts: dict[str, Any] = {"n_blocks_per_stage" if residual else "n_conv_per_stage": per_stage}
            made: nn.Module = (ResidualEncoderUNet if residual else PlainConvUNet)(
                input_channels=in_channels,
                n_stages=stages,
                features_per_stage=list(features),
                conv_op=_CONVOLUTION[spatial_dims],
                kernel_sizes=kernel_sizes,
                strides=reductions,
                num_classes=out_channels,
                n_conv_per_stage_decoder=[1 if residual else 2] * (stages - 1),
                conv_bias=True,
                norm_op=_NORM[spatial_dims],
                norm_op_kwargs={"eps": 1e-5, "affine": True},
                dropout_op=_DROPOUT[spatial_dims] if dropout else None,
                dropout_op_kwargs={"p": dropout} if dropout else None,
                nonlin=nn.LeakyReLU,
                nonlin_kwargs={"inplace": True},
                deep_supervision=False,
                **counts,
            )
            return made

        super().__init__(
            spatial_dims,
            in_channels,
            structures,
            heads,
            network,
            decoder=r"decoder\.stages\.\d+",
            encoder=r"encoder\.stages\.\d+",
            multiple=total_strides(reductions),
            foreground_prior=foreground_prior,
        )
