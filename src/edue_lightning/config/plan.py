"""Plan of a training: voxel size, patches, batch and stages of the network from the fingerprint of the training cases.

The rules are those of nnU-Net (Isensee et al., Nature Methods 2021; its version 2, `ExperimentPlanner` and
`ResEncUNetPlanner`). `docs/train.md` lists those that are taken and those that are not.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hydra.utils import get_class

from edue_lightning.config.build import build, build_data
from edue_lightning.data.fingerprint import Fingerprint, measure_training_case
from edue_lightning.errors import UserError
from edue_lightning.networks.topology import stage_strides, total_strides
from edue_lightning.text import times

log = logging.getLogger(__name__)

_ANISOTROPIC = 3
_LEAST_EDGE = 4
_LEAST_BATCH = 2
_LARGEST_SHARE = 0.05
# voxels of the first guess of a patch, before it is cut to the images
_FIRST_GUESS = {2: 2048**2, 3: 256**3}
_WIDTH = 32
_MOST_FEATURES = {2: 512, 3: 320}
_REFERENCE_GB = 8.0
# values of all feature maps that fill the reference memory, with the batch that they belong to
_REFERENCE = {2: 85_000_000, 3: 560_000_000}
_REFERENCE_RESIDUAL = {2: 135_000_000, 3: 680_000_000}
_REFERENCE_BATCH = {2: 12, 3: 2}
_RESIDUAL_BLOCKS = (1, 3, 4, 6)

_OF_NETWORK = ("network.features", "network.strides", "network.kernels", "network.blocks")
PLANNED_KEYS = ("data.source.spacing", "data.patch.size", "data.batch_size", "inference.window", *_OF_NETWORK)
"""Keys of the configuration that a plan sets, as far as the data set and the network have them."""

Stages = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PlanSettings:
    """Settings of a plan.

    Attributes:
        memory_gb: memory that a training step may need, by nnU-Net's estimate.
        keep: keys of the configuration that the plan must not change, such as `data.batch_size`.
        values: values of a plan that is made already, by key; None to make it.

    Raises:
        ValueError: if the memory is not positive, or the plan sets no such key.
    """

    memory_gb: float = _REFERENCE_GB
    keep: Sequence[str] = ()
    values: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.memory_gb < math.inf:
            raise ValueError(f"plan.memory_gb must be positive, not {self.memory_gb}")
        unknown = [key for key in self.keep if not _concerns_plan(key)]
        if unknown:
            raise ValueError(f"plan.keep={unknown[0]}: a plan sets no such key; it sets {', '.join(PLANNED_KEYS)}")


@dataclass(frozen=True)
class NetworkRules:
    """What a plan may choose of a network.

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
    memory_gb: float = _REFERENCE_GB,
    resamples: bool = False,
    patch: Sequence[float] | None = None,
    batch_size: int | None = None,
) -> Plan:
    """Turn a fingerprint into a plan, by nnU-Net's rules.

    Args:
        fingerprint: numbers of the training cases, on their own voxels if `resamples`.
        network: what the plan may choose of the network.
        memory_gb: memory that a training step may need.
        resamples: whether the data set can bring its images to other voxels.
        patch: size of the patches that is given, None to choose it.
        batch_size: batch size that is given, None to choose it.

    Raises:
        UserError: if the memory does not hold two of the smallest patches.
    """
    reasons = []
    spacing = target_spacing(fingerprint) if resamples and fingerprint.known_spacings else None
    if spacing is not None:
        reasons.append(f"voxels of {_numbers(spacing)} mm: median of the training cases along each axis")
        if _lowest_axis(fingerprint) is not None:
            reasons[-1] += ", but the 10th percentile along the one of much lower resolution"
    median = _median_size(fingerprint, spacing)
    known = fingerprint.known_spacings
    of_axes = spacing or (tuple(np.median(known, axis=0).tolist()) if known else (1.0,) * fingerprint.spatial_dims)
    if patch is None:
        topology = _largest_patch(fingerprint, network, memory_gb, of_axes, median)
        # all of one size: the network pads them to its multiple by itself
        same = not fingerprint.mixed_sizes and spacing is None
        whole = same and all(edge >= size for edge, size in zip(topology.patch, median, strict=True))
        reasons.append(
            f"whole images: all have {times([int(size) for size in median])}, which the memory holds"
            if whole
            else f"patches of {times(topology.patch)}: at most about the median size {_numbers(median)}, and as "
            f"{memory_gb:g} GB hold"
        )
    else:
        topology, whole = _topology(network, of_axes, patch), False
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


def _median_size(fingerprint: Fingerprint, spacing: tuple[float, ...] | None) -> tuple[float, ...]:
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
            convolutions = 2 * _blocks(stage) + changes
        total += convolutions * width * voxels
    for width, voxels in zip(features[:-1], sizes[:-1], strict=True):
        # the transposed convolution, and the decoder's own
        total += ((1 if network.residual else 2) + 1) * width * voxels
    return total + outputs * sizes[0]


