"""A method of 2D images on volumes: every slice is predicted by itself, and all make up the volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from edue_lightning.data.preparation import Preparation
from edue_lightning.data.sample import RaterBatch
from edue_lightning.data.slices import SliceLayout, prepared_slices
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods.base import MethodParts, OptimizerSettings, SegmentationMethod
from edue_lightning.methods.sliding_window import Inference
from edue_lightning.networks import HeadLayout


class SliceBySlice(SegmentationMethod):
    """A trained method of 2D images that predicts volumes; it is not trained itself.

    Member m of a volume joins the members m of its slices. Methods that draw samples have the same draws in every
    slice. Rules for masks, disagreement and scores are those of the volume, see `SegmentationMethod.readout`.

    Args:
        method: trained method; its sliding windows and temperatures hold in each slice.
        preparation: preparation of its images, applied to each slice.
        layout: order and directions of the slices.
        batch_size: number of slices per forward pass.
        values: changes a volume `[C, *S]` into the values that files of slices would have.
    """

    def __init__(
        self,
        method: SegmentationMethod,
        preparation: Preparation,
        layout: SliceLayout,
        batch_size: int,
        values: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        parts = MethodParts(
            _no_network,
            method.structures,
            SegmentationLoss(),
            OptimizerSettings(),
            majority_tie=method.majority_tie,
            exclusive=method.exclusive,
        )
        super().__init__(parts)
        self.method = method
        self.readout = method.readout
        self.preparation = preparation
        self.layout = layout
        self.batch_size = batch_size
        self.values = values

    @property
    def label(self) -> str:
        """Name of the method of 2D images."""
        return self.method.label

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of volumes `[B, C, *S]`, `[B, M + n, K, *S]`.

        Raises:
            ImageError: if the preparation refuses a slice.
        """
        return torch.stack([self._of_volume(volume) for volume in image])

    def _of_volume(self, volume: Tensor) -> Tensor:
        slices = self.layout.turned(volume if self.values is None else self.values(volume))
        parts = [self._of_slices(part) for part in slices.split(self.batch_size, dim=1)]
        return self.layout.back(torch.cat(parts, dim=2))

    def _of_slices(self, slices: Tensor) -> Tensor:
        """Return the logits of slices `[C, n, H, W]`, `[M + n, K, n, H, W]`."""
        prepared = prepared_slices(slices, self.preparation).to(slices.device)
        # before a softmax, which is that of the volume
        logits = self.method.raw_logits(prepared)
        size = slices.shape[2:]
        if logits.shape[3:] != size:
            # back from the size that the network takes, as maps of a picture are
            flat = F.interpolate(logits.float().flatten(1, 2), list(size), mode="bilinear", antialias=True)
            logits = flat.unflatten(1, logits.shape[1:3])
        return logits.movedim(0, 2)

    def training_loss(self, batch: RaterBatch) -> NoReturn:
        """Raise `NotImplementedError`: the method of 2D images is trained before."""
        raise NotImplementedError("a method that predicts volumes slice by slice is not trained")


@dataclass(frozen=True)
class SliceSlabs(Inference):
    """Prediction of volumes whose first axis counts the slices, `batch_size` slices at a time."""

    def slabs(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of some slices at a time, see `Inference.slabs`."""
        for part in image.split(self.batch_size, dim=2):
            yield network(part)


def _no_network(heads: HeadLayout) -> NoReturn:
    raise NotImplementedError(f"no network of its own, and no heads {heads}")
