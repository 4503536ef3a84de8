"""Objects built from a checked configuration."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from edue_lightning.config.schema import REFERENCE_KEYS, check_only_ours
from edue_lightning.data import CaseSource, RaterDataModule
from edue_lightning.data.geometry import fits_storage
from edue_lightning.data.images import ImageError
from edue_lightning.data.preparation import Preparation
from edue_lightning.distortions import Distortions
from edue_lightning.errors import UserError
from edue_lightning.methods import Inference, InferenceChanges, MethodParts, NetworkFactory, SegmentationMethod
from edue_lightning.metrics import MetricSettings
from edue_lightning.metrics.catalogue import known_metrics
from edue_lightning.networks import HeadLayout
from edue_lightning.text import reason_of
from edue_lightning.uncertainty import MaskRule, Tie

# settings of sources that decide which part of the files is an image, and its size
_CUT_BY = ("size", "crop", "bounding_boxes")

# errors of a call with invalid arguments
_REFUSALS = (UserError, ValueError, TypeError, MisconfigurationException)


@dataclass(frozen=True)
class ImageFormat:
    """Format of the images that a network takes.

    Attributes:
        spatial_dims: 2 or 3.
        channels: C.
        structures: names of the K structures.
        storage: how the files of 2D images store their axes, see `geometry.slice_storage`; None if it is unknown. It is
            not compared.
        exclusive: whether the structures exclude each other.
    """

    spatial_dims: int
    channels: int
    structures: tuple[str, ...]
    storage: str | None = dataclasses.field(default=None, compare=False)
    exclusive: bool = False

    @classmethod
    def of(cls, source: CaseSource) -> ImageFormat:
        """Return the format of a source's images."""
        return cls(source.spatial_dims, source.channels, tuple(source.structures), source.storage, source.exclusive)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageFormat:
        """Return the format that `as_dict` described."""
        storage = values.get("storage")
        return cls(
            int(values["spatial_dims"]),
            int(values["channels"]),
            tuple(values["structures"]),
            None if storage is None else str(storage),
            # absent in checkpoints of earlier versions
            bool(values.get("exclusive", False)),
        )

    def __str__(self) -> str:
        exclusive = " (data.source.exclusive=true)" if self.exclusive else ""
        return f"{self.spatial_dims}D images of {self.channels} channels with {', '.join(self.structures)}{exclusive}"

    def as_dict(self) -> dict[str, Any]:
        """Return the format as plain values."""
        plain = {**dataclasses.asdict(self), "structures": list(self.structures)}
        # as earlier versions wrote it, where nothing else is needed
        return {name: value for name, value in plain.items() if value not in (None, False)}

    def require_storage(self, storage: str | None) -> None:
        """Check that 2D images are stored like those of the training.

        Args:
            storage: how their files store the axes, see `geometry.slice_storage`; None if it is unknown.

        Raises:
            ImageError: if they are stored otherwise.
        """
        if not fits_storage(storage, self.storage):
            raise ImageError(
                f"is stored as {storage}, but the images of the training as {self.storage}, with other axes (a picture "
                "has its rows first, a NIfTI slice the axes of its header); save it like those"
            )


def build(node: Mapping[str, Any], name: str, **arguments: Any) -> Any:
    """Build the object that a configuration node describes.

    Args:
        node: resolved node with its `_target_`.
        name: path of the node in the configuration; its `REFERENCE_KEYS` are left out.
        arguments: arguments that complete a node with `_partial_`; without any, the partial call is returned.

    Raises:
        UserError: if the described call refuses its arguments, or the node sets one of `arguments`.
    """
    refuse_keys(node, name, arguments)
    call = {key: value for key, value in node.items() if key not in REFERENCE_KEYS.get(name, ())}
    try:
        made = instantiate(call, _convert_="all")
        return made(**arguments) if arguments else made
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if not isinstance(cause, _REFUSALS):
            raise
    except _REFUSALS as error:
        cause = error
    if isinstance(cause, UserError):
        raise cause from None
    raise UserError(f"{name}: {cause}") from cause


def refuse_keys(node: Mapping[str, Any], name: str, keys: Iterable[str]) -> None:
    """Refuse keys of a node that the program sets itself, since they would have no effect.

    Raises:
        UserError: naming the first of them.
    """
    for key in keys:
        if key in node:
            raise UserError(f"{name}.{key}={node[key]}: has no effect, the program sets it itself; remove the key")


def build_data(configuration: Mapping[str, Any]) -> RaterDataModule:
    """Build the data module of a configuration; it reads the list of its cases."""
    data: RaterDataModule = build(configuration["data"], "data")
    return data


