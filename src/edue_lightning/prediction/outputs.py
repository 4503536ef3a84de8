"""Files of a prediction, on the voxels of the case's own image, for viewers to overlay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edue_lightning.atomic import write_whole
from edue_lightning.data.images import ImageError
from edue_lightning.data.new_images import ImageCase
from edue_lightning.data.preparation import PreparedImage
from edue_lightning.errors import UserError
from edue_lightning.prediction.case_maps import case_maps
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.prediction.result_files import MASK, ResultFiles, png_of
from edue_lightning.prediction.triage_page import layers_name, layers_script
from edue_lightning.reporting.overlay import overlay_picture
from edue_lightning.uncertainty import masks_of, reached

__all__ = ["DISAGREEMENT", "MASK", "OVERLAY", "PROBABILITY", "TOTAL_VARIANCE", "write_estimate"]

PROBABILITY, OVERLAY, MEMBER = "probability", "overlay", "member"
DISAGREEMENT, TOTAL_VARIANCE = "disagreement", "total_variance"


def write_estimate(
    folder: Path,
    case: ImageCase,
    prepared: PreparedImage,
    estimate: Estimate,
    structures: Sequence[str],
    titles: Mapping[str, str],
    files: ResultFiles,
) -> list[str]:
    """Write mask, mean probability, disagreement map, layers for the page and overview picture of each structure.

    For volumes and NIfTI slices the files have the format of the case's own (first) file and its place, so that every
    viewer places them on it: `.mha` for `.mhd`; for NRRD maps in `.nrrd` and masks in a `.seg.nrrd`; for a DICOM series
    a SEG and parametric maps. For pictures the mask is a PNG file of 0 and 255, and the maps are TIFF files of
    floating-point numbers. With several structures, which may overlap, each has its own files, but for the masks in
    `.seg.nrrd` and SEG files, which hold all. Where the estimate holds the members,
    each of them has a map of its own, `member_1` and so on.

    Args:
        folder: existing folder for the files.
        case: images of the case.
        prepared: image as the network saw it.
        estimate: prediction for it.
        structures: names of the K structures.
        titles: title of the overview picture by structure; structures without a title get none.
        files: writer of masks and maps.

    Returns:
        names of the files.

    Raises:
        ImageError: if the headers of the case do not allow it; then no file is left.
        UserError: if one cannot be written.
    """
    written: list[str] = []
    masks = dict(zip(structures, _masks(prepared, estimate), strict=True))
    variance = DISAGREEMENT if estimate.has_disagreement else TOTAL_VARIANCE
    images: dict[int, str] = {}
    try:
        for k, (structure, maps) in enumerate(zip(structures, case_maps(prepared, estimate), strict=True)):
            probability = prepared.on_file(estimate.probability[k])
            disagreement = prepared.on_file(estimate.disagreement[k])
            ending = f"__{structure}" if len(structures) > 1 else ""
            for name, values in ((PROBABILITY, probability), (variance, np.maximum(disagreement, 0))):
                written.append(files.map(folder, f"{case.case_id}__{name}{ending}", values, name, structure))
            kept = estimate.member_probabilities
            for number, member in enumerate(() if kept is None else kept, 1):
                name = f"{case.case_id}__{MEMBER}_{number}{ending}"
                written.append(files.map(folder, name, prepared.on_file(member[k]), PROBABILITY, structure, number))
            if structure in titles:
                drawn = overlay_picture(maps, f"{case.case_id}, {structure}: {titles[structure]}", variance)
                picture = f"{case.case_id}__{OVERLAY}{ending}.png"
                content = png_of(drawn)
                write_whole(folder / picture, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
                written.append(picture)
            layers = layers_name(case.case_id, structure, len(structures))
            script = layers_script(layers, maps, "disagreement" if estimate.has_disagreement else "p(1 - p)", images)
            write_whole(folder / layers, lambda path, script=script: path.write_text(script))  # type: ignore[misc]
            written.append(layers)
        written += files.masks(folder, case.case_id, masks)
    except ImageError:
        for name in written:
            (folder / name).unlink(missing_ok=True)
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written ({reason}); free some space or choose another output") from error
    return written


def _masks(prepared: PreparedImage, estimate: Estimate) -> list[NDArray[np.bool_]]:
    """Return the mask of each structure on the voxels of the file."""
    if estimate.exclusive:
        decision = torch.from_numpy(np.stack([prepared.on_file(values) for values in estimate.decision]))
        return list(masks_of(decision, estimate.thresholds, exclusive=True).numpy())
    pairs = zip(estimate.decision, estimate.thresholds, strict=True)
    return [reached(prepared.on_file(values), float(threshold)) for values, threshold in pairs]
