"""CT slices in folders as TCIA gives them out, in true DICOM files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from dicom_files import SERIES, STUDY, ct_slice, write
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from edue_lightning.data.images import ImageError
from edue_lightning.data.sources.lidc import dicom
from edue_lightning.data.sources.lidc.contours import Nodule, find_database, rasterise, read_nodules
from edue_lightning.data.sources.lidc.dicom import find_slices, read_slice, to_image_scale
from edue_lightning.errors import UserError

OTHER = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100000000000000000000000000001"
DX = "1.3.6.1.4.1.14519.5.2.1.6279.6001.200000000000000000000000000002"

LAYOUTS = {
    "by UID": f"LIDC-IDRI-0001/{STUDY}/{SERIES}/{{:06d}}.dcm",
    "by description, to 2020": "LIDC-IDRI-0001/01-01-2000-30178/3000566-03192/{:06d}.dcm",
    "by description": "LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192/1-{:03d}.dcm",
    "imaging data commons": f"lidc_idri/LIDC-IDRI-0001/{STUDY}/CT_{SERIES}/{{:04d}}e127d258-37c2-47bb.dcm",
}
FOLDER = "LIDC-IDRI-0001/01-01-2000-30178/3000566-03192"


def write_series(root: Path, layout: str, zs: list[float], **settings: object) -> dict[float, Path]:
    """Write a slice of constant HU, equal to its place in the list, at each z; names do not follow z."""
    numbers = np.random.default_rng(0).permutation(len(zs)) + 1
    paths = {}
    for value, (number, z) in enumerate(zip(numbers, zs, strict=True)):
        pixels = np.full((6, 8), 1024 + value, dtype=np.int16)
        paths[z] = write(ct_slice(pixels, z, **settings), root / layout.format(number))  # type: ignore[arg-type]
    return paths


def write_projection(path: Path) -> None:
    """Write an image of a DX series, which has no place along z."""
    dataset = ct_slice(np.zeros((4, 4), dtype=np.uint16), 0.0, series=DX)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.Modality = "DX"
    del dataset.ImagePositionPatient, dataset.RescaleSlope, dataset.RescaleIntercept
    write(dataset, path)


def pattern(dtype: type, lowest: int = 0) -> NDArray:
    """Return pixels that no flip or transposition leaves alike."""
    return (np.arange(48).reshape(6, 8) * 60 + lowest).astype(dtype)


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    true_reader = dicom._read_header

    def counting(path: Path) -> dicom._Header:
        read.append(path)
        return true_reader(path)

    monkeypatch.setattr(dicom, "_read_header", counting)
    return read


@pytest.fixture(scope="module")
def nodules() -> list[Nodule]:
    return read_nodules(find_database(None))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_slices_are_found_in_every_layout_among_other_files(layout: str, tmp_path: Path) -> None:
    zs = [-340.045013, -337.545013, -335.045013, -332.545013]
    paths = write_series(tmp_path, layout, zs)
    folder = paths[zs[0]].parent
    (folder / "069.xml").write_text("<LidcReadMessage/>")
    (folder / "._000001.dcm").write_bytes(b"\0\5\26\7 what a Mac leaves beside a file")
    (tmp_path / "LICENSE").write_text("CC BY 3.0")
    write_projection(folder.parent.parent / "01-01-2000-35511" / "3000923-62357" / "000000.dcm")
    found, problems = find_slices(tmp_path, {SERIES: [zs[3], zs[1]]}, {SERIES: 0.703125})
    assert problems == []
    assert found == {(SERIES, zs[3]): paths[zs[3]], (SERIES, zs[1]): paths[zs[1]]}
    assert [float(read_slice(path)[0, 0]) for path in found.values()] == [3.0, 1.0]


def test_two_scans_of_a_patient_are_told_apart(tmp_path: Path) -> None:
    first = write_series(tmp_path, "LIDC-IDRI-0132/01-01-2000-1/3163-1/{:06d}.dcm", [-10.0, -12.5])
    second = write_series(tmp_path, "LIDC-IDRI-0132/01-01-2000-2/5418-2/{:06d}.dcm", [-10.0, -12.5], series=OTHER)
    found, problems = find_slices(tmp_path, {SERIES: {-10.0}, OTHER: {-12.5}})
    assert problems == []
    assert found == {(SERIES, -10.0): first[-10.0], (OTHER, -12.5): second[-12.5]}


def test_headers_are_read_in_wanted_folders_only(tmp_path: Path, headers_read: list[Path]) -> None:
    write_series(tmp_path, LAYOUTS["by description"], [float(z) for z in range(5)])
    for patient in range(2, 6):
        layout = f"LIDC-IDRI-{patient:04d}/01-01-2000-1/1-1/{{:06d}}.dcm"
        write_series(tmp_path, layout, [float(z) for z in range(20)], series=f"{OTHER[:-1]}{patient}")
    write_projection(tmp_path / "LIDC-IDRI-0002" / "01-01-2000-2" / "2-2" / "000000.dcm")
    found, problems = find_slices(tmp_path, {SERIES: [2.0]})
    assert len(found) == 1
    assert problems == []
    assert len(headers_read) == len(set(headers_read)) == 5 + 4 + 1


@pytest.mark.parametrize("first_of_folder", [DX, OTHER, SERIES])
def test_series_mixed_in_a_folder_are_found(first_of_folder: str, tmp_path: Path, headers_read: list[Path]) -> None:
    names = sorted([DX, OTHER, SERIES], key=lambda series: series != first_of_folder)
    write_projection(tmp_path / "all" / f"{names.index(DX)}.dcm")
    (wanted,) = write_series(tmp_path, f"all/{names.index(SERIES)}-{{}}.dcm", [5.0]).values()
    write_series(tmp_path, f"all/{names.index(OTHER)}-{{}}.dcm", [5.0, 6.0], series=OTHER)
    found, problems = find_slices(tmp_path, {SERIES: [5.0]})
    assert problems == []
    assert found == {(SERIES, 5.0): wanted}
    assert len(headers_read) == len(set(headers_read)) == 4


def test_a_series_divided_over_mixed_folders_is_found(tmp_path: Path) -> None:
    plain = write_series(tmp_path, "a/{}.dcm", [1.0])
    write_projection(tmp_path / "b" / "0.dcm")
    mixed = write_series(tmp_path, "b/{}.dcm", [2.0])
    found, problems = find_slices(tmp_path, {SERIES: [1.0, 2.0]})
    assert problems == []
    assert found == {(SERIES, 1.0): plain[1.0], (SERIES, 2.0): mixed[2.0]}


def test_missing_slices_and_series_are_problems(tmp_path: Path) -> None:
    paths = write_series(tmp_path, f"{FOLDER}/{{:06d}}.dcm", [-95.0, -100.0])
    found, problems = find_slices(tmp_path, {SERIES: [-95.0, -97.5], OTHER: [1.0, 2.0], DX: []})
    assert found == {(SERIES, -95.0): paths[-95.0]}
    assert problems == [
        f"{FOLDER}: series '{SERIES}': no slice at z = -97.5 mm; download the series again",
        f".: series '{OTHER}': not found; download it (collection LIDC-IDRI of TCIA)",
    ]


def test_z_is_met_within_a_tenth_of_a_millimetre(tmp_path: Path) -> None:
    paths = write_series(tmp_path, f"{FOLDER}/{{:06d}}.dcm", [10.0, 10.45])
    found, problems = find_slices(tmp_path, {SERIES: [10.0004, 10.36, 10.2]})
    assert found == {(SERIES, 10.0004): paths[10.0], (SERIES, 10.36): paths[10.45]}
    assert len(problems) == 1


def test_equal_doubles_are_one_slice_and_others_a_problem(tmp_path: Path) -> None:
    paths = write_series(tmp_path, f"{FOLDER}/{{:06d}}.dcm", [0.0, 1.0, 2.0])
    for z, value in ((0.0, 0), (1.0, 99)):
        write(ct_slice(np.full((6, 8), 1024 + value, dtype=np.int16), z), tmp_path / FOLDER / f"9{z:.0f}.dcm")
    found, problems = find_slices(tmp_path, {SERIES: [0.0, 1.0, 2.0]})
    assert found == {(SERIES, 0.0): paths[0.0], (SERIES, 2.0): paths[2.0]}
    (problem,) = problems
    assert problem.startswith(f"{paths[1.0].relative_to(tmp_path).as_posix()}: series '{SERIES}': lies at z = 1.0 mm")
    assert f"as {FOLDER}/91.dcm does, but they differ; keep the one whose SOP instance UID" in problem


def test_a_double_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    paths = write_series(tmp_path, f"{FOLDER}/{{:06d}}.dcm", [0.0])
    double = paths[0.0].with_name("9.dcm")
    double.write_bytes(paths[0.0].read_bytes()[:-20])
    found, problems = find_slices(tmp_path, {SERIES: [0.0]})
    assert not found
    assert problems[0].startswith(f"{FOLDER}/9.dcm: series '{SERIES}': is cut off: it holds 76 of 96 bytes")


def test_the_same_series_in_two_layouts_is_one(tmp_path: Path) -> None:
    write_series(tmp_path, LAYOUTS["by UID"], [0.0, 1.0])
    write_series(tmp_path, LAYOUTS["by description"], [0.0, 1.0])
    found, problems = find_slices(tmp_path, {SERIES: [0.0, 1.0]})
    assert problems == []
    assert all("NA-NA" in path.as_posix() for path in found.values())


def test_unreadable_files_beside_a_wanted_series_are_problems(tmp_path: Path) -> None:
    paths = write_series(tmp_path, f"{FOLDER}/{{:06d}}.dcm", [0.0, 1.0, 2.0])
    write_series(tmp_path, "LIDC-IDRI-0002/1/1/{}.dcm", [0.0], series=OTHER)
    (tmp_path / "LIDC-IDRI-0002" / "1" / "1" / "0.dcm").write_text("of a series that nobody wants")
    (tmp_path / FOLDER / "000000.dcm").write_text("Dear user, this is a list of licences.")
    cut_off = paths[2.0]
    cut_off.write_bytes(cut_off.read_bytes()[:400])
    unplaced = dcmread(paths[1.0])
    del unplaced.ImagePositionPatient
    write(unplaced, paths[1.0])
    (tmp_path / FOLDER / "pipe.dcm").mkdir()
    found, problems = find_slices(tmp_path, {SERIES: [0.0]})
    assert found == {(SERIES, 0.0): paths[0.0]}
    name = {z: path.relative_to(tmp_path).as_posix() for z, path in paths.items()}
    assert sorted(problems) == sorted(
        [
            f"{FOLDER}/000000.dcm: series '{SERIES}': is no DICOM file; download it again",
            f"{name[2.0]}: series '{SERIES}': its header gives no SeriesInstanceUID; download it again",
            f"{name[1.0]}: series '{SERIES}': its header gives no ImagePositionPatient; download it again",
        ]
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write_series(tmp_path, f"{FOLDER}/{{:06d}}.dcm", [0.0])
    os.mkfifo(tmp_path / FOLDER / "0.dcm")
    _, problems = find_slices(tmp_path, {SERIES: [0.0]})
    assert problems == [f"{FOLDER}/0.dcm: series '{SERIES}': is no regular file; put the slice itself there"]


def test_pixel_spacing_unlike_the_expected_is_a_problem(tmp_path: Path) -> None:
    paths = write_series(tmp_path, f"{FOLDER}/{{:06d}}.dcm", [0.0], spacing=0.7)
    assert find_slices(tmp_path, {SERIES: [0.0]}, {SERIES: 0.706})[1] == []
    found, problems = find_slices(tmp_path, {SERIES: [0.0]}, {SERIES: 0.71})
    assert not found
    assert problems == [
        f"{FOLDER}/000001.dcm: series '{SERIES}': its pixel spacing in mm is 0.7 x 0.7, not 0.71; "
        "download the series again"
    ]
    bare = dcmread(paths[0.0])
    del bare.PixelSpacing
    write(bare, paths[0.0])
    assert "its pixel spacing in mm is none, not 0.7;" in find_slices(tmp_path, {SERIES: [0.0]}, {SERIES: 0.7})[1][0]


def test_links_are_followed_out_of_the_folder_and_not_within(tmp_path: Path) -> None:
    root = tmp_path / "LIDC-IDRI"
    outside = write_series(tmp_path, "elsewhere/{}.dcm", [0.0, 1.0])
    inside = write_series(root, "own/{}.dcm", [2.0])
    (root / "patient").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "own" / "0.dcm").symlink_to(outside[0.0])
    (root / "own" / "again").symlink_to(root / "own", target_is_directory=True)
    (root / "store").mkdir()
    shutil.move(inside[2.0], root / "store" / "blob")
    inside[2.0].symlink_to(root / "store" / "blob")
    found, problems = find_slices(root, {SERIES: [2.0]})
    assert (found, problems) == ({(SERIES, 2.0): inside[2.0]}, [])
    found, problems = find_slices(root, {SERIES: [0.0, 1.0, 2.0]})
    assert found[SERIES, 0.0] in (root / "own" / "0.dcm", root / "patient" / outside[0.0].name)
    assert found[SERIES, 1.0] == root / "patient" / outside[1.0].name
    assert problems == []
    (root / "patient").unlink()
    (root / "patient").symlink_to(tmp_path / "not mounted")
    assert find_slices(root, {SERIES: [1.0, 2.0]})[1] == [
        "patient: is a link that leads nowhere; fetch what it points to, or remove it",
        f"own: series '{SERIES}': no slice at z = 1.0 mm; download the series again",
    ]


def test_folders_that_cannot_be_listed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, "open/{}.dcm", [0.0])
    (tmp_path / "closed").mkdir()
    true_scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return true_scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert find_slices(tmp_path, {SERIES: [0.0]})[1] == []
    assert (
        "closed: cannot be searched (Permission denied); make it readable" in find_slices(tmp_path, {OTHER: [0.0]})[1]
    )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no such folder; choose the folder of the LIDC-IDRI download"):
        find_slices(tmp_path / "absent", {SERIES: [0.0]})


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("dtype", "lowest", "intercept", "slope"),
    [(np.int16, 0, -1024, 1), (np.uint16, 0, -1024, 1), (np.int16, -1024, 0, 1), (np.uint16, 24, -1024.5, 0.5)],
)
def test_hu_and_orientation_come_back_exactly(
    dtype: type, lowest: int, intercept: float, slope: float, syntax: str, tmp_path: Path
) -> None:
    pixels = pattern(dtype, lowest)
    path = write(ct_slice(pixels, 0.0, intercept=intercept, slope=slope, syntax=syntax), tmp_path / "1.dcm")
    hu = read_slice(path)
    assert hu.dtype == np.float32
    np.testing.assert_array_equal(hu, np.maximum(pixels.astype(float) * slope + intercept, -1024))


def test_padding_outside_the_field_of_view_is_the_lowest_hu(tmp_path: Path) -> None:
    pixels = pattern(np.int16)
    pixels[0, :3] = -2000
    dataset = ct_slice(pixels, 0.0)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    hu = read_slice(write(dataset, tmp_path / "1.dcm"))
    assert hu[0, :3].tolist() == [-1024, -1024, -1024]
    np.testing.assert_array_equal(hu[1:], pixels[1:] - 1024)


def test_unused_high_bits_do_not_count(tmp_path: Path) -> None:
    pixels = pattern(np.uint16)
    dataset = ct_slice(pixels | 0xF000, 0.0)
    dataset.BitsStored, dataset.HighBit = 12, 11
    np.testing.assert_array_equal(read_slice(write(dataset, tmp_path / "1.dcm")), pixels.astype(float) - 1024)


def test_a_prone_scan_is_not_turned(tmp_path: Path) -> None:
    dataset = ct_slice(pattern(np.int16), 0.0)
    dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    np.testing.assert_array_equal(read_slice(write(dataset, tmp_path / "1.dcm")), pattern(np.int16) - 1024)


def test_the_image_scale_is_that_of_rendered_images() -> None:
    scaled = to_image_scale(np.array([[-1000, 0, 50]], dtype=np.float32))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[0, 1, 1.05]])


def set_value(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("Modality", "DX"), "is of modality 'DX', not 'CT'"),
        (set_value("NumberOfFrames", 3), "holds 3 frames of 1 channels"),
        (set_value("SamplesPerPixel", 3), "holds 1 frames of 3 channels"),
        (set_value("BitsAllocated", 8), "holds pixels of 8 bits, not 16"),
        (set_value("HighBit", 14), r"its highest bit is 14 \(HighBit\) of 16 bits"),
        (set_value("RescaleType", "OD"), r"its values are OD \(RescaleType\)"),
        (set_value("Rows", 65535), "is cut off: it holds 96 of 1048560 bytes of pixels"),
        (set_value("Columns", 0), "its header claims 6 x 0 pixels"),
        (set_value("Rows", 7), "is cut off: it holds 96 of 112 bytes"),
        (set_value("RescaleSlope", 0), "its header claims HU = 0 x value"),
        (set_value("RescaleSlope", "NaN"), "its header claims HU = nan x value"),
        (set_value("RescaleSlope", [1, 2]), r"cannot be read \(.*\); download it again"),
        (set_value("RescaleSlope", "1e300"), r"its header claims HU = 1e\+300 x value"),
        (set_value("RescaleIntercept", "-99999"), "its header claims HU = 1 x value -99999"),
        (set_value("PhotometricInterpretation", "PALETTE COLOR"), "its pixels are 'PALETTE COLOR', not grey"),
        (lambda dataset: dataset.__delattr__("RescaleSlope"), "its header gives no RescaleSlope; download it again"),
        (lambda dataset: dataset.__delattr__("PixelData"), "its header gives no PixelData"),
        (lambda dataset: dataset.__delattr__("Rows"), "its header gives no Rows"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR DS:UserWarning")
def test_headers_that_promise_no_slice_are_refused(
    change: Callable[[Dataset], None], message: str, tmp_path: Path
) -> None:
    dataset = ct_slice(pattern(np.int16), 0.0)
    change(dataset)
    path = write(dataset, tmp_path / "secret-name.dcm")
    with pytest.raises(ImageError, match=message) as caught:
        read_slice(path)
    assert "secret-name" not in str(caught.value)
    assert "; " in str(caught.value)


def test_a_claim_of_billions_of_pixels_is_refused(tmp_path: Path) -> None:
    dataset = ct_slice(pattern(np.int16), 0.0)
    dataset.Rows = dataset.Columns = 65535
    with pytest.raises(ImageError, match="its header claims 65535 x 65535 pixels"):
        read_slice(write(dataset, tmp_path / "1.dcm"))


def test_a_file_too_large_for_a_slice_is_refused(tmp_path: Path) -> None:
    path = write(ct_slice(pattern(np.int16), 0.0), tmp_path / "1.dcm")
    os.truncate(path, dicom.MOST_BYTES + 1)
    with pytest.raises(ImageError, match="is larger than 64 MiB"):
        read_slice(path)


@pytest.mark.parametrize("length", [0, 100, 200, 400, -1, -40])
def test_files_cut_off_anywhere_are_refused(length: int, tmp_path: Path) -> None:
    whole = write(ct_slice(pattern(np.int16), 0.0), tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "1.dcm"
    path.write_bytes(whole[:length])
    with pytest.raises(ImageError, match="; "):
        read_slice(path)


def test_what_is_no_dicom_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.dcm"
    with pytest.raises(ImageError, match="No such file"):
        read_slice(path)
    with pytest.raises(ImageError, match="is no regular file"):
        read_slice(tmp_path)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ImageError, match="is no DICOM file; download it again"):
        read_slice(path)


def test_compressed_pixels_are_refused(tmp_path: Path) -> None:
    dataset = ct_slice(pattern(np.int16), 0.0, syntax=JPEG2000Lossless)
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51 not a picture"])
    dataset["PixelData"].is_undefined_length = True
    path = write(dataset, tmp_path / "1.dcm")
    # the place is told, for the mend needs it
    assert find_slices(tmp_path, {SERIES: [0.0]}) == ({(SERIES, 0.0): path}, [])
    with pytest.raises(ImageError, match=r"is compressed \(JPEG 2000 .*\); decompress it"):
        read_slice(path)


def test_a_deflated_file_is_never_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = write(ct_slice(pattern(np.int16), 0.0, syntax=DeflatedExplicitVRLittleEndian), tmp_path / "2.dcm")
    write_series(tmp_path, "{}.dcm", [1.0])

    def inflate(*args: object) -> bytes:
        raise AssertionError("inflated")

    monkeypatch.setattr(zlib, "decompress", inflate)
    _, problems = find_slices(tmp_path, {SERIES: [1.0]})
    assert problems == [f"2.dcm: series '{SERIES}': is deflated; inflate it, for example with dcmconv +ti"]
    with pytest.raises(ImageError, match="is compressed"):
        read_slice(bomb)


def test_nodules_know_their_series_and_slice(nodules: list[Nodule]) -> None:
    with closing(sqlite3.connect(f"{find_database(None).as_uri()}?mode=ro", uri=True)) as database:
        scans = dict(database.execute("SELECT series_instance_uid, patient_id FROM scans"))
        slices = set(
            database.execute(
                "SELECT series_instance_uid, image_z_position FROM contours "
                "JOIN annotations ON annotations.id = annotation_id JOIN scans ON scans.id = scan_id"
            )
        )
        gaps = [
            float(np.diff(np.sort([float(z) for z in zs.split(",")])).min())
            for (zs,) in database.execute("SELECT group_concat(val) FROM zvals GROUP BY scan_id")
        ]
    assert all(scans[nodule.series_uid] == nodule.patient for nodule in nodules)
    assert all((nodule.series_uid, nodule.z) in slices for nodule in nodules)
    # no slice can be taken for its neighbour
    assert min(gaps) > 2 * dicom.Z_TOLERANCE_MM


def raw_points(nodule: Nodule) -> NDArray[np.int64]:
    """Return all points of the slice's outlines as the database holds them, (column, row)."""
    with closing(sqlite3.connect(f"{find_database(None).as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT coords FROM contours JOIN annotations ON annotations.id = annotation_id "
            "JOIN scans ON scans.id = scan_id WHERE series_instance_uid = ? AND image_z_position = ?",
            (nodule.series_uid, nodule.z),
        )
        return np.array([line.split(",") for (coords,) in rows for line in coords.split("\n")], dtype=int)


def test_real_nodules_lie_where_their_outlines_say(nodules: list[Nodule], tmp_path: Path) -> None:
    # far from the diagonal, where rows and columns could be taken for each other
    four = (nodule for nodule in nodules if len(nodule.readings) == 4)
    apart = (nodule for nodule in four if np.diff(np.median(raw_points(nodule), axis=0)) > 80)
    first = next(apart)
    second = next(nodule for nodule in apart if nodule.patient != first.patient)
    for nodule in (first, second):
        inside = np.mean([rasterise(outlines, (0, 0), 512) for outlines in nodule.readings], axis=0) >= 0.5
        for number, offset in enumerate((0.0, -2.5, 2.5), start=1):
            hu = np.where(inside, 60 if offset == 0 else -400, -850)
            dataset = ct_slice((hu + 1024).astype(np.int16), nodule.z + offset, nodule.series_uid)
            dataset.PixelSpacing = [nodule.pixel_spacing] * 2
            write(dataset, tmp_path / nodule.patient / "01-01-2000-1" / "1-1" / f"{number:06d}.dcm")
    wanted = {nodule.series_uid: [nodule.z] for nodule in (first, second)}
    spacings = {nodule.series_uid: nodule.pixel_spacing for nodule in (first, second)}
    found, problems = find_slices(tmp_path, wanted, spacings)
    assert problems == []
    for nodule in (first, second):
        rows, columns = np.nonzero(read_slice(found[nodule.series_uid, nodule.z]) == 60)
        assert len(rows) > 20
        around = raw_points(nodule)
        assert around[:, 0].min() < columns.min() <= columns.max() < around[:, 0].max()
        assert around[:, 1].min() < rows.min() <= rows.max() < around[:, 1].max()
