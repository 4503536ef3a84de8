"""What is exported: a trained method as one graph from images to named maps and scores, and the check of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edue_lightning.errors import UserError
from edue_lightning.methods import (
    DeepEnsemble,
    MonteCarloDropout,
    SegmentationMethod,
    StochasticSegmentation,
)
from edue_lightning.methods.base import NetworkMethod
from edue_lightning.networks import MultiHeadUNet
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

Outputs = Mapping[str, Tensor]

MAPS = ("probability", "disagreement")
VARIANCE_SUMS = ("sv", "sv_total", "entropy")
OF_MASKS = ("sv_normalised", "layer_agreement", "aula", "model_agreement", "predicted_area")
"""Scores that masks decide: a voxel whose probability is one half but for rounding changes them by a step."""

SCORES = (*VARIANCE_SUMS, *OF_MASKS)
OUTPUTS = (*MAPS, *SCORES)

TOLERANCE = 1e-4
"""By which an exported model may differ from the method: of a map, and of a score relative to it where it exceeds 1."""

_MOST_BATCH = 2**12
# along an axis, voxels; below the length by which `pair_overlap` takes its voxels in pieces
_LONGEST_AXIS = 2**16
# probabilities this many times closer to one half than two computations lie apart may fall on either side of it
_UNDECIDED = 10


class MemberLogits(nn.Module):
    """Members in the place of channels, as sliding windows of other libraries want them.

    Args:
        method: trained.
    """

    def __init__(self, method: SegmentationMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[B, M K, *S]` for images `[B, C, *S]`."""
        logits: Tensor = self.method(image)
        return logits.flatten(1, 2)


class MemberMaps(nn.Module):
    """Mean probability and disagreement from what `MemberLogits` gives.

    Args:
        structures: K.
    """

    def __init__(self, structures: int) -> None:
        super().__init__()
        self.structures = structures

    def forward(self, logits: Tensor) -> dict[str, Tensor]:
        """Return `MAPS` by name, each `[B, K, *S]`, for logits `[B, M K, *S]`."""
        return maps_of(torch.sigmoid(logits.unflatten(1, (-1, self.structures)).float()))


