"""What a model says of one image: mean probability, disagreement map and scores, in memory that members do not fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edue_lightning.methods import SegmentationMethod
from edue_lightning.uncertainty import (
    PairOverlap,
    area_under_layer_agreement,
    layer_agreement,
    member_variance,
    model_agreement,
    pair_overlap,
    predictive_entropy,
    sum_of_variances,
    total_variance,
)


@dataclass(frozen=True)
class Estimate:
    """A prediction for one image, with K structures and voxels `*S`.

    Attributes:
        probability: mean over the members, `[K, *S]` float32.
        disagreement: V, the variance between the members, `[K, *S]` float32; of a single network, which has none, the
            variance p (1 - p) of its own prediction.
        scores: by name, `[K]` float64 each: `sv`, `sv_total`, `sv_normalised`, `entropy`, `layer_agreement`, `aula`,
            `model_agreement` and `predicted_area` (mm² or mm³), as `docs/metrics.md` defines them; NaN where one is
            not defined.
        member_areas: size of each member's own mask, `[M, K]` float64, mm² or mm³ (pixels or voxels where the spacing
            is not known).
    """

    probability: Tensor
    disagreement: Tensor
    scores: Mapping[str, Tensor]
    member_areas: Tensor

    @property
    def mask(self) -> Tensor:
        """Where the mean probability reaches one half, `[K, *S]` bool."""
        return self.probability >= 0.5

    @property
    def members(self) -> int:
        """M."""
        return self.member_areas.shape[0]


@torch.inference_mode()
def estimate(method: SegmentationMethod, image: Tensor, voxel_size: float = 1.0) -> Estimate:
    """Predict one image, slab by slab where the method sees it window by window.

    Beside the result, one slab of all members is in memory at a time.

    Args:
        method: trained; its device and mode are left as they are.
        image: `[C, *S]` float32.
        voxel_size: mm² or mm³.
    """
    running = _Running()
    for logits in method.inference.slabs(method, image[None].to(method.device)):
        running.add(torch.sigmoid(logits[0].float()))
    return running.estimate(voxel_size)


class _Running:
    """Sums over the slabs so far, and their maps."""

    def __init__(self) -> None:
        self.maps: list[tuple[Tensor, Tensor]] = []
        self.sums: dict[str, Tensor] = {}
        self.overlap: Tensor | None = None
        self.members = 0

    def add(self, members: Tensor) -> None:
        """Add a slab of member probabilities, `[M, K, *S]`."""
        self.members = len(members)
        batch = members[None]
        between, total = member_variance(batch), total_variance(batch)
        one = torch.ones(1)
        for name, values in (("sv", between), ("sv_total", total), ("entropy", predictive_entropy(batch))):
            found = sum_of_variances(values, one.to(values.device))[0].cpu()
            self.sums[name] = self.sums.get(name, 0) + found
        probability = members.mean(dim=0)
        masks = torch.cat([(probability >= 0.5)[None], members >= 0.5])
        counted = pair_overlap(masks.transpose(0, 1).flatten(2)).intersection.cpu()
        self.overlap = counted if self.overlap is None else self.overlap + counted
        self.maps.append((probability.cpu(), (between if self.members > 1 else total)[0].cpu()))

    def estimate(self, voxel_size: float) -> Estimate:
        """Return what all slabs amount to."""
        assert self.overlap is not None
        overlap = PairOverlap(self.overlap)
        areas = overlap.size * voxel_size
        area = areas[:, 0]
        scores = {name: values * voxel_size for name, values in self.sums.items()}
        if self.members < 2:
            scores["sv"] = torch.full_like(scores["sv"], torch.nan)
        scores["sv_normalised"] = scores["sv"] / torch.where(area > 0, area, torch.nan)
        pair_dice = overlap.dice()[:, 1:, 1:]
        neighbours = layer_agreement(pair_dice)
        scores["layer_agreement"] = neighbours.mean(dim=1)
        scores["aula"] = area_under_layer_agreement(neighbours)
        scores["model_agreement"] = model_agreement(pair_dice)
        scores["predicted_area"] = area
        probability, disagreement = (torch.cat(parts, dim=1) for parts in zip(*self.maps, strict=True))
        return Estimate(probability, disagreement, scores, areas[:, 1:].T)