def _blocks(stage: int) -> int:
    return _RESIDUAL_BLOCKS[min(stage, len(_RESIDUAL_BLOCKS) - 1)]


def _memory(network: NetworkRules, spatial_dims: int, memory_gb: float) -> float:
    """Return the number of values that the memory holds for nnU-Net's reference batch."""
    reference = _REFERENCE_RESIDUAL if network.residual else _REFERENCE
    return reference[spatial_dims] * memory_gb / _REFERENCE_GB


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


def network_rules(node: Mapping[str, Any], keep: Sequence[str] = ()) -> NetworkRules:
    """Return what a plan may choose of the network of a configuration.

    Args:
        node: resolved node `network`.
        keep: keys of the configuration that the plan must not change; one of the network's stages keeps them all.
    """
    parameters = inspect.signature(get_class(str(node["_target_"]))).parameters
    features = node.get("features")
    if not isinstance(features, list | tuple) or not features:
        return NetworkRules(named=False)
    per_axis = "strides" in parameters
    kept = any(_kept(key, keep) for key in _OF_NETWORK)
    return NetworkRules(
        width=int(features[0]),
        per_axis=per_axis,
        least_stages=3 if str(node["_target_"]).endswith(".DynUNet") else 2,
        residual=bool(node.get("residual")) and "blocks" in parameters,
        fixed=tuple(map(int, features)) if kept else None,
        strides=node.get("strides") if kept else None,
    )


@dataclass(frozen=True)
class PlannedConfiguration:
    """A configuration with the values of a plan.

    Attributes:
        configuration: the configuration with these values, and with them in its node `plan`.
        fingerprint: the fingerprint of the training cases.
        plan: the plan.
        values: its values by key.
        kept: keys that keep the values they have, though the plan would choose others.
        added: keys that the configuration had not before, so that an override of them needs a `+`.
    """

    configuration: dict[str, Any]
    fingerprint: Fingerprint
    plan: Plan
    values: Mapping[str, Any]
    kept: tuple[str, ...]
    added: frozenset[str]

    def options(self) -> str:
        """Return the options of a command line that set the same values."""
        return " ".join(self._option(key, value) for key, value in self.values.items())

    def text(self) -> str:
        """Return the fingerprint, the plan with its reasons, and the options that equal it."""
        memory = self.configuration["plan"]["memory_gb"]
        lines = [f"plan by nnU-Net's rules for {memory:g} GB (plan=auto, plan.memory_gb={memory:g})"]
        lines += [f"- {reason}" for reason in self.plan.reasons]
        lines += [f"- {key}={_shown(_at(self.configuration, key))}: kept as given" for key in self.kept]
        return "\n".join([self.fingerprint.text(), "", *lines, f"the same as options: {self.options()}"])

    def _option(self, key: str, value: Any) -> str:
        if key == "data.patch.size" and key in self.added:
            return f"+data.patch._target_={_PATCH} +{key}={_shown(value)}"
        return f"{'+' if key in self.added else ''}{key}={_shown(value)}"


_PATCH = "edue_lightning.data.PatchSampling"


def measured_node(data: Mapping[str, Any], keep: Sequence[str]) -> dict[str, Any]:
    """Return the node `data` by which the fingerprint is measured: on the images' own voxels unless these are kept.

    Args:
        data: node `data` of the configuration.
        keep: keys of the configuration that the plan must not change.
    """
    if not resamples(data, keep):
        return dict(data)
    return {**data, "source": {**data["source"], "spacing": None}}


def resamples(data: Mapping[str, Any], keep: Sequence[str]) -> bool:
    """Return whether the plan may choose the voxel size of a data set."""
    parameters = inspect.signature(get_class(str(data["source"]["_target_"]))).parameters
    return "spacing" in parameters and not _kept("data.source.spacing", keep)


def fingerprint_of(data: Mapping[str, Any], keep: Sequence[str] = ()) -> Fingerprint:
    """Measure the training cases of a data set; each is loaded once.

    Args:
        data: node `data` of the configuration.
        keep: keys of the configuration that the plan must not change.

    Raises:
        UserError: if the data cannot be read, or no case is left for training.
    """
    # neither patches nor batches: the sizes are not chosen yet
    node = {**measured_node(data, keep), "patch": None, "batch_size": 1}
    module = build_data({"data": node})
    records = module.records("train")
    cases = [measure_training_case(module.source.load(record.case_id)) for record in records]
    return Fingerprint.of(module.source, cases)


