"""Rules that choose voxel size, patch, batch and stages of a network from the fingerprint of the training cases.

They are those of nnU-Net (Isensee et al., Nature Methods 2021; its version 2, `ExperimentPlanner` and
`ResEncUNetPlanner`). `docs/train.md` lists those that are taken and those that are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edue_lightning.data.fingerprint import Fingerprint
from edue_lightning.errors import UserError
from edue_lightning.networks.topology import stage_strides, total_strides
from edue_lightning.text import times

_ANISOTROPIC = 3
_LEAST_EDGE = 4
_LEAST_BATCH = 2
_LARGEST_SHARE = 0.05
# voxels of the first guess of a patch, before it is cut to the images
_FIRST_GUESS = {2: 2048**2, 3: 256**3}
_WIDTH = 32
_MOST_FEATURES = {2: 512, 3: 320}
REFERENCE_GB = 8.0
"""Memory that nnU-Net plans for unless it is told otherwise."""
# values of all feature maps that fill the reference memory, with the batch that they belong to
_REFERENCE = {2: 85_000_000, 3: 560_000_000}
_REFERENCE_RESIDUAL = {2: 135_000_000, 3: 680_000_000}
_REFERENCE_BATCH = {2: 12, 3: 2}
_RESIDUAL_BLOCKS = (1, 3, 4, 6)

Stages = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class NetworkRules:
    """Choices that a plan has for a network.

    Attributes:
        width: channels of the first stage.
        per_axis: whether each stage has its own stride and kernel along each axis; otherwise each halves all axes.
        least_stages: smallest number of stages.
        residual: whether it is nnU-Net's residual encoder.
        fixed: channels of the stages that the network has in any case, or None if their number is free.
        strides: strides of these stages; None for 2 along all axes.
        named: whether these rules are those of the network, and not of nnU-Net's plain U-Net in its place.
    """

    width: int = _WIDTH
    per_axis: bool = True
    least_stages: int = 2
    residual: bool = False
    fixed: tuple[int, ...] | None = None
    strides: Stages | None = None
    named: bool = True


@dataclass(frozen=True)
class Topology:
    """Stages of a network, and the patch that they take.

    Attributes:
        strides: reduction along each axis at the beginning of each stage.
        kernels: kernel size along each axis of each stage.
        patch: voxels along each axis, a multiple of the product of the strides.
    """

    strides: Stages
    kernels: Stages
    patch: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Sizes of a training.

    Attributes:
        spacing: mm along each axis; None if the images keep their own voxels.
        patch: voxels of a patch along each axis; None for whole images.
        batch_size: patches, or images, per step.
        features: channels of each stage; None if the network stays as it is.
        topology: strides and kernels of the stages for that patch or image.
        reasons: one line per choice.
    """

    spacing: tuple[float, ...] | None
    patch: tuple[int, ...] | None
    batch_size: int
    features: tuple[int, ...] | None
    topology: Topology
    reasons: tuple[str, ...] = field(default=(), compare=False)


def make_plan(
    fingerprint: Fingerprint,
    network: NetworkRules,
    memory_gb: float = REFERENCE_GB,
    resamples: bool = False,
    patch: Sequence[float] | None = None,
    batch_size: int | None = None,
    whole: bool = False,
) -> Plan:
    """Turn a fingerprint into a plan, by nnU-Net's rules.

    Args:
        fingerprint: numbers of the training cases, on their own voxels if `resamples`.
        network: what the plan may choose of the network.
        memory_gb: memory that a training step may need.
        resamples: whether the data set can bring its images to other voxels.
        patch: size of the patches that is given, None to choose it.
        batch_size: batch size that is given, None to choose it.
        whole: whether it is given that there are no patches; the network and the batch then fit images of median size.

    Raises:
        UserError: if the memory does not hold two of the smallest patches.
    """
    reasons = []
    spacing = target_spacing(fingerprint) if resamples and fingerprint.known_spacings else None
    if spacing is not None:
        reasons.append(f"voxels of {times(spacing, 4)} mm: median of the training cases along each axis")
        if _lowest_axis(fingerprint) is not None:
            reasons[-1] += ", but the 10th percentile along the one of much lower resolution"
    median = median_size(fingerprint, spacing)
    known = fingerprint.known_spacings
    of_axes = spacing or (tuple(np.median(known, axis=0).tolist()) if known else (1.0,) * fingerprint.spatial_dims)
    if whole:
        patch = median
    if patch is None:
        topology = _largest_patch(fingerprint, network, memory_gb, of_axes, median)
        # all of one size: the network pads them to its multiple by itself
        same = not fingerprint.mixed_sizes and spacing is None
        whole = same and all(edge >= size for edge, size in zip(topology.patch, median, strict=True))
        reasons.append(
            f"whole images: all have {times([int(size) for size in median])}, which the memory holds"
            if whole
            else f"patches of {times(topology.patch)}: at most about the median size {times(median, 4)}, and as "
            f"{memory_gb:g} GB hold"
        )
    else:
        topology = _topology(network, of_axes, patch)
    features = _features(network, fingerprint.spatial_dims, len(topology.strides))
    if network.fixed is None and network.named:
        reasons.append(
            f"{len(features)} stages: an axis is halved while it has {2 * _LEAST_EDGE} voxels or more"
            + ("" if network.per_axis else ", all axes alike, since the network has no strides per axis")
        )
    if not network.named:
        reasons.append("the network stays as it is; the memory is that of nnU-Net's plain U-Net")
    if batch_size is None:
        batch_size, reason = _batch_size(fingerprint, network, memory_gb, topology, median)
        reasons.append(reason)
    chosen = tuple(int(edge) for edge in (topology.patch if patch is None else patch))
    return Plan(
        spacing=spacing,
        patch=None if whole else chosen,
        batch_size=batch_size,
        features=features if network.fixed is None and network.named else None,
        topology=topology,
        reasons=tuple(reasons),
    )


