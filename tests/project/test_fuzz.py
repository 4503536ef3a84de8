"""Thousands of damaged and malicious files: each ends in a result or one clear line, within seconds and a gigabyte.

The files are mutated in a process of its own, which a crash, a hang or an allocation ends; the test finds at which
mutation, and resumes after it. To repeat one: `python tests/project/test_fuzz.py KIND NUMBER`.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import io
import itertools
import json
import os
import pickletools
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import CaseRecord, ManifestSource
from edue_lightning.data.images import ImageError, header_of, read_colours, read_image, read_label_map, read_mask
from edue_lightning.data.new_images import find_images
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.errors import UserError
from edue_lightning.evaluation.prediction_folder import PredictionFolder
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.result_files import nifti_like
from edue_lightning.prediction.triage import StructureTriage, Triage
from edue_lightning.runs.checkpoints import checkpoint_entries, read_checkpoint, save_method, write_checkpoint
from edue_lightning.runs.files import _read_replicates

Rng = np.random.Generator
Check = Callable[[], object]
Mutated = tuple[str, Sequence[Check]]
"""What was done, and what is to be tried with the file."""

COUNTS = {"nifti": 700, "picture": 500, "prediction": 700, "manifest": 400, "checkpoint": 400}
CPU_SECONDS = 5
WALL_SECONDS = 300
"""A file may take this much of a processor, and, however busy the machine is, this much time in all."""

ADDRESS_SPACE = 6 * 2**30
RESIDENT = 2**30
"""Bytes beyond those at the start that a file may make a process claim, and touch."""

EXTREMES = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)


def pick(rng: Rng, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def damaged(rng: Rng, content: bytes) -> tuple[str, bytes]:
    """Return bytes with some bits turned, or with a range of them emptied, drawn anew, doubled, cut out or added."""
    changed = bytearray(content)
    words = []
    for _ in range(int(rng.integers(1, 4))):
        start = int(rng.integers(len(changed) + 1))
        # most of what decides lies in the beginning or at the end
        place = pick(rng, ("anywhere", "head", "tail"))
        start = {"anywhere": start, "head": min(start, start % 400), "tail": max(start, len(changed) - start % 200)}[
            place
        ]
        stop = min(start + int(rng.integers(1, pick(rng, (4, 64, 4096)))), len(changed))
        how = pick(rng, ("turn", "turn", "zero", "draw", "double", "cut", "add", "end"))
        words.append(f"{how} {start}:{stop}")
        if how == "turn" and stop > start:
            for at in rng.integers(start, stop, size=int(rng.integers(1, 5))):
                changed[at] ^= 1 << int(rng.integers(8))
        elif how == "zero":
            changed[start:stop] = bytes(stop - start)
        elif how == "draw":
            changed[start:stop] = rng.bytes(stop - start)
        elif how == "double":
            changed[start:start] = changed[start:stop]
        elif how == "cut":
            del changed[start:stop]
        elif how == "add":
            changed[start:start] = rng.bytes(stop - start)
        elif how == "end":
            del changed[stop:]
    return ", ".join(words), bytes(changed)


def overwritten(rng: Rng, content: bytes, low: int, high: int) -> tuple[str, bytes]:
    """Return bytes with an extreme number, of any size and order, at a place from `low` to `high`."""
    form = pick(rng, "bBhHiIqQfd")
    order = pick(rng, "<>")
    at = int(rng.integers(low, max(high - struct.calcsize(form), low + 1)))
    if form in "fd":
        number: float = pick(rng, (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-40, 3e38, -3e38, 1e12, 0.5))
    else:
        bits = 8 * struct.calcsize(form)
        number = pick(rng, EXTREMES) & (2**bits - 1)
        number -= 2**bits if form.islower() and number >= 2 ** (bits - 1) else 0
    changed = bytearray(content)
    packed = struct.pack(order + form, number)
    changed[at : at + len(packed)] = packed
    return f"{order}{form} {number} at {at}", bytes(changed)


# ---------------------------------------------------------------------------------------------------------- NIfTI


def volumes() -> list[bytes]:
    rng = np.random.default_rng(0)
    affine = np.array([[0.0, -0.6, 2.0, 10.0], [0.5, 0.0, 0.0, -20.0], [0.0, 0.8, 1.5, 5.0], [0.0, 0.0, 0.0, 1.0]])
    made = [
        nibabel.Nifti1Image((rng.random((6, 5, 4)) > 0.5).astype(np.uint8), affine),
        nibabel.Nifti1Image(rng.integers(-1000, 1000, (5, 4, 3, 2)).astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0])),
        nibabel.Nifti1Image(rng.random((7, 6)).astype(np.float32), np.eye(4)),
        nibabel.Nifti2Image(rng.random((4, 5, 3)), affine),
        nibabel.Nifti1Image(rng.integers(0, 3, (5, 4, 3)).astype(">i4"), affine),
    ]
    made[1].header.set_slope_inter(0.5, -100)
    made[0].header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"somebody's words"))
    made[4].header.set_xyzt_units("micron")
    return [image.to_bytes() for image in made]


# offset, form and name of the fields of NIfTI 1 and 2 that decide
FIELDS_1 = {
    **{f"dim[{n}]": (40 + 2 * n, "h") for n in range(8)},
    **{"datatype": (70, "h"), "bitpix": (72, "h"), "vox_offset": (108, "f"), "slope": (112, "f"), "inter": (116, "f")},
    **{f"pixdim[{n}]": (76 + 4 * n, "f") for n in range(8)},
    **{
        "xyzt": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "sizeof_hdr": (0, "i"),
        "magic": (344, "i"),
    },
    **{f"quatern{n}": (256 + 4 * n, "f") for n in range(6)},
    **{f"srow{n}": (280 + 4 * n, "f") for n in range(12)},
    **{"extension": (348, "B"), "esize": (352, "i"), "glmin": (144, "i")},
}
FIELDS_2 = {
    **{f"dim[{n}]": (16 + 8 * n, "q") for n in range(8)},
    **{"datatype": (12, "h"), "vox_offset": (168, "q"), "slope": (176, "d"), "inter": (184, "d")},
    **{f"pixdim[{n}]": (104 + 8 * n, "d") for n in range(8)},
    **{f"srow{n}": (400 + 8 * n, "d") for n in range(12)},
    **{"qform_code": (344, "i"), "sform_code": (348, "i"), "xyzt": (500, "i")},
}
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-40, 1e-30, 3e38, -3e38, 1e12, 1e4, 352.0, 1.0)


def nifti(rng: Rng, folder: Path) -> Mutated:
    content = pick(rng, volumes())
    packed = bool(rng.integers(2))
    path = folder / pick(rng, ("image.nii", "IMAGE.NII")) if not packed else folder / "image.nii.gz"
    words = ""
    how = pick(rng, ("fields", "fields", "bytes", "number", "packed"))
    if how == "fields":
        fields, order = (FIELDS_1, "<") if content[:4] == b"\x5c\x01\x00\x00" else (FIELDS_2, "<")
        if content[:2] == b"\x00\x00":
            fields, order = FIELDS_1, ">"
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            name = pick(rng, list(fields))
            at, form = fields[name]
            bits = 8 * struct.calcsize(form)
            number = (
                pick(rng, FLOATS) if form in "fd" else pick(rng, (*EXTREMES, *range(2, 20), 512, 1280, 10000, 30000))
            )
            if form not in "fd":
                number &= 2**bits - 1
                number -= 2**bits if form.islower() and number >= 2 ** (bits - 1) else 0
            struct.pack_into(order + form, changed, at, number)
            words += f"{name}={number} "
        content = bytes(changed)
    elif how == "number":
        words, content = overwritten(rng, content, 0, 540)
    elif how == "bytes" or not packed:
        words, content = damaged(rng, content)
    if packed:
        content = gzip.compress(content, mtime=0)
        if how == "packed":
            words, content = damaged(rng, content)
    path.write_bytes(content)

    def use() -> None:
        # an image that is accepted can be prepared, and a prediction of it be written in its place
        image = read_image(path)
        prepared = Stacked(standardise=True).prepare([image], len(image.shape))
        assert torch.isfinite(prepared.image).all()
        prepared.on_file(torch.zeros(prepared.image.shape[1:]))
        made = nifti_like(np.zeros(prepared.file, np.uint8), path).to_bytes()
        assert nibabel.Nifti1Header.single_vox_offset <= len(made)

    reads: list[Check] = [
        lambda: header_of(path),
        use,
        lambda: read_mask(path),
        lambda: read_label_map(path, {1: "one", 2: "two"}),
        lambda: read_colours(path),
    ]
    return f"{path.name}: {how}: {words}", reads


# -------------------------------------------------------------------------------------------------------- pictures


def pictures() -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (20, 30), dtype=np.uint8)
    colours = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    palette = Image.fromarray(grey % 4).convert("P")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "words"
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("a.png", Image.fromarray(grey), {}),
        ("a.png", Image.fromarray(colours), {"exif": exif}),
        ("a.png", Image.fromarray(np.dstack([colours, grey])), {}),
        ("a.png", Image.fromarray(grey.astype(np.uint16) * 257), {}),
        ("a.png", palette, {"transparency": 1}),
        ("a.png", Image.fromarray(grey > 100), {}),
        ("a.tif", Image.fromarray(grey), {}),
        ("a.tiff", Image.fromarray(colours), {"compression": "tiff_lzw"}),
        ("a.tif", Image.fromarray(grey.astype(np.float32)), {"compression": "tiff_adobe_deflate"}),
        ("a.tif", Image.fromarray(grey.astype(np.uint16)), {"compression": "packbits"}),
        ("a.tif", Image.fromarray(colours), {"compression": "jpeg"}),
        ("a.jpg", Image.fromarray(colours), {"exif": exif, "quality": 90}),
        ("a.jpeg", Image.fromarray(grey), {"progressive": True}),
    ]
    files = []
    for name, picture, options in made:
        buffer = io.BytesIO()
        form = {"png": "PNG", "tif": "TIFF", "jpg": "JPEG", "jpe": "JPEG"}[name[2:5]]
        picture.save(buffer, form, **options)
        files.append((name, buffer.getvalue()))
    return files


def png_chunks(content: bytes) -> list[list[Any]]:
    """Return kind, data, and the length that is told, of each chunk."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        chunks.append([kind, content[at + 8 : at + 8 + length], length])
        at += 12 + length
    return chunks


