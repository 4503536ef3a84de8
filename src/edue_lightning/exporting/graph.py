"""A trained method as one graph from images to named maps and scores, and the check of an exported model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edue_lightning.errors import UserError
from edue_lightning.methods import (
    MonteCarloDropout,
    SegmentationMethod,
    StochasticSegmentation,
)
from edue_lightning.methods.base import NetworkMethod
from edue_lightning.uncertainty import (
    CASE_SCORES,
    MAPS,
    MASK_SCORES,
    MEMBERS,
    PairOverlap,
    Readout,
    case_scores,
    disagreement_map,
    exclusive_decision,
    first_largest,
    majority_maps,
    map_sums,
    overlap_by_product,
    score_maps,
)

Outputs = Mapping[str, Tensor]

OUTPUTS = (*MAPS, *CASE_SCORES)

TOLERANCE = 1e-4
"""Largest difference allowed between an exported model and its method; relative to the value where that exceeds 1."""

_MOST_BATCH = 2**12
# voxels along an axis; fewer than the voxels that `overlap_by_product` counts at a time
_LONGEST_AXIS = 2**16
# a mask is compared where no probability lies within this many times the difference of two computations of 0.5
_UNDECIDED = 10


class MemberLogits(nn.Module):
    """Logits of members and own maps stacked along the channel axis, as sliding windows of other libraries expect.

    Args:
        method: trained method.
    """

    def __init__(self, method: SegmentationMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[B, (M + n) K, *S]` for images `[B, C, *S]`, before `Readout.log_odds`."""
        logits = self.method.calibrated(image)
        return logits.flatten(1, 2)


class MemberMaps(nn.Module):
    """Probability, disagreement and decision, from the output of `MemberLogits`.

    Args:
        structures: number of structures, K.
        readout: the method's.
    """

    def __init__(self, structures: int, readout: Readout = MEMBERS) -> None:
        super().__init__()
        self.structures = structures
        self.readout = readout

    def forward(self, logits: Tensor) -> dict[str, Tensor]:
        """Return `MAPS` by name, each `[B, K, *S]`, for logits `[B, (M + n) K, *S]`."""
        log_odds = self.readout.log_odds(logits.unflatten(1, (-1, self.structures)))
        channels = torch.sigmoid(log_odds.double())
        return _shown(channels, score_maps(channels, self.readout, log_odds), self.readout)