def target_spacing(fingerprint: Fingerprint) -> tuple[float, ...]:
    """Return the voxel size to which the images are brought, mm along each axis.

    It is the median over the cases that know theirs. Along an axis whose median is more than three times that of the
    others, and along which the images have less than a third of the others' voxels, it is the 10th percentile, but not
    less than the others' size.
    """
    spacings = np.array(fingerprint.known_spacings, dtype=np.float64)
    target = np.percentile(spacings, 50, axis=0)
    axis = _lowest_axis(fingerprint)
    if axis is not None:
        others = np.delete(target, axis).max()
        # nnU-Net adds the least bit, so that the axis stays the one with the largest voxels
        percentile = float(np.percentile(spacings[:, axis], 10))
        target[axis] = percentile if percentile >= others else others + 1e-5
    return tuple(round(float(size), 6) for size in target)


def _lowest_axis(fingerprint: Fingerprint) -> int | None:
    """Return the axis of much lower resolution, or None."""
    target = np.percentile(np.array(fingerprint.known_spacings, dtype=np.float64), 50, axis=0)
    size = np.percentile(np.array(fingerprint.sizes, dtype=np.float64), 50, axis=0)
    axis = int(np.argmax(target))
    coarse = target[axis] > _ANISOTROPIC * np.delete(target, axis).max()
    few = size[axis] * _ANISOTROPIC < np.delete(size, axis).min()
    return axis if coarse and few else None


def median_size(fingerprint: Fingerprint, spacing: tuple[float, ...] | None) -> tuple[float, ...]:
    """Return the median size of the images along each axis, after they are brought to a voxel size."""
    sizes = np.array(fingerprint.sizes, dtype=np.float64)
    if spacing is not None:
        # a case without a known voxel size keeps its voxels
        own = np.array([one if one is not None else spacing for one in fingerprint.spacings])
        sizes = np.round(sizes * own / np.array(spacing))
    return tuple(np.median(sizes, axis=0).tolist())


def _topology(network: NetworkRules, spacing: Sequence[float], patch: Sequence[float]) -> Topology:
    """Return the stages of a network for a patch, and the patch padded to their multiple.

    An axis is halved while it has at least 8 voxels, and its voxels are less than twice the smallest of the axes that
    can be halved; an axis that is left alone needs 12. Its kernel is 1 until its voxels are less than twice the
    smallest.
    """
    axes = range(len(patch))
    if network.fixed is not None:
        strides = stage_strides(network.strides, len(network.fixed), len(patch))
        return _padded(strides, [[3] * len(patch)] * len(strides), patch)
    voxels, size = [float(one) for one in spacing], [float(one) for one in patch]
    kernel = [1] * len(patch)
    strides, kernels = [[1] * len(patch)], []
    while True:
        halved = [axis for axis in axes if size[axis] >= 2 * _LEAST_EDGE]
        if network.per_axis and halved:
            finest = min(voxels[axis] for axis in halved)
            halved = [axis for axis in halved if voxels[axis] / finest < 2]
        elif len(halved) < len(patch):
            halved = []
        if len(halved) == 1 and size[halved[0]] < 3 * _LEAST_EDGE:
            halved = []
        if not halved:
            if len(strides) >= network.least_stages:
                break
            # tiny images: the smallest network, which pads them
            halved = [axis for axis in axes if size[axis] > 1 or not network.per_axis] or list(axes)
        kernel = [3 if old == 3 or own / min(voxels) < 2 else 1 for old, own in zip(kernel, voxels, strict=True)]
        kernels.append(list(kernel) if network.per_axis else [3] * len(patch))
        strides.append([2 if axis in halved else 1 for axis in axes])
        for axis in halved:
            voxels[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    return _padded(strides, [*kernels, [3] * len(patch)], patch)


def _padded(strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], patch: Sequence[float]) -> Topology:
    multiples = total_strides(strides)
    return Topology(
        strides=tuple(map(tuple, strides)),
        kernels=tuple(map(tuple, kernels)),
        patch=tuple(math.ceil(edge / own) * own for edge, own in zip(patch, multiples, strict=True)),
    )


