"""CURVAS and CURVAS-PDACVI as sources of multi-rater cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from edue_lightning.data.images import canonical, read_image
from edue_lightning.data.label_maps import LabelMap
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.curvas.layout import CurvasCase, list_curvas
from edue_lightning.errors import UserError

LABELS: Mapping[str, Mapping[str, int]] = {
    "CURVAS": {"pancreas": 1, "kidney": 2, "liver": 3},
    "PDACVI": {"pdac": 1},
}
"""Numbers in the label maps of each release."""

_FEWEST_OF_PDACVI = 4
"""Number of experts from which on a folder is PDACVI: it has five, CURVAS three."""

_AIR_TO_WATER, _VOLUME = 1000.0, 3


class CurvasSource(FileSource):
    """CURVAS: abdominal CT of 90 patients, three organs outlined by three experts; or its sequel with five experts.

    - CURVAS (MICCAI 2024): 90 contrast-enhanced CT volumes (20 for training, 5 for validation, 65 for testing) with
      pancreas, kidneys and liver by three radiologists. Source: zenodo.org/records/13767408. Licence: on that page (CC
      BY 4.0, as a reader of the data set states it). Cite: Riera-Marín et al., "Calibration and Uncertainty for
      multiRater Volume Assessment in multiorgan Segmentation (CURVAS) challenge results", arXiv 2505.08685.
    - CURVAS-PDACVI (MICCAI 2025): CT volumes of PANORAMA with pancreatic ductal adenocarcinoma by five experts, 40 for
      training. Source: zenodo.org/records/15401568. Licence: on that page. Cite: Riera-Marín et al., "Assessing
      Pancreatic Ductal Adenocarcinoma Vascular Invasion: the PDACVI Benchmark", arXiv 2604.27582.

    The release is recognised by the number of experts. The cases of `testing_set` are the test split. Experts are named
    after the numbers of their files, `expert 1` to `expert 5`. The image is on the scale (HU + 1000) / 1000, so that
    air is 0 and water 1. An annotation that lies on another grid than the CT is a problem, such as `annotation_2` of
    the published UKCHLL007, whose header gives another place for the same voxels.

    Args:
        root: folder with the patients' folders, at any depth.
        structures: structures to take, in this order; None for all of the release.
        header_of_image: names of cases whose annotations take their place in space from the CT, whatever their own
            headers say, if they have its shape.
        cache: see `FileSource`.
        exclusive: whether the structures exclude each other, see `CaseSource`.

    Raises:
        UserError: if the folder does not exist or a setting is invalid.
    """

    def __init__(
        self,
        root: str | None = None,
        structures: Sequence[str] | None = None,
        header_of_image: Sequence[str] = (),
        cache: str | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(root, cache, exclusive)
        listed, problems = list_curvas(self.root)
        experts = sorted({expert for case in listed for expert in case.annotations})
        release = "PDACVI" if experts and experts[-1] >= _FEWEST_OF_PDACVI else "CURVAS"
        known = LABELS[release]
        self.structures = tuple(known if structures is None else structures)
        repeated = len(set(self.structures)) < len(self.structures)
        if not self.structures or repeated or not set(self.structures) <= set(known):
            raise UserError(
                f"data.source.structures={list(self.structures)}: choose among {', '.join(known)} ({release}), each "
                "once"
            )
        unknown = [name for name in header_of_image if name not in {case.case_id for case in listed}]
        if unknown and listed:
            raise UserError(f"data.source.header_of_image={list(header_of_image)}: no case is named {unknown[0]}")
        self._labels = LabelMap.of(dict(known), None, release)
        if exclusive:
            self._labels.require_exclusive(self.structures, release)
        self._trusted = frozenset(header_of_image)
        self._cases = {case.case_id: case for case in listed}
        self._expert = {number: f"expert {number}" for number in experts}
        self.raters: tuple[str, ...] = tuple(self._expert.values())
        self.facts = {"data set": release} if listed else {}
        settings = {
            "structures": list(self.structures),
            "labels": dict(known),
            "raters": list(self.raters),
            "header_of_image": sorted(header_of_image),
        }
        self.check([self._file_case(case) for case in listed], problems, settings)

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:  # noqa: ARG003
        """Return how image files become channels, see `CaseSource.preparation`."""
        return Stacked(offset=_AIR_TO_WATER, scale=_AIR_TO_WATER)

    def _file_case(self, case: CurvasCase) -> FileCase:
        annotations = {self._expert[number]: path for number, path in case.annotations.items()}
        return FileCase(CaseRecord(case.case_id, case.case_id, case.split), {"image": case.image, **annotations})

    def _read(self, case: FileCase) -> RaterSample:
        files = self._cases[case.record.case_id]
        reading = CaseReading(files.case_id, self.root)
        image = reading.file(files.image, read_image, as_stored=True)
        if image is not None and (len(image.array) > 1 or len(image.shape) != _VOLUME):
            reading.report(files.image, "is no volume of one channel; save the CT as a volume")
        maps: dict[str, NamedImage] = {}
        for number, path in files.annotations.items():
            found = reading.file(path, self._labels.read, as_stored=True)
            if found is not None:
                if files.case_id in self._trusted and image is not None and found.shape == image.shape:
                    found = replace(found, affine=image.affine, spacing=image.spacing)
                maps[self._expert[number]] = NamedImage(relative_name(path, self.root), canonical(found))
        if image is not None:
            image = canonical(image)
            compare_grids(reading, [NamedImage(relative_name(files.image, self.root), image), *maps.values()])
        reading.finish()
        assert image is not None, "a missing image was reported"
        return stack_case(
            files.case_id,
            self.preparation({}).channels([image]),
            {
                (rater, name): self._labels.mask(file.image.array, name)
                for rater, file in maps.items()
                for name in self.structures
            },
            self.raters,
            self.structures,
            spacing=image.spacing,
            affine=image.affine,
            origin=image.origin,
            content=content_digest([image.array]),
        )
