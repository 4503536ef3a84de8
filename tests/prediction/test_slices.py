"""A model of 2D images predicts volumes slice by slice, and the volume is one case."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from dicom_patients import Scan
from hydra import compose, initialize_config_dir
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from patients import LPS, affine_of, tilted
from pydicom import dcmread
from untrained import checkpoint

import edue_lightning
from edue_lightning.config.build import ImageFormat
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data.geometry import DIFFERING_SLICES
from edue_lightning.data.preparation import SquarePicture, standardised
from edue_lightning.data.slices import SliceLayout, Slicing
from edue_lightning.errors import UserError
from edue_lightning.methods import InferenceChanges, SliceBySlice
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.run import predict
from edue_lightning.prediction.triage import StructureTriage, Triage
from edue_lightning.runs.checkpoints import add_results, load_method

SHAPE = (20, 16, 5)
SPACING = (0.9, 1.1, 4.0)
STRUCTURES = ("tumour", "core")
NIFTI = ImageFormat(2, 1, STRUCTURES, "NIfTI slice LP")
PICTURES = ImageFormat(2, 1, STRUCTURES, "picture")


@pytest.fixture(scope="module")
def nifti_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint for NIfTI slices with axes to the left and posterior, each standardised."""
    return checkpoint(tmp_path_factory.mktemp("nifti") / "best.ckpt", image_format=NIFTI)


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint for pictures of values from 0 to 1."""
    folder = tmp_path_factory.mktemp("pictures")
    return checkpoint(folder / "best.ckpt", "data.source.standardise=false", image_format=PICTURES)


def scan(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> nibabel.Nifti1Image:
    """Return an oblique volume whose slices differ in mean and spread, with axes to right, anterior and superior."""
    random = np.random.default_rng(seed)
    values = random.normal(size=shape) * random.uniform(1, 9, shape[2]) + random.uniform(-50, 50, shape[2])
    values[:, :, 0] = 7
    return nibabel.Nifti1Image(values.astype(np.float32), affine_of(SPACING, (3, -8, 99), shape, tilted(9.0) @ LPS))


def stored_as(image: nibabel.Nifti1Image, codes: str) -> nibabel.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def by_slices(path: Path, slices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the members' probabilities of slices `[n, H, W]`, predicted one by one, `[M, K, n, H, W]`."""
    method = load_method(path).method
    with torch.inference_mode():
        found = [method.predict(torch.from_numpy(np.ascontiguousarray(one))[None, None])[0] for one in slices]
    return torch.sigmoid(torch.stack(found, dim=2).double()).numpy()


