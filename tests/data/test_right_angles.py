"""Volumes whose axes are not at right angles are refused by every reader, with the angle and the fix."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from patients import tilted

from edue_lightning.data import ManifestSource
from edue_lightning.data.image_limits import RIGHT_ANGLE_TOLERANCE, ImageError, checked_spacing
from edue_lightning.data.images import read_image, read_mask

VOXELS = np.zeros((4, 5, 6), dtype=np.float32)
VOXELS[1:3, 1:3, 1:3] = 1
SHEARED = np.array([[1, 0.6, 0, 0], [0, 0.8, 0, 0], [0, 0, 1.5, 0], [0, 0, 0, 1]])
REFUSAL = r"axes 1 and 2 are at an angle of 53\.13 degrees, not at a right angle.*; resample to a grid with right"


def nifti(path: Path, affine: NDArray[np.float64] = SHEARED) -> Path:
    """Write a volume placed by its sform alone; a qform cannot say a shear."""
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    nibabel.save(image, path)
    return path


def nrrd(path: Path) -> Path:
    lines = [
        *("NRRD0004", "space: right-anterior-superior", "type: float", "dimension: 3", "sizes: 4 5 6"),
        *("endian: little", "encoding: raw", "space directions: (1,0,0) (0.6,0.8,0) (0,0,1.5)"),
        "space origin: (0,0,0)",
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + VOXELS.T.tobytes())
    return path


def metaimage(path: Path) -> Path:
    lines = [
        *("ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"),
        *("TransformMatrix = 1 0 0 0.6 0.8 0 0 0 1", "Offset = 0 0 0", "ElementSpacing = 1 1 1.5", "DimSize = 4 5 6"),
        *("ElementType = MET_FLOAT", "ElementDataFile = LOCAL"),
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n" + VOXELS.T.tobytes())
    return path


def turned(degrees: float) -> NDArray[np.float64]:
    """Return an oblique affine whose first and second axis are at such an angle."""
    angle = np.radians(degrees)
    axes = np.array([[1, np.cos(angle), 0], [0, np.sin(angle), 0], [0, 0, 1]]) * [0.7, 0.9, 3.0]
    affine = np.eye(4)
    affine[:3, :3] = tilted(17.0) @ axes
    return affine


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(("name", "write"), [("a.nii.gz", nifti), ("a.nrrd", nrrd), ("a.mha", metaimage)])
def test_a_sheared_volume_is_refused_by_every_reader(tmp_path: Path, name: str, write: object, read: object) -> None:
    assert callable(write)
    assert callable(read)
    with pytest.raises(ImageError, match=REFUSAL):
        read(write(tmp_path / name))


def test_a_data_set_names_the_file(tmp_path: Path) -> None:
    nifti(tmp_path / "image.nii")
    nifti(tmp_path / "mask.nii")
    (tmp_path / "manifest.csv").write_text("case_id,image,mask,rater,structure\none,image.nii,mask.nii,A,s\n")
    problems = list(ManifestSource(str(tmp_path)).problems)
    assert problems
    assert re.search(rf"^image\.nii: case 'one': {REFUSAL}", problems[0])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_rounding_of_headers_is_no_shear(sign: int) -> None:
    within, beyond = (turned(90 + sign * share * RIGHT_ANGLE_TOLERANCE) for share in (0.9, 1.2))
    assert checked_spacing(within, 3) == pytest.approx((0.7, 0.9, 3.0))
    with pytest.raises(ImageError, match=f"axes 1 and 2 are at an angle of {90 + sign * 0.12:.4g} degrees"):
        checked_spacing(beyond, 3)


def test_directions_of_three_digits_are_within_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = np.round(axes, 3) * [0.5, 1.0, 3.0]
        checked_spacing(affine, 3)


def test_the_axis_across_a_slice_does_not_count() -> None:
    affine = np.eye(4)
    affine[:3, 2] = [0, 0.6, 0.8]
    assert checked_spacing(affine, 2) == (1, 1)
    with pytest.raises(ImageError, match=r"axes 2 and 3 are at an angle of 53\.13 degrees"):
        checked_spacing(affine, 3)
