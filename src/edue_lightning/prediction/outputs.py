"""Files of a prediction, on the voxels of the case's own image, for viewers to overlay."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.atomic import write_whole
from edue_lightning.data.images import NIFTI, affine_of, header_of
from edue_lightning.data.itk_volumes import ITK_VOLUMES, itk_file
from edue_lightning.data.new_images import ImageCase
from edue_lightning.data.preparation import PreparedImage
from edue_lightning.errors import UserError
from edue_lightning.prediction.case_maps import case_maps
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.prediction.triage_page import layers_name, layers_script
from edue_lightning.reporting.overlay import overlay_figure
from edue_lightning.uncertainty import reached

MASK, PROBABILITY, OVERLAY = "mask", "probability", "overlay"
DISAGREEMENT, TOTAL_VARIANCE = "disagreement", "total_variance"


def write_estimate(
    folder: Path,
    case: ImageCase,
    prepared: PreparedImage,
    estimate: Estimate,
    structures: Sequence[str],
    titles: Mapping[str, str],
) -> list[str]:
    """Write mask, mean probability, disagreement map, overview picture and layers for the page of each structure.

    For volumes and NIfTI slices the files have the format of the case's own (first) file and the place in its header,
    so that every viewer places them on it (`.mha` and `.nrrd` for `.mhd` and `.nhdr`, NIfTI for a DICOM series). For
    pictures the mask is a PNG file of 0 and 255, and the maps are TIFF files of floating-point numbers. With several
    structures, which may overlap, each has its own files.

    Args:
        folder: existing folder for the files.
        case: images of the case.
        prepared: image as the network saw it.
        estimate: prediction for it.
        structures: names of the K structures.
        titles: title of each structure's picture.

    Returns:
        names of the files.

    Raises:
        UserError: if one cannot be written.
    """
    written = []
    variance = DISAGREEMENT if estimate.has_disagreement else TOTAL_VARIANCE
    try:
        for k, structure in enumerate(structures):
            probability = prepared.on_file(estimate.probability[k])
            disagreement = prepared.on_file(estimate.disagreement[k])
            mask = reached(prepared.on_file(estimate.decision[k]), float(estimate.thresholds[k]))
            ending = f"__{structure}" if len(structures) > 1 else ""
            for name, values in (
                (MASK, mask.astype(np.uint8)),
                (PROBABILITY, probability),
                (variance, np.maximum(disagreement, 0)),
            ):
                written.append(_save(folder, f"{case.case_id}__{name}{ending}", values, case.files[0]))
            maps = case_maps(prepared, estimate, k)
            title = f"{case.case_id}, {structure}: {titles[structure]}"
            figure = overlay_figure(maps, title, variance)
            picture = f"{case.case_id}__{OVERLAY}{ending}.png"
            write_whole(folder / picture, lambda path, figure=figure: figure.savefig(path, dpi=100, format="png"))  # type: ignore[misc]
            written.append(picture)
            layers = layers_name(case.case_id, structure, len(structures))
            script = layers_script(layers, maps, "disagreement" if estimate.has_disagreement else "p(1 - p)")
            write_whole(folder / layers, lambda path, script=script: path.write_text(script))  # type: ignore[misc]
            written.append(layers)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written ({reason}); free some space or choose another output") from error
    return written


def _save(folder: Path, name: str, values: NDArray, like: Path) -> str:
    if like.is_dir():
        affine = affine_of(like)
        image = nibabel.Nifti1Image(values, affine)
        # both transformations, since viewers differ in which one they use
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
        content = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
        write_whole(folder / f"{name}.nii.gz", lambda path: path.write_bytes(content))
        return f"{name}.nii.gz"
    if like.name.lower().endswith(ITK_VOLUMES):
        content, ending = itk_file(values, like)
        write_whole(folder / f"{name}{ending}", lambda path: path.write_bytes(content))
        return f"{name}{ending}"
    if like.name.lower().endswith(NIFTI):
        file = f"{name}.nii.gz"
        content = gzip.compress(_nifti(values, like).to_bytes(), compresslevel=4, mtime=0)
        write_whole(folder / file, lambda path: path.write_bytes(content))
        return file
    picture = Image.fromarray(values * np.uint8(255) if values.dtype == np.uint8 else values)
    file, form = (f"{name}.png", "PNG") if values.dtype == np.uint8 else (f"{name}.tif", "TIFF")
    save: Callable[[Path], object] = lambda path: picture.save(path, format=form)  # noqa: E731
    write_whole(folder / file, save)
    return file


def _nifti(values: NDArray, like: Path) -> nibabel.Nifti1Image:
    """Return an image with the geometry of another file's header, and nothing else from it."""
    original = header_of(like)
    header = type(original)()
    # both transformations unchanged, since viewers differ in which one they use
    for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"):
        header[name] = original[name]
    for name in ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        header[name] = original[name]
    header.set_data_dtype(values.dtype)
    claimed = tuple(int(length) for length in original.get_data_shape()[: values.ndim + 1])
    # a slice may be stored with a third axis of length one
    shape = (*values.shape, 1) if values.ndim == 2 and claimed[2:3] == (1,) else values.shape
    header.set_data_shape(shape)
    header["pixdim"][: len(shape) + 1] = original["pixdim"][: len(shape) + 1]
    made = nibabel.Nifti2Image if isinstance(original, nibabel.Nifti2Header) else nibabel.Nifti1Image
    return made(values.reshape(shape), None, header)
