"""Masks and maps of a case as files, in the format of its own file or in another one."""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.atomic import write_whole
from edue_lightning.data.images import NIFTI, VOLUMES, ImageError, affine_of, header_of
from edue_lightning.data.itk_volumes import ITK_VOLUMES, NRRD, SEGMENTATION, itk_file, nrrd_file, segmentation_file
from edue_lightning.prediction.dicom_results import DicomResults, Maker
from edue_lightning.reporting.figures import COLOURS

log = logging.getLogger(__name__)

Format = Literal["nifti", "nrrd", "dicom"]
MASK = "mask"


class ResultFiles(ABC):
    """Writer of the masks and maps of one case, on the voxels `*F` of its own file."""

    @abstractmethod
    def masks(self, folder: Path, case_id: str, masks: Mapping[str, NDArray[np.bool_]]) -> list[str]:
        """Write the mask of each structure, and return the names of the files.

        Raises:
            ImageError: if the case's own file does not allow it.
            OSError: if a file cannot be written.
        """

    @abstractmethod
    def map(
        self,
        folder: Path,
        name: str,
        values: NDArray[np.float32],
        quantity: str,
        structure: str,
        member: int | None = None,
    ) -> str:
        """Write a map, and return the name of the file, which is `name` with an ending.

        Args:
            folder: existing folder for the file.
            name: name of the file without its ending.
            values: `[*F]`.
            quantity: `probability`, `disagreement` or `total_variance`.
            structure: name of the structure.
            member: number of the member whose map it is, from 1; None for that of all members.

        Raises:
            ImageError: if the case's own file does not allow it.
            OSError: if the file cannot be written.
        """


def result_files(like: Path, form: Format | None, maker: Maker) -> ResultFiles:
    """Return the writer of a case's results.

    Args:
        like: first image file of the case, or the folder of its DICOM series.
        form: format of the results; None for that of the image.
        maker: what made the results.

    Raises:
        ImageError: if the format that was asked for cannot hold the results.
    """
    name = like.name.lower()
    if form == "dicom" and not like.is_dir():
        raise ImageError(f"{like.name}: is no DICOM series, so no DICOM object can refer to it; set format=null")
    if form is not None and not like.is_dir() and not name.endswith(VOLUMES):
        raise ImageError(f"{like.name}: is a picture; its results are PNG and TIFF files, so set format=null")
    if like.is_dir() and form in (None, "dicom"):
        try:
            return _Dicom(DicomResults(like, maker))
        except ImageError as error:
            if form is not None:
                raise ImageError(f"{like.name}: {error}") from error
            log.warning("%s: results are NIfTI files, not DICOM objects: %s", like.name, error)
            form = "nifti"
    if form == "nrrd" or (form is None and name.endswith(NRRD)):
        return _Nrrd(like)
    return _Single(_single(like, form))


class _Single(ResultFiles):
    """One file per structure."""

    def __init__(self, save: Callable[[Path, str, NDArray], str]) -> None:
        self._save = save

    def masks(self, folder: Path, case_id: str, masks: Mapping[str, NDArray[np.bool_]]) -> list[str]:
        endings = {name: f"__{name}" if len(masks) > 1 else "" for name in masks}
        return [
            self._save(folder, f"{case_id}__{MASK}{endings[name]}", mask.astype(np.uint8))
            for name, mask in masks.items()
        ]

    def map(
        self,
        folder: Path,
        name: str,
        values: NDArray[np.float32],
        quantity: str,  # noqa: ARG002
        structure: str,  # noqa: ARG002
        member: int | None = None,  # noqa: ARG002
    ) -> str:
        return self._save(folder, name, values)