def _largest_patch(
    fingerprint: Fingerprint,
    network: NetworkRules,
    memory_gb: float,
    spacing: Sequence[float],
    median: tuple[float, ...],
) -> Topology:
    """Return the largest patch of which the memory holds two, at most about the median image."""
    dims = fingerprint.spatial_dims
    finest = np.prod(1 / np.array(spacing))
    edge = (_FIRST_GUESS[dims] / finest) ** (1 / dims)
    guess = [min(round(edge / own), length) for own, length in zip(spacing, median, strict=True)]
    topology = _topology(network, spacing, guess)
    # nnU-Net leaves room for two patches of its plain network; for the residual one, the reference holds them already
    of_two = 1.0 if network.residual else _LEAST_BATCH / _REFERENCE_BATCH[dims]
    while _values(network, topology, len(fingerprint.structures)) * of_two > _memory(network, dims, memory_gb):
        # the axis that is largest relative to the images
        ratios = [edge / length for edge, length in zip(topology.patch, median, strict=True)]
        axis = max(range(dims), key=lambda one: (ratios[one], one))
        smaller = list(topology.patch)
        smaller[axis] -= _multiple(topology, axis)
        # the next smaller size may be a multiple of less
        step = _multiple(_topology(network, spacing, smaller), axis) if smaller[axis] > 0 else topology.patch[axis]
        smaller[axis] = topology.patch[axis] - step
        if smaller[axis] < _LEAST_EDGE:
            raise UserError(
                f"plan.memory_gb={memory_gb:g}: does not hold two patches of {times(topology.patch)}; raise it, or "
                "choose a network with fewer channels"
            )
        topology = _topology(network, spacing, smaller)
    return topology


def _multiple(topology: Topology, axis: int) -> int:
    return total_strides(topology.strides)[axis]


def _features(network: NetworkRules, spatial_dims: int, stages: int) -> tuple[int, ...]:
    """Return the channels of each stage: doubled from stage to stage, up to nnU-Net's maximum."""
    if network.fixed is not None:
        return network.fixed
    # a wider first stage is the user's wish
    most = max(_MOST_FEATURES[spatial_dims], network.width)
    return tuple(min(network.width * 2**stage, most) for stage in range(stages))


def _values(network: NetworkRules, topology: Topology, outputs: int) -> int:
    """Return the number of values in all feature maps for one patch, by which nnU-Net estimates the memory.

    It counts the outputs of all convolutions of nnU-Net's network with one head, without those of further heads.
    """
    features = _features(network, len(topology.patch), len(topology.strides))
    sizes, size = [], list(topology.patch)
    for stride in topology.strides:
        size = [length // own for length, own in zip(size, stride, strict=True)]
        sizes.append(math.prod(size))
    # the stem of the residual encoder
    total = features[0] * sizes[0] if network.residual else 0
    for stage, (width, voxels) in enumerate(zip(features, sizes, strict=True)):
        convolutions = 2
        if network.residual:
            changes = stage > 0 and (width != features[stage - 1] or max(topology.strides[stage]) > 1)
            convolutions = 2 * residual_blocks(stage) + changes
        total += convolutions * width * voxels
    for width, voxels in zip(features[:-1], sizes[:-1], strict=True):
        # the transposed convolution, and the decoder's own
        total += ((1 if network.residual else 2) + 1) * width * voxels
    return total + outputs * sizes[0]


def residual_blocks(stage: int) -> int:
    """Return the number of residual blocks of a stage, counted from 0, in nnU-Net's residual encoder."""
    return _RESIDUAL_BLOCKS[min(stage, len(_RESIDUAL_BLOCKS) - 1)]


def _memory(network: NetworkRules, spatial_dims: int, memory_gb: float) -> float:
    """Return the number of values that the memory holds for nnU-Net's reference batch."""
    reference = _REFERENCE_RESIDUAL if network.residual else _REFERENCE
    return reference[spatial_dims] * memory_gb / REFERENCE_GB


def _batch_size(
    fingerprint: Fingerprint, network: NetworkRules, memory_gb: float, topology: Topology, median: tuple[float, ...]
) -> tuple[int, str]:
    """Return the batch size and its reason: as the memory holds, at most 5 % of the training voxels, at least 2."""
    dims = fingerprint.spatial_dims
    values = _values(network, topology, len(fingerprint.structures))
    fits = round(_memory(network, dims, memory_gb) / values * _REFERENCE_BATCH[dims])
    voxels = math.prod(median) * len(fingerprint.sizes)
    most = round(voxels * _LARGEST_SHARE / math.prod(topology.patch))
    chosen = max(min(fits, most), _LEAST_BATCH)
    limits = f"{memory_gb:g} GB hold {fits}, and 5 % of the training voxels are {most}"
    return chosen, f"batches of {chosen}: {limits}; at least {_LEAST_BATCH}"
