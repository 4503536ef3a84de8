"""Density of a method's training images: how far an image's appearance and first features lie from theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edue_lightning.methods.base import SegmentationMethod
from edue_lightning.networks.first_features import (
    FIRST_CONVOLUTIONS,
    ChannelMoments,
    channel_moments,
    first_features,
    normalised_outputs,
    part_of_features,
    statistics_of,
)
from edue_lightning.uncertainty.appearance import appearance_statistics
from edue_lightning.uncertainty.density import Gaussian, mean_distance

_EARLIER_MARGIN = 0.1


@dataclass(frozen=True)
class Density:
    """Gaussians of the training images' features, one per network, and the distances of images from them.

    The features of an image are those of `density_features`. They see noise, blur and contrast, not anatomy.

    Attributes:
        gaussians: Gaussian of each network; a single one if no network has first features.
        limit: distance beyond which an image is unlike the training images.
        false_alarms: probability that an image like them lies beyond it, at most; None in checkpoints of earlier
            versions.
        appearance: whether the statistics of the image itself are among the features; not in checkpoints of earlier
            versions.
    """

    gaussians: Sequence[Gaussian]
    limit: float
    false_alarms: float | None = None
    appearance: bool = True

    def __call__(self, method: SegmentationMethod, image: Tensor, features: Sequence[Tensor] | None = None) -> Tensor:
        """Return the distance of each image, mean over the networks, `[B]` float64 on the CPU.

        Args:
            method: method whose training images these are; its mode is unchanged.
            image: `[B, C, *S]`, prepared as in training, on the method's device.
            features: `image_features` of these images, if they are known already.

        Raises:
            ValueError: if the method has other networks.
        """
        if self.appearance:
            features = density_features(method, image, features)
        elif features is None:
            features = image_features(method, image, padded=True)
        if features is None or [part.shape[1] for part in features] != [len(one.mean) for one in self.gaussians]:
            raise ValueError("the density was fitted to other networks; train again or use another checkpoint")
        return mean_distance(self.gaussians, features)

    def outside(self, distance: float) -> list[str]:
        """Return in words that a distance lies beyond the limit; empty if it does not."""
        return [f"density {distance:.4g} outside 0 to {self.limit:.4g}"] if distance > self.limit else []

    def as_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        gaussians = [{"mean": one.mean, "whitening": one.whitening} for one in self.gaussians]
        return {
            "gaussians": gaussians,
            "limit": self.limit,
            "false_alarms": self.false_alarms,
            "appearance": self.appearance,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Density:
        """Return the density that `as_dict` described.

        Raises:
            ValueError: if values are damaged; KeyError or TypeError if one is missing or of another type.
        """
        gaussians = [Gaussian(one["mean"], one["whitening"]) for one in stored["gaussians"]]
        for gaussian in gaussians:
            count = len(gaussian.mean)
            # a tensor that repeats a few stored numbers could have any size
            parts = ((gaussian.mean, (count,)), (gaussian.whitening, (count, count)))
            if not all(part.shape == shape and part.is_contiguous() and part.isfinite().all() for part, shape in parts):
                raise ValueError("its density is damaged")
        # earlier versions stored the largest distance of a training or validation image
        limit = stored["limit"] if "limit" in stored else (1 + _EARLIER_MARGIN) * stored["largest"]
        rate = stored.get("false_alarms")
        return cls(
            [Gaussian(one.mean.double(), one.whitening.double()) for one in gaussians],
            float(limit),
            None if rate is None else float(rate),
            bool(stored.get("appearance", False)),
        )


def networks(method: SegmentationMethod) -> list[nn.Module]:
    """Return the networks of a method that take an image, one per trainee; empty if it names none `network`."""
    found = [getattr(trainee, "network", None) for trainee in method.trainees()]
    return [network for network in found if isinstance(network, nn.Module)]


@torch.no_grad()
def density_features(
    method: SegmentationMethod, image: Tensor, features: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return the features of images by which a density compares them.

    They are the first features of each network (`image_features`) and statistics of the image itself
    (`appearance_statistics`). Without first features, the statistics are the features of a single Gaussian.

    Args:
        method: method; its mode is unchanged.
        image: `[B, C, *S]` on the method's device.
        features: `image_features` of these images, if they are known already.

    Returns:
        `[B, F]` float64 on the CPU for each network.
    """
    features = image_features(method, image) if features is None else features
    statistics = appearance_statistics(image).cpu()
    return [statistics] if features is None else [torch.cat([part, statistics], dim=1) for part in features]


@torch.no_grad()
def image_features(method: SegmentationMethod, image: Tensor, padded: bool = False) -> list[Tensor] | None:
    """Return the first features of images for each of a method's networks, in full precision.

    They are mean and logarithm of the standard deviation of each channel of the network's first two convolutions,
    before normalisation: deeper layers have lost the appearance of the image.

    Args:
        method: method; its mode is unchanged.
        image: `[B, C, *S]` on the method's device.
        padded: whether the padding of windows is counted, and the overlap of two windows twice, as in earlier versions.

    Returns:
        `[B, F]` float64 on the CPU for each network; None if there is no network, or one without two convolutions that
        a normalisation follows.
    """
    features = []
    for network in networks(method):
        moments = ChannelMoments()
        dtype = next(network.parameters()).dtype
        for tile, box in method.inference.tiles(image):
            with torch.autocast(image.device.type, enabled=False):
                found = first_features(network, tile.to(dtype))
            if found is None:
                return None
            moments.add(found if padded else [part_of_features(values, box, tile.shape[2:]) for values in found])
        features.append(moments.statistics().cpu())
    return features or None


class RecordedFeatures:
    """Features of an image from the pass that predicts it, in place of a pass of their own.

    Args:
        method: method that predicts the image.
        image: `[B, C, *S]` on the method's device.
    """

    def __init__(self, method: SegmentationMethod, image: Tensor) -> None:
        self._image = image
        self._networks = networks(method)
        self._moments: list[list[Tensor]] = [[] for _ in self._networks]
        self._passes = [0] * len(self._networks)
        self._usable = bool(self._networks)

    @property
    def features(self) -> list[Tensor] | None:
        """What `image_features` returns, or None if the networks did not see the image as it runs them.

        They must have run once each, on the whole image alone, in evaluation mode and full precision.
        """
        if not self._usable or any(count != 1 for count in self._passes):
            return None
        if any(len(layers) != FIRST_CONVOLUTIONS for layers in self._moments):
            return None
        return [statistics_of(*torch.cat(layers, dim=2)).cpu() for layers in self._moments]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the next prediction."""
        with ExitStack() as hooks:
            for number, network in enumerate(self._networks):
                # a compiled network would not call the hooks
                if network._compiled_call_impl is not None:
                    self._usable = False
                    break
                handle = network.register_forward_pre_hook(partial(self._before, number))
                hooks.callback(handle.remove)
                hooks.enter_context(normalised_outputs(network, partial(self._take, number)))
            yield

    def _before(self, number: int, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._passes[number] += 1
        # all that would make the features other ones
        self._usable = (
            self._usable
            and self._passes[number] == 1
            and len(inputs) == 1
            and inputs[0].dtype == self._image.dtype == next(network.parameters()).dtype
            and torch.equal(inputs[0], self._image)
            and not torch.is_autocast_enabled(self._image.device.type)
            and not any(part.training for part in network.modules())
        )

    def _take(self, number: int, output: Tensor) -> None:
        if self._usable and len(self._moments[number]) < FIRST_CONVOLUTIONS:
            self._moments[number].append(channel_moments(output))
