"""Pictures beside a folder of masks for each rater."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edue_lightning.data import CaseRecord, RaterSample
from edue_lightning.data.file_source import CaseReading, FileCase, FileSource, NamedImage, compare_grids, stack_case
from edue_lightning.data.images import read_image, read_mask
from edue_lightning.data.preparation import Stacked


class PictureFolders(FileSource):
    """Reads `images/CASE.png` and `RATER/CASE.png`; a rater without a mask of a case did not see it.

    Args:
        root: the folder.
        structure: what the masks show.
        cache: folder for prepared cases, or None.
    """

    def __init__(self, root: str | None = None, structure: str = "blob", cache: str | None = None) -> None:
        super().__init__(root, cache)
        self.structures = (structure,)
        folders = [path for path in sorted(self.root.iterdir()) if path.is_dir()]
        self.raters: tuple[str, ...] = tuple(path.name for path in folders if path.name != "images")
        cases = []
        for image in sorted(self.root.glob("images/*.png")):
            masks = {rater: self.root / rater / image.name for rater in self.raters}
            present = {rater: path for rater, path in masks.items() if path.is_file()}
            # here each picture shows a patient of its own
            cases.append(FileCase(CaseRecord(image.stem, group=image.stem), {"image": image, **present}))
        # reads all cases once, and keeps what is wrong with any of them
        self.check(cases, problems=[], settings={"raters": list(self.raters), "structure": structure})

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:  # noqa: ARG003
        """Return how pictures become channels, in training and for new images."""
        return Stacked(standardise=True)

    def _read(self, case: FileCase) -> RaterSample:
        case_id = case.record.case_id
        # collects what is wrong with the files of this case
        reading = CaseReading(case_id, self.root)
        image = reading.file(case.files["image"], read_image)
        raters = [role for role in case.files if role != "image"]
        masks = {rater: reading.file(case.files[rater], read_mask) for rater in raters}
        found = {"image": image, **masks}
        compare_grids(reading, [NamedImage(name, file) for name, file in found.items() if file is not None])
        reading.finish()
        assert image is not None, "else something was noted"
        return stack_case(
            case_id,
            self.preparation({}).channels([image]),
            {(rater, self.structures[0]): mask.array for rater, mask in masks.items() if mask is not None},
            self.raters,
            self.structures,
        )
