"""HECKTOR's head-and-neck PET/CT as a source of multi-rater cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.file_source import CaseError, CaseReading, FileCase, FileSource, stack_case
from edue_lightning.data.geometry import (
    closest_canonical,
    cropped,
    grid_spacing,
    largest_shift,
    overlap_share,
    resample,
    same_grid,
    share_inside,
)
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import ImageError, ImageFile, canonical, read_image, read_label_map, read_mask
from edue_lightning.data.sample import Grid, RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.hecktor.layout import (
    BoundingBox,
    HecktorCase,
    LabelFiles,
    list_cases,
    read_bounding_boxes,
)
from edue_lightning.data.sources.hecktor.preparation import PetCt, affine_of, file_grid, require_hounsfield, require_suv
from edue_lightning.errors import UserError
from edue_lightning.text import natural_key, spelling_problems

Structure = Literal["GTVp", "GTVn"]
LABELS = {1: "GTVp", 2: "GTVn"}
# largest share of a structure's voxels that may lie outside of the grid: enough for the rounding of a box
_MOST_OUTSIDE = 0.01
# of two shares of a voxel that add up to 1
_ROUNDING = 1e-4


class HecktorSource(FileSource):
    """HECKTOR: FDG-PET/CT of patients with head and neck cancer, with outlines of the primary tumour and lymph nodes.

    - Cases: 524 labelled ones in the 2022 release (seven centres), 679 in that of 2025, 883 in 2026.
    - Raters: one label per case in the public releases, which is enough for everything but guidance and the metrics of
      disagreement. Labels of further raters may lie beside it, see `layout`.
    - Source: hecktor.grand-challenge.org (2020 to 2022), hecktor25.grand-challenge.org (2025). Access is granted on
      request; the terms of use are those of the organisers' agreement, so the data must not be redistributed.
    - Cite: Oreiller et al., "Head and neck tumor segmentation in PET/CT: the HECKTOR challenge", Medical Image Analysis
      77, 2022; Andrearczyk et al., "Overview of the HECKTOR challenge at MICCAI 2022", 2023; for 2025 Saeed et al.,
      arXiv 2509.00367.

    A case has two channels in [0, 1], CT and PET, on one grid: the CT's own, with axes to the right, anterior and
    superior, cut to the case's bounding box if there is one, and with other voxels over the same box if `spacing` is
    set. CT, PET and labels are brought onto it by their affines: copied where their voxels lie on it, otherwise
    interpolated linearly, labels then thresholded at one half. `RaterSample.origin` is the CT file's grid. Metrics are
    computed on the sample's grid, so without `spacing` on voxels of the CT.

    Args:
        root: folder with a release, see `layout`.
        structures: GTVp (primary tumour), GTVn (lymph nodes) or both, in this order.
        spacing: mm to the right, anterior and superior; None for the CT's own voxels.
        bounding_boxes: path of the table of boxes that comes with 2020 and 2021, absolute or from `root`; None for
            whole scans.
        ct_window: Hounsfield units that become 0 and 1; values beyond are clipped.
        suv_window: standardised uptake values that become 0 and 1.
        leave_out_unlabelled: whether to leave out cases without any label; 2025 has such cases for its other tasks.
        cache: folder for prepared cases, see `FileSource`.
        exclusive: whether the structures exclude each other, see `CaseSource`.

    Raises:
        UserError: if the folder does not exist or a setting is invalid.
    """

    def __init__(
        self,
        root: str | None = None,
        structures: Sequence[Structure] = ("GTVn",),
        spacing: Sequence[float] | None = None,
        bounding_boxes: str | None = None,
        ct_window: Sequence[float] = (-250.0, 250.0),
        suv_window: Sequence[float] = (0.0, 25.0),
        leave_out_unlabelled: bool = False,
        cache: str | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(root, cache, exclusive)
        if not structures or not set(structures) <= set(LABELS.values()) or len(set(structures)) < len(structures):
            raise UserError(f"data.source.structures={list(structures)}: take GTVp, GTVn or both, each once")
        if spacing is not None and (len(spacing) != 3 or not all(0 < size < math.inf for size in spacing)):
            raise UserError(f"data.source.spacing={list(spacing)}: give three positive numbers, mm, or null")
        for name, window in (("ct_window", ct_window), ("suv_window", suv_window)):
            if len(window) != 2 or not -math.inf < window[0] < window[1] < math.inf:
                raise UserError(f"data.source.{name}={list(window)}: give the value that becomes 0 and a larger one")
        self.structures = tuple(structures)
        self._images = PetCt(spacing, ct_window, suv_window)
        listed, problems = list_cases(self.root, leave_out_unlabelled)
        boxes, box_problems = self._boxes(bounding_boxes, listed)
        self._boxed = bounding_boxes is not None
        self._cases = {case.case_id: case for case in listed}
        self._box_of_case = boxes
        self.raters: tuple[str, ...] = tuple(
            sorted({rater for case in listed for rater in case.labels}, key=natural_key)
        )
        settings: dict[str, Any] = {
            "structures": list(structures),
            "spacing": None if spacing is None else list(spacing),
            "ct_window": list(ct_window),
            "suv_window": list(suv_window),
            "raters": list(self.raters),
        }
        if exclusive:
            # cases of other settings keep their prepared files
            settings["exclusive"] = True
        problems += [*box_problems, *spelling_problems("raters", self.raters), *self._unlabelled_structures(listed)]
        self.check([self._file_case(case) for case in listed], problems, settings)

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> PetCt:
        """Return how image files become channels, see `CaseSource.preparation`; scans are taken whole."""
        known = {field.name for field in fields(PetCt)}
        return PetCt(**{name: value for name, value in settings.items() if name in known})

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:
        """Return that new scans are taken whole if those of the data set are cut, see `CaseSource.new_image_caveat`."""
        if settings.get("bounding_boxes") is None:
            return ""
        return (
            "was trained on scans cut to bounding boxes, but takes new scans whole; cut CT and PET to a box first, "
            "or check all marks outside of it"
        )

    def _boxes(
        self, bounding_boxes: str | None, listed: Sequence[HecktorCase]
    ) -> tuple[Mapping[str, BoundingBox], list[str]]:
        if bounding_boxes is None:
            return {}, []
        path = self.root / bounding_boxes
        try:
            boxes = read_bounding_boxes(path)
        except UserError as error:
            return {}, str(error).splitlines()
        missing = [case.case_id for case in listed if case.case_id not in boxes]
        return boxes, [f"{path.name}: case {name!r}: has no box; add its row" for name in missing]

    def _unlabelled_structures(self, listed: Sequence[HecktorCase]) -> list[str]:
        """Return one line per structure without any label, as GTVn in 2020 and 2021, where nobody looked for it."""
        lines = []
        for structure in self.structures:
            labels = [label for case in listed for label in case.labels.values()]
            if labels and not any(label.combined or structure in label.structures for label in labels):
                others = ", ".join(sorted({name for label in labels for name in label.structures}))
                lines.append(f"{self.root.name}: holds no label of {structure}; set data.source.structures=[{others}]")
        return lines

    def _file_case(self, case: HecktorCase) -> FileCase:
        files = {"ct": case.ct, "pet": case.pet}
        for rater, label in case.labels.items():
            if label.combined:
                files[f"label {rater}"] = label.combined
            files |= {f"label {rater} {structure}": path for structure, path in label.structures.items()}
        box = self._box_of_case.get(case.case_id)
        details = {"box": None if box is None else [*box.low, *box.high]}
        return FileCase(CaseRecord(case.case_id, case.case_id, stratum=case.centre), files, details)

    def _read(self, case: FileCase) -> RaterSample:
        files = self._cases[case.record.case_id]
        reading = CaseReading(case.record.case_id, self.root)
        ct, pet = (_volume(reading, path) for path in (files.ct, files.pet))
        try:
            if ct is not None:
                require_hounsfield(ct, self._images.ct_window)
        except ImageError as error:
            reading.report(files.ct, str(error))
        try:
            if pet is not None:
                require_suv(pet, self._images.suv_window)
        except ImageError as error:
            reading.report(files.pet, str(error))
        labels = {rater: self._label(reading, rater, label) for rater, label in files.labels.items()}
        grid = None if ct is None else self._grid(reading, files, file_grid(ct))
        if ct is None or pet is None or grid is None:
            # something was noted, so this raises
            reading.finish()
            raise CaseError(())
        ct_grid = file_grid(ct)
        if overlap_share(grid, file_grid(pet)) == 0:
            reading.report(files.pet, f"lies nowhere on {files.ct.name}; correct the affine of one")
        shares: dict[tuple[str, str], NDArray[np.float32]] = {}
        for rater, parts in labels.items():
            for structure, (path, mask) in parts.items():
                if mask is not None:
                    if _is_displaced(file_grid(mask), ct_grid):
                        reading.report(
                            path, f"has the shape of {files.ct.name} but lies elsewhere; correct the affine of one"
                        )
                    shares[rater, structure] = self._on_grid(reading, path, mask, structure, grid)
        reading.finish()
        sample = stack_case(
            case.record.case_id,
            self._images.channels(ct, pet, grid),
            self._masks(shares),
            self.raters,
            self.structures,
            spacing=grid_spacing(grid),
            affine=grid.affine.numpy(),
            content=content_digest([canonical(image).array for image in (ct, pet)]),
        )
        return sample if same_grid(grid, ct_grid) else replace(sample, origin=ct_grid)

    def _grid(self, reading: CaseReading, files: HecktorCase, ct_grid: Grid) -> Grid | None:
        grid: Grid | None = closest_canonical(ct_grid)
        box = self._box_of_case.get(files.case_id)
        if grid is not None and box is not None:
            grid = cropped(grid, box.first, box.last)
            if grid is None:
                reading.report(files.ct, "lies outside of its bounding box; correct the box or the affine")
        return None if grid is None else self._images.respaced(grid)

    def _label(
        self, reading: CaseReading, rater: str, label: LabelFiles
    ) -> Mapping[str, tuple[Path, ImageFile | None]]:
        """Return file and mask per structure that a rater looked for."""
        if label.combined is None:
            missing = [name for name in self.structures if name not in label.structures]
            if missing:
                first = next(iter(label.structures.values()))
                fix = f"add it, or set data.source.structures to {', '.join(label.structures)} only"
                reading.report(first, f"rater {rater!r} has no label of {', '.join(missing)}; {fix}")
            named = {name: path for name, path in label.structures.items() if name in self.structures}
            return {name: (path, _three_axes(reading, path, read_mask)) for name, path in named.items()}
        found = _three_axes(reading, label.combined, _read_labels)
        numbers = {name: number for number, name in LABELS.items()}
        return {
            name: (label.combined, None if found is None else replace(found, array=found.array == numbers[name]))
            for name in self.structures
        }

    def _on_grid(
        self, reading: CaseReading, path: Path, mask: ImageFile, structure: str, grid: Grid
    ) -> NDArray[np.float32]:
        """Return the share of each voxel of a grid that a mask covers, see `resample`."""
        inside = share_inside(mask.array > 0, affine_of(mask), grid)
        if inside < 1 - _MOST_OUTSIDE:
            where = "its bounding box" if self._boxed else "the CT"
            lost = f"{100 * (1 - inside):.0f} % of {structure} lies outside of {where}"
            reading.report(path, f"{lost}; correct the affine" + (" or the box" if self._boxed else ""))
        moved = resample(mask.array.astype(np.float32), affine_of(mask), grid, fill=0.0)
        if mask.array.any() and inside == 1 and not (moved >= 0.5).any():
            reading.report(path, f"{structure} vanishes between voxels this large; set a smaller data.source.spacing")
        return moved

    def _masks(self, shares: Mapping[tuple[str, str], NDArray[np.float32]]) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """Return the voxels that are covered by half.

        Halfway between two structures that exclude each other both cover half of a voxel; then the first has it.
        """
        masks = {key: share >= 0.5 for key, share in shares.items()}
        if self.exclusive:
            for rater, structure in masks:
                for earlier in self.structures[: self.structures.index(structure)]:
                    if (rater, earlier) in masks:
                        halves = shares[rater, earlier] + shares[rater, structure] <= 1 + _ROUNDING
                        masks[rater, structure] &= ~(masks[rater, earlier] & halves)
        return masks


def _is_displaced(label: Grid, ct: Grid) -> bool:
    """Return whether a label has the shape of its CT, in whatever order of the axes, but not its place."""
    turned, wanted = closest_canonical(label), closest_canonical(ct)
    return turned.shape == wanted.shape and largest_shift(turned, wanted) > 0.5


def _volume(reading: CaseReading, path: Path) -> ImageFile | None:
    found = _three_axes(reading, path, read_image)
    if found is not None and len(found.array) > 1:
        reading.report(path, f"has {len(found.array)} channels; save one volume")
        return None
    return found


def _three_axes(reading: CaseReading, path: Path, read: Callable[[Path], ImageFile]) -> ImageFile | None:
    found = reading.file(path, read, as_stored=True)
    if found is not None and len(found.shape) != 3:
        reading.report(path, f"is {len(found.shape)}D; save a volume")
        return None
    return found


def _read_labels(path: Path) -> ImageFile:
    return read_label_map(path, LABELS)
