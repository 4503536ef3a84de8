"""Cases as they were read and prepared, kept on disk so that decoding and resampling happen once.

An entry is named by a hash over the content of the case's files and everything that decides what is made of them, so a
changed file or setting never meets a stale entry. Entries are mapped into memory: what is not touched is not read, and
memory does not grow with the number of cases.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edue_lightning.atomic import write_whole
from edue_lightning.data.sample import Grid, RaterSample
from edue_lightning.errors import UserError
from edue_lightning.text import reason_of

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the entries; a reader meets none of another format, as it is part of their names."""

_DIGESTS = "digests.json"
_FRESH_SECONDS = 5.0


class PreparedCases:
    """A folder with one file a prepared case. Several processes may use it at once.

    Args:
        folder: made if need be.

    Raises:
        UserError: if it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache={folder}: cannot be made ({error}); choose another folder, or null") from error
        self._digests: dict[str, str] = {}
        try:
            self._digests = json.loads((folder / _DIGESTS).read_text())
        except (OSError, ValueError):
            log.debug("no digests in %s", folder)

    def key(self, files: Mapping[str, Path], settings: Mapping[str, Any]) -> str:
        """Return the name of the entry for files in given roles and given settings.

        Raises:
            OSError: if a file cannot be read.
        """
        content = {role: self._digest(path) for role, path in files.items()}
        described = json.dumps([FORMAT, dict(settings), content], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:40]

    def read(self, case_id: str, key: str) -> RaterSample | None:
        """Return a prepared case, its tensors mapped from the file, or None where there is none that can be read."""
        path = self._path(case_id, key)
        if not path.is_file():
            return None
        try:
            stored = torch.load(path, mmap=True, weights_only=True)
            origin = None if stored["origin"] is None else Grid(tuple(stored["origin"][0]), stored["origin"][1])
            return RaterSample(**{**stored, "case_id": case_id, "origin": origin})
        # whatever a damaged file makes the reader stumble over: it is made again from the case's own files
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

    def remember(self) -> None:
        """Keep the digests of the files, so that the next start need not read unchanged ones again."""
        try:
            write_whole(self.folder / _DIGESTS, lambda temporary: temporary.write_text(json.dumps(self._digests)))
        except OSError as error:
            log.warning("%s: cannot be written (%s)", self.folder / _DIGESTS, error)

    def _path(self, case_id: str, key: str) -> Path:
        return self.folder / f"{case_id}-{key}.pt"

    def _digest(self, path: Path) -> str:
        """Return the hash of a file's content, reading it only if anything that the system notes of it has changed."""
        noted = path.stat()
        # the time of the last change of status cannot be set back, unlike that of the last change of content
        identity = f"{path.resolve()}|{noted.st_ino}|{noted.st_size}|{noted.st_mtime_ns}|{noted.st_ctime_ns}"
        if identity in self._digests:
            return self._digests[identity]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        # within the clock's grain a second change would go unnoticed
        if time.time() - max(noted.st_mtime, noted.st_ctime) > _FRESH_SECONDS:
            self._digests[identity] = digest
        return digest
