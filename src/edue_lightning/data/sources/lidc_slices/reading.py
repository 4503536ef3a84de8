"""Slices read from their files, and what is known of every slice before the first is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edue_lightning.atomic import write_whole
from edue_lightning.data.file_source import problem_line
from edue_lightning.data.images import ImageError, read_colours, read_image, read_mask
from edue_lightning.data.prepared import VERSION
from edue_lightning.data.sources.lidc_slices.layout import SliceFiles
from edue_lightning.data.sources.lidc_slices.storage import PictureStore, ReadContent
from edue_lightning.errors import UserError
from edue_lightning.text import reason_of, times

log = logging.getLogger(__name__)

THRESHOLD = 127
"""Largest grey level of a JPEG mask that is background: JPEG blurs 0 and 255."""

_DOUBTFUL = (64, 191)
_MOST_DOUBTFUL = 0.02
_MOST_THREADS = 4
_SECONDS_BETWEEN_LINES = 20.0


class SliceTraits(NamedTuple):
    """What is kept of a slice, so that the next start reads no picture.

    Attributes:
        shape: rows and columns.
        areas: number of pixels that each of the four readers marked.
        box: first and last row, first and last column that any of them marked; empty if none did.
        picture: hash of the image's pixels; empty if they are all the same.
    """

    shape: tuple[int, int]
    areas: tuple[int, ...]
    box: tuple[int, ...]
    picture: str

    @classmethod
    def from_plain(cls, stored: Sequence[Any]) -> SliceTraits:
        """Return the traits from nested lists, as JSON stores them."""
        shape, areas, box, picture = stored
        return cls(tuple(map(int, shape)), tuple(map(int, areas)), tuple(map(int, box)), str(picture))  # type: ignore[arg-type]


class Slice(NamedTuple):
    """A slice as read: its image `[H, W]` float32 from 0 to 1, and the masks of the four readers `[4, H, W]`."""

    image: NDArray[np.float32]
    masks: NDArray[np.bool_]

    def areas(self) -> tuple[int, ...]:
        """Return the number of pixels that each of the four readers marked."""
        return tuple(np.count_nonzero(self.masks, axis=(1, 2)).tolist())

    def traits(self) -> SliceTraits:
        """Return what is kept of the slice."""
        marked = np.argwhere(self.masks.any(axis=0))
        box = () if not len(marked) else tuple(np.stack([marked.min(0), marked.max(0)], axis=1).ravel().tolist())
        picture = "" if np.ptp(self.image) == 0 else hashlib.sha256(self.image.tobytes()).hexdigest()[:32]
        return SliceTraits((self.image.shape[0], self.image.shape[1]), self.areas(), box, picture)


class SliceError(Exception):
    """A slice cannot be used; `lines` has one line per problem."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


def read_slice(files: SliceFiles, read: ReadContent) -> Slice:
    """Read the five pictures of a slice.

    Raises:
        SliceError: with all that is wrong with it.
    """
    lines: list[str] = []

    def decoded(name: str, decode: Callable[[bytes], NDArray]) -> NDArray | None:
        try:
            return decode(read(name))
        except ImageError as error:
            lines.append(problem_line(name, files.case_id, str(error)))
            return None

    image = decoded(files.image, _grey)
    masks = [decoded(name, _blurred_mask if files.blurred else _mask) for name in files.masks]
    for name, mask in zip(files.masks, masks, strict=True):
        if image is not None and mask is not None and mask.shape != image.shape:
            differs = f"is {times(mask.shape)}, but {files.image} is {times(image.shape)}; download the slice again"
            lines.append(problem_line(name, files.case_id, differs))
    if lines or image is None:
        raise SliceError(lines)
    return Slice(image, np.stack([mask for mask in masks if mask is not None]))


def survey(
    slices: Sequence[SliceFiles], store: PictureStore, cache: Path | None, shown: str
) -> tuple[dict[str, SliceTraits], list[str]]:
    """Return the traits of all readable slices by their case ids, and one line per problem.

    Each slice is read once; the traits of a data set without problems are kept in the cache for the next start.

    Args:
        slices: slices to read.
        store: their files.
        cache: folder, or None to read all slices at each start.
        shown: name of the data set in the log.

    Raises:
        UserError: if the cache cannot be written.
    """
    kept = None if cache is None else cache / f"lidc-slices-{_key(slices, store)}.json"
    traits = _read_traits(kept)
    if set(traits) == {one.case_id for one in slices}:
        return traits, []
    if len(slices) > 1000:
        log.info("%s: reading %d slices once, which takes a minute", shown, len(slices))
    traits, problems = _examined(slices, store, shown)
    if kept is not None and not problems and store.settled:
        text = json.dumps(traits)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, lambda temporary: temporary.write_text(text))
        except OSError as error:
            raise UserError(
                f"data.cache={cache}: cannot be written ({reason_of(error)}); choose another folder, or null"
            ) from error
    return traits, problems


