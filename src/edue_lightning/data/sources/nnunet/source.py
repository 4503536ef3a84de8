"""A data set in nnU-Net's raw format as a source of multi-rater cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from edue_lightning.data.images import ImageFile, read_image
from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, ProbabilityChannels, Split
from edue_lightning.data.sources.nnunet.description import REORIENTED, find_description, read_description, read_fold
from edue_lightning.data.sources.nnunet.layout import NnunetCase, list_nnunet
from edue_lightning.errors import UserError
from edue_lightning.text import counted, named, natural_key, spelling_problems


class NnunetSource(FileSource):
    """A data set in the raw format of nnU-Net (versions 1 and 2), with one folder of label maps per rater.

    - Source: github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md.
    - Cite: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
      Nature Methods 18, 203-211, 2021; and the data set itself.

    `dataset.json` names the channels and the structures; regions (lists of labels) are structures that may overlap, and
    voxels with the label `ignore` of any rater lie outside of a case's region. `labelsTr` is the rater `labels`,
    `labelsTr_NAME` the rater `NAME`; a rater without a file for a case did not see it. Labelled cases of `imagesTs` are
    the test split, others there are left out.

    Args:
        root: folder of the data set, or the one above it.
        structures: structures to take, in this order; None for all, in the order of `dataset.json`.
        standardise: whether to bring each channel to mean 0 and standard deviation 1 over the image.
        splits_file: nnU-Net's `splits_final.json`, absolute or from the folder of the data set; None to draw splits.
        fold: fold of that file. Its cases `val` are for validation if there are labelled cases in `imagesTs`, otherwise
            they are the test cases, and validation cases are drawn from the others.
        cache: see `FileSource`.
        exclusive: whether the structures exclude each other, see `CaseSource`.

    Raises:
        UserError: if the folder, `dataset.json` or the file of the splits cannot be used.
    """

    def __init__(
        self,
        root: str | None = None,
        structures: Sequence[str] | None = None,
        standardise: bool = True,
        splits_file: str | None = None,
        fold: int = 0,
        cache: str | None = None,
        exclusive: bool = False,
    ) -> None:
        super().__init__(root, cache, exclusive)
        self._description = read_description(find_description(self.root))
        folder = self._description.path.parent
        labels = self._description.labels
        known = tuple(labels.structures)
        self.structures = known if structures is None else tuple(structures)
        repeated = len(set(self.structures)) < len(self.structures)
        if not self.structures or repeated or not set(self.structures) <= set(known):
            raise UserError(
                f"data.source.structures={list(self.structures)}: choose among {', '.join(known)}, each once"
            )
        if exclusive:
            labels.require_exclusive(self.structures, self._description.path.name)
        listed, unlabelled, problems = list_nnunet(folder, self._description.ending, len(self._description.channels))
        if unlabelled:
            self.warn(f"{counted(unlabelled, 'image')} of imagesTs without labels left out")
        expected = self._description.training_cases
        found = sum(case.split is None for case in listed)
        if expected is not None and found != expected:
            self.warn(
                f"imagesTr has {counted(found, 'case')} with labels, but {self._description.path.name} says "
                f"numTraining {expected}; add the missing files, or correct the number"
            )
        prescribed, left_out, split_problems = _prescribed(listed, folder, splits_file, fold)
        if left_out:
            count = counted(len(left_out), "case")
            self.warn(f"{count} of imagesTr in no list of fold {fold}, so left out: {named(sorted(left_out))}")
        listed = [case for case in listed if case.case_id not in left_out]
        self.raters: tuple[str, ...] = tuple(
            sorted({rater for case in listed for rater in case.labels}, key=natural_key)
        )
        self.facts = {"channels": ", ".join(self._description.channels)}
        self._stacked = self.preparation({"standardise": standardise})
        self._cases = {case.case_id: case for case in listed}
        files = [_file_case(case, prescribed.get(case.case_id, case.split)) for case in listed]
        settings = {
            "standardise": standardise,
            "raters": list(self.raters),
            "structures": {name: list(labels.structures[name]) for name in self.structures},
            "labels": [[number, name] for number, name in labels.names.items()],
            "ignore": labels.ignore,
            "channels": list(self._description.channels),
        }
        self.check(files, [*problems, *split_problems, *spelling_problems("raters", self.raters)], settings)

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Stacked:
        """Return how image files become channels, see `CaseSource.preparation`."""
        return Stacked(standardise=bool(settings.get("standardise", True)))

    def probability_channels(self, channels: int) -> ProbabilityChannels | None:
        """Return the channels of each structure in nnU-Net's probabilities, see `CaseSource.probability_channels`."""
        numbers = self._description.labels.structures
        if self._description.has_regions:
            parts = [[list(numbers).index(name)] for name in self.structures]
            return ProbabilityChannels(parts, exclusive=False) if channels == len(numbers) else None
        if channels != 1 + max(number for of_one in numbers.values() for number in of_one):
            return None
        return ProbabilityChannels([numbers[name] for name in self.structures], exclusive=True)

    @property
    def turned_probabilities(self) -> bool:
        """Whether nnU-Net turns the axes of its probabilities, see `CaseSource.turned_probabilities`."""
        return self._description.reader == REORIENTED

    def _read(self, case: FileCase) -> RaterSample:
        files = self._cases[case.record.case_id]
        reading = CaseReading(case.record.case_id, self.root)
        labels = self._description.labels
        images = [self._named(path, reading.file(path, read_image)) for path in files.images]
        maps = {rater: self._named(path, reading.file(path, labels.read)) for rater, path in files.labels.items()}
        found = [image.image for image in images if image is not None]
        count, wanted = sum(len(image.array) for image in found), len(self._description.channels)
        if len(found) == len(images) and count != wanted:
            named = ", ".join(self._description.channels)
            reading.report(files.images[0], f"has {count} of {wanted} channels ({named}); add the files of the others")
        compare_grids(reading, [file for file in (*images, *maps.values()) if file is not None])
        reading.finish()
        found_maps = {rater: file.image.array for rater, file in maps.items() if file is not None}
        return stack_case(
            case.record.case_id,
            self._stacked.channels(found),
            {
                (rater, name): labels.mask(array, name)
                for rater, array in found_maps.items()
                for name in self.structures
            },
            self.raters,
            self.structures,
            spacing=found[0].spacing,
            affine=found[0].affine,
            origin=found[0].origin,
            region=labels.region(found_maps.values()),
            content=content_digest([image.array for image in found]),
        )

    def _named(self, path: Path, image: ImageFile | None) -> NamedImage | None:
        return None if image is None else NamedImage(relative_name(path, self.root), image)


def _file_case(case: NnunetCase, split: Split | None) -> FileCase:
    files = {f"image {number}": path for number, path in enumerate(case.images)}
    files |= {f"label {rater}": path for rater, path in case.labels.items()}
    return FileCase(CaseRecord(case.case_id, case.case_id, split), files)


def _prescribed(
    cases: Sequence[NnunetCase], folder: Path, splits_file: str | None, fold: int
) -> tuple[Mapping[str, Split], set[str], list[str]]:
    """Return the splits that a fold of nnU-Net prescribes, the cases that it does not use, and problems.

    A case in neither list takes no part, as in nnU-Net. There is one problem per name that is no case.
    """
    if splits_file is None:
        return {}, set(), []
    path = folder / splits_file
    train, val = read_fold(path, fold)
    known = {case.case_id for case in cases if case.split is None}
    problems = [f"{path.name}: case {name!r}: is no case of imagesTr; add it" for name in sorted((train | val) - known)]
    left_out = known - train - val
    if any(case.split == "test" for case in cases):
        return {**dict.fromkeys(train, "train"), **dict.fromkeys(val, "val")}, left_out, problems
    return dict.fromkeys(val, "test"), left_out, problems
