"""DRISHTI-GS1's fundus photographs with the votes of four experts on optic disc and cup, as a source of cases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from edue_lightning.data.file_source import CaseReading, FileCase, FileSource, stack_case
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import ImageError, ImageFile, read_colours
from edue_lightning.data.patches import cut_square
from edue_lightning.data.preparation import SquarePicture, disc_caveat, resized
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.drishti.layout import STRUCTURES, DrishtiCase, list_drishti
from edue_lightning.data.votes import level_mask, read_votes
from edue_lightning.errors import UserError
from edue_lightning.text import times

log = logging.getLogger(__name__)

EXPERTS = 4
_MOST_NAMED = 3


class DrishtiSource(FileSource):
    """DRISHTI-GS1: colour fundus photographs with the votes of four experts on optic disc and cup.

    - Cases: 101 photographs (about 2050x1750), 50 of the part `Training` and 51 of `Test`, which is the test split.
    - Raters: four eye experts. Soft maps say how many of them marked a pixel, 0, 64, 128, 191 or 255 for 0 to 4; their
      own outlines are not published. The rater axis holds the four nested masks of at least 1, 2, 3 and 4 votes, which
      have the votes' shares and variances. See `data.votes`.
    - Source: cvit.iiit.ac.in/projects/mip/drishti-gs, where its terms are stated.
    - Cite: Sivaswamy et al., "Drishti-GS: Retinal image dataset for optic nerve head (ONH) segmentation", ISBI 2014;
      Sivaswamy et al., "A Comprehensive Retinal Image Dataset for the Assessment of Glaucoma from the Optic Nerve Head
      Analysis", JSM Biomedical Imaging Data Papers 2, 2015.

    A case has three channels (red, green, blue) in [0, 1], `[3, size, size]`: a square around the box of the disc that
    at least two experts marked, whose edge is a share of the photograph's height; or the whole photograph, padded to a
    square. Image and level masks are brought to the size by Pillow's bilinear filter, which averages where it shrinks.

    Args:
        root: folder with `Training`, `Test` or both, at any depth.
        structures: disc, cup or both, in this order.
        crop: edge of the square as a share of the photograph's height, or None for the whole photograph.
        size: edge of the image in pixels.
        cache: see `FileSource`.

    Raises:
        UserError: if the folder does not exist or a setting is invalid.
    """

    votes = True

    def __init__(
        self,
        root: str | None = None,
        structures: Sequence[Literal["disc", "cup"]] = STRUCTURES,  # type: ignore[assignment]
        crop: float | None = 0.5,
        size: int = 256,
        cache: str | None = None,
    ) -> None:
        super().__init__(root, cache)
        if not structures or not set(structures) <= set(STRUCTURES) or len(set(structures)) < len(structures):
            raise UserError(f"data.source.structures={list(structures)}: take disc, cup or both, each once")
        if size < 1 or (crop is not None and not 0 < crop <= 1):
            raise UserError(f"data.source: crop={crop} must be a share from 0 to 1, and size={size} at least 1")
        self.structures = tuple(structures)
        self.crop = crop
        self.size = size
        listed, problems, left_out = list_drishti(self.root)
        if left_out:
            self.warn(f"{len(left_out)} photographs have no soft maps and are left out: {', '.join(left_out[:3])}, ...")
        self._cases = {case.case_id: case for case in listed}
        self.facts = {"votes": f"of {EXPERTS} experts, read as nested level masks; who gave them is unknown"}
        settings = {"structures": list(structures), "crop": crop, "size": size}
        self.check([_file_case(case) for case in listed], problems, settings)

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> SquarePicture:
        """Return the preparation of whole photographs, see `CaseSource.preparation`.

        Without votes the place of the disc is unknown: photographs must be cut around it as those of training were.
        """
        return SquarePicture(int(settings.get("size", 256)))

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:
        """Return that new photographs are neither cut nor padded, see `CaseSource.new_image_caveat`."""
        crop, size = settings.get("crop", 0.5), int(settings.get("size", 256))
        if crop is not None:
            return disc_caveat(float(crop), size)
        return (
            "was trained on whole photographs with black borders that make them square, but resizes new ones to "
            f"{size}x{size} as they are; add black borders first, equal on opposite sides"
        )

    def _read(self, case: FileCase) -> RaterSample:
        files = self._cases[case.record.case_id]
        reading = CaseReading(files.case_id, self.root)
        photograph: NDArray[np.uint8] | None = None
        try:
            photograph = read_colours(files.photograph)
        except ImageError as error:
            reading.report(files.photograph, str(error))
        votes: dict[str, NDArray[np.uint8]] = {}
        for structure, path in files.maps.items():
            found = reading.file(path, _four_votes)
            if found is None:
                continue
            votes[structure] = found.array.astype(np.uint8)
            if photograph is not None and found.shape != photograph.shape[:2]:
                sizes = times(found.shape), times(photograph.shape[:2])
                reading.report(path, f"is {sizes[0]}, but its photograph is {sizes[1]}; replace one of them")
        reading.finish()
        assert photograph is not None, "a missing photograph was reported"
        content = content_digest([np.moveaxis(photograph, -1, 0) / np.float32(255)])
        start, edge = self._square(votes["disc"], photograph.shape[0])
        image = self.preparation({"size": self.size}).channels(
            np.moveaxis(cut_square(photograph, start, edge).astype(np.float32), -1, 0)
        )
        masks = {
            (f"level {level}", structure): resized(
                level_mask(cut_square(votes[structure], start, edge), level), 2 * (self.size,)
            )
            >= 0.5
            for level in range(1, EXPERTS + 1)
            for structure in self.structures
        }
        levels = [f"level {level}" for level in range(1, EXPERTS + 1)]
        return stack_case(files.case_id, image / np.float32(255), masks, levels, self.structures, content=content)

    def _square(self, disc: NDArray[np.uint8], height: int) -> tuple[list[int], int]:
        """Return the first row and column of the square to cut, and its edge."""
        if self.crop is None:
            edge = max(disc.shape)
            return [(length - edge) // 2 for length in disc.shape], edge
        marked = level_mask(disc, EXPERTS // 2)
        boxes = ndimage.find_objects((marked if marked.any() else disc > 0).astype(np.uint8))
        # without a vote, around the middle
        box = boxes[0] if boxes else tuple(slice(0, length) for length in disc.shape)
        edge = round(self.crop * height)
        return [(part.start + part.stop - edge) // 2 for part in box], edge


def _four_votes(path: object) -> ImageFile:
    return read_votes(path, EXPERTS)  # type: ignore[arg-type]


def _file_case(case: DrishtiCase) -> FileCase:
    return FileCase(CaseRecord(case.case_id, case.case_id, case.split), {"photograph": case.photograph, **case.maps})
