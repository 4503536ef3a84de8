"""The folder of the configuration, and the check that a configuration fits the code it configures.

A node with a `_target_` is the call of a class of this package or of a library. Its keys and values are checked against
the signature of that class, the one place where its options are defined.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from edue_lightning.errors import UserError

_DIRECTIVES = {"_target_", "_partial_"}
_OWN_PACKAGE = "edue_lightning"

MOVED_TARGETS = {
    "edue_lightning.loggers.WandbSettings": "edue_lightning.training.trackers.WandbSettings",
    "edue_lightning.training.loggers.WandbSettings": "edue_lightning.training.trackers.WandbSettings",
}
"""Names of moved classes in earlier configurations and checkpoints, and their names today."""

REFERENCE_KEYS = {"data": frozenset({"root", "cache"})}
"""Per node, the keys that are no arguments of its class: other keys refer to them, as in `root: ${data.root}`."""

TRUSTED_PACKAGES = "EDUE_TRUSTED_PACKAGES"
"""Environment variable with further packages whose classes a checkpoint may call, separated by commas."""


def configuration_folder() -> str:
    """Return the absolute path of `conf/`: that of the checkout, or of the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "conf").is_dir():
        return str(checkout / "conf")
    return str(package / "conf")


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values with every interpolation replaced.

    Raises:
        UserError: for a mandatory value that is not set, or an interpolation that cannot be resolved.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    return typing.cast(dict[str, Any], with_current_targets(plain))


def with_current_targets(plain: Any) -> Any:
    """Return a plain configuration with every `_target_` of an earlier version under its name of today."""
    if isinstance(plain, Mapping):
        return {
            key: MOVED_TARGETS.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else with_current_targets(value)
            for key, value in plain.items()
        }
    if isinstance(plain, list | tuple):
        return [with_current_targets(value) for value in plain]
    return plain


def check_configuration(plain: Mapping[str, Any], schema: type) -> None:
    """Check a resolved configuration: its top level against a dataclass, each `_target_` node by its signature.

    Args:
        plain: configuration as `resolved` returns it.
        schema: dataclass with the top-level keys and their types.

    Raises:
        UserError: with one line per problem, each with the path of the key and the fix.
    """
    hints = typing.get_type_hints(schema)
    problems = [f"unknown key {key!r}; known keys: {', '.join(hints)}" for key in plain if key not in hints]
    required = {field.name for field in dataclasses.fields(schema) if field.default is dataclasses.MISSING}
    problems += [f"{key}: not set" for key in sorted(required - set(plain))]
    for key, value in plain.items():
        if key in hints:
            problems += _value_problems(value, hints[key], key)
    if problems:
        raise UserError("invalid configuration: " + "\n  ".join(problems))


def check_only_ours(plain: Any, where: str) -> None:
    """Refuse a resolved configuration, read from a file, that would call anything but classes of this package.

    Only the environment variable `TRUSTED_PACKAGES` can allow others; nothing in a file can.

    Raises:
        UserError: naming the call.
    """
    if isinstance(plain, Mapping):
        target = plain.get("_target_")
        if target is not None and not _is_trusted(str(target)):
            raise UserError(
                f"{where}: refused, its configuration calls {target!r}, which is not part of this package; if you "
                f"trust that code, name its package: {TRUSTED_PACKAGES}={str(target).split('.')[0]}"
            )
        for value in plain.values():
            check_only_ours(value, where)
    elif isinstance(plain, list | tuple):
        for value in plain:
            check_only_ours(value, where)
    elif isinstance(plain, str) and "${" in plain:
        # it could become a call once it is resolved
        raise UserError(f"{where}: refused, its configuration contains the interpolation {plain!r}")


def _is_trusted(target: str) -> bool:
    """Return whether a name is a class that a trusted package defines itself, rather than imports."""
    named = os.environ.get(TRUSTED_PACKAGES, "").split(",")
    trusted = {_OWN_PACKAGE, *(name.strip() for name in named)} - {""}
    module_name, _, name = target.rpartition(".")
    if module_name.split(".")[0] not in trusted:
        return False
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        return False
    return inspect.isclass(found) and found.__module__.split(".")[0] in trusted


def _value_problems(value: Any, hint: Any, path: str) -> list[str]:
    if isinstance(value, Mapping) and "_target_" in value:
        return _call_problems(value, path)
    if isinstance(value, Mapping):
        # calls by name, such as metrics of one's own
        calls = {key: node for key, node in value.items() if isinstance(node, Mapping) and "_target_" in node}
        nested = [problem for key, node in calls.items() for problem in _call_problems(node, f"{path}.{key}")]
        if nested:
            return nested
    if hint in (Any, inspect.Parameter.empty):
        return []
    try:
        TypeAdapter(hint, config=_pydantic_config(hint)).validate_python(value)
    except PydanticSchemaGenerationError:
        # a type of ours that no configuration can hold
        return []
    except ValidationError as error:
        first = error.errors()[0]
        return [f"{path}={value!r}: {first['msg'].lower()}"]
    return []


def _pydantic_config(hint: Any) -> ConfigDict | None:
    # a dataclass has a configuration of its own, and pydantic refuses a second one
    return None if dataclasses.is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)


def _call_problems(node: Mapping[str, Any], path: str) -> list[str]:
    module_name, _, name = str(node["_target_"]).rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError):
        return [f"{path}._target_={node['_target_']!r}: no such class"]
    try:
        parameters = inspect.signature(target).parameters
    # neither a class nor a function, or one of Python's own that does not tell its arguments
    except (TypeError, ValueError):
        return [f"{path}._target_={node['_target_']!r}: cannot be configured; name a class with known arguments"]
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    problems = []
    for key, value in node.items():
        if key in _DIRECTIVES or key in REFERENCE_KEYS.get(path, ()):
            continue
        if key not in parameters and not takes_any:
            problems.append(f"{path}.{key}: unknown key; {name} knows {', '.join(parameters)}")
        else:
            problems += _value_problems(value, hints.get(key, Any), f"{path}.{key}")
    if not node.get("_partial_"):
        problems += [
            f"{path}.{p.name}: not set"
            for p in parameters.values()
            if p.default is inspect.Parameter.empty and p.name not in node and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
    return problems