def build_preparation(configuration: Mapping[str, Any]) -> Preparation:
    """Return how a configuration's data set prepares its images; the data itself is not needed.

    Raises:
        UserError: if the configuration names no data set of this package.
    """
    source, settings = _source_class(configuration)
    return source.preparation(settings)


def new_image_caveat(configuration: Mapping[str, Any]) -> str:
    """Return how new images differ from those of a configuration's data set, see `CaseSource.new_image_caveat`.

    Raises:
        UserError: if the configuration names no data set of this package.
    """
    source, settings = _source_class(configuration)
    return source.new_image_caveat(settings)


def _source_class(configuration: Mapping[str, Any]) -> tuple[type[CaseSource], dict[str, Any]]:
    node = dict((configuration.get("data") or {}).get("source") or {})
    check_only_ours(node, "data.source")
    return get_class(str(node.pop("_target_", ""))), node


def preparation_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings that decide how image files become the network's input, in comparable values.

    Args:
        data: node `data` of a configuration.

    Raises:
        UserError: if it names no data set of this package.
    """
    preparation = build_preparation({"data": data})
    settings: dict[str, Any] = {"preparation": type(preparation).__name__}
    if dataclasses.is_dataclass(preparation):
        settings |= dataclasses.asdict(preparation)
    source = dict(data.get("source") or {})
    of_source = inspect.signature(get_class(str(source["_target_"]))).parameters
    for name in (name for name in _CUT_BY if name in of_source or name in source):
        value = source.get(name, of_source[name].default if name in of_source else None)
        # the table of the boxes of each data set is its own
        settings[name] = value is not None if name == "bounding_boxes" else value
    return {
        name: [float(part) for part in value] if isinstance(value, list | tuple) else value
        for name, value in settings.items()
    }


def differing_preparation(data: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of `preparation_settings` in which two data sets differ: values of the training, and of now.

    Args:
        data: node `data` of a configuration.
        trained: node `data` of the training.

    Raises:
        UserError: if one names no data set of this package.
    """
    found, expected = preparation_settings(data), preparation_settings(trained)
    return {name: (expected[name], found[name]) for name in expected if name in found and found[name] != expected[name]}


def build_distortions(node: Mapping[str, Any] | None) -> Distortions | None:
    """Build the distortions of a configuration; None without a node."""
    if node is None:
        return None
    distortions: Distortions = build(node, "distortions")
    return distortions


def build_metric_settings(node: Mapping[str, Any] | None, structures: Sequence[str]) -> MetricSettings:
    """Build and check the settings of the metrics; the default ones without a node.

    Raises:
        UserError: if a setting does not fit the structures.
    """
    settings: MetricSettings = MetricSettings() if node is None else build(node, "metrics")
    try:
        settings.check(tuple(structures))
        known_metrics(settings)
    except ValueError as error:
        raise UserError(f"metrics: {error}") from error
    return settings


def network_factory(node: Mapping[str, Any], image_format: ImageFormat) -> NetworkFactory:
    """Return the factory of the networks of a configuration.

    Args:
        node: resolved node `network`.
        image_format: format of the images that the networks take.
    """
    refuse_keys(node, "network", ("spatial_dims", "in_channels", "structures", "heads"))
    make_network = build(node, "network")

    def network(heads: HeadLayout) -> nn.Module:
        module: nn.Module = make_network(
            spatial_dims=image_format.spatial_dims,
            in_channels=image_format.channels,
            structures=len(image_format.structures),
            heads=heads,
        )
        return module

    return network


def refused_size(make_network: NetworkFactory, channels: int, size: Sequence[int]) -> str | None:
    """Return why a network cannot take images of a size, or None if it can.

    Args:
        make_network: factory of the network.
        channels: number of channels C.
        size: `*S`.
    """
    # shapes alone first; code that needs values too is run with values
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.no_grad():
                make_network(HeadLayout("last")).eval()(torch.zeros(1, channels, *size))
            return None
        except ValueError as error:
            return reason_of(error)
        except RuntimeError as error:
            reason = reason_of(error)
    return reason