def png(rng: Rng, content: bytes) -> tuple[str, bytes]:
    """Return a PNG file with a chunk changed and its checksum right."""
    chunks = png_chunks(content)
    at = int(rng.integers(len(chunks)))
    kind, data, length = chunks[at]
    how = pick(rng, ("number", "bytes", "length", "double", "drop", "kind", "header", "text"))
    words = f"{how} {kind!r}"
    if how == "header":
        fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = int(rng.integers(7))
        fields[field] = pick(rng, EXTREMES) & (2**32 - 1 if field < 2 else 255)
        chunks[0][1] = struct.pack(">IIBBBBB", *fields)
        words += f" {fields}"
    elif how == "number" and data:
        told, chunks[at][1] = overwritten(rng, data, 0, len(data))
        words += told
    elif how == "bytes" and data:
        told, chunks[at][1] = damaged(rng, data)
        words += told
    elif how == "length":
        chunks[at][2] = pick(rng, EXTREMES) & (2**32 - 1)
    elif how == "double":
        chunks.insert(at, chunks[at])
    elif how == "drop":
        del chunks[at]
    elif how == "kind":
        chunks[at][0] = pick(
            rng, (b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"iCCP", b"pHYs", b"\0\0\0\0")
        )
    elif how == "text":
        # a text of 64 MiB in a few kilobytes, and a profile
        bomb = b"a\0\0" + zlib.compress(bytes(2**26))
        chunks.insert(1, [pick(rng, (b"zTXt", b"iCCP", b"iTXt")), bomb, len(bomb)])
    parts = [content[:8]]
    for kind, data, told_length in chunks:
        length = len(data) if how != "length" else told_length
        parts += [struct.pack(">I", length), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return words, b"".join(parts)


def tiff(rng: Rng, content: bytes) -> tuple[str, bytes]:
    """Return a TIFF file with the number of entries, an entry or the next folder changed."""
    (folder,) = struct.unpack("<I", content[4:8])
    (entries,) = struct.unpack("<H", content[folder : folder + 2])
    changed = bytearray(content)
    how = pick(rng, ("entry", "entry", "entry", "entries", "next", "first"))
    number = pick(rng, EXTREMES)
    if how == "entries":
        struct.pack_into("<H", changed, folder, number & 65535)
    elif how == "next":
        struct.pack_into("<I", changed, folder + 2 + 12 * entries, pick(rng, (8, folder, number & (2**32 - 1))))
    elif how == "first":
        struct.pack_into("<I", changed, 4, number & (2**32 - 1))
    else:
        at = folder + 2 + 12 * int(rng.integers(entries))
        field, form, bits = pick(rng, ((0, "<H", 16), (2, "<H", 16), (4, "<I", 32), (8, "<I", 32), (8, "<H", 16)))
        if field == 2 and rng.integers(2):
            number = int(rng.integers(1, 14))
        if field == 0 and rng.integers(2):
            number = pick(
                rng, (256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339)
            )
        struct.pack_into(form, changed, at + field, number & (2**bits - 1))
        how += f" at {at} field {field}"
    return f"{how} {number}", bytes(changed)


def picture(rng: Rng, folder: Path) -> Mutated:
    name, content = pick(rng, pictures())
    how = pick(rng, ("format", "format", "bytes", "number", "name"))
    if how == "format" and name.endswith("png"):
        words, content = png(rng, content)
    elif how == "format" and ".tif" in name:
        words, content = tiff(rng, content)
    elif how == "bytes":
        words, content = damaged(rng, content)
    elif how == "name":
        # another decoder than the name tells of
        words, name = name, pick(rng, ("a.nii", "a.nii.gz", "a.png", "a.TIF", "a.jpg"))
    else:
        words, content = overwritten(rng, content, 0, min(len(content), 300))
    path = folder / name
    path.write_bytes(content)
    reads: list[Check] = [lambda: read_image(path), lambda: read_mask(path), lambda: read_colours(path)]
    return f"{name}: {how}: {words}", reads


# ----------------------------------------------------------------------------------------------------- predictions

HEADERS = (
    "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 2, 6, 5), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (50000000, 2, 6, 5), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2, 6, 5), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2, 6, 5), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2, 6, 5.0), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3, 2, 6, 5), }",
    "{'descr': '<f2', 'fortran_order': True, 'shape': (3, 2, 6, 5), }",
    "{'descr': '>f8', 'fortran_order': False, 'shape': (3, 2, 6, 5), }",
    "{'descr': '<f16', 'fortran_order': False, 'shape': (1, 2, 6, 5), }",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (3, 2, 6, 5), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (3, 2, 6, 5), }",
    "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3, 2, 6, 5), }",
    "{'descr': ('<f8', (3,)), 'fortran_order': False, 'shape': (1, 2, 6, 5), }",
    "{'descr': __import__('os'), 'fortran_order': False, 'shape': (3, 2, 6, 5), }",
    "{'descr': '<f8', 'fortran_order': 7, 'shape': (3, 2, 6, 5), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': [3, 2, 6, 5], }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 2L, 6L, 5L), }",
    "{'descr': '<f8', 'shape': (3, 2, 6, 5), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2, 6, 5), ",
    "{'descr': '<f8\n', 'fortran_order': False, 'shape': (3, 2, 6, 5), }",
    "(" * 500,
    "-" * 9000 + "1",
    "'''",
    "  {\n {",
    "\0",
    "",
)


