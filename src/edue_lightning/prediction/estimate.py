"""A model's estimate for one image: mean probability, disagreement map and scores, computed slab by slab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edue_lightning.methods import SegmentationMethod
from edue_lightning.uncertainty import (
    PairOverlap,
    case_scores,
    disagreement_map,
    foreground,
    map_sums,
    mean_probability,
    pair_overlap,
    score_maps,
)


@dataclass(frozen=True)
class Estimate:
    """A prediction for one image, with K structures and voxels `*S`.

    Attributes:
        probability: mean over the members, `[K, *S]` float32.
        disagreement: V, the variance between the members, `[K, *S]` float32; of a single network, which has none, the
            variance p (1 - p) of its own prediction.
        scores: `CASE_SCORES` by name, `[K]` float64 each, as `docs/metrics.md` defines them; NaN where one is
            undefined.
        member_areas: size of each member's own mask, `[M, K]` float64, mm² or mm³ (pixels or voxels where the spacing
            is unknown).
    """

    probability: Tensor
    disagreement: Tensor
    scores: Mapping[str, Tensor]
    member_areas: Tensor

    @property
    def mask(self) -> Tensor:
        """Mask of the mean prediction, probability >= 0.5, `[K, *S]` bool."""
        return foreground(self.probability)

    @property
    def members(self) -> int:
        """M."""
        return self.member_areas.shape[0]


@torch.inference_mode()
def estimate(method: SegmentationMethod, image: Tensor, voxel_size: float = 1.0) -> Estimate:
    """Predict one image, slab by slab where the method uses sliding windows.

    Beside the result, memory holds one slab of all members at a time.

    Args:
        method: trained method; its device and mode are unchanged.
        image: `[C, *S]` float32.
        voxel_size: mm² or mm³; 1 for scores in pixels or voxels.
    """
    running = _Running()
    for logits in method.inference.slabs(method, image[None].to(method.device)):
        running.add(torch.sigmoid(logits[0].double()))
    return running.estimate(voxel_size)


class _Running:
    """Sums over the slabs so far, and their maps."""

    def __init__(self) -> None:
        self.maps: list[tuple[Tensor, Tensor]] = []
        self.sums: dict[str, Tensor] = {}
        self.overlap: Tensor | None = None

    def add(self, members: Tensor) -> None:
        """Add a slab of member probabilities, `[M, K, *S]` float64."""
        maps = score_maps(members[None].float())
        for name, found in map_sums(maps).items():
            self.sums[name] = self.sums.get(name, 0) + found[0].cpu()
        probability = mean_probability(members[None])[0]
        masks = foreground(torch.cat([probability[None].double(), members]))
        counted = pair_overlap(masks.transpose(0, 1).flatten(2)).intersection.cpu()
        self.overlap = counted if self.overlap is None else self.overlap + counted
        self.maps.append((probability.cpu(), disagreement_map(maps, len(members))[0].cpu()))

    def estimate(self, voxel_size: float) -> Estimate:
        """Return the estimate of all slabs together."""
        assert self.overlap is not None
        overlap = PairOverlap(self.overlap)
        scores = case_scores(self.sums, overlap, voxel_size)
        probability, disagreement = (torch.cat(parts, dim=1) for parts in zip(*self.maps, strict=True))
        return Estimate(probability, disagreement, scores, overlap.size[:, 1:].T * voxel_size)
