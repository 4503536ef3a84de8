"""The published slices of LIDC-IDRI as a source of multi-rater cases."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edue_lightning.data.file_source import problems_text
from edue_lightning.data.geometry import slice_storage
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import ImageError
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.data.sources.lidc.source import case_seed
from edue_lightning.data.sources.lidc_slices.layout import ENDINGS, READERS, NoduleKey, SliceFiles, list_slices
from edue_lightning.data.sources.lidc_slices.reading import (
    THRESHOLD,
    Slice,
    SliceError,
    SliceTraits,
    read_slice,
    repeated_pictures,
    survey,
)
from edue_lightning.data.sources.lidc_slices.storage import open_store
from edue_lightning.errors import UserError
from edue_lightning.text import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Nodule:
    """A nodule with its readable slices in their order."""

    slices: tuple[SliceFiles, ...]
    traits: tuple[SliceTraits, ...]

    @property
    def marked(self) -> tuple[bool, ...]:
        """Whether each of the four readers marked it on any slice."""
        return _marked(self.traits)

    @property
    def largest(self) -> int:
        """Position of the slice with the largest sum of the readers' areas."""
        return int(np.argmax([sum(one.areas) for one in self.traits]))


@dataclass(frozen=True)
class _Case:
    """A slice, or the slices of a nodule that are stacked, with the readers who count as having marked it."""

    record: CaseRecord
    nodule_id: str
    slices: tuple[SliceFiles, ...]
    traits: tuple[SliceTraits, ...]
    marked: tuple[bool, ...]