def array_file(rng: Rng, content: bytes) -> tuple[str, bytes]:
    """Return a `.npy` file with another header, or other bytes."""
    how = pick(rng, ("header", "header", "version", "length", "bytes", "number", "nan"))
    if how == "header":
        header = pick(rng, HEADERS).encode("latin1")
        return f"{header[:80]!r}", content[:8] + struct.pack("<H", len(header)) + header + content[128:]
    if how == "version":
        version = pick(rng, ((2, 0), (3, 0), (0, 1), (255, 255)))
        return f"version {version}", content[:6] + bytes(version) + content[8:]
    if how == "length":
        length = pick(rng, (0, 1, 118, 65535))
        return f"length {length}", content[:8] + struct.pack("<H", length) + content[10:]
    if how == "number":
        return overwritten(rng, content, 0, 140)
    if how == "nan":
        return how, content[:-8] + struct.pack("<d", pick(rng, (np.nan, np.inf, -1.0, 2.0, 1e308)))
    return damaged(rng, content)


def zipped(rng: Rng, parts: Iterable[tuple[str, bytes]], packing: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", packing) as archive:
        warnings.simplefilter("ignore")
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), content, packing)
    return buffer.getvalue()


def directory(rng: Rng, content: bytes) -> tuple[str, bytes]:
    """Return a ZIP file with an extreme number in its directory."""
    starts = [at for at in range(len(content) - 4) if content[at : at + 4] in (b"PK\1\2", b"PK\5\6", b"PK\3\4")]
    at = pick(rng, starts)
    return overwritten(rng, content, at + 4, min(at + 46, len(content)))


