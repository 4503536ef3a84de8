"""Test-time augmentation: one network, run on mirrored, turned or scaled images (Wang et al., arXiv 1807.07356)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from edue_lightning.data.augmentation import are_equal_sizes
from edue_lightning.data.sample import RaterBatch
from edue_lightning.methods.base import MethodParts, NetworkMethod, SegmentationMethod
from edue_lightning.methods.targets import Target, member_target
from edue_lightning.networks import HeadLayout


class View(NamedTuple):
    """One way to show an image to the network: turned, then mirrored, then scaled.

    Attributes:
        is_turned: whether the first two spatial axes are exchanged; with a mirrored axis, that is a quarter turn.
        mirrored: positions of the mirrored spatial axes, from 0.
        scale: factor of all intensities.
    """

    is_turned: bool
    mirrored: tuple[int, ...]
    scale: float

    def of(self, image: Tensor) -> Tensor:
        """Return the view of an image `[B, C, *S]`."""
        if self.is_turned:
            image = image.transpose(2, 3)
        image = image.flip([2 + axis for axis in self.mirrored])
        return image if self.scale == 1 else image * self.scale

    def undone(self, logits: Tensor) -> Tensor:
        """Return logits of the view, `[B, M, K, *S]`, on the voxels of the image."""
        logits = logits.flip([3 + axis for axis in self.mirrored])
        return logits.transpose(3, 4) if self.is_turned else logits


class TestTimeAugmentation(NetworkMethod):
    """One network with one head; its predictions for changed images, changed back, are the members.

    The first member is the prediction for the image as it is. Every image, and every window of an image, is shown in
    the same views, so a prediction is the same each time. In training the network sees each case once, as `single`
    does: with the same seed the two end with the same weights, unless the choice of the best checkpoint differs.

    Args:
        parts: see `MethodParts`.
        heads: the one head of the network.
        target: target of the network.
        mirrored: whether to mirror the image along every set of its axes (4 views in 2D, 8 in 3D).
        turned: whether to show each of these views with the first two axes exchanged too; with `mirrored`, quarter
            turns and their mirror images. In a volume these axes are those of the axial plane. The method does not know
            the voxel size: along these axes it must be the same, in new images too, see `unequal_axes`.
        intensity: if above 0, each view is also shown with its intensities scaled by 1 - `intensity` and 1 +
            `intensity`.

    Raises:
        ValueError: if no change is chosen, `intensity` is not in [0, 1), or for `rater_per_member`.
    """

    def __init__(
        self,
        parts: MethodParts,
        heads: HeadLayout,
        target: Target = "majority",
        mirrored: bool = True,
        turned: bool = False,
        intensity: float = 0.0,
    ) -> None:
        super().__init__(parts, heads)
        if target == "rater_per_member":
            raise ValueError("all members are of one network with one target: rater_per_member does not apply")
        if not 0 <= intensity < 1:
            raise ValueError(f"intensity must be at least 0 and below 1, not {intensity}")
        if not (mirrored or turned or intensity):
            raise ValueError("choose mirrored, turned or intensity; for the image alone use method=single")
        self.target: Target = target
        self.mirrored = mirrored
        self.turned = turned
        self.intensity = intensity

    @property
    def label(self) -> str:
        """`test_time_augmentation`, with the target unless it is `majority`."""
        return "test_time_augmentation" if self.target == "majority" else f"test_time_augmentation_{self.target}"

    def views(self, spatial_dims: int) -> Iterator[View]:
        """Yield the views of the members, in their order.

        Args:
            spatial_dims: 2 or 3.
        """
        scales = (1.0, 1 - self.intensity, 1 + self.intensity) if self.intensity else (1.0,)
        turns = (False, True) if self.turned else (False,)
        mirrors = list(product((False, True) if self.mirrored else (False,), repeat=spatial_dims))
        for scale, is_turned, chosen in product(scales, turns, mirrors):
            yield View(is_turned, tuple(axis for axis, is_mirrored in enumerate(chosen) if is_mirrored), scale)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of every view, `[B, M, K, *S]`; in training mode of the image alone, `[B, 1, K, *S]`."""
        if self.training:
            return self.network(image)
        views = self.views(image.ndim - 2)
        return torch.cat([view.undone(self.network(view.of(image))) for view in views], dim=1)

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss` of the image as it is, averaged over cases."""
        logits = self.network(batch.image)
        target = member_target(batch, self.target, tie=self.majority_tie, exclusive=self.exclusive).expand_as(logits)
        return {"loss": self.member_losses(logits, target, batch).mean()}


def exchanges_axes(method: SegmentationMethod) -> bool:
    """Return whether a method shows images to its networks with the first two axes exchanged."""
    return any(isinstance(part, TestTimeAugmentation) and part.turned for part in method.trainees())


def unequal_axes(method: SegmentationMethod, spacing: Sequence[float] | None) -> str | None:
    """Return why a method cannot predict an image, or None if it can: axes that it exchanges need voxels of one size.

    Args:
        method: any method.
        spacing: voxel size along each axis of the image, mm; None if it is unknown.
    """
    if spacing is None or not exchanges_axes(method) or are_equal_sizes(*spacing[:2]):
        return None
    return (
        "the method exchanges the first two axes (method.turned=true), but the voxels are "
        f"{spacing[0]:g} and {spacing[1]:g} mm along them"
    )