class ImageEstimate(nn.Module):
    """Maps and scores of whole images, equal to those of `edue_lightning.prediction.estimate`.

    Args:
        method: trained method.
    """

    def __init__(self, method: SegmentationMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return `OUTPUTS` by name for images `[B, C, *S]`: maps `[B, K, *S]` float32, scores `[B, K]` float64.

        Scores count voxels. Undefined ones, as most are for a single member, are NaN.
        """
        readout = self.method.readout
        log_odds = readout.log_odds(self.method.calibrated(image))
        channels = torch.sigmoid(log_odds.double())
        maps = score_maps(channels, readout, log_odds)
        shown = _shown(channels, maps, readout)
        thresholds = thresholds_of(self.method)
        # not `masks_of`: the thresholds are constants of the graph
        of_structures = zip(shown["decision"].unbind(dim=1), thresholds, strict=True)
        predicted = torch.stack([values >= threshold for values, threshold in of_structures], dim=1)
        if readout.exclusive:
            predicted = predicted & first_largest(shown["decision"], dim=1)
        masks = torch.cat([predicted[:, None], readout.member_masks(readout.members(channels))], dim=1)
        maps |= majority_maps(readout.majority_probability(channels, maps["probability"]), predicted)
        return {**shown, **case_scores(map_sums(maps), _overlap(masks))}


def _shown(channels: Tensor, maps: Mapping[str, Tensor], readout: Readout) -> dict[str, Tensor]:
    """Return `MAPS` by name, each `[B, K, *S]`.

    Args:
        channels: probabilities `[B, M + n, K, *S]` float64.
        maps: their `score_maps`.
        readout: the method's.
    """
    return {
        "probability": maps["probability"].float(),
        "disagreement": disagreement_map(maps, readout.has_disagreement(channels.shape[1])).float(),
        "decision": readout.decision(channels).float(),
    }


def _overlap(masks: Tensor) -> PairOverlap:
    """Return the pairwise overlap `[B, K, n, n]` of masks `[B, n, K, *S]`, counted row by row.

    `overlap_by_product` splits voxels into chunks, whose number depends on the image's size, which a graph cannot do.
    One row fits into one chunk.
    """
    of_rows = overlap_by_product(masks.movedim(1, -2)).intersection
    return PairOverlap(of_rows.flatten(2, -3).sum(dim=2))


def exportable(method: SegmentationMethod, where: str) -> SegmentationMethod:
    """Return the method on the CPU, frozen and in evaluation mode.

    Args:
        method: trained method.
        where: checkpoint, for messages.

    Raises:
        UserError: if its members are random draws, or its network has no `stride`.
    """
    if isinstance(method, MonteCarloDropout | StochasticSegmentation):
        raise UserError(
            f"{where}: method={method.label} cannot be exported, since its members are random draws that depend on the "
            "image's size; export a deep ensemble, EDUE, a layer ensemble, a probabilistic U-Net or a single network"
        )
    networks = _networks(method)
    if not networks or not all(hasattr(network, "stride") for network in networks):
        raise UserError(
            f"{where}: its network does not say by which number the image's axes must be divisible; give its class an "
            "attribute `stride`, or train one with network=unet"
        )
    if method.readout.mask.fixed(method.structures) is None:
        raise UserError(f"{where}: mask=expected_dice cannot be exported, since it sorts each image; set another mask")
    return method.cpu().eval().requires_grad_(False)


def thresholds_of(method: SegmentationMethod) -> list[float]:
    """Return the threshold of the decision for each structure, rounded to float32.

    Raises:
        ValueError: if it depends on the image.
    """
    fixed = method.readout.mask.fixed(method.structures)
    if fixed is None:
        raise ValueError("mask.rule=expected_dice depends on the image")
    return torch.tensor(fixed, dtype=torch.float32).tolist()


def reduction_of(method: SegmentationMethod) -> int:
    """Return the ratio of the image's resolution to that of the network's coarsest stage."""
    return max(cast(int, network.stride) for network in _networks(method))


def window_of(method: SegmentationMethod) -> tuple[int, ...] | None:
    """Return the method's sliding window, or None if it takes whole images."""
    return None if method.inference.window is None else tuple(method.inference.window)


def is_fixed(method: SegmentationMethod) -> bool:
    """Return whether the graph takes images of the window's size only, because the network cannot halve it evenly."""
    window = window_of(method)
    reduction = reduction_of(method)
    return window is not None and any(edge % reduction or edge < 2 * reduction for edge in window)


def example_sizes(method: SegmentationMethod, spatial_dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return two small image sizes that the graph takes; twice the window's where the graph `is_fixed`."""
    window = window_of(method)
    if window is not None and is_fixed(method):
        return window, window
    reduction = reduction_of(method)
    # axes of different lengths, so that the graph is not specialised to equal ones
    first = tuple(reduction * (2 + axis) for axis in range(spatial_dims))
    return first, tuple(reduction * (5 - axis) for axis in range(spatial_dims))


def traced(module: nn.Module, example: Tensor, reduction: int | None) -> ExportedProgram:
    """Return a module's graph for any number of images.

    Args:
        module: module with one tensor as its input.
        example: images `[B, C, *S]`, B at least 2.
        reduction: number that the length of each axis is a multiple of, at least twice; 1 for any length; None for the
            example's size alone.
    """
    shapes = {0: Dim("batch", min=1, max=_MOST_BATCH)}
    if reduction is not None:
        for axis in range(2, example.ndim):
            steps = Dim(f"steps_{axis - 1}", min=2, max=_LONGEST_AXIS // reduction)
            shapes[axis] = steps if reduction == 1 else reduction * steps
    with torch.no_grad():
        return torch.export.export(module.eval(), (example,), dynamic_shapes=(shapes,))


def require_same(
    method: SegmentationMethod, channels: int, spatial_dims: int, run: Callable[[Tensor], Outputs]
) -> float:
    """Check that an exported model equals its method, on random images of two sizes and batch sizes.

    Args:
        method: exported method.
        channels: number of channels, C.
        spatial_dims: number of spatial axes, 2 or 3.
        run: exported model, from images to outputs by name; the outputs it has are compared.

    Returns:
        the largest difference, see `TOLERANCE`.

    Raises:
        UserError: if the difference exceeds the tolerance.
    """
    reference = ImageEstimate(method)
    generator = torch.Generator().manual_seed(0)
    largest = dict.fromkeys(OUTPUTS, 0.0)
    for number, size in zip((1, 3), example_sizes(method, spatial_dims), strict=True):
        image = torch.randn((number, channels, *size), generator=generator)
        with torch.inference_mode():
            expected = reference(image)
            log_odds = method.readout.log_odds(method.calibrated(image))
            members = method.readout.members(torch.sigmoid(log_odds.float()))
            if method.readout.exclusive and not method.readout.levels:
                members = exclusive_decision(members, dim=2)
        found = run(image)
        for name, value in _differences(expected, found, members, thresholds_of(method)).items():
            largest[name] = max(largest[name], value)
    worst = max(largest, key=lambda name: largest[name])
    if not largest[worst] <= TOLERANCE:
        raise UserError(
            f"the exported model differs from the checkpoint by {largest[worst]:.2g} in {worst}, more than "
            f"{TOLERANCE:g}; nothing was written, please report it with the versions of torch, onnx and onnxruntime"
        )
    return largest[worst]


def _differences(expected: Outputs, found: Outputs, members: Tensor, thresholds: list[float]) -> dict[str, float]:
    differences = {name: _difference(expected[name], found[name]) for name in found if name not in MASK_SCORES}
    apart = _UNDECIDED * max(differences["probability"], differences["decision"], torch.finfo(torch.float32).eps)
    # the decision relative to its threshold, as if that were one half
    own = torch.tensor(thresholds).reshape(-1, *[1] * (members.ndim - 3))
    masked = torch.cat([(expected["decision"] - own + 0.5)[:, None], members], dim=1)
    decided = ((masked - 0.5).abs() > apart).transpose(1, 2).flatten(2).all(dim=2)
    mask_scores = {
        name: _difference(expected[name][decided], found[name][decided]) for name in MASK_SCORES if name in found
    }
    return {**differences, **mask_scores}


def _difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the expected value where that exceeds 1; infinite where one is NaN."""
    if expected.shape != found.shape:
        return math.inf
    both_undefined = expected.isnan() & found.isnan()
    apart = (expected.double() - found.double()).abs() / expected.double().abs().clamp_min(1)
    apart = torch.where(both_undefined, 0.0, apart).nan_to_num(nan=math.inf)
    return float(apart.max()) if apart.numel() else 0.0


def _networks(method: SegmentationMethod) -> list[nn.Module]:
    if method.trainees()[0] is not method:
        return [network for member in method.trainees() for network in _networks(member)]
    return [method.network] if isinstance(method, NetworkMethod) else []