class OneCase:
    """A data set of one case, as far as a folder of predictions asks."""

    storage = None

    def load(self, case_id: str) -> RaterSample:
        masks = torch.zeros(2, 2, 6, 5, dtype=torch.uint8)
        return RaterSample(torch.zeros(1, 6, 5), masks, torch.ones(2, dtype=torch.bool), case_id)


NO_METRICS = pd.DataFrame({"structure": [], "metric": []})


def prediction(rng: Rng, folder: Path) -> Mutated:
    members = np.random.default_rng(0).random((3, 2, 6, 5))
    buffer = io.BytesIO()
    np.save(buffer, members)
    content = buffer.getvalue()
    names = io.BytesIO()
    np.save(names, np.array(["one", "two"]))
    parts = [("members.npy", content), ("case_ids.npy", names.getvalue()), ("disc/dice.npy", content)]
    packing = pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    how = pick(rng, ("array", "array", "array", "entries", "directory", "bytes", "file"))
    words = ""
    if how == "array":
        at = int(rng.integers(3)) if rng.integers(2) else 0
        words, changed = array_file(rng, parts[at][1])
        parts[at] = (parts[at][0], changed)
    elif how == "entries":
        extra = pick(
            rng, ("members", "../../members.npy", "/etc/passwd", "members.npy", "a" * 70000, "case_ids", "x", ".npy")
        )
        extra = extra[:60000]
        place = int(rng.integers(len(parts) + 1))
        parts.insert(place, (extra, pick(rng, (b"", b"no array", content, bytes(10**6)))))
        if rng.integers(2):
            del parts[int(rng.integers(len(parts)))]
        words = f"{extra[:30]} at {place}"
    whole = zipped(rng, parts, packing)
    if how == "directory":
        words, whole = directory(rng, whole)
    elif how == "bytes":
        words, whole = damaged(rng, whole)
    elif how == "file":
        # no archive but an array alone, or another thing
        whole = pick(rng, (content, b"", b"PK", b"PK\5\6" + bytes(18), gzip.compress(content), b"\x80\x04N."))
    path = folder / "one.npz"
    path.write_bytes(whole)
    record, source = CaseRecord("one", "one"), OneCase()

    def check() -> None:
        PredictionFolder(folder, ("disc", "cup")).check([record], [record], source)  # type: ignore[arg-type]

    def load() -> None:
        assert PredictionFolder(folder, ("disc", "cup")).load(source.load("one")).shape[1:] == (2, 6, 5)

    return f"{how}, packed by {packing}: {words}", [check, load, lambda: _read_replicates(path, NO_METRICS)]


