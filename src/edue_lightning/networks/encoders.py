"""A U-Net on an image encoder of `timm`, with segmentation heads on its decoder's stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from edue_lightning.errors import UserError
from edue_lightning.networks.heads import HeadLayout
from edue_lightning.networks.staged import NOT_INSTALLED, StagedNetwork


class EncoderUNet(StagedNetwork):
    """A 2D U-Net of `segmentation-models-pytorch` on one of its encoders, or of `timm`'s (`tu-NAME`).

    Args:
        spatial_dims: 2.
        in_channels: image channels C; weights for three channels are adapted to it.
        structures: number of structures K.
        heads: places and number of the heads: `last` or `decoder`.
        encoder: name of the encoder, such as `resnet34` or `tu-convnext_tiny`.
        weights: pretrained weights of the encoder: a name that the library downloads, such as `imagenet`; or the path
            of a file with the encoder's `state_dict`, which must fit it; None for random ones.
        features: channels of each stage of the decoder, from the coarsest on.
        foreground_prior: see `MultiHeadUNet`.

    Raises:
        ValueError: for 3D images, an unknown encoder, or if the library is missing.
        UserError: if the file of the weights does not fit the encoder.
    """

    def __init__(
        self,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        structures: int,
        heads: HeadLayout,
        encoder: str = "resnet34",
        weights: str | None = None,
        features: Sequence[int] = (256, 128, 64, 32, 16),
        foreground_prior: float = 0.05,
    ) -> None:
        if spatial_dims != 2:
            raise ValueError(f"the encoders take 2D images, and these are {spatial_dims}D; choose another network")
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            raise ValueError(NOT_INSTALLED.format("the encoders", error)) from error
        file = Path(weights).expanduser() if weights is not None and Path(weights).suffix else None

        def network(in_channels: int, out_channels: int) -> nn.Module:
            try:
                made: nn.Module = smp.Unet(
                    encoder_name=encoder,
                    encoder_weights=None if file is not None else weights,
                    encoder_depth=len(features),
                    decoder_channels=tuple(features),
                    in_channels=in_channels,
                    classes=out_channels,
                )
            except KeyError as error:
                raise ValueError(str(error.args[0])) from error
            if file is not None:
                _load(made.get_submodule("encoder"), file)
            return made

        super().__init__(
            spatial_dims,
            in_channels,
            structures,
            heads,
            network,
            decoder=r"decoder\.blocks\.\d+",
            multiple=2 ** len(features),
            foreground_prior=foreground_prior,
        )


def _load(encoder: nn.Module, file: Path) -> None:
    """Load an encoder's weights from a file.

    Raises:
        UserError: if the file cannot be read, or does not fit the encoder.
    """
    try:
        encoder.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # a file that is no state_dict fails in many ways
        reason = str(error).splitlines()[0]
        raise UserError(f"network.weights={file}: cannot be used for this encoder: {reason}") from error
