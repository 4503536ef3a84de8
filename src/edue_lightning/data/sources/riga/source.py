"""RIGA's fundus photographs with six ophthalmologists' outlines of optic disc and cup, as a source of cases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from edue_lightning.data.file_source import (
    CaseError,
    CaseReading,
    FileCase,
    FileSource,
    problem_line,
    relative_name,
    stack_case,
)
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import ImageError, read_colours
from edue_lightning.data.patches import cut_square
from edue_lightning.data.preparation import SquarePicture, disc_caveat, resized
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.riga.drawings import Drawing, recover
from edue_lightning.data.sources.riga.releases import RATERS, RigaCase, list_riga
from edue_lightning.errors import UserError
from edue_lightning.text import times

log = logging.getLogger(__name__)

Structure = Literal["disc", "cup"]
Masks = dict[tuple[str, str], NDArray[np.bool_]]

TEST_ORIGIN = "Magrabia"
"""Origin of the test cases, as in Ji et al., CVPR 2021; validation cases are drawn from BinRushed and MESSIDOR."""


class RigaSource(FileSource):
    """RIGA: colour fundus photographs with the outlines of optic disc and cup by six ophthalmologists.

    - Cases: 750 photographs from three origins, BinRushed (195), Magrabia (95) and MESSIDOR (460). Magrabia is the test
      split (as in Ji et al., CVPR 2021); validation cases are drawn from the other two.
    - Raters: six ophthalmologists, the same in all cases. A few drawings have no recognisable outlines.
    - Source: the raw release is "RIGA" on Deep Blue Data (University of Michigan, doi 10.7302/Z23R0R29), where its
      licence is stated; DiscRegion comes with MRNet (Ji et al.), RIGA+ is Zenodo record 6325549. See `releases`.
    - Cite: Almazroa et al., "Retinal fundus images for glaucoma analysis: the RIGA dataset", SPIE Medical Imaging 2018;
      for DiscRegion also Ji et al., "Learning calibrated medical image segmentation via multi-rater agreement
      modeling", CVPR 2021.

    A case has three channels (red, green, blue) in [0, 1], `[3, size, size]`, around the optic disc. In the raw release
    the drawn outlines are found and filled (see `recover`), then a square is cut out. Its centre is that of the box
    around the disc that at least half of the raters marked, and its edge is a share of the photograph's height, so that
    its scale does not depend on the disc. Beyond the photograph it is black. The other releases are crops around the
    disc already. Image and masks are brought to the size by Pillow's bilinear filter, which averages where it shrinks;
    masks are then thresholded at one half. A drawing without an inner outline is an empty cup.

    Args:
        root: folder with a release, see `releases`.
        structures: disc, cup or both, in this order.
        crop: edge of the square as a share of the photograph's height; of the raw release only.
        size: edge of the image in pixels.
        leave_out_unusable: whether to treat a drawing without recognisable outlines as a missing rater, and to leave
            out cases without photograph or outlines, each with a line in the log; otherwise each is a problem.
        cache: folder for prepared cases, see `FileSource`.

    Raises:
        UserError: if the folder does not exist or a setting is invalid.
    """

    raters = tuple(f"rater {number}" for number in RATERS)

    def __init__(
        self,
        root: str | None = None,
        structures: Sequence[Structure] = ("disc", "cup"),
        crop: float = 0.5,
        size: int = 256,
        leave_out_unusable: bool = False,
        cache: str | None = None,
    ) -> None:
        super().__init__(root, cache)
        if not structures or not set(structures) <= {"disc", "cup"} or len(set(structures)) < len(structures):
            raise UserError(f"data.source.structures={list(structures)}: take disc, cup or both, each once")
        if not 0 < crop <= 1 or size < 1:
            raise UserError(f"data.source: crop={crop} must be a share from 0 to 1, and size={size} at least 1")
        self.structures = tuple(structures)
        self.crop = crop
        self.size = size
        self.leave_out_unusable = leave_out_unusable
        listed, problems, left_out = list_riga(self.root, leave_out_unusable)
        for line in left_out:
            log.warning("left out: %s", line)
        self._cases = {case.case_id: case for case in listed}
        settings = {
            "structures": list(structures),
            "crop": crop,
            "size": size,
            "leave_out_unusable": leave_out_unusable,
        }
        self.check([_file_case(case) for case in listed], problems, settings)
        # cases read from the cache do not log again what was left out of them
        kept = {case.case_id: self.raters_of(case.case_id) for case in listed}
        lost = sum(len(case.raters) - kept[case.case_id] for case in listed if kept[case.case_id])
        if lost:
            log.warning("%d drawings are left out; data.source.leave_out_unusable=false lists them", lost)

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> SquarePicture:
        """Return the preparation of whole photographs, see `CaseSource.preparation`.

        Without raters the place of the disc is unknown: photographs must be cut around it as those of training were.
        """
        return SquarePicture(int(settings.get("size", 256)))

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:
        """Return that new photographs are not cut, see `CaseSource.new_image_caveat`."""
        exception = " (DiscRegion and RIGA+: as they are published)"
        return disc_caveat(float(settings.get("crop", 0.5)), int(settings.get("size", 256)), exception)

    def _read(self, case: FileCase) -> RaterSample:
        files = self._cases[case.record.case_id]
        reading = CaseReading(files.case_id, self.root)
        photograph = np.zeros((1, 1, 3), dtype=np.uint8)
        try:
            photograph = read_colours(files.photograph)
        except ImageError as error:
            reading.report(files.photograph, str(error))
            # without it there is nothing to compare the drawings with
            reading.finish()
        masks: Masks = {}
        for rater, path in files.raters.items():
            try:
                found = self._outlines(photograph, path, files.drawn)
            except ImageError as error:
                self._refuse(reading, files, path, str(error))
            else:
                cup = np.zeros_like(found.disc) if found.cup is None else found.cup
                masks |= {(f"rater {rater}", "disc"): found.disc, (f"rater {rater}", "cup"): cup}
        reading.finish()
        if not masks:
            left_out = problem_line(files.photograph.name, files.case_id, "none of its drawings is left")
            log.warning("left out: %s", left_out)
            raise CaseError(())
        content = content_digest([np.moveaxis(photograph, -1, 0) / np.float32(255)])
        if files.drawn:
            photograph, masks = self._around_disc(photograph, masks)
        image = self.preparation({"size": self.size}).channels(np.moveaxis(photograph.astype(np.float32), -1, 0))
        square = (self.size, self.size)
        scaled = {key: resized(mask, square) >= 0.5 for key, mask in masks.items() if key[1] in self.structures}
        return stack_case(files.case_id, image / np.float32(255), scaled, self.raters, self.structures, content=content)

    def _outlines(self, photograph: NDArray[np.uint8], path: Path, drawn: bool) -> Drawing:
        if drawn:
            return recover(photograph, read_colours(path))
        mask = _disc_and_cup(read_colours(path))
        if mask.disc.shape != photograph.shape[:2]:
            sizes = [times(shape) for shape in (mask.disc.shape, photograph.shape[:2])]
            raise ImageError(f"is {sizes[0]}, but its photograph is {sizes[1]}; replace one of them")
        return mask

    def _refuse(self, reading: CaseReading, files: RigaCase, path: Path, problem: str) -> None:
        """Note a rater's file that cannot be used: as a problem or, for a drawing and by choice, in the log."""
        if not files.drawn:
            reading.report(path, problem)
        elif self.leave_out_unusable:
            log.warning("left out: %s", problem_line(relative_name(path, self.root), files.case_id, problem))
        else:
            reading.report(path, f"{problem}, or set data.source.leave_out_unusable=true")

    def _around_disc(self, photograph: NDArray[np.uint8], masks: Masks) -> tuple[NDArray[np.uint8], Masks]:
        discs = [mask for (_, structure), mask in masks.items() if structure == "disc"]
        marked = np.mean(discs, axis=0) >= 0.5
        # raters may agree on no pixel
        (box,) = ndimage.find_objects((marked if marked.any() else np.any(discs, axis=0)).astype(np.uint8))
        edge = round(self.crop * photograph.shape[0])
        start = [(part.start + part.stop - edge) // 2 for part in box]
        return cut_square(photograph, start, edge), {key: cut_square(mask, start, edge) for key, mask in masks.items()}


def _file_case(case: RigaCase) -> FileCase:
    record = CaseRecord(
        case.case_id, case.case_id, split="test" if case.origin == TEST_ORIGIN else None, stratum=case.origin
    )
    return FileCase(record, {"photograph": case.photograph, **case.raters}, {"drawn": case.drawn})


def _disc_and_cup(colours: NDArray[np.uint8]) -> Drawing:
    """Return disc and cup of a mask with one value for the disc's rim and another for the cup.

    DiscRegion writes 255 for the cup and less for the rim, RIGA+ 128 for the cup and 255 for the rim, with a background
    of 0; of RIGA+ it is also said that the background is 255, the rim 128 and the cup 0. Their places decide: most of
    the border is background, and the rim lies along it.

    Raises:
        ImageError: if there are other values, or both lie along the background alike.
    """
    values = colours[..., 0]
    if (colours != values[..., None]).any():
        raise ImageError("is coloured; save the mask as one channel of the background's value, the rim's and the cup's")
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    background = int(np.bincount(border).argmax())
    labels = [int(value) for value in np.unique(values) if value != background]
    if len(labels) > 2:
        raise ImageError(
            f"holds the values {background}, {', '.join(map(str, labels))}; a mask holds those of the background, the "
            "rim and the cup"
        )
    if background and 0 not in labels:
        raise ImageError(f"its border is {background}, and no pixel is 0; correct the mask")
    disc = values != background
    if len(labels) < 2:
        return Drawing(disc, None)
    beside_background = ndimage.binary_dilation(~disc) & disc
    along = [int(np.count_nonzero(beside_background & (values == label))) for label in labels]
    if along[0] == along[1]:
        raise ImageError("its two values lie along the background alike; correct the mask")
    cup = labels[int(np.argmin(along))]
    return Drawing(disc, values == cup)