# ------------------------------------------------------------------------------------------------------- manifests

COLUMNS = ("case_id", "image", "mask", "rater", "structure", "split", "patient", "spacing", "image2")
FIELDS = (
    *(
        "",
        " ",
        "x" * 300,
        "y" * 200_000,
        "\0",
        "a\0b.png",
        'quo"te',
        '"',
        "'",
        "../one.png",
        "../../etc/passwd",
        "/etc/passwd",
    ),
    *(
        "C:\\x.png",
        "\\\\server\\share",
        "one.png/../one.png",
        "./one.png",
        "sub",
        ".",
        "..",
        "~",
        "loop.png",
        "out.png",
    ),
    *(
        "pipe.png",
        "a\nb",
        "a\r\nb",
        "\x1b[31mred",
        "\u202egnp.eno",
        "\U0001d518\U0001d52b",
        "é" * 120,
        "\ufeff",
        "nan",
        "NA",
        "1e999",
        "-1x2",
    ),
    *("0x0", "1x1", "1 1", "9" * 5000, "1x" * 2000, "train", "test", "one", "two", "one.png", "two.png", "A", "disc"),
    *("disc/../../x", "a\\b", "=1+1", "$\\frac$", "{}", "%s", "${oc.env:HOME}", "image", "case_id"),
)


def table_rows() -> list[list[str]]:
    rows = [list(COLUMNS[:8])]
    for case in ("one", "two"):
        for rater in "AB":
            rows.append([case, f"{case}.png", f"{case}_{rater}.png", rater, "disc", "train", f"p{case}", "0.5x0.5"])
    return rows


def manifest_folder(folder: Path) -> None:
    """Write what the tables name, and what they must not reach."""
    rng = np.random.default_rng(0)
    for case in ("one", "two"):
        Image.fromarray(rng.integers(0, 255, (8, 9), dtype=np.uint8)).save(folder / f"{case}.png")
        for rater in "AB":
            Image.fromarray((rng.random((8, 9)) > 0.5).astype(np.uint8)).save(folder / f"{case}_{rater}.png")
    (folder / "sub").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "out.png").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.png")


def csv_text(rows: Sequence[Sequence[str]], quoted: bool) -> str:
    if not quoted:
        return "\n".join(",".join(row) for row in rows) + "\n"
    return "\n".join(",".join('"' + field.replace('"', '""') + '"' for field in row) for row in rows) + "\n"


