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
from edue_lightning.data.images import read_image, read_mask
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.retinal_vessels.layout import RELEASES, list_vessels


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
    training. The field of view is not used: pixels outside of it count as background. Values are from 0 to 1.

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
        files = [FileCase(CaseRecord(case.case_id, case.group), {"image": case.image, **case.masks}) for case in listed]
        self.check(files, problems, {"raters": list(self.raters)})

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:  # noqa: ARG003
        """Return how photographs become channels, see `CaseSource.preparation`."""
        return Stacked()

    def _read(self, case: FileCase) -> RaterSample:
        reading = CaseReading(case.record.case_id, self.root)
        image = reading.file(case.files["image"], read_image)
        paths = {rater: case.files[rater] for rater in self.raters or () if rater in case.files}
        masks = {rater: reading.file(path, read_mask) for rater, path in paths.items()}
        found = [(case.files["image"], image), *((paths[rater], mask) for rater, mask in masks.items())]
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
        )