def repeated_pictures(slices: Sequence[SliceFiles], traits: Mapping[str, SliceTraits]) -> tuple[list[str], list[str]]:
    """Find slices that hold the same picture.

    Returns:
        problems where the patients differ, so that a training case could be tested on; warnings for the others, and
        where patients are unknown.
    """
    same: defaultdict[str, list[SliceFiles]] = defaultdict(list)
    for one in slices:
        if one.case_id in traits and traits[one.case_id].picture:
            same[traits[one.case_id].picture].append(one)
    problems, harmless = [], []
    for first, *others in same.values():
        for other in others:
            if other.nodule.patient != first.nodule.patient and not first.blurred:
                leak = f"holds the same picture as case {other.case_id!r} of another patient; remove one"
                problems.append(problem_line(first.image, first.case_id, leak))
            else:
                harmless.append(f"{first.case_id} and {other.case_id}")
    warnings = [f"{len(harmless)} pairs of cases hold the same picture, such as {harmless[0]}"] if harmless else []
    return problems, warnings


def _examined(
    slices: Sequence[SliceFiles], store: PictureStore, shown: str
) -> tuple[dict[str, SliceTraits], list[str]]:
    """Read all slices, a few at a time: decoding leaves the interpreter to other threads."""
    traits: dict[str, SliceTraits] = {}
    problems: list[str] = []
    logged = time.monotonic()
    threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        for number, result in enumerate(threads.map(lambda one: _examine(one, store), slices), 1):
            if isinstance(result, SliceError):
                problems += result.lines
            else:
                traits[slices[number - 1].case_id] = result
            if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
                logged = time.monotonic()
                log.info("%s: checked %d of %d slices", shown, number, len(slices))
    finally:
        # on an interrupt too, without starting on the rest
        threads.shutdown(cancel_futures=True)
    return traits, problems


def _examine(files: SliceFiles, store: PictureStore) -> SliceTraits | SliceError:
    try:
        with store.opened() as read:
            return read_slice(files, read).traits()
    except SliceError as error:
        return error
    except ImageError as error:
        return SliceError([problem_line(files.image, files.case_id, str(error))])


def _key(slices: Sequence[SliceFiles], store: PictureStore) -> str:
    described = json.dumps([VERSION, THRESHOLD, store.fingerprint, [one.image for one in slices]])
    return hashlib.sha256(described.encode()).hexdigest()[:40]


def _read_traits(path: Path | None) -> dict[str, SliceTraits]:
    if path is None:
        return {}
    try:
        stored = json.loads(path.read_text())
        return {str(case_id): SliceTraits.from_plain(one) for case_id, one in stored.items()}
    # whatever a damaged file holds
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _grey(content: bytes) -> NDArray[np.float32]:
    image = read_image(BytesIO(content)).array
    if len(image) > 1 and (image[1:] != image[0]).any():
        raise ImageError("is coloured; slices of this data set are grey")
    grey: NDArray[np.float32] = image[0].astype(np.float32, copy=False)
    return grey


def _mask(content: bytes) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = read_mask(BytesIO(content)).array.astype(bool, copy=False)
    return mask


def _blurred_mask(content: bytes) -> NDArray[np.bool_]:
    """Return where the grey levels of a JPEG mask are above `THRESHOLD`."""
    colours = read_colours(BytesIO(content))
    if (colours != colours[..., :1]).any():
        raise ImageError("is coloured; masks of this data set are grey")
    levels = colours[..., 0]
    doubtful = np.mean((levels >= _DOUBTFUL[0]) & (levels <= _DOUBTFUL[1]))
    if doubtful > _MOST_DOUBTFUL:
        raise ImageError(f"is no mask: {doubtful:.0%} of its pixels are neither dark nor bright; download it again")
    mask: NDArray[np.bool_] = levels > THRESHOLD
    return mask
