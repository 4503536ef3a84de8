"""Photographs of the retina with the vessels that two observers outlined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edue_lightning.data.file_source import (
    CaseReading,
    FileCase,
    FileSource,
    NamedImage,
    compare_grids,
    relative_name,
    stack_case,
)
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import read_image, read_mask
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.retinal_vessels.layout import RELEASES, VesselCase, list_vessels

REGION = "region"


class RetinalVessels(FileSource):
    """CHASE_DB1, STARE or DRIVE: colour photographs of the retina, their vessels outlined by two observers.

    - CHASE_DB1: 28 photographs (999x960) of 14 children, left and right eye; both eyes of a child are one group. CC BY
      4.0, Kingston University. Cite: Fraz et al., "An Ensemble Classification-Based Approach Applied to Retinal Blood
      Vessel Segmentation", IEEE Transactions on Biomedical Engineering 59, 2538-2548, 2012.
    - STARE: 20 photographs (700x605), outlined by Adam Hoover (ah) and Valentina Kouznetsova (vk). No licence comes
      with the files. Cite: Hoover et al., "Locating Blood Vessels in Retinal Images by Piecewise Threshold Probing of a
      Matched Filter Response", IEEE Transactions on Medical Imaging 19, 203-210, 2000.
    - DRIVE: 40 photographs (565x584); the 20 of the part `test` have two observers, the 20 of `training` one. Terms of
      drive.grand-challenge.org. Cite: Staal et al., "Ridge-Based Vessel Segmentation in Color Images of the Retina",
      IEEE Transactions on Medical Imaging 23, 501-509, 2004.

    The data set is recognised by its file names. Splits are drawn; those of DRIVE would leave a single observer for
    training. The region of a case is its field of view, of which DRIVE alone has masks (`mask/01_test_mask.gif`); in
    the others the black surroundings count as background. Values are from 0 to 1.

    Args:
        root: folder of one of the data sets, at any depth.
        cache: see `FileSource`.

    Raises:
        UserError: if the folder does not exist.
    """

    structures = ("vessels",)

    def __init__(self, root: str | None = None, cache: str | None = None) -> None:
        super().__init__(root, cache)
        kind, listed, problems = list_vessels(self.root)
        self.raters = () if kind is None else tuple(RELEASES[kind].raters.values())
        self.facts = {} if kind is None else {"data set": kind}
        if kind == "DRIVE" and listed and not any(case.field_of_view for case in listed):
            self.warn("has no masks of the field of view, so the black surroundings count; add the folders `mask`")
        self.check([_file_case(case) for case in listed], problems, {"raters": list(self.raters)})

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:  # noqa: ARG003
        """Return how photographs become channels, see `CaseSource.preparation`."""
        return Stacked()

    def _read(self, case: FileCase) -> RaterSample:
        reading = CaseReading(case.record.case_id, self.root)
        image = reading.file(case.files["image"], read_image)
        paths = {rater: case.files[rater] for rater in self.raters or () if rater in case.files}
        masks = {rater: reading.file(path, read_mask) for rater, path in paths.items()}
        region = reading.file(case.files[REGION], read_mask) if REGION in case.files else None
        found = [(case.files["image"], image), *((paths[rater], mask) for rater, mask in masks.items())]
        if region is not None:
            found.append((case.files[REGION], region))
        compare_grids(
            reading,
            [NamedImage(relative_name(path, self.root), file) for path, file in found if file is not None],
        )
        reading.finish()
        assert image is not None, "a missing image was reported"
        return stack_case(
            case.record.case_id,
            self.preparation({}).channels([image]),
            {(rater, self.structures[0]): mask.array for rater, mask in masks.items() if mask is not None},
            self.raters or (),
            self.structures,
            region=None if region is None else region.array,
            content=content_digest([image.array]),
        )


def _file_case(case: VesselCase) -> FileCase:
    files = {"image": case.image, **case.masks}
    if case.field_of_view is not None:
        files[REGION] = case.field_of_view
    return FileCase(CaseRecord(case.case_id, case.group), files)