class LidcSlices(CaseSource):
    """LIDC-IDRI's lung nodules as published slices: crops of CT, each with the masks of four radiologists.

    - Cases: 15,548 slices of 2,630 nodules of 875 patients, 128x128 pixels of 8 bits; one case per slice (or per
      nodule, see `slices` and `volumes`). Cases are grouped by patient.
    - Raters: four masks per slice. The number of a mask is no identity: masks are filled from the first one on, and a
      reader who did not mark the nodule has an empty mask. Nodules marked by 1, 2, 3, 4 readers: 780, 503, 486, 861.
      Masks are assigned to the four positions of the rater axis by a draw that is fixed for each nodule.
    - Source: Kaggle's "LIDC-IDRI-slices" and its copies, or the JPEG files of CIMD (github.com/aimansnigdha/
      Ambiguous-Medical-Image-Segmentation-using-Diffusion-Models). In the latter, masks are thresholded at 127, and
      patients are unknown, so that slices of one patient may be in several splits.
    - Licence: LIDC-IDRI is CC BY 3.0 (The Cancer Imaging Archive, doi 10.7937/K9/TCIA.2015.LO9QL9SX).
    - Cite: Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI): a
      completed reference database of lung nodules on CT scans", Medical Physics 38, 915-931, 2011.

    The slices of a nodule are one unit, so `train_draw=one_per_unit` of the data module trains on one slice per nodule
    and epoch. Every picture is read once before the first is used; `cache` keeps what was found. Cases are then read
    straight from their files. The spacing is unknown.

    Args:
        root: folder with the slices at any depth, or a ZIP archive of it, which is read as it is.
        readers: numbers of readers; nodules (or slices, see `readers_of`) that such a number of readers marked are
            taken.
        readers_of: whether `readers` counts those who marked the `nodule` on any slice, or the `slice` itself.
        slices: `all`, or the `largest` of each nodule: the one with the largest sum of the readers' areas.
        existence: whether a reader who marked nothing counts, with an empty mask; otherwise that reader is missing. A
            reader who marked the nodule on other slices alone is missing only with `readers_of=slice`.
        size: edge in pixels of a square around the middle of each slice, or None for the whole slice. Cases with marks
            beyond it are left out, with a count in the log.
        volumes: whether the slices of a nodule are stacked along a first axis, as a case in 3D. The distance between
            the slices is unknown.
        cache: folder for what was found, or None to read every picture at each start.

    Raises:
        UserError: if the folder or archive does not exist, or the settings are invalid or leave no case.
    """

    channels = 1
    structures = ("nodule",)

    def __init__(
        self,
        root: str | None = None,
        readers: Sequence[int] = (1, 2, 3, 4),
        readers_of: Literal["nodule", "slice"] = "nodule",
        slices: Literal["all", "largest"] = "all",
        existence: bool = True,
        size: int | None = None,
        volumes: bool = False,
        cache: str | None = None,
    ) -> None:
        if root is None:
            raise UserError("data.root: not set; set data.root=FOLDER or data.root=FILE.zip with the slices")
        _check_settings(readers, readers_of, slices, volumes)
        self._root = root
        self._existence = existence
        self._size = size
        self._volumes = volumes
        self.spatial_dims = 3 if volumes else 2
        self.storage = None if volumes else slice_storage(None)
        self._store = open_store(root, ENDINGS)
        listed, problems = list_slices(self._store.names)
        problems = [*self._store.problems, *problems]
        if not listed and not problems:
            problems = [
                f"{root}: holds no slice of this data set; give the folder of the slices or their ZIP archive itself "
                "(docs/data.md lists the layouts)"
            ]
        folder = None if cache is None else Path(cache)
        traits, unreadable = survey(listed, self._store, folder, root)
        repeated, self.warnings = repeated_pictures(listed, traits)
        for line in self.warnings:
            log.warning("%s: %s", root, one_line(line))
        self.problems = (*problems, *unreadable, *repeated)
        nodules = _nodules(listed, traits)
        chosen = self._chosen(nodules, set(readers), readers_of, slices)
        self._cases = {case.record.case_id: case for case in chosen if self._fits(case)}
        left_out = len(chosen) - len(self._cases)
        if left_out:
            log.info(
                "%s: %d of %d cases do not fit data.source.size=%s and are left out", root, left_out, len(chosen), size
            )
        if not self._cases and not self.problems:
            raise UserError(f"data.root={root}: no slice is left by data.source.readers={[*readers]} and size={size}")
        shapes = {self._shape(case) for case in self._cases.values()}
        self.mixed_sizes = len(shapes) > 1
        self.facts = self._summary(nodules, left_out)

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:  # noqa: ARG003
        """Return how pictures become channels, see `CaseSource.preparation`."""
        return Stacked()

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:
        """Return that new slices are not cut, see `CaseSource.new_image_caveat`."""
        size = settings.get("size")
        if size is None:
            return ""
        return (
            f"was trained on the middle {size}x{size} pixels of slices around a nodule, but takes new slices whole; "
            "cut new slices in the same way first"
        )

    def cases(self) -> Sequence[CaseRecord]:
        """List the cases, sorted by patient, nodule and slice.

        Raises:
            UserError: with all problems, if there are any.
        """
        if self.problems:
            raise UserError(problems_text(self._root, self.problems))
        return self.healthy()

    def healthy(self) -> Sequence[CaseRecord]:
        """List the cases that can be read."""
        return [case.record for case in self._cases.values()]

    def load(self, case_id: str) -> RaterSample:
        """Read a case from its files.

        Raises:
            UserError: if a file was removed, damaged or changed since the start.
        """
        case = self._cases[case_id]
        try:
            with self._store.opened() as read:
                found = [read_slice(files, read) for files in case.slices]
        except SliceError as error:
            raise UserError("\n".join(error.lines)) from error
        except ImageError as error:
            raise UserError(f"data.root={self._root}: {error}") from error
        for files, one, known in zip(case.slices, found, case.traits, strict=True):
            if one.areas() != known.areas:
                raise UserError(f"{files.image}: case {case_id!r}: masks have changed since the start; start again")
        return self._sample(case, found)

    def _sample(self, case: _Case, found: Sequence[Slice]) -> RaterSample:
        image = np.stack([self._cropped(one.image) for one in found])  # [D, H, W]
        masks = np.stack([self._cropped(one.masks) for one in found], axis=1)  # [R, D, H, W]
        if not self._volumes:
            image, masks = image[0], masks[:, 0]
        slots = np.random.default_rng([case_seed(case.nodule_id), 1]).permutation(READERS)
        placed = torch.zeros(READERS, 1, *image.shape, dtype=torch.uint8)
        valid = torch.zeros(READERS, dtype=torch.bool)
        for slot, mask, marked in zip(slots.tolist(), masks, case.marked, strict=True):
            placed[slot, 0] = torch.from_numpy(np.ascontiguousarray(mask))
            valid[slot] = marked or self._existence
        return RaterSample(
            image=torch.from_numpy(np.ascontiguousarray(image))[None],
            masks=placed,
            valid=valid,
            case_id=case.record.case_id,
            content=content_digest([one.image[None] for one in found]),
        )

    def _cropped(self, pixels: np.ndarray) -> np.ndarray:
        if self._size is None:
            return pixels
        rows, columns = (_middle(length, self._size) for length in pixels.shape[-2:])
        return pixels[..., rows, columns]

    def _chosen(
        self, nodules: Mapping[NoduleKey, _Nodule], readers: set[int], readers_of: str, slices: str
    ) -> list[_Case]:
        cases = []
        for nodule in nodules.values():
            first = nodule.slices[0]
            if self._volumes:
                if sum(nodule.marked) in readers:
                    record = CaseRecord(first.nodule_id, first.nodule.patient, first.split)
                    cases.append(_Case(record, first.nodule_id, nodule.slices, nodule.traits, nodule.marked))
                continue
            positions = [nodule.largest] if slices == "largest" else range(len(nodule.slices))
            for position in positions:
                one, traits = nodule.slices[position], nodule.traits[position]
                marked = nodule.marked if readers_of == "nodule" else _marked([traits])
                if sum(marked) in readers:
                    record = CaseRecord(one.case_id, one.nodule.patient, one.split, unit=one.nodule_id)
                    cases.append(_Case(record, one.nodule_id, (one,), (traits,), marked))
        return cases

    def _fits(self, case: _Case) -> bool:
        """Return whether all marks lie within the square in the middle."""
        if self._size is None:
            return True
        if any(min(traits.shape) < self._size for traits in case.traits):
            raise UserError(f"data.source.size={self._size}: slices are smaller; choose a smaller size, or null")
        return all(
            part.start <= traits.box[2 * axis] and traits.box[2 * axis + 1] < part.stop
            for traits in case.traits
            if traits.box
            for axis, part in enumerate(_middle(length, self._size or 0) for length in traits.shape)
        )

    def _shape(self, case: _Case) -> tuple[int, ...]:
        shape = case.traits[0].shape if self._size is None else (self._size, self._size)
        return (len(case.slices), *shape) if self._volumes else shape

    def _summary(self, nodules: Mapping[NoduleKey, _Nodule], left_out: int) -> dict[str, str]:
        """Return what is particular to this data set, for the summary of `check`."""
        taken = {case.slices[0].nodule for case in self._cases.values()}
        blurred = any(case.slices[0].blurred for case in self._cases.values())
        by_readers = Counter(sum(nodules[key].marked) for key in taken)
        counts = ", ".join(f"{by_readers[number]} by {number}" for number in range(1, READERS + 1))
        slices = sum(len(case.slices) for case in self._cases.values())
        all_marked = sum(all(_marked([nodules[key].traits[nodules[key].largest]])) for key in taken)
        facts = {
            "nodules": f"{len(taken)}; marked by readers: {counts}",
            "slices": f"{slices}; the largest of {all_marked} nodules is marked by all {READERS} readers",
        }
        if blurred:
            facts["nodules"] = f"unknown; slices marked by readers: {counts}"
            facts["slices"] = f"{slices}; patients are unknown, so splits may share patients"
            facts["masks"] = f"JPEG: grey levels above {THRESHOLD} count as marked"
        if self._volumes:
            facts["volumes"] = "slices of a nodule, stacked; their distance is unknown"
        if left_out:
            facts["left out"] = f"{left_out} cases with marks beyond the middle {self._size}x{self._size} pixels"
        return facts


def _check_settings(readers: Sequence[int], readers_of: str, slices: str, volumes: bool) -> None:
    if not readers or not set(readers) <= set(range(1, READERS + 1)):
        raise UserError(f"data.source.readers must be numbers between 1 and {READERS}, not {sorted(readers)}")
    if volumes and (slices != "all" or readers_of != "nodule"):
        raise UserError("data.source.volumes=true takes all slices of a nodule; use slices=all and readers_of=nodule")


def _nodules(listed: Sequence[SliceFiles], traits: Mapping[str, SliceTraits]) -> dict[NoduleKey, _Nodule]:
    grouped: defaultdict[NoduleKey, list[SliceFiles]] = defaultdict(list)
    for one in listed:
        if one.case_id in traits:
            grouped[one.nodule].append(one)
    return {
        key: _Nodule(tuple(slices), tuple(traits[one.case_id] for one in slices)) for key, slices in grouped.items()
    }


def _marked(traits: Sequence[SliceTraits]) -> tuple[bool, ...]:
    return tuple(any(areas) for areas in zip(*(one.areas for one in traits), strict=True))


def _middle(length: int, size: int) -> slice:
    start = (length - size) // 2
    return slice(start, start + size)