def asked(path: Path, source: Path, output: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        given = [f"ckpt={path}", f"input={source}", f"output={output}", "device=cpu"]
        return resolved(compose("predict", [*given, *overrides]))


def test_a_volume_is_predicted_as_by_a_loop_over_its_slices_and_scored_as_a_whole(nifti_model: Path) -> None:
    volume = scan()
    values = volume.get_fdata(dtype=np.float32)
    # the training's axes run to the left and posterior
    slices = np.stack([standardised(values[::-1, ::-1, k]) for k in range(SHAPE[2])])
    members = np.moveaxis(by_slices(nifti_model, slices), 2, -1)[:, :, ::-1, ::-1]
    model = Model(nifti_model, "cpu", slicing=Slicing("axial", batch_size=2))
    found = model.predict(values, affine=volume.affine, members=True)
    np.testing.assert_allclose(found.members, members, atol=1e-6)
    np.testing.assert_allclose(found.probability, members.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.disagreement, members.var(axis=0), atol=1e-6)
    assert (found.table["unit"] == "mm3").all()
    size = float(np.prod(SPACING))
    for k, structure in enumerate(STRUCTURES):
        row = found.table[found.table["structure"] == structure].iloc[0]
        assert row["sv"] == pytest.approx(members[:, k].var(axis=0).sum() * size, rel=1e-5)
        mean = members[:, k].mean(axis=0)
        assert row["sv_total"] == pytest.approx((mean * (1 - mean)).sum() * size, rel=1e-5)
        assert row["volume"] == pytest.approx((mean.astype(np.float32) >= 0.5).sum() * size, rel=1e-9)
        assert row["voxel_size"] == "0.9x1.1x4"
    # without a place in space, axes run to the right, anterior and superior, and sizes are in voxels
    unplaced = model.predict(values)
    np.testing.assert_allclose(unplaced.probability, found.probability, atol=1e-6)
    assert (unplaced.table["unit"] == "voxels").all()
    np.testing.assert_allclose(unplaced.table["sv"] * size, found.table["sv"], rtol=1e-6)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_volume_gets_one_prediction_however_it_is_stored(picture_model: Path, tmp_path: Path, axis: str) -> None:
    volume = scan()
    model = edue_lightning.load_model(picture_model, "cpu", slice_axis=axis, slice_window=(-60, 60))
    expected = model.predict(volume.get_fdata(), affine=volume.affine)
    assert expected.probability.std() > 1e-3
    for codes in ("LPS", "PSR"):
        file = stored_as(volume, codes)
        nibabel.save(file, tmp_path / f"{codes}.nii.gz")
        found = model.predict_files(tmp_path / f"{codes}.nii.gz")
        for k in range(len(STRUCTURES)):
            wanted = stored_as(nibabel.Nifti1Image(expected.probability[k], volume.affine), codes).get_fdata()
            np.testing.assert_allclose(found.probability[k], wanted, atol=1e-6)
        np.testing.assert_allclose(found.table["sv"], expected.table["sv"], rtol=1e-5)


@pytest.mark.parametrize(
    ("axis", "directions", "view"),
    [
        ("axial", None, lambda v: v.transpose(2, 1, 0)[:, ::-1, ::-1]),
        ("coronal", None, lambda v: v.transpose(1, 2, 0)[:, ::-1, ::-1]),
        ("sagittal", None, lambda v: v.transpose(0, 2, 1)[:, ::-1, ::-1]),
        ("sagittal", "AS", lambda v: v),
        ("axial", "RP", lambda v: v.transpose(2, 0, 1)[:, :, ::-1]),
        (2, None, lambda v: v.transpose(2, 0, 1)),
        (1, "SR", lambda v: v.transpose(1, 2, 0)),
    ],
)
def test_slices_lie_as_documented(picture_model: Path, axis: Any, directions: str | None, view: Any) -> None:
    values = np.random.default_rng(1).random((9, 10, 12)).astype(np.float32)
    model = Model(picture_model, "cpu", slicing=Slicing(axis, directions))
    expected = by_slices(picture_model, view(values)).mean(axis=0)
    found = model.predict(values, affine=np.diag([1, 1, 3, 1.0])).probability
    np.testing.assert_allclose(np.stack([view(one) for one in found]), expected, atol=1e-6)


def test_values_go_through_the_window_and_must_be_those_of_pictures(
    picture_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(1).integers(-1000, 1000, (12, 12, 3)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        model = Model(picture_model, "cpu", slicing=Slicing("axial"))
    assert "slices are taken as radiologists see them, rows from A to P and columns from R to L" in caplog.text
    with pytest.raises(UserError, match=r"has values from -989 to 998, .* set slice_window=\[LOW,HIGH\]"):
        model.predict(values)
    caplog.clear()
    windowed = Model(picture_model, "cpu", slicing=Slicing("axial", "PL", window=[-160, 240]))
    assert "radiologists" not in caplog.text
    found = windowed.predict(values).probability
    np.testing.assert_array_equal(found, model.predict(((values + 160) / 400).clip(0, 1)).probability)


def test_batches_and_windows_within_the_slices_change_nothing_else(nifti_model: Path) -> None:
    values = scan().get_fdata(dtype=np.float32)
    whole = [Model(nifti_model, "cpu", slicing=Slicing(2, batch_size=size)).predict(values) for size in (1, 3, 9)]
    for found in whole[1:]:
        np.testing.assert_allclose(found.probability, whole[0].probability, atol=1e-6)
        pd.testing.assert_frame_equal(found.table, whole[0].table, rtol=1e-5)
    windows = InferenceChanges(window=[24, 8], overlap=0.5, batch_size=3)
    found = Model(nifti_model, "cpu", inference=windows, slicing=Slicing(2)).predict(values)
    method = load_method(nifti_model, windows).method
    for k in range(SHAPE[2]):
        one = torch.from_numpy(standardised(values[::-1, ::-1, k]))[None, None]
        with torch.inference_mode():
            expected = torch.sigmoid(method.predict(one)[0].double()).mean(dim=0).numpy()
        np.testing.assert_allclose(found.probability[:, ::-1, ::-1, k], expected, atol=1e-6)
    with pytest.raises(UserError, match="cannot predict an image of 5x4x4"):
        Model(checkpoint_of_deep(nifti_model), "cpu", slicing=Slicing(2)).predict(values[:4, :4])


def checkpoint_of_deep(beside: Path) -> Path:
    deep = "network.features=[4,4,4,4,4]"
    return checkpoint(beside.with_name("deep.ckpt"), deep, image_format=NIFTI)


def test_slices_that_the_training_resizes_come_back_to_the_size_of_the_volume(picture_model: Path) -> None:
    method = load_method(picture_model).method

    class Squares(SquarePicture):
        def channels(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
            return super().channels(picture)[:1]

    volume = torch.rand(1, 1, 3, 12, 20)
    sliced = SliceBySlice(method, Squares(8), SliceLayout("RAS"), 2)
    with torch.inference_mode():
        found = sliced.predict(volume)
        assert found.shape[3:] == (3, 12, 20)
        for at in range(3):
            small = torch.from_numpy(Squares(8).channels(volume[0, :, at].numpy()))[None]
            logits = method.predict(small)[0].flatten(0, 1)[None]
            expected = torch.nn.functional.interpolate(logits, [12, 20], mode="bilinear", antialias=True)
            torch.testing.assert_close(found[0, :, :, at].flatten(0, 1), expected[0])


def test_what_does_not_fit_is_refused_in_one_line(nifti_model: Path, picture_model: Path, tmp_path: Path) -> None:
    unknown = checkpoint(tmp_path / "unknown.ckpt", image_format=ImageFormat(2, 1, STRUCTURES))
    turned = checkpoint(
        tmp_path / "turned.ckpt", "method=test_time_augmentation", "method.turned=true", image_format=NIFTI
    )
    differing = checkpoint(tmp_path / "differing.ckpt", image_format=ImageFormat(2, 1, STRUCTURES, DIFFERING_SLICES))
    volume = scan()
    nibabel.save(volume, tmp_path / "scan.nii.gz")

    base = asked(nifti_model, tmp_path / "scan.nii.gz", tmp_path / "out")
    axial = {"slice_axis": "axial"}
    for path, options, message in (
        (checkpoint(tmp_path / "3d.ckpt"), axial, "3d.ckpt was trained on volumes, .*remove slice_axis"),
        (nifti_model, {"slice_axis": "coronal"}, "the training have the axes LP, which do not lie in this plane"),
        (nifti_model, {"slice_axis": 0}, "have the axes LP"),
        (differing, axial, "does not say how the axes of its 2D images run; set slice_directions"),
        (unknown, axial, "does not say how the axes of its 2D images run; set slice_directions"),
        (nifti_model, {"slice_axis": "transversal"}, "slice_axis=transversal: must be axial, coronal or sagittal, or"),
        (nifti_model, {"slice_axis": 3}, "slice_axis=3: must be"),
        (nifti_model, {**axial, "slice_directions": "SL"}, "slice_directions=SL: must be two letters"),
        (nifti_model, {**axial, "slice_directions": "RL"}, "slice_directions=RL: must be two letters"),
        (nifti_model, {**axial, "slice_window": [3, 1]}, "must be two numbers, the lower one first"),
        (nifti_model, {**axial, "slice_batch": 0}, "slice_batch must be at least 1"),
        (nifti_model, {"slice_window": [0, 1]}, "slice_window: has no effect without slice_axis"),
        (nifti_model, {**axial, "sensitivity": 0.5}, "sensitivity=0.5: has no effect with slice_axis"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            predict({**base, "ckpt": str(path), **options}, tmp_path / "out")
        assert "\n" not in str(refused.value)
    found = predict(asked(unknown, tmp_path / "scan.nii.gz", tmp_path / "whole"), tmp_path / "whole")
    assert "has 5 channels, but the model expects 1; for a volume, set slice_axis=axial, cor" in found.failed["scan"]
    with pytest.raises(UserError, match="has 20 channels, but the model expects 1; for a volume, set slice_axis=axial"):
        Model(nifti_model, "cpu").predict(volume.get_fdata())
    with pytest.raises(UserError, match=r"expects 2D images .*; for a volume, set slice_axis=axial"):
        Model(nifti_model, "cpu").predict(volume.get_fdata()[None])
    model = Model(turned, "cpu", slicing=Slicing("axial"))
    with pytest.raises(UserError, match=r"exchanges rows and columns .* \(along LP\) are 0.9 and 1.1 mm"):
        model.predict(volume.get_fdata(), affine=volume.affine)
    assert model.predict(volume.get_fdata()).probability.shape == (2, *SHAPE)


def test_limits_of_2d_images_flag_no_volume(
    nifti_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes(nifti_model.read_bytes())
    one = StructureTriage("sv_total", 0.8, np.array([0.5, 0.9]), np.array([1e-9, 0.0]), {"predicted_area": (0.0, 1e-9)})
    triage = Triage(1.0, dict.fromkeys(STRUCTURES, one), {"percentile 50 of channel 1": (8.0, 9.0)}, 5, spaced=True)
    add_results(path, triage=triage.as_dict())
    (tmp_path / "scans").mkdir()
    nibabel.save(scan(), tmp_path / "scans" / "first.nii.gz")
    with caplog.at_level(logging.WARNING):
        found = predict(asked(path, tmp_path / "scans", tmp_path / "out", "slice_axis=axial"), tmp_path / "out")
    assert "its limits were set on 2D images, so no volume is flagged" in caplog.text
    assert found.triage["flagged"].isna().all()
    assert found.triage["threshold"].isna().all()
    assert found.triage["out_of_distribution"].isna().all()
    assert found.triage["uncertainty"].isna().all()
    other = asked(path, tmp_path / "scans", tmp_path / "out", "slice_axis=axial", "slice_directions=RA")
    with pytest.raises(UserError, match="contains a prediction by another checkpoint or other settings"):
        predict(other, tmp_path / "out")


def test_a_dicom_series_gets_masks_maps_and_members_on_its_voxels_in_each_format(
    nifti_model: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    axes = tilted(12) @ np.diag([-1.0, 1.0, -1.0])
    pixels = random.integers(0, 2000, SHAPE).astype(np.int16)
    made = Scan(pixels, axes=axes)
    made.save(tmp_path / "patients" / "one")
    model = Model(nifti_model, "cpu", slicing=Slicing("axial"))
    expected = model.predict_files(tmp_path / "patients" / "one", members=True)
    assert expected.members is not None
    # LPS of the series as RAS
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.block(
        [[axes * made.spacing, np.array(made.place(0, 0, 0))[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]
    )
    by_array = model.predict(pixels.astype(np.float32) - 1000, affine=affine)
    for form in ("dicom", "nifti", "nrrd"):
        out = tmp_path / form
        settings = asked(nifti_model, tmp_path / "patients", out, "slice_axis=axial", "members=true", f"format={form}")
        found = predict(settings, out)
        assert not found.failed
        for k, structure in enumerate(STRUCTURES):
            values = {"probability": expected.probability[k], "disagreement": expected.disagreement[k]}
            values |= {f"member_{number}": member[k] for number, member in enumerate(expected.members, 1)}
            for name, wanted in values.items():
                stored = _read(out, f"one__{name}__{structure}", made)
                np.testing.assert_allclose(stored, wanted, atol=1e-6, err_msg=f"{form} {name}")
        np.testing.assert_allclose(expected.probability, by_array.probability, atol=1e-5)
    described = {
        path.name: dcmread(path, stop_before_pixels=True).SeriesDescription
        for path in (tmp_path / "dicom").glob("*__core.dcm")
    }
    assert described["one__probability__core.dcm"] == "edue-lightning: Probability of the structure: core"
    assert described["one__member_2__core.dcm"] == "edue-lightning: Probability by member 2: core"
    assert len(set(described.values())) == len(described) == 2 + len(expected.members)
    segments = highdicom.seg.segread(tmp_path / "dicom" / "one__mask.dcm")
    assert [one.SegmentLabel for one in segments.SegmentSequence] == list(STRUCTURES)
    masks = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "nrrd" / "one__mask.seg.nrrd")))
    assert masks.size >= np.prod(SHAPE)
    for k in range(2):
        volume = segments.get_volume(segment_numbers=[k + 1], combine_segments=False)
        assert int(volume.array.sum()) == int(expected.mask[k].sum()) > 0


def _read(folder: Path, name: str, made: Scan) -> NDArray[np.float64]:
    """Return a map on the voxels of the series, `[columns, rows, slices]`, by the places in its file."""
    (path,) = folder.glob(f"{name}.*")
    if path.suffix == ".dcm":
        volume = highdicom.imread(path).get_volume(dtype=np.float32)
        values, affine = volume.array, volume.affine
    else:
        image = sitk.ReadImage(str(path))
        # x first
        values = sitk.GetArrayFromImage(image).T
        columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine = np.vstack([np.column_stack([columns, image.GetOrigin()]), [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3] - made.place(0, 0, 0)
    own = places @ np.linalg.inv(made.axes * made.spacing).T
    np.testing.assert_allclose(own, np.round(own), atol=1e-2)
    result = np.full(SHAPE, np.nan)
    result[tuple(np.moveaxis(np.round(own).astype(int), -1, 0))] = values
    return result