def build_method(configuration: Mapping[str, Any], image_format: ImageFormat) -> SegmentationMethod:
    """Build the method of a configuration, its networks freshly initialised.

    Args:
        configuration: resolved, with the nodes `method`, `network`, `loss` and `optimizer`; without `inference`,
            images are predicted whole; without `metrics`, ties of a majority are foreground.
        image_format: format of the images that the networks take.

    Raises:
        UserError: if the nodes do not fit each other or the images.
    """
    refuse_keys(configuration["method"], "method", ("parts",))
    parts = MethodParts(
        network=network_factory(configuration["network"], image_format),
        structures=image_format.structures,
        loss=_loss(configuration["loss"], image_format),
        optimizer=build(configuration["optimizer"], "optimizer"),
        inference=build_inference(configuration.get("inference"), image_format),
        majority_tie=build_metric_settings(configuration.get("metrics"), image_format.structures).majority_tie,
        exclusive=image_format.exclusive,
    )
    make_method = build(configuration["method"], "method")
    try:
        method: SegmentationMethod = make_method(parts=parts)
    except ValueError as error:
        raise UserError(f"method: {error}") from error
    if method.readout.exclusive != image_format.exclusive:
        raise UserError(
            f"method={method.label}: its read-out does not know that the structures exclude each other; pass "
            "exclusive=parts.exclusive to it, or set data.source.exclusive=false"
        )
    return method


def _loss(node: Mapping[str, Any], image_format: ImageFormat) -> Any:
    """Build the loss of a member, that of a softmax where the structures exclude each other."""
    refuse_keys(node, "loss", ("exclusive",))
    if not image_format.exclusive:
        return build(node, "loss")
    try:
        return build({**node, "exclusive": True}, "loss")
    except UserError as error:
        if "'exclusive'" not in str(error):
            raise
        raise UserError(
            f"loss: {node.get('_target_')} takes no argument exclusive, so it has no form for structures that exclude "
            "each other; choose another loss, or set data.source.exclusive=false"
        ) from error


def with_levels(configuration: Mapping[str, Any], data: RaterDataModule) -> Mapping[str, Any]:
    """Return a configuration whose `method.levels`, if it is null, is the largest number of raters in training.

    Args:
        configuration: resolved configuration of a training.
        data: its data; each training case is loaded once if the number is needed.
    """
    method = configuration["method"]
    if method.get("levels", 0) is not None:
        return configuration
    return {**configuration, "method": {**method, "levels": data.most_raters("train")}}


def build_mask_rule(
    node: Mapping[str, Any] | None, method: SegmentationMethod, facts: Mapping[str, Any] | None = None
) -> MaskRule:
    """Build the rule for masks.

    Args:
        node: node of the configuration, see `conf/mask`; None for the decision map at 0.5.
        method: method whose masks are taken.
        facts: what a training found on its validation cases and a node may leave out: `thresholds` by structure, and
            `raters`, the largest number of them; None for predictions from elsewhere and checkpoints without them.

    Raises:
        UserError: if a rule needs a number that neither the node nor the checkpoint has.
    """
    return mask_rule_for(node, method.structures, method.majority_tie, facts)


def mask_rule_for(
    node: Mapping[str, Any] | None,
    structures: Sequence[str],
    majority_tie: Tie,
    facts: Mapping[str, Any] | None = None,
) -> MaskRule:
    """Build the rule for masks of some structures, without their method.

    Args:
        node: node of the configuration, see `conf/mask`; None for the decision map at 0.5.
        structures: names of the K structures.
        majority_tie: class of a voxel that exactly half of the raters marked.
        facts: numbers from a training that a node may leave out, see `build_mask_rule`; None without any.

    Raises:
        UserError: if the node is invalid, or the rule needs a number that neither it nor `facts` has.
    """
    if node is None:
        return MaskRule()
    found = dict(facts or {})
    rule: MaskRule = build(node, "mask")
    try:
        rule = replace(
            rule,
            raters=rule.raters or found.get("raters"),
            thresholds=rule.thresholds or found.get("thresholds"),
            majority_tie=majority_tie,
        )
        rule.fixed(tuple(structures))
    except (ValueError, TypeError) as error:
        raise UserError(f"mask: {error}; a training stores it in its checkpoint, for others give it") from error
    return rule


def build_inference_changes(node: Mapping[str, Any] | None) -> InferenceChanges:
    """Build the node `inference` of a command that takes a checkpoint; without a node, nothing is changed.

    Raises:
        UserError: if it is invalid.
    """
    return InferenceChanges() if node is None else build(node, "inference")


def build_inference(
    node: Mapping[str, Any] | None, image_format: ImageFormat, changes: InferenceChanges | None = None
) -> Inference:
    """Build the prediction of whole images; without a node, they are predicted at once.

    Args:
        node: node of the training, or None.
        image_format: format of the images.
        changes: settings that differ from those of the training, or None.

    Raises:
        UserError: if the settings are invalid, or do not fit such images.
    """
    inference: Inference = Inference() if node is None else build(node, "inference")
    if changes is not None:
        try:
            inference = changes.of(inference)
        except ValueError as error:
            raise UserError(str(error)) from error
    if inference.window is not None and len(inference.window) != image_format.spatial_dims:
        raise UserError(f"inference.window={list(inference.window)}: the images are {image_format.spatial_dims}D")
    return inference
