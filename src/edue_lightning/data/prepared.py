"""Prepared cases on disk, so that decoding and resampling happen once.

The name of an entry holds a hash of the contents of the case's files, of all settings that affect the result, and of
the version of the code that reads and prepares cases. A changed file, setting or version thus never meets a stale
entry. Entries are mapped into memory: only what is used is read, and memory does not grow with the number of cases.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edue_lightning.atomic import write_whole
from edue_lightning.data.sample import Grid, RaterSample
from edue_lightning.errors import UserError
from edue_lightning.text import is_plain_name, reason_of

log = logging.getLogger(__name__)

VERSION = 10
"""Version of the entries' format and of the code that makes samples from files; part of the entries' names.

Raise it with every change that gives a sample other values: in decoding, preparation, resampling or rasterising.
"""

_DIGESTS = "digests.json"
_NOTES = "notes.json"
_FRESH_SECONDS = 5.0


class PreparedCases:
    """A folder with one file per prepared case. Several processes may use it at once.

    Args:
        folder: folder of the entries, created if necessary.

    Raises:
        UserError: if the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data.cache={folder}: cannot be created ({reason_of(error)}); choose another folder, or null"
            ) from error
        self._digests: dict[str, str] = _read_json(folder / _DIGESTS)
        self._notes: dict[str, Any] = _read_json(folder / _NOTES)

    def key(self, files: Mapping[str, Path], settings: Mapping[str, Any]) -> str:
        """Return the key of the entry for files in given roles and given settings.

        Raises:
            OSError: if a file cannot be read.
        """
        content = {role: self._digest(path) for role, path in files.items()}
        described = json.dumps([VERSION, dict(settings), content], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:40]

    def read(self, case_id: str, key: str) -> RaterSample | None:
        """Return a prepared case, its tensors mapped from the file, or None if there is no readable entry."""
        path = self._path(case_id, key)
        if not path.is_file():
            return None
        try:
            stored = torch.load(path, mmap=True, weights_only=True)
            origin = None if stored["origin"] is None else Grid(tuple(stored["origin"][0]), stored["origin"][1])
            return RaterSample(**{**stored, "case_id": case_id, "origin": origin})
        # any error of reading a damaged file: the entry is made again from the case's own files
        except Exception as error:
            log.warning("%s: is damaged and is made again (%s)", path, type(error).__name__)
            return None

    def write(self, key: str, sample: RaterSample) -> None:
        """Store a case; the file appears whole or not at all.

        Raises:
            UserError: if it cannot be written, as on a full disk.
        """
        stored = {
            "image": sample.image,
            "masks": sample.masks,
            "valid": sample.valid,
            "spacing": sample.spacing,
            "affine": sample.affine,
            "origin": None if sample.origin is None else (list(sample.origin.shape), sample.origin.affine),
            "foreground": sample.foreground,
            "region": sample.region,
            "content": sample.content,
        }
        path = self._path(sample.case_id, key)
        try:
            write_whole(path, lambda temporary: torch.save(stored, temporary))
        # torch reports a full disk as RuntimeError
        except (OSError, RuntimeError) as error:
            reason = reason_of(error)
            raise UserError(
                f"{path}: cannot be written ({reason}); free some space, or choose another data.cache"
            ) from error

    def note(self, key: str, make: Callable[[], Any]) -> Any:
        """Return a small value about an entry, such as JSON can hold; it is made once and kept beside the entries.

        Args:
            key: key of the entry.
            make: function that makes the value.
        """
        if key not in self._notes:
            self._notes[key] = make()
        return self._notes[key]

    def remember(self) -> None:
        """Store the digests of the files and all notes, so that the next start reads no unchanged file again."""
        for name, content in ((_DIGESTS, self._digests), (_NOTES, self._notes)):
            text = json.dumps(content)
            try:
                write_whole(self.folder / name, partial(_write_text, text))
            except OSError as error:
                log.warning("%s: cannot be written (%s)", self.folder / name, error)

    def _path(self, case_id: str, key: str) -> Path:
        # the key alone says which case it is; a name with a separator would lead out of the folder
        return self.folder / (f"{case_id}-{key}.pt" if is_plain_name(case_id) else f"{key}.pt")

    def _digest(self, path: Path) -> str:
        """Return the hash of a file's content, reading it only if its size, inode or a time has changed."""
        status = path.stat()
        # unlike the time of the last modification, that of the last change of status cannot be set back
        identity = f"{path.resolve()}|{status.st_ino}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"
        if identity in self._digests:
            return self._digests[identity]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if are_settled([status]):
            self._digests[identity] = digest
        return digest


def are_settled(statuses: Iterable[os.stat_result]) -> bool:
    """Return whether files are old enough that any later change shows in their times.

    A second change within the resolution of a file system's clock goes unnoticed.

    Args:
        statuses: status of each file.
    """
    newest = max((max(one.st_mtime, one.st_ctime) for one in statuses), default=0.0)
    return time.time() - newest > _FRESH_SECONDS


def _write_text(text: str, path: Path) -> None:
    path.write_text(text)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        log.debug("no %s in %s", path.name, path.parent)
        return {}
    return content if isinstance(content, dict) else {}
