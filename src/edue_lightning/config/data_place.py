"""Folder of the data set of a checkpoint, which may have moved since the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edue_lightning.errors import UserError


def with_absolute_root(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose `data.root` does not depend on the working directory, to be kept in a checkpoint."""
    data = configuration.get("data") or {}
    root = data.get("root")
    if not isinstance(root, str):
        return dict(configuration)
    return {**configuration, "data": _relocated(data, str(Path(root).absolute()))}


def data_to_measure(
    chosen: Mapping[str, Any] | None, trained: Mapping[str, Any] | None, where: str
) -> Mapping[str, Any] | None:
    """Return the node of the data set to measure a checkpoint on, or None if there is none.

    Args:
        chosen: node `data` of the command: a whole data set, or only `root` for that of the training in
            another folder.
        trained: node `data` of the training.
        where: name of the checkpoint, for messages.

    Raises:
        UserError: if the data set of the training reads no folder, or its folder is only known by a relative path,
            which could lead to another one here.
    """
    if chosen and "_target_" in chosen:
        return chosen
    if not trained:
        return None
    moved = (chosen or {}).get("root")
    if moved is not None:
        if not _root_keys(trained):
            raise UserError(f"data.root={moved}: the data set of {where} reads no folder; choose one with data=NAME")
        return _relocated(trained, str(moved))
    root = trained.get("root")
    if isinstance(root, str) and not Path(root).is_absolute():
        raise UserError(
            f"{where}: was trained on data.root={root}, a path from a working directory that is not recorded; set "
            "data.root=FOLDER, the folder with the data set"
        )
    return trained


def _relocated(data: Mapping[str, Any], root: str) -> dict[str, Any]:
    source = dict(data.get("source") or {})
    return {**data, "root": root, "source": {**source, **dict.fromkeys(_root_keys(data), root)}}


def _root_keys(data: Mapping[str, Any]) -> list[str]:
    """Return the arguments of the source that refer to `data.root`."""
    source, root = data.get("source") or {}, data.get("root")
    if root is None:
        return ["root"] if "root" in source else []
    return [key for key, value in source.items() if value == root]
