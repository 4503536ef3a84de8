"""Input of a bundle: the channels that `predict` reads, or one line that says why not."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from edue_lightning.config.build import ImageFormat
from edue_lightning.data.geometry import DICOM_SLICE, DIFFERING_SLICES
from edue_lightning.data.new_images import find_images, read_case
from edue_lightning.data.preparation import Preparation, SquarePicture, Stacked
from edue_lightning.data.sources.hecktor.preparation import PetCt
from edue_lightning.errors import UserError
from edue_lightning.exporting.monai_bundle import bundle_configuration
from edue_lightning.methods import Inference

RNG = np.random.default_rng(0)
COLOURS, TWO_PICTURES = ImageFormat(2, 3, ("disc",)), ImageFormat(2, 2, ("disc",))
VOLUME, TWO_VOLUMES = ImageFormat(3, 1, ("node",)), ImageFormat(3, 2, ("node",))
GREY = ImageFormat(2, 1, ("disc",))


def read_by_bundle(folder: Path, preparation: Preparation, image_format: ImageFormat) -> dict[str, torch.Tensor]:
    """Return the prepared images of a folder by case, without any network."""
    parser = ConfigParser(bundle_configuration(preparation, Inference(), image_format, 1, [0.5]))
    parser["dataset_dir"] = str(folder)
    parser["output_dir"] = str(folder / "output")
    parser.get_parsed_content("initialize")
    dataset = parser.get_parsed_content("dataset")
    return {str(data["case"]): torch.as_tensor(data["image"]) for data in (dataset[n] for n in range(len(dataset)))}


def read_by_predict(folder: Path, preparation: Preparation, image_format: ImageFormat) -> dict[str, torch.Tensor]:
    found = find_images(folder, image_format.channels, folder / "output")
    assert not found.problems
    dims, channels = image_format.spatial_dims, image_format.channels
    return {case.case_id: read_case(case, preparation, dims, channels).image for case in found.cases}


def volume(path: Path, shape: tuple[int, ...] = (6, 5, 4), affine: NDArray | None = None) -> None:
    image = nibabel.Nifti1Image(RNG.normal(size=shape).astype(np.float32), np.eye(4) if affine is None else affine)
    nibabel.save(image, path)


def colours(path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (7, 6, 3), dtype=np.uint8)).save(path)


def grey(path: Path, dtype: type = np.uint8) -> None:
    values = RNG.random((7, 6))
    Image.fromarray((values * (1 if dtype is np.float32 else np.iinfo(dtype).max)).astype(dtype)).save(path)


def numbered_colours(folder: Path) -> None:
    for number in range(3):
        colours(folder / f"a_{number:04d}.png")


def pairs(folder: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0001", "b_0000"):
        volume(folder / f"{name}.nii.gz", affine=np.diag([-1.0, 2.0, 1.0, 1.0]))


def grey_pairs(folder: Path) -> None:
    for name in ("a__1", "a__2", "b_0000__1", "b_0000__2"):
        grey(folder / f"{name}.tif", np.float32)


def greys(folder: Path) -> None:
    grey(folder / "eight.png")
    grey(folder / "sixteen.png", np.uint16)
    grey(folder / "sixteen_bits.tif", np.uint16)
    grey(folder / "float.tif", np.float32)
    Image.fromarray(RNG.random((7, 6)) > 0.5).save(folder / "bits.png")


def petct(
    ct: tuple[float, float] = (-1000, 500), pet: tuple[float, float] = (0, 9), shift: float = 0.0
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, (low, high), start in (("CT", ct, 0.0), ("PT", pet, shift)):
            affine = np.diag([-1.0, -1.0, 2.0, 1.0])
            affine[:3, 3] = [start, 3, 7]
            values = RNG.permutation(np.linspace(low, high, 120, dtype=np.float32)).reshape(6, 5, 4)
            nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"a__{name}.nii.gz")

    return write


READ: list[tuple[Callable[[Path], None], Preparation, ImageFormat]] = [
    (numbered_colours, Stacked(standardise=True), COLOURS),
    (numbered_colours, SquarePicture(8), COLOURS),
    (pairs, Stacked(standardise=True), TWO_VOLUMES),
    (grey_pairs, Stacked(), TWO_PICTURES),
    (greys, Stacked(), GREY),
    (petct(), PetCt(), TWO_VOLUMES),
    (petct(), PetCt(spacing=(2, 1.5, 1)), TWO_VOLUMES),
    (petct(shift=2.0), PetCt(), TWO_VOLUMES),
]


@pytest.mark.parametrize(
    ("write", "preparation", "image_format"), READ, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_bundle_reads_the_cases_of_a_prediction(
    tmp_path: Path, write: Callable[[Path], None], preparation: Preparation, image_format: ImageFormat
) -> None:
    write(tmp_path)
    expected = read_by_predict(tmp_path, preparation, image_format)
    found = read_by_bundle(tmp_path, preparation, image_format)
    assert found.keys() == expected.keys()
    for name, image in expected.items():
        torch.testing.assert_close(found[name], image, atol=1e-6, rtol=0)


def header(change: Callable[[nibabel.Nifti1Header], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        image = nibabel.Nifti1Image(np.zeros((6, 5, 4), dtype=np.float32), None)
        image.header.set_sform(np.eye(4), 2)
        change(image.header)
        nibabel.save(image, folder / "a.nii.gz")

    return write


def sheared(header: nibabel.Nifti1Header) -> None:
    affine = np.eye(4)
    affine[:3, 1] = [0.6, 0.8, 0]
    header.set_sform(affine, 1)


def with_nan(folder: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((6, 5, 4), np.nan, dtype=np.float32), np.eye(4)), folder / "a.nii")


def without_offset(folder: Path) -> None:
    volume(folder / "a.nii")
    content = bytearray((folder / "a.nii").read_bytes())
    content[108:112] = bytes(4)
    (folder / "a.nii").write_bytes(content)


def with_tags(**tags: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for name, value in tags.items():
            info[{"photometric": 262, "orientation": 274}[name]] = value
        Image.fromarray(RNG.integers(0, 2**16, (7, 6), dtype=np.uint16)).save(folder / "a.tif", tiffinfo=info)
        content = (folder / "a.tif").read_bytes()
        if "photometric" in tags:  # which Pillow writes itself
            entry = np.array([262, 3], dtype="<u2").tobytes() + np.array([1], dtype="<u4").tobytes()
            place = content.index(entry) + len(entry)
            content = content[:place] + bytes([tags["photometric"], 0]) + content[place + 2 :]
        (folder / "a.tif").write_bytes(content)

    return write


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RNG.integers(0, 256, (7, 6), dtype=np.uint8)).save(folder / "a.jpg", exif=exif)


def pages(folder: Path) -> None:
    picture = Image.fromarray(np.zeros((7, 6), dtype=np.uint8))
    picture.save(folder / "a.tif", save_all=True, append_images=[picture])


REFUSED: list[tuple[Callable[[Path], None], Preparation, ImageFormat, str]] = [
    # volumes with two channels each, numbered as nnU-Net numbers channels
    (
        lambda folder: [volume(folder / f"a_000{n}.nii.gz", (6, 5, 4, 2)) for n in range(3)],
        Stacked(),
        TWO_VOLUMES,
        r"a_0000\.nii\.gz: and a_0001\.nii\.gz, a_0002\.nii\.gz are not the channels of one case",
    ),
    (lambda folder: volume(folder / "a.nii"), Stacked(), TWO_VOLUMES, "a: has another number of channels"),
    (lambda folder: volume(folder / "a.nii", (6, 5, 4, 3)), Stacked(), VOLUME, "a: has another number of channels"),
    (lambda folder: volume(folder / "a.nii", (6, 5)), Stacked(), VOLUME, "a.nii: is no volume"),
    (lambda folder: volume(folder / "a__CT.nii"), PetCt(), TWO_VOLUMES, "a: is not a CT and its PET"),
    (petct(ct=(0, 2000)), PetCt(), TWO_VOLUMES, "a: its CT is not in Hounsfield units"),
    (petct(ct=(300, 301)), PetCt(), TWO_VOLUMES, "a: its CT is not in Hounsfield units, or constant"),
    (petct(pet=(0, 9000)), PetCt(), TWO_VOLUMES, "a: its PET is not in standardised uptake values"),
    (petct(pet=(-9, 5)), PetCt(), TWO_VOLUMES, "a: its PET is not in standardised uptake values"),
    (petct(shift=50.0), PetCt(), TWO_VOLUMES, "a: its CT and PET lie nowhere on each other"),
    (lambda folder: [grey(folder / f"a{end}") for end in (".png", ".tif")], Stacked(), GREY, "are not the channels of"),
    (header(lambda one: one.set_xyzt_units("micron")), Stacked(), VOLUME, "a.nii.gz: its header is not in mm"),
    (
        header(lambda one: one.set_qform(np.diag([-1.0, 1, 1, 1]), 1)),
        Stacked(),
        VOLUME,
        "a.nii.gz: its header places the voxels in two ways",
    ),
    (header(lambda one: one.set_zooms((1, 1, 3))), Stacked(), VOLUME, "a.nii.gz: its header gives two voxel sizes"),
    (header(sheared), Stacked(), VOLUME, "a.nii.gz: has axes that are not at right angles"),
    (with_nan, Stacked(), VOLUME, "a: has .* NaN or infinity"),
    (without_offset, Stacked(), VOLUME, "a.nii: its voxels do not lie behind its header"),
    (with_tags(photometric=0), Stacked(), GREY, "a.tif: is a TIFF file that programs read in different ways"),
    (with_tags(orientation=3), Stacked(), GREY, "a.tif: is "),
    (turned, Stacked(), GREY, "a.jpg: is stored turned"),
    (pages, Stacked(), GREY, "a.tif: holds several pages"),
    (lambda folder: (folder / "a.gif").touch(), Stacked(), GREY, "a.gif: is of a format that is not read"),
    (lambda folder: grey(folder / "a.png"), Stacked(), VOLUME, "a.png: is of a format that is not read"),
    (lambda _: None, Stacked(), VOLUME, "holds no image"),
]


@pytest.mark.parametrize(
    ("write", "preparation", "image_format", "line"), REFUSED, ids=[one[3][:40] for one in REFUSED]
)
def test_a_bundle_refuses_in_one_line_what_it_might_misread(
    tmp_path: Path, write: Callable[[Path], object], preparation: Preparation, image_format: ImageFormat, line: str
) -> None:
    write(tmp_path)
    with pytest.raises(SystemExit, match=line) as refused:
        read_by_bundle(tmp_path, preparation, image_format)
    assert "\n" not in str(refused.value)


def test_a_wrong_checksum_is_not_read(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii.gz")
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(bytes(content))
    with pytest.raises(RuntimeError):
        read_by_bundle(tmp_path, Stacked(), VOLUME)


@pytest.mark.parametrize(
    ("storage", "kind"), [("NIfTI slice LP", "NIfTI"), (DIFFERING_SLICES, "NIfTI"), (DICOM_SLICE, "DICOM")]
)
def test_models_of_slices_have_no_bundle(storage: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"format=monai_bundle: the model was trained on {kind} slices"):
        bundle_configuration(Stacked(), Inference(), ImageFormat(2, 1, ("a",), storage), 1, [0.5])


def test_a_picture_whose_bits_an_old_pillow_does_not_tell_is_refused() -> None:
    parser = ConfigParser(bundle_configuration(Stacked(), Inference(), GREY, 1, [0.5]))
    problem = parser.get_parsed_content("picture_problem")
    # as Pillow opened grey PNG files of 16 bits before 10.4
    picture = Image.new("I", (4, 4))
    picture.format, picture.tile = "PNG", ()  # type: ignore[attr-defined]
    assert "by this version of Pillow" in problem(picture, {})
    grey_picture = Image.new("L", (4, 4))
    grey_picture.format, grey_picture.tile = "PNG", ()  # type: ignore[attr-defined]
    assert problem(grey_picture, {}) is None
