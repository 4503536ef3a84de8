"""Tags of TIFF files under which a decoder returns other values than a viewer shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
PHOTOMETRIC_TAG = 262
"""Tag of what the values mean, such as `WHITE_IS_ZERO`."""

BITS_TAG = 258
SAMPLE_FORMAT_TAG = 339

DEEP_COLOURS = "holds 16-bit colours, which would be cut to 8 bits; save it with 8, or one file per channel"
"""Problem of pictures with 16 bits per colour."""

_COMPRESSION, _ORIENTATION, _SAMPLES, _DESCRIPTION, _EXTRA, _COLOUR_MAP, _DEPTH = 259, 274, 277, 270, 338, 320, 32997
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, YCBCR: 3}
_JPEG = 7
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_WHOLE = {(_UNSIGNED, bits) for bits in (1, 2, 4, 8, 16)}
_NUMBERS = {
    WHITE_IS_ZERO: _WHOLE,
    BLACK_IS_ZERO: _WHOLE | {(_UNSIGNED, 32), (_SIGNED, 16), (_SIGNED, 32), (_FLOAT, 32)},
    RGB: {(_UNSIGNED, 8)},
    PALETTE: {(_UNSIGNED, bits) for bits in (1, 2, 4, 8)},
    YCBCR: {(_UNSIGNED, 8)},
}
_ALPHA = (1, 2)
_KINDS = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "floating-point"}
# programs that write a stack behind a single directory say so in its description alone
_STACK = re.compile(r"^images=(?P<imagej>\d+)\s*$|\"shape\": \[(?P<shape>[\d, ]+)\].*\"truncated\": true", re.MULTILINE)


def tag_problem(tags: Mapping[int, Any]) -> str | None:
    """Return why a picture with these tags could be misread, with the fix, or None if it is plain.

    Plain are grey pictures of unsigned 1, 2, 4, 8, 16 or 32 bits, signed 16 or 32 bits and floating-point 32 bits,
    RGB and palettes, all with at most one channel of transparency, stored upright, one picture per file.

    Args:
        tags: first directory of the file, by the numbers of TIFF 6.0.
    """
    orientation = tags.get(_ORIENTATION, 1)
    if orientation not in (0, 1):
        return f"is stored turned (TIFF orientation {orientation}); save it upright"
    if (pages := _pages(tags)) > 1:
        return f"holds {pages} pages; save one 2D picture per file, volumes as NIfTI"
    meaning = tags.get(PHOTOMETRIC_TAG)
    if meaning is None:
        return "does not say whether 0 is black or white (PhotometricInterpretation); save it again"
    colours = _COLOURS.get(meaning)
    if colours is None or (meaning == YCBCR and tags.get(_COMPRESSION) != _JPEG):
        return f"holds colours of an unusual kind (PhotometricInterpretation {meaning}); save it as grey or RGB"
    kinds = {*tags.get(SAMPLE_FORMAT_TAG, (_UNSIGNED,))}
    bits = {*tags.get(BITS_TAG, (1,))}
    if len(kinds) > 1 or len(bits) > 1:
        return "holds channels of different types; save it with 8 bits per channel"
    (kind,), (size,) = kinds, bits
    if meaning == RGB and (kind, size) == (_UNSIGNED, 16):
        return DEEP_COLOURS
    if (kind, size) not in _NUMBERS[meaning]:
        inverted = ", and 0 means white" if meaning == WHITE_IS_ZERO else ""
        return f"holds {_KINDS.get(kind, 'unusual')} numbers of {size} bits{inverted}; save it with 8 or 16 bits"
    extra = tuple(tags.get(_EXTRA, ()))
    samples = tags.get(_SAMPLES, 1)
    alpha = len(extra) if set(extra) <= {*_ALPHA} and len(extra) <= 1 and meaning != WHITE_IS_ZERO else 0
    if samples != colours + alpha:
        return f"holds {samples} channels, some neither colour nor transparency; save one file per channel"
    if meaning == PALETTE and 0 < max(tags.get(_COLOUR_MAP, (0,))) < 256:
        return "has a palette of 8 bits per colour, where TIFF wants 16; save it again"
    return None


def _pages(tags: Mapping[int, Any]) -> int:
    """Return the number of pictures that the tags of the first one announce."""
    pages = int(tags.get(_DEPTH, 1))
    found = _STACK.search(str(tags.get(_DESCRIPTION, "")))
    if found is None:
        return pages
    if found["imagej"]:
        return max(pages, int(found["imagej"]))
    *stacked, _, _ = [1, 1, *map(int, found["shape"].split(","))]
    for length in stacked:
        pages *= length
    return pages
