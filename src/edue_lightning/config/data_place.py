"""Folder of the data set of a checkpoint, which may have moved since the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edue_lightning.errors import UserError

# arguments of sources that are folders of data; other paths are from the root, and caches decide nothing
_FOLDER_KEYS = ("root", "database")


def with_absolute_root(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose folders of data do not depend on the working directory, to be kept in a checkpoint.

    These are `data.root`, and the folders of the source, which may be set by themselves (`data.source.root`).
    """
    data = dict(configuration.get("data") or {})
    folders = _folders(data)
    if folders:
        data["source"] = {**data["source"], **{key: _absolute(folder) for key, folder in folders.items()}}
    if isinstance(data.get("root"), str):
        data["root"] = _absolute(data["root"])
    return {**configuration, "data": data} if data else dict(configuration)


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
        kept = {key: folder for key, folder in _folders(trained).items() if key not in _root_keys(trained)}
        _require_absolute({f"data.source.{key}": folder for key, folder in kept.items()}, where)
        return _relocated(trained, str(moved))
    own = {"data.root": trained.get("root"), **{f"data.source.{key}": path for key, path in _folders(trained).items()}}
    _require_absolute(own, where)
    return trained


def _absolute(folder: str) -> str:
    return str(Path(folder).absolute())


def _require_absolute(folders: Mapping[str, Any], where: str) -> None:
    for key, path in folders.items():
        if isinstance(path, str) and not Path(path).is_absolute():
            fix = "set data.root=FOLDER" if key.endswith(".root") else f"choose data=NAME with {key}=FOLDER"
            raise UserError(
                f"{where}: was trained on {key}={path}, a path from a working directory that is not recorded; {fix}, "
                "the folder with the data set"
            )


def _relocated(data: Mapping[str, Any], root: str) -> dict[str, Any]:
    source = dict(data.get("source") or {})
    return {**data, "root": root, "source": {**source, **dict.fromkeys(_root_keys(data), root)}}


def _folders(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments of the source that are folders of data: those named so, and all that equal `data.root`."""
    source, root = data.get("source") or {}, data.get("root")
    return {
        key: value
        for key, value in source.items()
        if isinstance(value, str) and (key in _FOLDER_KEYS or (root is not None and value == root))
    }


def _root_keys(data: Mapping[str, Any]) -> list[str]:
    """Return the arguments of the source that refer to `data.root`."""
    source, root = data.get("source") or {}, data.get("root")
    if root is None:
        return ["root"] if "root" in source else []
    return [key for key, value in source.items() if value == root or key == "root"]
