"""Any segmentation network as one with heads on its stages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from edue_lightning.networks.heads import HeadLayout, set_foreground_prior, stack_heads

NOT_INSTALLED = "{} are not installed ({}): pip install 'edue-lightning[networks]'"
"""Message for a network whose library is missing: what is missing, and the error of its import."""

_OUTPUT_NAMES = ("out_channels", "classes", "num_classes")
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class StagedNetwork(nn.Module):
    """A network of any library, with a convolution as a head on the output of each of its stages.

    The stages are modules of the network, found by their names. The last decoder stage, at full resolution, has the
    network's own output layer as its head, so that `HeadLayout("last")` is the network as its library has it. Heads are
    ordered as the stages run: those of the encoder from the finest on, then those of the decoder from the coarsest on.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels C.
        structures: number of structures K.
        heads: places and number of the heads.
        network: factory of the network, called with `in_channels`, `out_channels` (or `classes`, `num_classes`) and, if
            it takes it, `spatial_dims`. It maps `[B, C, *S]` to `[B, out_channels, *S]`; a smaller output is
            interpolated.
        decoder: regular expression that matches the full names of the decoder's stages, see `nn.Module.named_modules`,
            the last one included; None if the network has no stages.
        encoder: the same for the encoder, the bottleneck included.
        multiple: number that the length of every axis must be a multiple of, or one number per axis; an image is padded
            at its end by its border values, and the logits are cropped.
        foreground_prior: probability that every head predicts everywhere before training, see `MultiHeadUNet`.

    Shapes:
        input `[B, C, *S]`, output logits `[B, M, K, *S]`.

    Attributes:
        least_stages: smallest number of stages that can be built.

    Raises:
        ValueError: if the factory takes no number of outputs, the stages are missing, or the network's output has
            another shape.
    """

    least_stages = 2

    def __init__(
        self,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        structures: int,
        heads: HeadLayout,
        network: Callable[..., nn.Module],
        decoder: str | None = None,
        encoder: str | None = None,
        multiple: int | Sequence[int] = 1,
        foreground_prior: float = 0.05,
    ) -> None:
        super().__init__()
        self.multiples = (multiple,) * spatial_dims if isinstance(multiple, int) else tuple(multiple)
        if len(self.multiples) != spatial_dims or min(self.multiples) < 1:
            raise ValueError(f"multiple must be at least 1, or one such number for each axis, not {multiple}")
        outputs = heads.per_stage * structures
        self.structures = structures
        self.stride = max(self.multiples)
        self.body = network(**_arguments(network, spatial_dims, in_channels, outputs))
        wanted = _matching(self.body, heads, decoder, encoder)
        # modules that run, with the channels of what they return
        run = self._widths(wanted, spatial_dims, in_channels, outputs)
        # the last of the decoder has the network's own head
        self._stages = list(run)[:-1]
        self.heads = nn.ModuleList(
            Convolution(spatial_dims, run[name], outputs, kernel_size=heads.kernel_size, conv_only=True)
            for name in self._stages
        )
        self.members = heads.per_stage * (len(self._stages) + 1)
        set_foreground_prior(self.heads, foreground_prior)
        self._features: dict[str, Tensor] = {}
        for name in self._stages:
            # a bound method of this module, so that a copy of the module has hooks of its own
            self.body.get_submodule(name).register_forward_hook(partial(self._keep, name))
        own = _output_layer(self.body, outputs)
        if own is not None:
            set_foreground_prior(own, foreground_prior)

    def forward(self, image: Tensor) -> Tensor:
        """Return member logits `[B, M, K, *S]` for an image `[B, C, *S]`.

        Raises:
            ValueError: if no axis is longer than `multiple`, so that one value of the coarsest features is left.
        """
        size = image.shape[2:]
        # axis by axis, since an exported graph for images of any size cannot contain the maximum
        if self.stride > 1 and all(length <= own for length, own in zip(size, self.multiples, strict=True)):
            raise ValueError(
                f"image of size {list(size)} is too small for a network that halves it to 1/{self.stride}: "
                "pad the images, or choose a network with fewer stages"
            )
        output = self.body(self._padded(image))
        logits = [head(self._features[name]) for head, name in zip(self.heads, self._stages, strict=True)]
        # nothing of one image stays in memory, nor in an exported graph
        self._features.clear()
        padded = torch.Size(length + -length % own for length, own in zip(size, self.multiples, strict=True))
        stacked = stack_heads([*logits, output], padded, self.structures)
        for axis, length in enumerate(size, start=3):
            # an image of the padded size is left as it is, in exported graphs too
            stacked = stacked.narrow(axis, 0, length) if padded[axis - 3] != length else stacked
        return stacked

    def _keep(self, name: str, module: nn.Module, inputs: Any, features: Tensor) -> None:  # noqa: ARG002
        self._features[name] = features

    def _padded(self, image: Tensor) -> Tensor:
        missing = [-length % own for length, own in zip(image.shape[2:], self.multiples, strict=True)]
        if not any(missing):
            return image
        # `pad` counts from the last axis
        return F.pad(image, [number for length in reversed(missing) for number in (0, length)], mode="replicate")

    def _widths(self, names: Iterable[str], spatial_dims: int, in_channels: int, outputs: int) -> dict[str, int]:
        """Return the channels of some modules' outputs, in the order in which the modules run.

        Raises:
            ValueError: if a module does not run once, or the network's output has another shape.
        """
        found: dict[str, int] = {}

        def see(name: str, module: nn.Module, inputs: Any, features: Any) -> None:  # noqa: ARG001
            if name in found or not isinstance(features, Tensor) or features.ndim != spatial_dims + 2:
                raise ValueError(f"network: its module {name!r} is no stage, which returns one map of features")
            found[name] = features.shape[1]

        handles = [self.body.get_submodule(name).register_forward_hook(partial(see, name)) for name in names]
        training = self.body.training
        lengths = [2 * max(own, 16) for own in self.multiples]
        with torch.no_grad():
            output = self.body.eval()(torch.zeros(1, in_channels, *lengths))
        self.body.train(training)
        for handle in handles:
            handle.remove()
        if not isinstance(output, Tensor) or output.ndim != spatial_dims + 2 or output.shape[1] != outputs:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"network: returns {got}, but [B, {outputs}] and the image's axes are expected")
        # without stages, the output alone
        return found or {"": outputs}


def _arguments(network: Callable[..., nn.Module], spatial_dims: int, in_channels: int, outputs: int) -> dict[str, int]:
    """Return the arguments of a factory of networks, by the names that it has for them.

    Raises:
        ValueError: if it takes no number of outputs.
    """
    accepted = inspect.signature(network).parameters
    name = next((name for name in _OUTPUT_NAMES if name in accepted), None)
    if name is None:
        raise ValueError(f"network: takes none of {', '.join(_OUTPUT_NAMES)}, so its outputs cannot be chosen")
    arguments = {"in_channels": in_channels, name: outputs}
    return {"spatial_dims": spatial_dims, **arguments} if "spatial_dims" in accepted else arguments


def _matching(body: nn.Module, heads: HeadLayout, decoder: str | None, encoder: str | None) -> list[str]:
    """Return the names of the modules that get heads, and of the last of the decoder; none for the last stage alone.

    Raises:
        ValueError: if the network has no such stages.
    """
    wanted: dict[str, list[tuple[str, str | None]]] = {
        "last": [],
        "decoder": [("decoder", decoder)],
        "encoder+decoder": [("encoder", encoder), ("decoder", decoder)],
    }
    names = [name for name, _ in body.named_modules()]
    found: list[str] = []
    for part, pattern in wanted[heads.stages]:
        matching = [] if pattern is None else [name for name in names if re.fullmatch(pattern, name)]
        if not matching:
            raise ValueError(
                f"heads on the {part}'s stages need a network with such stages, and {type(body).__name__} has none "
                f"here: choose another network, or name them by a pattern (network.{part}={pattern})"
            )
        found += matching
    return found


def _output_layer(body: nn.Module, outputs: int) -> nn.Module | None:
    """Return the last convolution that gives the network's outputs, or None."""
    layers = [one for one in body.modules() if isinstance(one, _CONVOLUTIONS) and one.out_channels == outputs]
    return layers[-1] if layers and layers[-1].bias is not None else None
