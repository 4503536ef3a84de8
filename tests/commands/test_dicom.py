"""Patients' DICOM folders through the commands: checked, trained on, predicted, and the results read back."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import ct_slice, write
from dicom_patients import Box, Scan
from patients import tilted
from processes import run_command
from pydicom import dcmread
from pydicom.uid import generate_uid

# columns, rows, slices
SHAPE = (32, 32, 24)


def patient(folder: Path, seed: int) -> Scan:
    """Write an oblique series with a bright box, the outlines of two observers, and a localizer."""
    random = np.random.default_rng(seed)
    low = random.integers(4, 14, size=3)
    box: Box = (tuple(low.tolist()), tuple((low + np.array([12, 10, 6])).tolist()))
    pixels = (1000 + random.normal(0, 20, SHAPE)).astype(np.int16)
    axes = tilted(5.0 * seed) @ np.diag([-1, -1, 1]) if seed % 2 else np.diag([-1.0, 1.0, -1.0])
    made = Scan(pixels, axes=axes, patient=f"P{seed}")
    pixels[made.mask(box)] += 800
    made.save(folder / "ct")
    smaller: Box = (box[0], (box[1][0] - 1, box[1][1], box[1][2]))
    for rater, drawn in (("Anna", box), ("Ben", smaller)):
        write(made.outlines({"GTV": [drawn]}, rater), folder / f"{rater}.dcm")
    scout = ct_slice(pixels[:, :, 0], 0.0, series=generate_uid())
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(scout, folder / "ct" / "scout")
    return made


@pytest.mark.slow
def test_series_with_two_observers_are_checked_trained_on_and_predicted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for seed in range(4):
        patient(root / f"patient{seed}", seed)
    data = ["data=dicom", f"data.root={root}", "data.cache=null", "network.features=[4,6]"]
    data += ["data.fractions.draw=permutation", "data.fractions.val=0.25"]
    checked = run_command("check", [*data, "output=checked"], tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "data=dicom: 4 cases of 4 patients" in checked.stdout
    assert "cases per rater Anna 4, Ben 4" in checked.stdout
    assert "8 RTSTRUCT" in checked.stdout
    assert "case 'patient0': left out: patient0/ct/scout (localizer)" in checked.stdout
    settings = ["method=edue", "trainer.max_epochs=25", "data.batch_size=2", "bootstrap_resamples=50"]
    settings += ["optimizer.learning_rate=0.03", "network.foreground_prior=0.3"]
    trained = run_command("train", [*data, *settings, "hydra.run.dir=run", "figures=false"], tmp_path)
    assert trained.returncode == 0, trained.stderr

    # one scan in four formats, by ITK
    new = tmp_path / "new"
    made = patient(new / "dicom", 99)
    files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(new / "dicom" / "ct"), made.series))
    volume = sitk.ReadImage(files)
    for name in ("nifti.nii.gz", "nrrd.nrrd", "meta.mha"):
        sitk.WriteImage(volume, str(new / name))
    settings = ["ckpt=run/checkpoints/best.ckpt", f"input={new}", "output=out"]
    predicted = run_command("predict", settings, tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert "localizers are left out: scout" in predicted.stdout
    out = tmp_path / "out"
    assert sorted(pd.read_csv(out / "triage.csv")["case"]) == ["ct", "meta", "nifti", "nrrd"]
    wanted = {
        name: np.asarray(nibabel.load(out / f"nifti__{name}.nii.gz").dataobj)
        for name in ("mask", "probability", "disagreement")
    }
    assert np.ptp(wanted["probability"]) > 0.01
    assert 0 < wanted["mask"].mean() < 1
    for name in ("nrrd__mask.seg.nrrd", "meta__mask.mha", "ct__mask.dcm", "nrrd__probability.nrrd"):
        found = sitk.ReadImage(str(out / name))
        assert found.GetSize() == volume.GetSize()
        for part in ("GetOrigin", "GetSpacing", "GetDirection"):
            np.testing.assert_allclose(getattr(found, part)(), getattr(volume, part)(), atol=1e-3)
        values = sitk.GetArrayFromImage(found).T
        kind = name.split("__")[1].split(".")[0]
        np.testing.assert_array_equal(values > 0 if kind == "mask" else values, wanted[kind])
    # the DICOM objects, by highdicom
    held = highdicom.seg.segread(out / "ct__mask.dcm")
    slices = {dcmread(path).SOPInstanceUID for path in files}
    assert held.ReferencedSeriesSequence[0].SeriesInstanceUID == made.series
    assert {uid for _, _, uid in held.get_source_image_uids()} == slices
    assert held.SegmentSequence[0].SegmentLabel == "GTV"
    assert held.PatientID == made.patient
    for name in ("probability", "disagreement"):
        stored = highdicom.imread(out / f"ct__{name}.dcm").get_volume(dtype=np.float32)
        to_voxels = np.linalg.inv(made.axes * made.spacing)
        for index in [(0, 0, 0), (5, 7, 9), *map(tuple, np.argwhere(stored.array == stored.array.max())[:3])]:
            own = to_voxels @ ((stored.affine @ [*index, 1])[:3] - made.place(0, 0, 0))
            np.testing.assert_allclose(own, np.round(own), atol=1e-3)
            assert stored.array[index] == wanted[name][tuple(np.round(own).astype(int))]
