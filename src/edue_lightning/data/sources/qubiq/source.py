"""One of QUBIQ's data sets as a source of multi-rater cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
from edue_lightning.data.images import ImageFile, canonical, read_image, read_mask
from edue_lightning.data.preparation import Stacked, as_slice
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.qubiq.layout import list_qubiq
from edue_lightning.text import natural_key

_SLICES = 2
"""Number of axes of a single slice's mask."""


class QubiqSource(FileSource):
    """One of the data sets of QUBIQ (2020, 2021): MRI and CT, outlined by two to seven raters.

    - Cases and raters: prostate (MRI) 55 cases, two tasks, six raters (five in one case); brain-growth (MRI) 39 cases,
      one task, seven raters; brain-tumor (MRI, four modalities) 32 cases, three tasks, three raters; kidney (CT) 24
      cases, one task, three raters; pancreas and pancreatic-lesion (CT volumes, 2021) two raters.
    - Source: qubiq.grand-challenge.org (2020) and qubiq21.grand-challenge.org (2021).
    - Licence: none comes with the files; the challenges' rules apply.
    - Cite: Li et al., "QUBIQ: Uncertainty Quantification for Biomedical Image Segmentation Challenge", arXiv
      2405.18435.

    Each task is a structure. The folder Validation, the only other one with masks, is the test split; validation cases
    are drawn from Training. Each channel is brought to mean 0 and standard deviation 1.

    Args:
        root: folder with one data set, such as `brain-growth`, at any depth.
        data_set: name of the data set to take if there are several below `root`, or None.
        cache: see `FileSource`.
        exclusive: whether the structures exclude each other, see `CaseSource`.

    Raises:
        UserError: if the folder does not exist.
    """

    def __init__(
        self,
        root: str | None = None,
        data_set: str | None = None,
        cache: str | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(root, cache, exclusive)
        listed, problems = list_qubiq(self.root, data_set)
        self._cases = {case.case_id: case for case in listed}
        keys = [key for case in listed for key in case.masks]
        self.raters: tuple[str, ...] = tuple(sorted({rater for rater, _ in keys}, key=natural_key))
        self.structures = tuple(sorted({task for _, task in keys}, key=natural_key))
        files = []
        for case in listed:
            record = CaseRecord(case.case_id, case.patient, case.split_hint)
            masks = {f"{task} {rater}": path for (rater, task), path in case.masks.items()}
            files.append(FileCase(record, {"image": case.image, **masks}))
        self.check(files, problems, {"raters": list(self.raters), "structures": list(self.structures)})

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:  # noqa: ARG003
        """Return how image files become channels, see `CaseSource.preparation`."""
        return Stacked(standardise=True)

    def _read(self, case: FileCase) -> RaterSample:
        files = self._cases[case.record.case_id]
        reading = CaseReading(case.record.case_id, self.root)
        masks = {key: self._named(path, reading.file(path, read_mask)) for key, path in files.masks.items()}
        for rater in sorted({rater for rater, _ in masks}):
            absent = [task for task in self.structures if (rater, task) not in masks]
            if absent:
                first = next(path for (name, _), path in files.masks.items() if name == rater)
                reading.report(
                    first, f"rater {rater!r} has no mask of {', '.join(absent)}; add it, or remove the rater"
                )
        # a third axis may count modalities, which must not be taken for a place in space
        image = reading.file(files.image, read_image, as_stored=True)
        found = [mask for mask in masks.values() if mask is not None]
        if image is not None and found and len(found[0].image.shape) == _SLICES:
            image = as_slice(image)
        image = None if image is None else canonical(image)
        named = self._named(files.image, image)
        compare_grids(reading, [file for file in (named, *found) if file is not None])
        reading.finish()
        assert image is not None, "a missing image was reported"
        return stack_case(
            case.record.case_id,
            self.preparation({}).channels([image]),
            {key: None if mask is None else mask.image.array for key, mask in masks.items()},
            self.raters,
            self.structures,
            spacing=image.spacing,
            affine=image.affine,
            origin=image.origin,
            content=content_digest([image.array]),
        )

    def _named(self, path: Path, image: ImageFile | None) -> NamedImage | None:
        return None if image is None else NamedImage(relative_name(path, self.root), image)