class _Nrrd(_Single):
    """NRRD files; the masks of a volume in one segmentation of 3D Slicer."""

    def __init__(self, like: Path) -> None:
        affine = affine_of(like)
        assert affine is not None, "a volume has a place"
        self._affine = affine

        def save(folder: Path, name: str, values: NDArray) -> str:
            # a slice keeps the number of axes of its own file
            as_stored = values.ndim == 2 and like.name.lower().endswith(NRRD)
            content = itk_file(values, like)[0] if as_stored else nrrd_file(values, affine)
            write_whole(folder / f"{name}{NRRD[0]}", lambda path: path.write_bytes(content))
            return f"{name}{NRRD[0]}"

        super().__init__(save)

    def masks(self, folder: Path, case_id: str, masks: Mapping[str, NDArray[np.bool_]]) -> list[str]:
        # 3D Slicer has no segmentations of slices
        if next(iter(masks.values())).ndim == 2:
            return super().masks(folder, case_id, masks)
        name = f"{case_id}__{MASK}{SEGMENTATION}"
        content = segmentation_file(masks, colours_of(len(masks)), self._affine)
        write_whole(folder / name, lambda path: path.write_bytes(content))
        return [name]


class _Dicom(ResultFiles):
    def __init__(self, results: DicomResults) -> None:
        self._results = results

    def masks(self, folder: Path, case_id: str, masks: Mapping[str, NDArray[np.bool_]]) -> list[str]:
        name = f"{case_id}__{MASK}.dcm"
        stacked = np.stack(list(masks.values()))
        content = self._results.segmentation(stacked, list(masks), colours_of(len(masks)))
        write_whole(folder / name, lambda path: path.write_bytes(content))
        return [name]

    def map(
        self,
        folder: Path,
        name: str,
        values: NDArray[np.float32],
        quantity: str,
        structure: str,
        member: int | None = None,
    ) -> str:
        content = self._results.map(values, quantity, structure, member)
        write_whole(folder / f"{name}.dcm", lambda path: path.write_bytes(content))
        return f"{name}.dcm"


def colours_of(count: int) -> list[str]:
    """Return colours for some structures; beyond eight they repeat."""
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _single(like: Path, form: Format | None) -> Callable[[Path, str, NDArray], str]:
    """Return the function that writes one array in a format, and returns the name of its file."""
    name = like.name.lower()

    def save(folder: Path, stem: str, values: NDArray) -> str:
        if form is None and name.endswith(ITK_VOLUMES):
            content, ending = itk_file(values, like)
        elif name.endswith(NIFTI) or form == "nifti":
            image = nifti_like(values, like) if name.endswith(NIFTI) else _placed(values, like)
            content, ending = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0), ".nii.gz"
        else:
            return _picture(folder, stem, values)
        write_whole(folder / f"{stem}{ending}", lambda path: path.write_bytes(content))
        return f"{stem}{ending}"

    return save


def _picture(folder: Path, stem: str, values: NDArray) -> str:
    is_mask = values.dtype == np.uint8
    picture = Image.fromarray(values * np.uint8(255) if is_mask else values)
    name = f"{stem}.png" if is_mask else f"{stem}.tif"
    content = png_of(picture) if is_mask else _encoded(picture, "TIFF")
    write_whole(folder / name, lambda path: path.write_bytes(content))
    return name


def png_of(picture: Image.Image) -> bytes:
    """Return the content of a PNG file, packed by the lengths of runs: fast, and small for masks and drawings.

    PNG stores differences between neighbouring pixels, which are zero over large parts of such pictures; the search
    for longer repetitions takes up to three times as long, and hardly makes them smaller.
    """
    # Pillow takes zlib's number
    return _encoded(picture, "PNG", compress_level=1, compress_type=zlib.Z_RLE)


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    # in memory, since Pillow takes longer to write to a file
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def _placed(values: NDArray, like: Path) -> nibabel.Nifti1Image:
    """Return an image at the place of another one, which is no NIfTI file."""
    affine = affine_of(like)
    image = nibabel.Nifti1Image(values, affine)
    # both transformations, since viewers differ in which one they use
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return image


def nifti_like(values: NDArray, like: Path) -> nibabel.Nifti1Image:
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