def manifest(rng: Rng, folder: Path) -> Mutated:
    if not (folder / "one.png").exists():
        manifest_folder(folder)
    rows = table_rows()
    how = pick(rng, ("fields", "fields", "fields", "columns", "rows", "bytes", "parquet", "parquet fields"))
    words = ""
    if how in ("fields", "parquet fields"):
        for _ in range(int(rng.integers(1, 4))):
            row, column, field = int(rng.integers(len(rows))), int(rng.integers(len(rows[0]))), pick(rng, FIELDS)
            rows[row if rng.integers(5) or row else 1][column] = field
            words += f"{row},{column}={field[:20]!r} "
    elif how == "columns":
        column = pick(rng, (*COLUMNS, "image3", "", "x" * 10**5, "a\nb"))
        words = column[:20]
        for number, row in enumerate(rows):
            row.insert(int(rng.integers(9)) if words == "" else 3, column if number == 0 else pick(rng, FIELDS))
    elif how == "rows":
        what = pick(rng, ("double", "drop", "short", "long", "blank", "many", "head"))
        words = what
        at = int(rng.integers(len(rows)))
        if what == "double":
            rows.insert(at, list(rows[at]))
        elif what == "drop":
            del rows[at]
        elif what == "short":
            rows[at] = rows[at][: int(rng.integers(8))]
        elif what == "long":
            rows[at] = rows[at] * 3
        elif what == "blank":
            rows[at:at] = [[""] * int(rng.integers(1, 9))] * 3
        elif what == "many":
            rows += [[f"c{number}", *rows[1][1:]] for number in range(300)]
        else:
            rows = rows[: int(rng.integers(2))]
    name = "manifest.csv"
    if how.startswith("parquet"):
        name = "manifest.parquet"
        buffer = io.BytesIO()
        pd.DataFrame(
            rows[1:], columns=[f"{one}{n}" if rows[0].count(one) > 1 else one for n, one in enumerate(rows[0])]
        ).to_parquet(buffer)
        content = buffer.getvalue()
        if how == "parquet":
            words, content = damaged(rng, content)
    else:
        content = csv_text(rows, bool(rng.integers(2))).encode(
            pick(rng, ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"))
        )
        if how == "bytes":
            words, content = damaged(rng, content)
    (folder / name).write_bytes(content)

    def read() -> list[str]:
        source = ManifestSource(str(folder), name)
        try:
            for record in source.cases():
                source.load(record.case_id)
        except UserError:
            # has a line a problem
            assert source.problems
        return list(source.problems)

    def find() -> list[str]:
        found = find_images(folder / name, int(rng.integers(1, 3)))
        assert all(file.is_relative_to(folder) for case in found.cases for file in case.files)
        return [text for problem in found.problems for text in problem]

    return f"{how}: {words}", [read, find]


# ----------------------------------------------------------------------------------------------------- checkpoints


def good_checkpoint(folder: Path) -> Path:
    path = folder / "good.ckpt"
    if not path.exists():
        with initialize_config_dir(configuration_folder(), version_base="1.3"):
            overrides = ["experiment=synthetic", "method=single", "network.features=[2,3]", "inference.window=[8,8]"]
            settings = resolved(compose("train", overrides))
        torch.manual_seed(0)
        images = ImageFormat(2, 1, ("disc",))
        method = build_method(settings, images)
        save_method(method, path, checkpoint_entries(settings, images))
        one = StructureTriage("entropy", 0.8, np.array([0.5, 0.9]), np.array([1.0, 0.0]), {"entropy": (0.0, 9.0)})
        triage = Triage(0.9, {"disc": one}, {"percentile 50 of channel 1": (-9.0, 9.0)}, 5, spaced=True)
        write_checkpoint({**read_checkpoint(path), "edue_triage": triage.as_dict()}, path)
    return path


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def values(folder: Path) -> list[Any]:
    call = {"_target_": "os.mkdir", "_args_": [str(folder / "executed")]}
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    return [
        *(
            None,
            True,
            0,
            -1,
            1,
            3,
            10**5,
            10**9,
            10**30,
            0.5,
            float("nan"),
            float("inf"),
            "",
            "x" * 10**5,
            "a/../b",
            b"x",
        ),
        *(
            [],
            {},
            (),
            [1],
            ["disc"] * 3,
            [8, 8, 8],
            [10**5, 10**5],
            [1] * 500,
            deep(50),
            deep(300),
            circle,
            {1: 2},
            "\n",
        ),
        *(torch.zeros(3), torch.zeros(0), torch.zeros(1).expand(10**12), torch.zeros(2, 3, dtype=torch.complex64)),
        *(torch.tensor(float("nan")), torch.zeros(2).to_sparse(), torch.empty(4, 4, device="meta"), torch.ones(2) > 0),
        *(call, [call], (call,), {"x": call}, {**call, "_partial_": True}, "${oc.env:HOME}", "${now:%Y}"),
        *(
            {"_target_": "edue_lightning.runs.checkpoints.os.mkdir", "_args_": call["_args_"]},
            {"_target_": "edue_lightning."},
        ),
        *({"_target_": "edue_lightning.methods.DeepEnsemble", "members": 10**9}, {"_target_": 3}, {"_target_": None}),
        {"_target_": "edue_lightning.atomic.remove_unfinished", "folder": "/"},
    ]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value within."""
    # one of the values that are put in contains itself
    if len(at) > 9:
        return [at]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(way for key, one in inner for way in places(one, (*at, key)))]


def checkpoint(rng: Rng, folder: Path) -> Mutated:
    good = good_checkpoint(folder)
    path = folder / "bad.ckpt"
    how = pick(rng, ("values", "values", "values", "values", "pickle", "pickle", "directory", "bytes", "entries"))
    words = ""
    if how == "values":
        content = read_checkpoint(good)
        for _ in range(int(rng.integers(1, 3))):
            # each part has its turn, however many values there are in it
            part = pick(
                rng, ("edue_configuration",) * 3 + ("edue_image_format", "edue_triage", "edue_triage", "state_dict")
            )
            if not isinstance(content.get(part), dict):
                continue
            used = ("method", "network", "loss", "optimizer", "inference", "metrics", "data")
            ways = [
                way for way in places(content[part]) if part != "edue_configuration" or way[:1] == () or way[0] in used
            ]
            way = (part, *pick(rng, ways))
            inner = content
            for key in way[:-1]:
                inner = inner[key]
            choice = int(rng.integers(-2, len(values(folder))))
            words += f"{way}: {choice} "
            if choice == -2:
                del inner[way[-1]]
            elif choice == -1 and isinstance(inner, dict):
                inner[pick(rng, ("unknown", 7, "_target_", "_args_", "_recursive_", "_convert_"))] = inner[way[-1]]
            else:
                inner[way[-1]] = values(folder)[max(choice, 0)]
        torch.save(content, path)
    else:
        whole = good.read_bytes()
        with zipfile.ZipFile(good) as archive:
            parts = [(name, archive.read(name)) for name in archive.namelist()]
        at = next(n for n, (name, _) in enumerate(parts) if name.endswith("data.pkl"))
        if how == "pickle":
            words, pickled = mutated_pickle(rng, parts[at][1])
            parts[at] = (parts[at][0], pickled)
            # torch wants the entries that Python's module writes too
            whole = zipped(rng, parts, pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        elif how == "entries":
            one = int(rng.integers(len(parts)))
            words = pick(rng, ("drop", "double", "short", "empty", "long"))
            name, content = parts[one]
            words += f" {name}"
            parts[one : one + 1] = {
                "drop": [],
                "double": [parts[one]] * 2,
                "short": [(name, content[:-1])],
                "empty": [(name, b"")],
                "long": [(name, content + bytes(10**5))],
            }[words.split()[0]]
            whole = zipped(rng, parts, zipfile.ZIP_STORED)
        elif how == "directory":
            words, whole = directory(rng, whole)
        else:
            words, whole = damaged(rng, whole)
        path.write_bytes(whole)

    def use() -> None:
        model = Model(path, "cpu")
        if model.triage is not None:
            for structure in model.triage.structures.values():
                structure.threshold(model.triage.sensitivity)

    def not_executed() -> None:
        made = (folder / "executed").exists()
        if made:
            (folder / "executed").rmdir()
        assert not made, "a call in the checkpoint was made"

    return f"{how}: {words}", [use, not_executed]


def mutated_pickle(rng: Rng, pickled: bytes) -> tuple[str, bytes]:
    """Return a pickle with an operation swapped for another, dropped or moved, a name or a number changed."""
    codes = list(pickletools.genops(pickled))
    ends = [at for _, _, at in codes[1:]] + [len(pickled)]
    pieces = [pickled[at:end] for (_, _, at), end in zip(codes, ends, strict=True)]
    words = []
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(pieces)))
        how = pick(rng, ("swap", "swap", "drop", "double", "move", "global", "number", "bytes"))
        words.append(f"{how} {at} {pieces[at][:20]!r}")
        if how == "swap":
            pieces[at] = pick(rng, [code.code.encode("latin1") for code in pickletools.opcodes]) + pieces[at][1:]
        elif how == "drop":
            del pieces[at]
        elif how == "double":
            pieces.insert(at, pieces[at])
        elif how == "move":
            other = int(rng.integers(len(pieces)))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif how == "global":
            called = pick(
                rng,
                (
                    *(
                        "os system",
                        "builtins eval",
                        "builtins bytearray",
                        "torch Tensor",
                        "torch.storage UntypedStorage",
                    ),
                    *("collections Counter", "torch FloatTensor", "torch._utils _rebuild_sparse_tensor", "torch Size"),
                    *("torch._utils _rebuild_qtensor", "torch._tensor _rebuild_from_type_v2", "_codecs encode"),
                ),
            )
            pieces[at] = (
                b"c" + called.replace(" ", "\n").encode() + b"\n" + pick(rng, (b"", b"(tR", b"J\xff\xff\xff\x7f\x85R"))
            )
        elif how == "number":
            pieces[at] = pick(
                rng,
                (
                    b"J\xff\xff\xff\x7f",
                    b"J\x00\x00\x00\x80",
                    b"K\x00",
                    b"N",
                    b"\x88",
                    b"]",
                    b"}",
                    b")",
                    b"G\x7f\xf0" + bytes(6),
                ),
            )
        else:
            pieces[at] = damaged(rng, pieces[at])[1]
    return ", ".join(words), b"".join(pieces)


# --------------------------------------------------------------------------------------------------------- the tests


def broken(rng: Rng, folder: Path) -> Mutated:
    """Return what the tests must not miss."""
    ends: list[Check] = [
        lambda: None,
        lambda: os.kill(os.getpid(), signal.SIGSEGV),
        lambda: time.sleep(2 * WALL_SECONDS),
        lambda: bytearray(RESIDENT + RESIDENT // 4),
        lambda: all(itertools.repeat(1)),
        # last, since the process begins with it, before it measures anything
        lambda: 1 / 0,
    ]
    return "", [ends[int(rng.integers(len(ends)))]]


KINDS: dict[str, Callable[[Rng, Path], Mutated]] = {
    "nifti": nifti,
    "picture": picture,
    "prediction": prediction,
    "manifest": manifest,
    "checkpoint": checkpoint,
    "broken": broken,
}


def complaint(check: Check) -> str | None:
    """Return what is wrong with how a check ended, or None."""
    lines: Iterable[object] = ()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = check()
            lines = found if isinstance(found, list) else ()
        except (UserError, ImageError) as error:
            # several problems of a folder have a line each
            lines = str(error).split("\n  ")
        except BaseException:
            return traceback.format_exc()
    for line in map(str, lines):
        if not line.strip() or len(line) > 2000 or len(line.splitlines()) > 1:
            return f"no clear line: {line[:500]!r}"
    # what numpy warns of is not defined
    odd = [
        w
        for w in caught
        if issubclass(w.category, RuntimeWarning) and not issubclass(w.category, Image.DecompressionBombWarning)
    ]
    return f"{odd[0].filename}:{odd[0].lineno}: {odd[0].message}" if odd else None


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes.

    `ru_maxrss` would not do: a process inherits it from the one that starts it, so that under a large parent no growth
    is noticed.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def work(kind: str, numbers: Iterable[int], wall_seconds: float = WALL_SECONDS) -> None:
    """Try mutations, and report of each when it begins and how it ended, one line of JSON each."""
    faulthandler.enable()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        # what is imported or made on the first use is none of a file's doing
        for _, check in enumerate(KINDS[kind](np.random.default_rng(0), folder)[1]):
            complaint(check)
        claimed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (claimed + ADDRESS_SPACE, hard))
        for number in numbers:
            most = peak_memory()
            rng = np.random.default_rng([list(KINDS).index(kind), number])
            words, checks = KINDS[kind](rng, folder)
            print(json.dumps({"number": number, "words": words}), flush=True)
            for check in checks:
                # the default action of their signals ends the process, wherever it is
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                signal.setitimer(signal.ITIMER_REAL, wall_seconds)
                wrong = complaint(check)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                grown = peak_memory() - most
                if wrong is None and grown > RESIDENT:
                    wrong = f"took {grown / 2**30:.1f} GiB"
                if wrong is not None:
                    print(json.dumps({"number": number, "wrong": wrong}), flush=True)
        print(json.dumps({"number": -1}), flush=True)


def failures(kind: str, numbers: Sequence[int], wall_seconds: float = WALL_SECONDS) -> list[str]:
    """Try mutations in processes of their own, and return what failed.

    Args:
        kind: one of `KINDS`.
        numbers: the mutations.
        wall_seconds: time after which one of them counts as waiting for ever.
    """
    found = []
    left = list(numbers)
    while left:
        command = [sys.executable, __file__, kind, *map(str, left), f"--wall={wall_seconds}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        words = {one["number"]: one["words"] for one in told if "words" in one}
        found += [f"{kind} {one['number']} ({words[one['number']]}): {one['wrong']}" for one in told if "wrong" in one]
        if told and told[-1]["number"] == -1:
            break
        assert words, done.stderr
        last = told[-1]["number"]
        late = done.returncode in (-signal.SIGPROF, -signal.SIGALRM)
        how = "took too long" if late else f"ended with {done.returncode}"
        found.append(f"{kind} {last} ({words[last]}): {how}\n{done.stderr[-3000:]}")
        left = left[left.index(last) + 1 :]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(COUNTS))
def test_no_file_ends_in_anything_but_a_result_or_a_line(kind: str) -> None:
    found = failures(kind, range(COUNTS[kind]))
    assert not found, f"{len(found)} failures\n" + "\n".join(found)


def test_there_are_enough_files() -> None:
    assert sum(COUNTS.values()) >= 2500
    assert min(COUNTS.values()) >= 400


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: np.array([1e300]).astype(np.float32), "overflow"),
        (lambda: ["two\nlines"], "no clear line"),
    ],
)
def test_failures_are_seen(check: Check, words: str) -> None:
    assert words in str(complaint(check))


@pytest.mark.slow
def test_crashes_hangs_and_allocations_are_seen() -> None:
    # as large a parent as a long test run makes: what a process inherits from it must hide nothing
    bytearray(3 * RESIDENT // 2)
    expected = {
        "ends well": None,
        "crashes": "ended with -11",
        "waits": "took too long",
        "allocates": " GiB",
        "computes for ever": "took too long",
        "raises": "ZeroDivisionError",
    }
    seed = list(KINDS).index("broken")
    drawn = [int(np.random.default_rng([seed, n]).integers(len(expected))) for n in range(100)]
    numbers = {name: drawn.index(end) for end, name in enumerate(expected)}
    others = sorted(number for name, number in numbers.items() if name != "waits")
    # only what never ends gets little time, so that a busy machine ends nothing else by it
    lines = [*failures("broken", others), *failures("broken", [numbers["waits"]], wall_seconds=3)]
    assert len(lines) == 5
    for name, words in expected.items():
        of_it = [line for line in lines if line.startswith(f"broken {numbers[name]} (")]
        assert words is None or words in of_it[0]
        assert words is not None or not of_it


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("numbers", nargs="+", type=int)
    parser.add_argument("--wall", type=float, default=WALL_SECONDS)
    options = parser.parse_args()
    work(options.kind, options.numbers, options.wall)
