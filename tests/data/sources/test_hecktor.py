"""HECKTOR patients on one grid: every value and label at its place in space, and every fault told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from nibabel.affines import apply_affine
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from patients import LPS, Patient, affine_of, points, save, tilted

from edue_lightning.data import RaterDataModule
from edue_lightning.data.sources.hecktor.source import HecktorSource
from edue_lightning.errors import UserError


def oblique() -> Patient:
    shape = (20, 26, 9)
    axes = tilted(17.0)[:, [1, 0, 2]]
    return Patient("MDA-002", shape, affine_of((0.9, 1.1, 2.5), (3, -8, 99), shape, axes))


def on_pet_axes() -> Patient:
    """Return a patient whose PET runs along axes of its own."""
    axes = tilted(-10.0) @ np.diag([-1, 1, -1])
    shape = (13, 12, 15)
    return Patient("CHUP-003", pet_shape=shape, pet_affine=affine_of((4, 4.1, 3), (5, -8, 100), shape, axes))


@pytest.mark.parametrize("patient", [Patient(), oblique(), on_pet_axes()], ids=lambda patient: patient.name)
def test_all_raters_ct_and_pet_lie_in_place_on_the_voxels_of_the_ct(tmp_path: Path, patient: Patient) -> None:
    patient.write(tmp_path)
    source = HecktorSource(str(tmp_path), structures=["GTVp", "GTVn"])
    assert source.raters == ("A", "B", "release")
    sample = source.load(patient.name)
    assert sample.affine is not None
    affine = sample.affine.numpy()
    assert aff2axcodes(affine) == ("R", "A", "S")
    places = points(sample.image.shape[1:], affine)
    for slot, rater in enumerate(source.raters):
        expected = patient.label(rater, places)
        np.testing.assert_array_equal(sample.masks[slot, 0], expected == 1)
        np.testing.assert_array_equal(sample.masks[slot, 1], expected == 2)
    assert sample.masks.flatten(2).any(dim=2).all()
    np.testing.assert_allclose(sample.image[0], (patient.ct(places) + 250) / 500, atol=1e-5)
    pet = sample.image[1].numpy() * 25
    covered = pet > 0
    assert covered.mean() > 0.7
    np.testing.assert_allclose(pet[covered], patient.pet(places)[covered], atol=1e-3)
    # the voxels are the CT's own, in another order
    assert sorted(sample.image.shape[1:]) == sorted(patient.ct_shape)
    assert sample.origin is not None
    np.testing.assert_allclose(sample.origin.affine, patient.ct_affine, atol=1e-5)


def test_other_voxels_keep_everything_in_place(tmp_path: Path) -> None:
    patient = replace(oblique(), nodes=(((3, -7, 100), 8.0),))
    patient.write(tmp_path)
    sample = HecktorSource(str(tmp_path), spacing=[1.5, 1.5, 1.5]).load(patient.name)
    assert sample.spacing == pytest.approx((1.5, 1.5, 1.5))
    assert sample.affine is not None
    places = points(sample.image.shape[1:], sample.affine.numpy())
    # beyond the outermost centres of the CT's voxels the value is that of the nearest place between centres
    indices = apply_affine(np.linalg.inv(patient.ct_affine), places)
    last = np.array(patient.ct_shape) - 1
    assert (indices > -0.501).all()
    assert (indices < last + 0.501).all()
    nearest = apply_affine(patient.ct_affine, np.clip(indices, 0, last))
    np.testing.assert_allclose(sample.image[0], (patient.ct(nearest) + 250) / 500, atol=1e-4)
    overlap = sample.masks[2, 0].numpy() & (patient.label("release", places) == 2)
    total = sample.masks[2, 0].sum() + (patient.label("release", places) == 2).sum()
    assert 2 * overlap.sum() / total > 0.93


@pytest.mark.parametrize("codes", ["LPS", "PSR", "IAL"])
def test_a_label_may_be_stored_along_other_axes_than_its_ct(tmp_path: Path, codes: str) -> None:
    patient = Patient()
    patient.write(tmp_path)
    expected = HecktorSource(str(tmp_path)).load(patient.name).masks
    for path in tmp_path.glob("labelsTr/*.nii.gz"):
        label = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), nibabel.load(path).affine)
        orientations = io_orientation(label.affine), axcodes2ornt(codes)
        nibabel.save(label.as_reoriented(ornt_transform(*orientations)), path)
    source = HecktorSource(str(tmp_path))
    assert not source.problems
    assert torch.equal(source.load(patient.name).masks, expected)


def test_windows_clip_and_scale(tmp_path: Path) -> None:
    patient = Patient()
    patient.write(tmp_path)
    wide = HecktorSource(str(tmp_path)).load(patient.name).image
    narrow = HecktorSource(str(tmp_path), ct_window=[-50, 0], suv_window=[1, 3]).load(patient.name).image
    torch.testing.assert_close(narrow[0], ((wide[0] * 500 - 250 + 50) / 50).clamp(0, 1))
    torch.testing.assert_close(narrow[1], ((wide[1] * 25 - 1) / 2).clamp(0, 1))


def test_a_bounding_box_cuts_in_millimetres(tmp_path: Path) -> None:
    patient = replace(Patient(), tumour=((5, -8, 100), 2.0))
    patient.write(tmp_path)
    whole = HecktorSource(str(tmp_path)).load(patient.name)
    # LPS, as the organisers write it: x and y with their signs changed
    (tmp_path / "bbox.csv").write_text("PatientID,x1,x2,y1,y2,z1,z2\nCHUM-001,-12,4,-2,15,90,111\n")
    source = HecktorSource(str(tmp_path), bounding_boxes="bbox.csv")
    sample = source.load(patient.name)
    assert sample.image.shape[1:] == (16, 17, 7)
    assert sample.affine is not None
    places = points(sample.image.shape[1:], sample.affine.numpy())
    assert np.abs(places.min(axis=(0, 1, 2)) - [-4, -15, 90]).max() <= 1.5
    np.testing.assert_array_equal(sample.masks[2, 0], patient.label("release", places) == 2)
    np.testing.assert_allclose(sample.image[0], (patient.ct(places) + 250) / 500, atol=1e-5)
    assert whole.masks[2].sum() == sample.masks[2].sum()


def test_a_bounding_box_holds_the_voxels_that_the_organisers_take(tmp_path: Path) -> None:
    patient = Patient()
    patient.write(tmp_path)
    ct = next(tmp_path.rglob("*__CT.nii.gz"))
    # a CT of even voxels whose centres lie on whole millimetres, as after the organisers' resampling
    values = np.random.default_rng(0).uniform(-250, 250, (30, 32, 34)).astype(np.float32)
    affine = np.array([[1.0, 0, 0, -14], [0, 1, 0, -16], [0, 0, 1, 90], [0, 0, 0, 1]])
    save(ct, values, affine)
    label = np.zeros_like(values)
    label[8:20, 10:25, 8:20] = values[8:20, 10:25, 8:20] > 0
    for path in tmp_path.rglob("labelsTr*/*.nii.gz"):
        save(path, label.astype(np.uint8) * 2, affine)
    x1, x2, y1, y2, z1, z2 = -9, 11, -12, 10, 95, 118
    (tmp_path / "bbox.csv").write_text(f"PatientID,x1,x2,y1,y2,z1,z2\nCHUM-001,{x1},{x2},{y1},{y2},{z1},{z2}\n")
    sample = HecktorSource(str(tmp_path), bounding_boxes="bbox.csv").load(patient.name)
    # src/resampling/resample.py of github.com/voreille/hecktor, in SimpleITK's LPS
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetOutputDirection([1, 0, 0, 0, 1, 0, 0, 0, 1])
    resampler.SetOutputSpacing([1, 1, 1])
    resampler.SetOutputOrigin([x1, y1, z1])
    resampler.SetSize([x2 - x1, y2 - y1, z2 - z1])
    resampler.SetInterpolator(SimpleITK.sitkNearestNeighbor)
    expected = [
        SimpleITK.GetArrayFromImage(resampler.Execute(SimpleITK.ReadImage(str(path)))).transpose(2, 1, 0)[::-1, ::-1]
        for path in (ct, next(tmp_path.rglob("labelsTr/*.nii.gz")))
    ]
    assert sample.image.shape[1:] == expected[0].shape
    np.testing.assert_allclose(sample.image[0], (expected[0] + 250) / 500, atol=1e-6)
    np.testing.assert_array_equal(sample.masks[2, 0], expected[1] == 2)


def test_releases_of_2020_hold_the_primary_tumour_alone(tmp_path: Path) -> None:
    patient = Patient("CHGJ007", raters={"release": 0.0})
    folder = tmp_path / "hecktor_nii"
    folder.mkdir()
    places = points(patient.ct_shape, patient.ct_affine)
    save(folder / "CHGJ007_ct.nii.gz", patient.ct(places), patient.ct_affine)
    pet = patient.pet(points(patient.pet_shape, patient.pet_affine))
    save(folder / "CHGJ007_pt.nii.gz", pet, patient.pet_affine)
    save(folder / "CHGJ007_gtvt.nii.gz", (patient.label("release", places) == 1).astype(np.uint8), patient.ct_affine)
    sample = HecktorSource(str(tmp_path), structures=["GTVp"]).load("CHGJ007")
    assert sample.affine is not None
    expected = patient.label("release", points(sample.image.shape[1:], sample.affine.numpy())) == 1
    np.testing.assert_array_equal(sample.masks[0, 0], expected)
    (line,) = [line for line in HecktorSource(str(tmp_path)).problems if "holds no label of GTVn" in line]
    assert line.endswith("set data.source.structures=[GTVp]")


def test_a_label_on_the_grid_of_the_pet_is_moved(tmp_path: Path) -> None:
    patient = Patient(nodes=(((4, -7, 101), 7.0),))
    patient.write(tmp_path)
    places = points(patient.pet_shape, patient.pet_affine)
    save(tmp_path / "labelsTr/CHUM-001__raterB.nii.gz", patient.label("A", places), patient.pet_affine)
    sample = HecktorSource(str(tmp_path)).load("CHUM-001")
    first, second = sample.masks[0, 0], sample.masks[1, 0]
    assert 2 * (first & second).sum() / (first.sum() + second.sum()) > 0.85


def test_an_empty_label_is_a_vote_for_nothing(tmp_path: Path) -> None:
    patient = Patient()
    patient.write(tmp_path)
    nothing = np.zeros(patient.ct_shape, dtype=np.uint8)
    save(tmp_path / "labelsTr/CHUM-001__raterB.nii.gz", nothing, patient.ct_affine)
    sample = HecktorSource(str(tmp_path)).load("CHUM-001")
    assert sample.valid.tolist() == [True, True, True]
    assert sample.masks.flatten(1).any(dim=1).tolist() == [True, False, True]


def test_centres_stratify_and_raters_may_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Patient("CHUM-001").write(tmp_path)
    Patient("CHUS-002", raters={"release": 0.0}, is_marked=True).write(tmp_path)
    source = HecktorSource(str(tmp_path))
    assert [(record.case_id, record.stratum) for record in source.cases()] == [
        ("CHUM-001", "CHUM"),
        ("CHUS-002", "CHUS"),
    ]
    assert source.load("CHUS-002").valid.tolist() == [False, False, True]
    assert "1 of 2 cases have a single rater" in caplog.text
    assert RaterDataModule("hecktor", source).splits["all"]


def test_prepared_cases_are_the_same(tmp_path: Path) -> None:
    Patient().write(tmp_path / "data")
    direct = HecktorSource(str(tmp_path / "data")).load("CHUM-001")
    cached = HecktorSource(str(tmp_path / "data"), cache=str(tmp_path / "cache")).load("CHUM-001")
    for name in ("image", "masks", "valid", "affine"):
        assert torch.equal(getattr(direct, name), getattr(cached, name))
    assert cached.origin is not None
    assert direct.origin is not None
    assert torch.equal(cached.origin.affine, direct.origin.affine)
    assert cached.foreground is not None
    boxed = HecktorSource(str(tmp_path / "data"), cache=str(tmp_path / "cache"), spacing=[2, 2, 2]).load("CHUM-001")
    assert boxed.image.shape != cached.image.shape


def nan_in_pet(root: Path, patient: Patient) -> None:
    pet = patient.pet(points(patient.pet_shape, patient.pet_affine))
    pet[3, 4, 5] = np.nan
    save(root / "imagesTr/CHUM-001__PT.nii.gz", pet, patient.pet_affine)


def label_with(value: int) -> Callable[[Path, Patient], None]:
    def write(root: Path, patient: Patient) -> None:
        label = patient.label("release", points(patient.ct_shape, patient.ct_affine))
        label[0, 0, 0] = value
        save(root / "labelsTr/CHUM-001.nii.gz", label, patient.ct_affine)

    return write


def truncated(root: Path, patient: Patient) -> None:
    path = root / "imagesTr/CHUM-001__CT.nii.gz"
    path.write_bytes(path.read_bytes()[:300])


def pet_elsewhere(root: Path, patient: Patient) -> None:
    pet = patient.pet(points(patient.pet_shape, patient.pet_affine))
    affine = affine_of((4, 4, 3), (500, 0, 0), patient.pet_shape, LPS)
    save(root / "imagesTr/CHUM-001__PT.nii.gz", pet, affine)


def becquerels(root: Path, patient: Patient) -> None:
    pet = 5000 * patient.pet(points(patient.pet_shape, patient.pet_affine))
    save(root / "imagesTr/CHUM-001__PT.nii.gz", pet, patient.pet_affine)


def mirrored_label(root: Path, patient: Patient) -> None:
    label = patient.label("A", points(patient.ct_shape, patient.ct_affine))
    save(root / "labelsTr/CHUM-001__raterA.nii.gz", label, patient.ct_affine @ np.diag([-1.0, 1, 1, 1]))


def flat_ct(root: Path, patient: Patient) -> None:
    save(root / "imagesTr/CHUM-001__CT.nii.gz", np.zeros((24, 22)), patient.ct_affine)


def no_pet(root: Path, patient: Patient) -> None:
    (root / "imagesTr/CHUM-001__PT.nii.gz").unlink()


def shifted(kind: str, by: float) -> Callable[[Path, Patient], None]:
    def apply(root: Path, patient: Patient) -> None:
        path = root / f"imagesTr/CHUM-001__{kind}.nii.gz"
        image = nibabel.load(path)
        save(path, (image.get_fdata() + by).astype(np.float32), image.affine)

    return apply


def constant(kind: str, value: float) -> Callable[[Path, Patient], None]:
    def apply(root: Path, patient: Patient) -> None:
        path = root / f"imagesTr/CHUM-001__{kind}.nii.gz"
        image = nibabel.load(path)
        save(path, np.full(image.shape, value, dtype=np.float32), image.affine)

    return apply


def hounsfield_plus_1024(root: Path, patient: Patient) -> None:
    path = root / "imagesTr/CHUM-001__CT.nii.gz"
    image = nibabel.load(path)
    values = np.linspace(0, 2047, np.prod(image.shape)).reshape(image.shape)
    save(path, values.astype(np.float32), image.affine)


CT, PET = ("imagesTr/CHUM-001__CT.nii.gz: case 'CHUM-001': ", "imagesTr/CHUM-001__PT.nii.gz: case 'CHUM-001': ")
BROKEN = [
    (nan_in_pet, f"{PET}holds NaN or infinity; replace these values"),
    (
        label_with(3),
        "labelsTr/CHUM-001.nii.gz: case 'CHUM-001': holds the value 3; labels are 0, 1 (GTVp), 2 (GTVn): correct it",
    ),
    (truncated, f"{CT}cannot be read ("),
    (pet_elsewhere, f"{PET}lies nowhere on CHUM-001__CT.nii.gz; correct the affine of one"),
    (becquerels, f"{PET}reaches "),
    (shifted("PT", -30), f"{PET}holds values from -2"),
    (
        constant("PT", 1.5),
        f"{PET}holds values from 1.5 to 1.5, which data.source.suv_window=[0.0, 25.0] makes constant; ",
    ),
    (constant("PT", 0), f"{PET}holds values from 0 to 0, which data.source.suv_window=[0.0, 25.0] makes constant; "),
    (shifted("CT", 2000), f"{CT}holds values from "),
    (
        constant("CT", -1000),
        f"{CT}holds values from -1000 to -1000, which data.source.ct_window=[-250.0, 250.0] makes ",
    ),
    (
        hounsfield_plus_1024,
        f"{CT}holds values from 0 to 2047, which are no Hounsfield units, as air is -1000; convert it",
    ),
    (mirrored_label, "labelsTr/CHUM-001__raterA.nii.gz: case 'CHUM-001': has the shape of CHUM-001__CT.nii.gz but "),
    (flat_ct, f"{CT}is 2D; save a volume"),
    (no_pet, f"{CT}is a CT without a PET; "),
]


@pytest.mark.parametrize(("break_it", "line"), BROKEN, ids=[line[:70] for _, line in BROKEN])
@pytest.mark.parametrize("cached", [False, True])
def test_every_problem_is_told_and_the_other_case_is_healthy(
    tmp_path: Path, break_it: Callable[[Path, Patient], None], line: str, cached: bool
) -> None:
    root = tmp_path / "data"
    patient = Patient()
    patient.write(root)
    Patient("CHUS-002").write(root)
    break_it(root, patient)
    source = HecktorSource(str(root), cache=str(tmp_path / "cache") if cached else None)
    assert source.problems[0].startswith(line)
    assert all("CHUM-001" in problem for problem in source.problems)
    assert [record.case_id for record in source.healthy()] == ["CHUS-002"]
    with pytest.raises(UserError, match="CHUM-001"):
        source.cases()


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    for name in ("CHUM-001", "CHUM-002", "CHUM-003"):
        Patient(name).write(tmp_path)
    nan_in_pet(tmp_path, Patient())
    (tmp_path / "labelsTr/CHUM-002.nii.gz").write_bytes(b"nothing of the kind")
    (tmp_path / "imagesTr/CHUM-003__PT.nii.gz").unlink()
    source = HecktorSource(str(tmp_path), bounding_boxes="bbox.csv")
    cases = [name for name in ("CHUM-001", "CHUM-002", "CHUM-003") if any(name in line for line in source.problems)]
    assert cases == ["CHUM-001", "CHUM-002", "CHUM-003"]
    assert any("bbox.csv" in line for line in source.problems)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structures": []}, "data.source.structures"),
        ({"structures": ["GTVn", "GTVn"]}, "data.source.structures"),
        ({"structures": ["lung"]}, "data.source.structures"),
        ({"spacing": [1, 1]}, "data.source.spacing"),
        ({"spacing": [1, 1, 0]}, "data.source.spacing"),
        ({"spacing": [1, float("nan"), 1]}, "data.source.spacing"),
        ({"ct_window": [5, 5]}, "data.source.ct_window"),
        ({"suv_window": [0, float("nan")]}, "data.source.suv_window"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        HecktorSource(str(tmp_path), **settings)


def test_folders_without_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no case of this data set"):
        HecktorSource(str(tmp_path)).cases()
    with pytest.raises(UserError, match="no such folder"):
        HecktorSource(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"data\.root: not set"):
        HecktorSource()
