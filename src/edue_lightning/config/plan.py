"""Plan of a training in its configuration: what `plan=auto` measures, chooses and leaves as the user stated it."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_class

from edue_lightning.config.build import build, build_data
from edue_lightning.config.plan_rules import (
    REFERENCE_GB,
    NetworkRules,
    Plan,
    make_plan,
    residual_blocks,
)
from edue_lightning.data.fingerprint import Fingerprint, measure_training_case

log = logging.getLogger(__name__)

_OF_NETWORK = ("network.features", "network.strides", "network.kernels", "network.blocks")
PLANNED_KEYS = ("data.source.spacing", "data.patch.size", "data.batch_size", "inference.window", *_OF_NETWORK)
"""Keys of the configuration that a plan sets, as far as the data set and the network have them."""


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

    memory_gb: float = REFERENCE_GB
    keep: Sequence[str] = ()
    values: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.memory_gb < math.inf:
            raise ValueError(f"plan.memory_gb must be positive, not {self.memory_gb}")
        unknown = [key for key in self.keep if not _concerns_plan(key)]
        if unknown:
            raise ValueError(f"plan.keep={unknown[0]}: a plan sets no such key; it sets {', '.join(PLANNED_KEYS)}")


def network_rules(node: Mapping[str, Any], keep: Sequence[str] = ()) -> NetworkRules:
    """Return what a plan may choose of the network of a configuration.

    Args:
        node: resolved node `network`.
        keep: keys of the configuration that the plan must not change; one of the network's stages keeps them all.
    """
    network = get_class(str(node["_target_"]))
    parameters = inspect.signature(network).parameters
    features = node.get("features")
    if not isinstance(features, list | tuple) or not features:
        return NetworkRules(named=False)
    per_axis = "strides" in parameters
    kept = any(_kept(key, keep) for key in _OF_NETWORK)
    return NetworkRules(
        width=int(features[0]),
        per_axis=per_axis,
        least_stages=getattr(network, "least_stages", NetworkRules.least_stages),
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
    cases = [measure_training_case(module.sample("train", at)) for at in range(len(module.records("train")))]
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
    rules = network_rules(configuration["network"], keep)
    plan = make_plan(
        fingerprint,
        rules,
        settings.memory_gb,
        resamples=resamples(data, keep),
        patch=given,
        batch_size=data["batch_size"] if _kept("data.batch_size", keep) else None,
        whole=given is None and _kept("data.patch.size", keep),
    )
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
        values["network.blocks"] = [residual_blocks(stage) for stage in range(len(plan.features or ()))]
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
