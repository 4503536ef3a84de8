"""Pictures in a folder or in a ZIP archive, which is never unpacked to disk.

Archives come from strangers: their names are only looked up, never used as paths, and what they claim about sizes is
checked before memory is allocated and after reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from edue_lightning.data.images import ImageError
from edue_lightning.data.listing import ListingProblems, find_files
from edue_lightning.data.prepared import are_settled
from edue_lightning.errors import UserError
from edue_lightning.text import one_line, reason_of

MOST_BYTES = 2**24
"""Largest size of a picture in an archive, packed or unpacked."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
_RAW_DEFLATE = -15

ReadContent = Callable[[str], bytes]
"""Returns the content of a picture by its name; raises `ImageError`."""


class PictureStore(ABC):
    """Pictures by their names, which are paths with slashes from the folder or archive; may be pickled.

    Attributes:
        names: names in order.
        problems: one line per file that cannot be used.
        fingerprint: hash of names and contents, as far as they are known without reading the contents.
        settled: whether a later change of a content is sure to change the fingerprint.
    """

    names: Sequence[str]
    problems: Sequence[str]
    fingerprint: str
    settled: bool

    @abstractmethod
    def opened(self) -> AbstractContextManager[ReadContent]:
        """Open the store for reading in this thread and process."""


class PictureFolder(PictureStore):
    """Pictures in a folder, at most `listing.DEEPEST` levels below it.

    Args:
        root: folder.
        endings: endings of the pictures' names.
    """

    def __init__(self, root: Path, endings: tuple[str, ...]) -> None:
        self._root = root.resolve()
        listing = ListingProblems(self._root)
        files = {path.relative_to(self._root).as_posix(): path for path in find_files(listing, _nothing, endings)}
        self.names = list(files)
        self.problems = listing.lines
        statuses = {name: path.stat() for name, path in files.items()}
        self.fingerprint = _fingerprint(
            (name, one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for name, one in statuses.items()
        )
        self.settled = are_settled(statuses.values())

    @contextmanager
    def opened(self) -> Iterator[ReadContent]:
        """Return the function that reads a file."""
        yield self._read

    def _read(self, name: str) -> bytes:
        path = self._root / name
        try:
            status = path.stat()
            # reading a pipe would block, and a device may have no end
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("is no regular file; put the picture itself there")
            if status.st_size > MOST_BYTES:
                raise ImageError(f"has {status.st_size} bytes, too many for such a picture; download it again")
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"cannot be read ({reason_of(error, path)}); download it again") from error


class _Member(NamedTuple):
    """Place of a picture in an archive."""

    header: int
    name: bytes
    packed: int
    size: int
    crc: int
    deflated: bool


class PictureArchive(PictureStore):
    """Pictures in a ZIP archive, stored or deflated.

    Args:
        path: archive.
        endings: endings of the pictures' names.

    Raises:
        UserError: if the file is no ZIP archive.
    """

    settled = True

    def __init__(self, path: Path, endings: tuple[str, ...]) -> None:
        self._path = path.resolve()
        try:
            with self._path.open("rb") as file:
                self._identity = _identity(file.fileno())
                with zipfile.ZipFile(file) as archive:
                    listed = archive.infolist()
        # damaged directories raise all kinds of errors
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, MemoryError) as error:
            raise UserError(f"{path}: is no readable ZIP archive ({reason_of(error)}); download it again") from error
        wanted = [info for info in listed if _is_wanted(info.filename, endings)]
        self.problems = [
            one_line(f"{info.filename}: {reason}") for info in wanted if (reason := _member_problem(info)) is not None
        ]
        times = Counter(info.filename for info in wanted)
        self.problems += [
            one_line(f"{name}: is {count} times in the archive; download it again")
            for name, count in times.items()
            if count > 1
        ]
        self._members = {
            info.filename: _Member(
                info.header_offset,
                info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"),
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type == zipfile.ZIP_DEFLATED,
            )
            for info in sorted(wanted, key=lambda info: info.filename)
            if _member_problem(info) is None
        }
        self.names = list(self._members)
        self.fingerprint = _fingerprint((name, one.size, one.crc) for name, one in self._members.items())

    @contextmanager
    def opened(self) -> Iterator[ReadContent]:
        """Open the archive, so that no two threads or processes share a place in it.

        Raises:
            ImageError: if it has changed since it was listed.
        """
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise ImageError(f"{self._path.name}: cannot be opened ({reason_of(error)})") from error
        with file:
            if _identity(file.fileno()) != self._identity:
                raise ImageError(f"{self._path.name}: has changed since it was listed; start again")
            yield partial(self._read, file.fileno())

    def _read(self, descriptor: int, name: str) -> bytes:
        member = self._members[name]
        try:
            content = _content(descriptor, member)
        except (OSError, zlib.error, struct.error, ValueError) as error:
            reason = reason_of(error)
            raise ImageError(f"cannot be read from the archive ({reason}); download it again") from error
        return content


def open_store(root: str, endings: tuple[str, ...]) -> PictureStore:
    """List the pictures of a folder or ZIP archive.

    Raises:
        UserError: if it is neither.
    """
    path = Path(root)
    if path.is_dir():
        return PictureFolder(path, endings)
    if path.is_file():
        return PictureArchive(path, endings)
    raise UserError(f"data.root={root}: no such folder or ZIP archive; set data.root=FOLDER or data.root=FILE.zip")


def _content(descriptor: int, member: _Member) -> bytes:
    """Return the content of a member, as long as the archive claims and with its checksum.

    Raises:
        ValueError: if the archive contradicts itself.
    """
    start = os.pread(descriptor, _LOCAL_HEADER.size + len(member.name), member.header)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(start[: _LOCAL_HEADER.size])
    if signature != _LOCAL_SIGNATURE or name_length != len(member.name) or not start.endswith(member.name):
        raise ValueError("its two headers differ")
    place = member.header + _LOCAL_HEADER.size + name_length + extra_length
    packed = os.pread(descriptor, member.packed, place)
    if len(packed) != member.packed:
        raise ValueError("the archive is shorter than it claims")
    content = packed
    if member.deflated:
        unpacking = zlib.decompressobj(_RAW_DEFLATE)
        # one byte more than claimed tells that there is more
        content = unpacking.decompress(packed, member.size + 1)
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise ValueError("its size or checksum does not match")
    return content


def _member_problem(info: zipfile.ZipInfo) -> str | None:
    """Return why a member must not be read, or None."""
    parts = PurePosixPath(info.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        return "has a name that leads out of the archive; download it again"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted; save the archive without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in an unusual way; save the archive stored or deflated"
    if max(info.file_size, info.compress_size) > MOST_BYTES:
        return f"claims {info.file_size} bytes, too many for such a picture; download it again"
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return "claims two different sizes; download it again"
    return None


def _is_wanted(name: str, endings: tuple[str, ...]) -> bool:
    hidden = any(part == "__MACOSX" or (part.startswith(".") and not part.startswith("..")) for part in name.split("/"))
    return name.lower().endswith(endings) and not hidden


def _identity(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _fingerprint(described: Iterator[tuple[str | int, ...]]) -> str:
    return hashlib.sha256(json.dumps([*described]).encode()).hexdigest()


def _nothing(_: str) -> bool:
    return False
