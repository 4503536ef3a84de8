"""Writes pictures of less than 8 bits per value, which Pillow does not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Palette = Sequence[tuple[int, int, int]]


def write_few_bits(path: Path, values: NDArray[np.uint8], bits: int, palette: Palette | None = None) -> Path:
    """Write `[H, W]` values of 1, 2 or 4 bits as PNG, BMP (with a palette) or TIFF, by the ending."""
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes() for row in values]
    write = {".png": _png, ".bmp": _bmp, ".tif": _tiff}[path.suffix]
    path.write_bytes(write(rows, values.shape, bits, palette))
    return path


def _png(rows: list[bytes], shape: tuple[int, ...], bits: int, palette: Palette | None) -> bytes:
    colour = 0 if palette is None else 3
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], bits, colour, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", bytes(np.array(palette, np.uint8).ravel())))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _bmp(rows: list[bytes], shape: tuple[int, ...], bits: int, palette: Palette | None) -> bytes:
    assert palette is not None
    pixels = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in reversed(rows))
    colours = b"".join(bytes([blue, green, red, 0]) for red, green, blue in palette)
    begin = 54 + len(colours)
    header = struct.pack("<IiiHHIIiiII", 40, shape[1], shape[0], 1, bits, 0, len(pixels), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", begin + len(pixels), 0, 0, begin) + header + colours + pixels


def _tiff(rows: list[bytes], shape: tuple[int, ...], bits: int, palette: Palette | None) -> bytes:
    pixels = b"".join(rows)
    pixels += b"\0" * (len(pixels) % 2)
    tags = {256: shape[1], 257: shape[0], 258: bits, 259: 1, 262: 1 if palette is None else 3}
    tags |= {273: 8, 277: 1, 278: shape[0], 279: len(pixels)}
    begin = 8 + len(pixels)
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    colours = b""
    if palette is not None:
        colours = (np.array(palette, np.uint16).T * 257).astype("<u2").tobytes()
        entries.append(struct.pack("<HHII", 320, 3, 3 * len(palette), begin + 2 + 12 * (len(tags) + 1) + 4))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", begin) + pixels + directory + colours
