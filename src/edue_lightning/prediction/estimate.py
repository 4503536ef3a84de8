"""A model's estimate for one image: probability, disagreement and decision maps and scores, computed slab by slab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edue_lightning.methods import SegmentationMethod
from edue_lightning.uncertainty import (
    PairOverlap,
    Readout,
    case_scores,
    disagreement_map,
    majority_maps,
    map_sums,
    masks_of,
    pair_overlap,
    score_maps,
)


@dataclass(frozen=True)
class Estimate:
    """A prediction for one image, with K structures and voxels `*S`.

    Attributes:
        probability: p, the mean over the members unless the method's read-out has another, `[K, *S]` float32.
        disagreement: V, the variance between the members unless the method's read-out has another, `[K, *S]` float32;
            of a single network, which has none, the variance p (1 - p) of its own prediction.
        decision: map that the mask is taken from, p unless the method's read-out has another, `[K, *S]` float32.
        thresholds: threshold of `decision` for each structure, `[K]` float32, see `MaskRule`.
        has_disagreement: whether `disagreement` is V.
        scores: `CASE_SCORES` by name, `[K]` float64 each, as `docs/metrics.md` defines them; NaN where one is
            undefined.
        member_areas: size of each member's own mask, `[M, K]` float64, mm² or mm³ (pixels or voxels where the spacing
            is unknown).
        member_probabilities: probabilities of the members, or samples, `[M, K, *S]` float32; None unless they were
            requested.
        exclusive: whether the structures exclude each other.
        image_features: features of the image for the method's `Density`, if they were recorded; None if not.
    """

    probability: Tensor
    disagreement: Tensor
    decision: Tensor
    thresholds: Tensor
    has_disagreement: bool
    scores: Mapping[str, Tensor]
    member_areas: Tensor
    member_probabilities: Tensor | None = None
    exclusive: bool = False
    image_features: Sequence[Tensor] | None = None

    @property
    def mask(self) -> Tensor:
        """Predicted mask, `[K, *S]` bool."""
        return masks_of(self.decision, self.thresholds, self.exclusive)

    @property
    def members(self) -> int:
        """M."""
        return self.member_areas.shape[0]


@torch.inference_mode()
def estimate(method: SegmentationMethod, image: Tensor, voxel_size: float = 1.0, members: bool = False) -> Estimate:
    """Predict one image, slab by slab where the method uses sliding windows.

    Beside the result, memory holds one slab of all members at a time; with `members` the result holds all of them.

    Args:
        method: trained method; its device and mode are unchanged.
        image: `[C, *S]` float32.
        voxel_size: mm² or mm³; 1 for scores in pixels or voxels.
        members: whether to keep the probabilities of the members.
    """
    running = _Running(method.readout, method.structures, members)
    for logits in method.slabs(image[None].to(method.device)):
        running.add(logits)
    return running.estimate(voxel_size)


class _Running:
    """Sums over the slabs so far, and their maps."""

    def __init__(self, readout: Readout, structures: tuple[str, ...], keep_members: bool = False) -> None:
        self.readout = readout
        self.structures = structures
        self.has_disagreement = False
        self.members: list[Tensor] | None = [] if keep_members else None
        self.maps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.sums: dict[str, Tensor] = {}
        self.overlap: Tensor | None = None

    def add(self, log_odds: Tensor) -> None:
        """Add a slab, `[1, M + n, K, *S]`, see `Readout.log_odds`."""
        channels = torch.sigmoid(log_odds.double())
        maps = score_maps(channels, self.readout, log_odds)
        for name, found in map_sums(maps).items():
            self.sums[name] = self.sums.get(name, 0) + found[0].cpu()
        self.has_disagreement = self.readout.has_disagreement(channels.shape[1])
        probability = maps["probability"].float()
        decision = probability if self.readout.decides_by_probability else self.readout.decision(channels).float()
        majority = self.readout.majority_probability(channels, maps["probability"]).float()
        members = self.readout.members(channels)
        if self.members is not None:
            self.members.append(members[0].float().cpu())
        masks = self.readout.member_masks(members)[0]
        counted = pair_overlap(masks.transpose(0, 1).flatten(2)).intersection.cpu()
        self.overlap = counted if self.overlap is None else self.overlap + counted
        shown = disagreement_map(maps, self.has_disagreement).float()
        self.maps.append((probability[0].cpu(), shown[0].cpu(), decision[0].cpu(), majority[0].cpu()))

    def estimate(self, voxel_size: float) -> Estimate:
        """Return the estimate of all slabs together."""
        assert self.overlap is not None
        probability, disagreement, decision, majority = (
            torch.cat(parts, dim=1) for parts in zip(*self.maps, strict=True)
        )
        # the threshold may depend on the whole image
        thresholds = self.readout.mask.of_image(decision, self.structures)
        masks = masks_of(decision, thresholds, self.readout.exclusive)
        # beside the majority probability within it, the scores need the predicted mask's size alone
        overlap = F.pad(self.overlap, (1, 0, 1, 0))
        overlap[:, 0, 0] = masks.flatten(1).sum(dim=1)
        of_mask = {name: found[0] for name, found in map_sums(majority_maps(majority[None], masks[None])).items()}
        scores = case_scores({**self.sums, **of_mask}, PairOverlap(overlap), voxel_size)
        areas = PairOverlap(self.overlap).size.T * voxel_size
        members = None if self.members is None else torch.cat(self.members, dim=2)
        return Estimate(
            probability,
            disagreement,
            decision,
            thresholds,
            self.has_disagreement,
            scores,
            areas,
            members,
            self.readout.exclusive,
        )