def with_plan(
    configuration: Mapping[str, Any], settings: PlanSettings, fingerprint: Fingerprint
) -> PlannedConfiguration:
    """Return a configuration with the values of its plan.

    Args:
        configuration: resolved and plain configuration of a training or a check, with `data` and `network`.
        settings: settings of the plan.
        fingerprint: fingerprint of its training cases.

    Raises:
        UserError: if the memory does not hold two of the smallest patches.
    """
    keep, data = settings.keep, configuration["data"]
    given = (data.get("patch") or {}).get("size") if _kept("data.patch.size", keep) else None
    whole = given is None and _kept("data.patch.size", keep)
    rules = network_rules(configuration["network"], keep)
    plan = make_plan(
        fingerprint,
        rules,
        settings.memory_gb,
        resamples=resamples(data, keep),
        patch=_median_size(fingerprint, None) if whole else given,
        batch_size=data["batch_size"] if _kept("data.batch_size", keep) else None,
    )
    if whole:
        plan = replace(plan, patch=None)
    values: dict[str, Any] = {}
    if plan.spacing is not None:
        values["data.source.spacing"] = list(plan.spacing)
    if plan.patch is not None or _has(configuration, "data.patch"):
        values["data.patch.size"] = None if plan.patch is None else list(plan.patch)
    values["data.batch_size"] = plan.batch_size
    if "inference" in configuration:
        values["inference.window"] = None if plan.patch is None else list(plan.patch)
    if plan.features is not None:
        values |= _of_network(configuration["network"], rules, plan)
    kept = tuple(key for key in values if _kept(key, keep))
    # the plan would have chosen these too, and its other choices follow from them
    kept += tuple(key for key in (*_OF_NETWORK, "data.source.spacing") if key not in kept and _kept(key, keep))
    values = {key: value for key, value in values.items() if key not in kept}
    added = frozenset(key for key in values if not _has(configuration, key))
    planned = _with_values(configuration, values)
    planned["plan"] = {"memory_gb": settings.memory_gb, "keep": sorted(keep), "values": values}
    return PlannedConfiguration(planned, fingerprint, plan, values, kept, added)


def _of_network(node: Mapping[str, Any], rules: NetworkRules, plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = {"network.features": list(plan.features or ())}
    if rules.per_axis:
        values["network.strides"] = [list(stage) for stage in plan.topology.strides]
        values["network.kernels"] = [list(stage) for stage in plan.topology.kernels]
    if rules.residual:
        values["network.blocks"] = [_blocks(stage) for stage in range(len(plan.features or ()))]
    elif "blocks" in node:
        values["network.blocks"] = 2
    return values


def _with_values(configuration: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with some values, by dotted key."""
    changed: dict[str, Any] = dict(configuration)
    for key, value in values.items():
        *path, last = key.split(".")
        node = changed
        for part in path:
            node[part] = dict(node.get(part) or {})
            node = node[part]
        if key == "data.patch.size":
            node.setdefault("_target_", _PATCH)
        node[last] = value
    return changed


def _concerns_plan(key: str) -> bool:
    """Return whether a plan sets a key, or one below it."""
    return any(_kept(planned_key, [key]) for planned_key in PLANNED_KEYS)


def _kept(key: str, keep: Sequence[str]) -> bool:
    """Return whether a key, or a node above it, is among those to keep."""
    return any(key == one or key.startswith(f"{one}.") for one in keep)


def _at(configuration: Mapping[str, Any], key: str) -> Any:
    node: Any = configuration
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _has(configuration: Mapping[str, Any], key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = _at(configuration, parent)
    return isinstance(node, Mapping) and last in node


def _shown(value: Any) -> str:
    """Return a value as an option of a command line has it."""
    return json.dumps(value, separators=(",", ":"))


def _numbers(values: Sequence[float]) -> str:
    return "x".join(f"{value:.4g}" for value in values)


def keeping(configuration: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a configuration whose plan, if it has one, keeps further keys, such as those of the command line."""
    node = configuration.get("plan")
    if node is None:
        return dict(configuration)
    concerned = {key for key in keys if _concerns_plan(key)}
    return {**configuration, "plan": {**node, "keep": sorted({*(node.get("keep") or ()), *concerned})}}


def planned(configuration: Mapping[str, Any], recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a configuration with plain values in place of `plan=auto`; without a plan, or with a made one, as it is.

    Args:
        configuration: resolved and plain configuration of a training.
        recorded: node `plan` in the record of the run that is resumed, whose values are taken if its settings are the
            same; None to measure the training cases.

    Raises:
        UserError: if the data cannot be read, or the plan cannot be made.
    """
    node = configuration.get("plan")
    if node is None:
        return dict(configuration)
    settings: PlanSettings = build(node, "plan") if "_target_" in node else PlanSettings(**node)
    if settings.values is not None:
        return dict(configuration)
    own = {"memory_gb": settings.memory_gb, "keep": sorted(settings.keep)}
    if recorded is not None and own == {key: recorded.get(key) for key in own}:
        return {**_with_values(configuration, recorded["values"]), "plan": dict(recorded)}
    made = with_plan(configuration, settings, fingerprint_of(configuration["data"], settings.keep))
    log.info("%s", made.text())
    return made.configuration