class ImageEstimate(nn.Module):
    """Maps and scores of whole images, as `edue_lightning.prediction.estimate` makes them of one.

    Args:
        method: trained.
    """

    def __init__(self, method: SegmentationMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return `OUTPUTS` by name for images `[B, C, *S]`: maps `[B, K, *S]` float32, scores `[B, K]` float64."""
        members = torch.sigmoid(self.method(image).float())
        return {**maps_of(members), **scores_of(members)}


def maps_of(members: Tensor) -> dict[str, Tensor]:
    """Return `MAPS` by name, each `[B, K, *S]`, of the members' probabilities `[B, M, K, *S]`."""
    disagreement = member_variance(members) if members.shape[1] > 1 else total_variance(members)
    return {"probability": members.mean(dim=1), "disagreement": disagreement}


def scores_of(members: Tensor) -> dict[str, Tensor]:
    """Return `SCORES` by name, each `[B, K]` float64, of the members' probabilities `[B, M, K, *S]`.

    Sums and areas count voxels. What is not defined, as most are for a single member, is NaN.
    """
    voxel_size = members.new_ones(1)
    variances = (member_variance(members), total_variance(members), predictive_entropy(members))
    scores = {
        name: sum_of_variances(of_voxels, voxel_size) for name, of_voxels in zip(VARIANCE_SUMS, variances, strict=True)
    }
    masks = torch.cat([members.mean(dim=1, keepdim=True) >= 0.5, members >= 0.5], dim=1)
    overlap = _overlap(masks)
    area = overlap.size[..., 0]
    undefined = torch.full_like(area, torch.nan)
    if members.shape[1] > 1:
        pair_dice = overlap.dice()[..., 1:, 1:]
        neighbours = layer_agreement(pair_dice)
        scores["layer_agreement"] = neighbours.mean(dim=-1)
        scores["aula"] = area_under_layer_agreement(neighbours)
        scores["model_agreement"] = model_agreement(pair_dice)
    # asked here, since runtimes do not agree on the mean of nothing
    else:
        scores |= dict.fromkeys(("sv", "layer_agreement", "aula", "model_agreement"), undefined)
    scores["sv_normalised"] = scores["sv"] / torch.where(area > 0, area, undefined)
    scores["predicted_area"] = area
    return {name: scores[name] for name in SCORES}


def _overlap(masks: Tensor) -> PairOverlap:
    """Return how masks `[B, n, K, *S]` overlap pairwise, `[B, K, n, n]`, row by row: a row has no need of pieces.

    The pieces of `pair_overlap` are as many as the image is long, and no graph has a number of parts that its input
    decides.
    """
    of_rows = pair_overlap(masks.movedim(1, -2)).intersection
    return PairOverlap(of_rows.flatten(2, -3).sum(dim=2))


def exportable(method: SegmentationMethod, where: str) -> SegmentationMethod:
    """Return the method, ready to be exported.

    Raises:
        UserError: if its members are draws, or its network is of another kind than ours.
    """
    if isinstance(method, MonteCarloDropout | StochasticSegmentation):
        raise UserError(
            f"{where}: method={method.label} cannot be exported, since its members are random draws that depend on the "
            "image's size; export a deep ensemble, EDUE, a layer ensemble or a single network"
        )
    networks = _networks(method)
    if not networks or not all(isinstance(network, MultiHeadUNet) for network in networks):
        raise UserError(f"{where}: its network cannot be exported; train one with network=unet")
    return method.cpu().eval().requires_grad_(False)


def reduction_of(method: SegmentationMethod) -> int:
    """Return how often smaller the network's coarsest stage is than the image."""
    return max(network.stride for network in _networks(method))


def window_of(method: SegmentationMethod) -> tuple[int, ...] | None:
    """Return the window that the method sees images by, or None where it sees them whole."""
    return None if method.inference.window is None else tuple(method.inference.window)


def is_fixed(method: SegmentationMethod) -> bool:
    """Tell whether the graph takes no size but the window's, which the network does not halve evenly."""
    window = window_of(method)
    reduction = reduction_of(method)
    return window is not None and any(edge % reduction or edge < 2 * reduction for edge in window)


def example_sizes(method: SegmentationMethod, spatial_dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return two sizes of images that the graph takes, small ones; twice the window where no other is taken."""
    window = window_of(method)
    if window is not None and is_fixed(method):
        return window, window
    reduction = reduction_of(method)
    # of different lengths, so that no graph comes out that takes equal ones alone
    first = tuple(reduction * (2 + axis) for axis in range(spatial_dims))
    return first, tuple(reduction * (5 - axis) for axis in range(spatial_dims))


def traced(module: nn.Module, example: Tensor, reduction: int | None) -> ExportedProgram:
    """Return a module's graph for any number of images.

    Args:
        module: takes one tensor.
        example: `[B, C, *S]`, at least two images.
        reduction: the images' axes may be any multiple of it, from twice on; 1 for any length; None for the example's.
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
    """Check that an exported model gives what the method does, for random images of two sizes and numbers.

    Args:
        method: that was exported.
        channels: C.
        spatial_dims: axes of an image.
        run: the exported model, images to outputs by name; those that it has are compared.

    Returns:
        the largest difference, see `TOLERANCE`.

    Raises:
        UserError: if it exceeds the tolerance.
    """
    expected_of = ImageEstimate(method)
    generator = torch.Generator().manual_seed(0)
    largest = dict.fromkeys(OUTPUTS, 0.0)
    for number, size in zip((1, 3), example_sizes(method, spatial_dims), strict=True):
        image = torch.randn((number, channels, *size), generator=generator)
        with torch.inference_mode():
            expected, members = expected_of(image), torch.sigmoid(method(image).float())
        found = run(image)
        for name, value in _differences(expected, found, members).items():
            largest[name] = max(largest[name], value)
    worst = max(largest, key=lambda name: largest[name])
    if not largest[worst] <= TOLERANCE:
        raise UserError(
            f"the exported model differs from the checkpoint by {largest[worst]:.2g} in {worst}, more than "
            f"{TOLERANCE:g}; nothing was written, please report it with the versions of torch, onnx and onnxruntime"
        )
    return largest[worst]


def _differences(expected: Outputs, found: Outputs, members: Tensor) -> dict[str, float]:
    differences = {name: _difference(expected[name], found[name]) for name in found if name not in OF_MASKS}
    apart = _UNDECIDED * max(differences["probability"], torch.finfo(torch.float32).eps)
    masked = torch.cat([members.mean(dim=1, keepdim=True), members], dim=1)
    decided = ((masked - 0.5).abs() > apart).transpose(1, 2).flatten(2).all(dim=2)
    of_masks = {name: _difference(expected[name][decided], found[name][decided]) for name in OF_MASKS if name in found}
    return {**differences, **of_masks}


def _difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the expected value where that exceeds 1; infinite where one is NaN."""
    if expected.shape != found.shape:
        return math.inf
    both_undefined = expected.isnan() & found.isnan()
    apart = (expected.double() - found.double()).abs() / expected.double().abs().clamp_min(1)
    apart = torch.where(both_undefined, 0.0, apart).nan_to_num(nan=math.inf)
    return float(apart.max()) if apart.numel() else 0.0


def _networks(method: SegmentationMethod) -> list[MultiHeadUNet]:
    if isinstance(method, DeepEnsemble):
        return [network for member in method.trainees() for network in _networks(member)]
    return [cast(MultiHeadUNet, method.network)] if isinstance(method, NetworkMethod) else []
