"""PAPILA's photographs as a source of multi-rater cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.file_source import CaseReading, FileCase, FileSource, stack_case
from edue_lightning.data.identity import content_digest
from edue_lightning.data.images import ImageError, read_image
from edue_lightning.data.patches import cut_square
from edue_lightning.data.preparation import Preparation, SquarePicture, Stacked, disc_caveat, resized
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord
from edue_lightning.data.sources.papila.layout import EXPERTS, STRUCTURES, fill_contour, list_papila, read_contour
from edue_lightning.errors import UserError


class PapilaSource(FileSource):
    """PAPILA: fundus photographs of both eyes of 244 patients, optic disc and cup outlined by two experts.

    - Cases and raters: 488 photographs (2576x1934), each with two contours by two ophthalmologists. Both eyes of a
      patient are one group.
    - Source: figshare 14798004 (folder `PapilaDB-PAPILA-...` with `FundusImages` and `ExpertsSegmentations/Contours`).
    - Licence: CC BY 4.0, as figshare states it; see the page of the download.
    - Cite: Kovalyk et al., "PAPILA: Dataset with fundus images and clinical data of both eyes of the same patient for
      glaucoma assessment", Scientific Data 9, 291, 2022.

    A mask has the pixels whose centres lie inside the contour or on it, see `fill_contour`. A square of `crop` times
    the height of the photograph around the mean centre of the experts' discs is resized to `size`; masks are resized
    like the image and thresholded at one half. Photographs have no voxel size. Copies of contours in the archive are
    skipped.

    Args:
        root: folder of the download, at any depth.
        size: edge of the samples in pixels.
        crop: edge of the square as a share of the photograph's height; None for the whole photograph at its own size.
        cache: see `FileSource`.

    Raises:
        UserError: if the folder does not exist or a setting is invalid.
    """

    structures = STRUCTURES
    raters = EXPERTS

    def __init__(
        self, root: str | None = None, size: int = 256, crop: float | None = 0.5, cache: str | None = None
    ) -> None:
        super().__init__(root, cache)
        if size < 1:
            raise UserError(f"data.source.size={size}: give the edge of the samples, at least 1 pixel")
        if crop is not None and not 0 < crop <= 1:
            raise UserError(f"data.source.crop={crop}: give a share of the height, above 0 and up to 1, or null")
        self._picture = SquarePicture(size)
        self._crop = crop
        listed, problems, copies = list_papila(self.root)
        self._cases = {case.case_id: case for case in listed}
        if copies:
            self.warn(f"{len(copies)} copies of contours are skipped, such as {copies[0]}")
        files = [
            FileCase(
                CaseRecord(case.case_id, case.patient),
                {"image": case.image, **{" ".join(key): path for key, path in case.contours.items()}},
            )
            for case in listed
        ]
        self.check(files, problems, {"size": size, "crop": crop})

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Preparation:
        """Return how photographs become channels, see `CaseSource.preparation`.

        Without experts the place of the disc is unknown: photographs must be cut around it as those of training were.
        """
        if settings.get("crop", 0.5) is None:
            return Stacked()
        return SquarePicture(int(settings.get("size", 256)))

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:
        """Return that new photographs are not cut, see `CaseSource.new_image_caveat`."""
        crop = settings.get("crop", 0.5)
        return "" if crop is None else disc_caveat(float(crop), int(settings.get("size", 256)))

    def _read(self, case: FileCase) -> RaterSample:
        files = self._cases[case.record.case_id]
        reading = CaseReading(case.record.case_id, self.root)
        image = reading.file(files.image, read_image)
        masks: dict[tuple[str, str], NDArray[np.bool_]] = {}
        centres = []
        for (expert, structure), path in files.contours.items():
            try:
                points = read_contour(path)
                if image is not None:
                    masks[expert, structure] = fill_contour(points, image.shape)
            except ImageError as error:
                reading.report(path, str(error))
            else:
                if structure == STRUCTURES[0]:
                    centres.append((points.min(axis=0) + points.max(axis=0)) / 2)
        if image is not None and len(image.array) != 3:
            reading.report(files.image, f"has {len(image.array)} channels; save the photograph in colours")
        reading.finish()
        assert image is not None, "a missing image was reported"
        channels = image.array.astype(np.float32, copy=False)
        content = content_digest([channels])
        if self._crop is not None:
            edge = round(self._crop * image.shape[0])
            column, row = np.mean(centres, axis=0)
            start = [round(row - edge / 2), round(column - edge / 2)]
            channels = self._picture.channels(np.stack([cut_square(channel, start, edge) for channel in channels]))
            masks = {
                key: resized(cut_square(mask, start, edge).astype(np.float32), channels.shape[1:]) >= 0.5
                for key, mask in masks.items()
            }
        return stack_case(case.record.case_id, channels, masks, EXPERTS, STRUCTURES, content=content)
