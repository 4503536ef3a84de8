"""New scans in, files on their own voxels and a list of cases out; whatever stops it, nothing is lost."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from patients import Patient, affine_of, tilted
from PIL import Image
from processes import PATIENCE, run_command, wait_until

import edue_lightning
from edue_lightning.atomic import write_whole
from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import HecktorSource, SyntheticFundus
from edue_lightning.data.images import ImageError
from edue_lightning.errors import UserError
from edue_lightning.prediction import run as command
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.result_files import _Single
from edue_lightning.prediction.run import predict
from edue_lightning.prediction.triage import StructureTriage, Triage
from edue_lightning.prediction.triage_table import COLUMNS
from edue_lightning.runs.checkpoints import add_results, checkpoint_entries, load_method, save_method

NETWORK = ("network.features=[4,6,8]", "optimizer.schedule=constant")


def configuration(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose(name, list(overrides)))


def asked(checkpoint: Path, source: Path, output: Path, *overrides: str) -> dict[str, Any]:
    return configuration(
        "predict", f"ckpt={checkpoint}", f"input={source}", f"output={output}", "device=cpu", *overrides
    )


def triage_of(structures: tuple[str, ...], poor: float, good: float = 0.0) -> Triage:
    """Return the triage data of one poor and one good validation case, with their uncertainties."""
    one = StructureTriage("sv_total", 0.8, np.array([0.5, 0.9]), np.array([poor, good]), {"sv_total": (0.0, 1e9)})
    return Triage(1.0, dict.fromkeys(structures, one), {"percentile 50 of channel 1": (-9.0, 9.0)}, 5, spaced=True)


def untrained(path: Path, images: ImageFormat, *overrides: str, poor: float = 1.0, good: float = 0.0) -> Path:
    """Write the checkpoint of a method whose weights are drawn; it is as good as any to see where its answers go."""
    settings = configuration("train", *NETWORK, *overrides)
    torch.manual_seed(0)
    method = build_method(settings, images)
    save_method(method, path, checkpoint_entries(settings, images))
    add_results(path, triage=triage_of(images.structures, poor, good).as_dict())
    return path


@pytest.fixture(scope="module")
def petct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a method for CT and PET."""
    path = tmp_path_factory.mktemp("petct") / "best.ckpt"
    overrides = ("data=hecktor", "data.root=.", "inference.window=[16,16,8]", "data.source.spacing=[1.5,1.5,2]")
    return untrained(path, ImageFormat(3, 2, ("GTVn",)), *overrides)


@pytest.mark.parametrize("boxes", [None, "bbox.csv"])
def test_a_model_of_cut_scans_warns_that_new_scans_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, boxes: str | None
) -> None:
    overrides = ("data=hecktor", "data.root=.", f"data.source.bounding_boxes={boxes or 'null'}")
    Model(untrained(tmp_path / "best.ckpt", ImageFormat(3, 2, ("GTVn",)), *overrides), "cpu")
    assert caplog.text.count("trained on scans cut to bounding boxes, but takes new scans whole") == (boxes is not None)


DISC, NODULE = ImageFormat(2, 3, ("disc", "cup")), ImageFormat(2, 1, ("nodule",))
CUT_IMAGES = [
    (DISC, ["data=papila"], "squares around the optic disc with edges of 0.5 of the photograph's height, but "),
    (DISC, ["data=papila", "data.source.crop=null"], None),
    (DISC, ["data=riga", "data.source.crop=0.3"], "squares around the optic disc with edges of 0.3 of the photo"),
    (DISC, ["data=drishti"], "squares around the optic disc with edges of 0.5 of the photograph's height, but "),
    (
        DISC,
        ["data=drishti", "data.source.crop=null"],
        "whole photographs with black borders that make them square, but",
    ),
    (NODULE, ["data=lidc_slices", "data.source.size=64"], "the middle 64x64 pixels of slices around a nodule, but "),
    (NODULE, ["data=lidc_slices", "data.source.size=null"], None),
    (NODULE, ["data=lidc_dicom", "data.source.size=96"], "squares of 96x96 pixels around a nodule, but "),
    (NODULE, ["data=lidc"], "rendered pictures of 64x64 pixels around a nodule, not on CT"),
    (ImageFormat(2, 3, ("vessels",)), ["data=retinal_vessels"], None),
]


@pytest.mark.parametrize(("images", "overrides", "said"), CUT_IMAGES)
def test_a_model_of_cut_images_warns_that_new_ones_are_taken_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, images: ImageFormat, overrides: list[str], said: str | None
) -> None:
    Model(untrained(tmp_path / "best.ckpt", images, "data.root=.", *overrides), "cpu")
    warned = [record.getMessage() for record in caplog.records if "was trained on" in record.getMessage()]
    assert len(warned) == (said is not None)
    assert said is None or f"was trained on {said}" in warned[0]


def test_predict_warns_once_that_a_whole_photograph_is_squeezed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = untrained(tmp_path / "best.ckpt", DISC, "data=papila", "data.root=.", "data.source.size=32")
    for name in ("left", "right"):
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / f"{name}.png")
    predict(asked(checkpoint, tmp_path / "left.png", tmp_path / "out"), tmp_path / "out")
    said = "takes new photographs whole and resizes them to 32x32; cut new photographs in the same way first"
    assert caplog.text.count(said) == 1
    resampled = "1 of the 1 cases are resampled for the model: the volumes and sums in triage.csv"
    assert caplog.text.count(resampled) == 1
    # a case that is not predicted again counts too
    predict(asked(checkpoint, tmp_path / "left.png", tmp_path / "out"), tmp_path / "out")
    assert caplog.text.count(resampled) == 2


def oblique(name: str, degrees: float, shift: float) -> Patient:
    shape = (20, 26, 9)
    axes = tilted(degrees)[:, [1, 0, 2]]
    return Patient(name, shape, affine_of((0.9, 1.1, 2.5), (3 + shift, -8, 99), shape, axes))


def test_volumes_get_maps_on_their_own_oblique_voxels(petct: Path, tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    patients = [Patient(), oblique("MDA-002", 17.0, 0.0), oblique("MDA-003", -25.0, 1.0)]
    for patient in patients:
        patient.write(scans)
    found = predict(asked(petct, scans, output), output)
    assert not found.failed
    assert set(found.triage["case"]) == {patient.name for patient in patients}
    method = load_method(petct).method
    source = HecktorSource(str(scans), spacing=[1.5, 1.5, 2])
    for patient in patients:
        ct = nibabel.load(next(scans.rglob(f"{patient.name}__CT.nii.gz")))
        maps = {}
        for name in ("mask", "probability", "disagreement"):
            image = nibabel.load(output / f"{patient.name}__{name}.nii.gz")
            assert image.shape == ct.shape
            np.testing.assert_array_equal(image.affine, ct.affine)
            for form in ("get_qform", "get_sform"):
                own, of_ct = (getattr(one, form)(coded=True) for one in (image, ct))
                assert own[1] == of_ct[1]
                np.testing.assert_array_equal(own[0], of_ct[0])
            assert image.header.get_xyzt_units() == ct.header.get_xyzt_units()
            maps[name] = np.asarray(image.dataobj)
        np.testing.assert_array_equal(maps["mask"], maps["probability"] >= 0.5)
        # by another way: sample the prediction on the network's grid at the place of each of the CT's voxels
        sample = source.load(patient.name)
        with torch.inference_mode():
            members = method.predict(sample.image[None]).sigmoid()[0]
        assert sample.affine is not None
        to_grid = np.linalg.inv(sample.affine.numpy()) @ ct.affine
        voxels = np.argwhere(np.ones(ct.shape))
        places = nibabel.affines.apply_affine(to_grid, voxels)
        inside = ((places >= 0) & (places <= np.array(members.shape[2:]) - 1)).all(axis=1)
        assert inside.mean() > 0.5
        scaled = torch.from_numpy(places[inside] / (np.array(members.shape[2:]) - 1) * 2 - 1).float()
        for name, values in (("probability", members.mean(dim=0)), ("disagreement", members.var(dim=0, correction=0))):
            expected = torch.nn.functional.grid_sample(
                values[None], scaled[None, :, None, None, [2, 1, 0]], align_corners=True
            ).flatten()
            np.testing.assert_allclose(maps[name][tuple(voxels[inside].T)], expected, atol=1e-4)
    assert not list(output.rglob("unfinished-*"))


def test_a_run_that_is_complete_or_cut_off_goes_on(
    petct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    for patient in (Patient(), oblique("MDA-002", 17.0, 0.0)):
        patient.write(scans)
    settings = asked(petct, scans, output)
    whole = tmp_path / "whole"
    predict(settings, whole)
    written = command.write_estimate
    calls: list[str] = []

    def once(folder: Path, case: Any, *rest: Any) -> list[str]:
        calls.append(case.case_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return written(folder, case, *rest)

    monkeypatch.setattr(command, "write_estimate", once)
    with pytest.raises(KeyboardInterrupt):
        predict(settings, output)
    assert not (output / "triage.csv").exists()
    predict(settings, output)
    # what was finished is not predicted again
    assert calls == ["CHUM-001", "MDA-002", "MDA-002"]
    assert (output / "triage.csv").read_text() == (whole / "triage.csv").read_text()
    predict(settings, output)
    assert len(calls) == 3
    predict({**settings, "overwrite": True}, output)
    assert len(calls) == 5
    assert not list((output / "records").glob("*.started"))


def test_nothing_is_overwritten_unasked(petct: Path, tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    Patient().write(scans)
    settings = asked(petct, scans, output)
    predict(settings, output)
    before = (output / "CHUM-001__mask.nii.gz").read_bytes()
    with pytest.raises(
        UserError, match="contains a prediction by another checkpoint or other settings; choose another output or set"
    ):
        predict({**settings, "sensitivity": 0.5}, output)
    ct = next(scans.rglob("*__CT.nii.gz"))
    image = nibabel.load(ct)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), ct)
    found = predict(settings, output)
    assert "contains a prediction of this name from other image files" in found.failed["CHUM-001"]
    assert (output / "CHUM-001__mask.nii.gz").read_bytes() == before
    assert not predict({**settings, "overwrite": True}, output).failed
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains letter\.txt, which is not part of a prediction"):
        predict(settings, other)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written to \(.*\); choose another folder"):
        predict(settings, tmp_path / "file")


def photographs(folder: Path, cases: int = 3) -> SyntheticFundus:
    source = SyntheticFundus(n_cases=cases, size=32, seed=9)
    folder.mkdir(parents=True)
    for record in source.cases():
        picture = (source.load(record.case_id).image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(folder / f"{record.case_id}.png")
    return source


def test_the_command_predicts_pictures_reports_bad_ones_and_says_so(trained_run: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "pictures")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    overrides = [f"ckpt={checkpoint}", "input=pictures", "output=out", "device=cpu"]
    done = run_command("predict", overrides, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "broken.png: cannot be read" in done.stdout
    assert "3 cases predicted" in done.stdout
    table = pd.read_csv(tmp_path / "out" / "triage.csv")
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 6
    assert (table["unit"] == "pixels").all()
    assert (table["volume_low"] <= table["volume_high"]).all()
    failed = pd.read_csv(tmp_path / "out" / "failed.csv")
    assert failed["case"].tolist() == ["broken"]
    method = load_method(checkpoint).method
    for path in sorted((tmp_path / "pictures").glob("fundus*.png")):
        image = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1) / np.float32(255))[None]
        with torch.inference_mode():
            expected = method.predict(image).sigmoid().mean(dim=1)[0]
        for k, structure in enumerate(("disc", "cup")):
            stem = f"{path.stem}__{{}}__{structure}"
            probability = np.asarray(Image.open(tmp_path / "out" / (stem.format("probability") + ".tif")))
            np.testing.assert_allclose(probability, expected[k], atol=1e-5)
            mask = np.asarray(Image.open(tmp_path / "out" / (stem.format("mask") + ".png")))
            np.testing.assert_array_equal(mask, (probability >= 0.5) * 255)
            assert (tmp_path / "out" / (stem.format("overlay") + ".png")).stat().st_size > 1000
    # without the bad one it goes on, and all is well
    (tmp_path / "pictures" / "broken.png").unlink()
    again = run_command("predict", overrides, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert pd.read_csv(tmp_path / "out" / "failed.csv").empty


def test_pictures_are_drawn_of_all_of_flagged_or_of_no_structures(trained_run: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "pictures")
    settings = asked(trained_run / "checkpoints" / "best.ckpt", tmp_path / "pictures", tmp_path / "all")
    # a share of 1 flags some of the cases
    expected = predict({**settings, "sensitivity": 1.0}, tmp_path / "all").triage
    drawn = {}
    for overlay in ("flagged", "none"):
        found = predict({**settings, "sensitivity": 1.0, "overlay": overlay}, tmp_path / overlay).triage
        pd.testing.assert_frame_equal(found, expected)
        drawn[overlay] = {path.name for path in (tmp_path / overlay).glob("*overlay*")}
    flagged = expected[expected["flagged"].fillna(False).astype(bool)]
    assert drawn["flagged"] == {f"{row.case}__overlay__{row.structure}.png" for row in flagged.itertuples()}
    assert drawn["none"] == set()
    assert len(list((tmp_path / "all").glob("*overlay*"))) == 6
    assert len(list((tmp_path / "none").glob("*layers*.js"))) == 6
    with pytest.raises(UserError, match="contains a prediction by another checkpoint or other settings"):
        predict({**settings, "sensitivity": 1.0, "overlay": "none"}, tmp_path / "all")
    with pytest.raises(UserError, match="overlay=some: must be one of all, flagged, none"):
        predict({**settings, "overlay": "some"}, tmp_path / "other")


def test_members_are_written_on_request_and_returned_in_python(trained_run: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "pictures", cases=1)
    (picture,) = (tmp_path / "pictures").iterdir()
    settings = asked(trained_run / "checkpoints" / "best.ckpt", tmp_path / "pictures", tmp_path / "out")
    predict({**settings, "members": True}, tmp_path / "out")
    model = edue_lightning.load_model(trained_run / "checkpoints" / "best.ckpt", "cpu")
    found = model.predict_files(picture, members=True)
    assert found.members is not None
    assert found.members.dtype == np.float32
    with torch.inference_mode():
        image = np.asarray(Image.open(picture)).transpose(2, 0, 1) / np.float32(255)
        expected = model.method.predict(torch.from_numpy(image)[None]).sigmoid()[0].numpy()
    np.testing.assert_allclose(found.members, expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(image, members=True).members, expected, atol=1e-5)
    for number, member in enumerate(found.members, 1):
        for k, structure in enumerate(("disc", "cup")):
            path = tmp_path / "out" / f"{picture.stem}__member_{number}__{structure}.tif"
            np.testing.assert_array_equal(np.asarray(Image.open(path)), member[k])
    assert len(list((tmp_path / "out").glob("*member*"))) == 2 * len(expected)
    assert model.predict_files(picture).members is None
    record = json.loads((tmp_path / "out" / "records" / f"{picture.stem}.json").read_text())
    assert {path.name for path in (tmp_path / "out").glob("*member*")} <= set(record["files"])


def test_errors_of_the_writers_reach_the_command(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path / "pictures", cases=12)
    settings = asked(trained_run / "checkpoints" / "best.ckpt", tmp_path / "pictures", tmp_path / "out")
    written, writers = command.write_estimate, set()

    def failing(folder: Path, case: Any, *arguments: Any) -> list[str]:
        writers.add(threading.current_thread())
        if case.case_id.endswith("02"):
            raise ImageError("its header is gone")
        return written(folder, case, *arguments)

    monkeypatch.setattr(command, "write_estimate", failing)
    found = predict(settings, tmp_path / "out")
    assert list(found.failed.values()) == ["its header is gone"]
    assert found.triage["case"].nunique() == 11
    assert threading.main_thread() not in writers

    def full(folder: Path, case: Any, *arguments: Any) -> list[str]:
        raise UserError("cannot be written (no space)")

    monkeypatch.setattr(command, "write_estimate", full)
    with pytest.raises(UserError, match="no space"):
        predict({**settings, "overwrite": True}, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]
    assert not any(thread.name.startswith("writer") for thread in threading.enumerate())


def test_a_prediction_that_is_interrupted_says_one_word(trained_run: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "pictures", cases=60)
    overrides = [f"ckpt={trained_run}/checkpoints/best.ckpt", "input=pictures", "output=out", "device=cpu"]
    started = subprocess.Popen(
        [sys.executable, "-m", "edue_lightning.predict", *overrides],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # tests in the background of a shell inherit that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    records = tmp_path / "out" / "records"
    wait_until(lambda: list(records.glob("*.json")), started)
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=PATIENCE)
    assert started.returncode == 130
    assert told.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in told
    # nothing is half written: a case with a record has all of its files, others no record
    for record in records.glob("*.json"):
        assert all((tmp_path / "out" / name).is_file() for name in json.loads(record.read_text())["files"])
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("third", [False, True])
def test_slices_in_nifti_keep_their_header(tmp_path: Path, third: bool) -> None:
    checkpoint = untrained(tmp_path / "best.ckpt", ImageFormat(2, 1, ("a",)), "data=qubiq", "data.root=.")
    shape = (24, 20, 1) if third else (24, 20)
    image = nibabel.Nifti1Image(
        np.random.default_rng(0).normal(size=shape).astype(np.float32), np.diag([-0.5, 0.75, 2, 1])
    )
    image.header["descrip"] = b"of somebody"
    (tmp_path / "scans").mkdir()
    nibabel.save(image, tmp_path / "scans" / "slice.nii.gz")
    output = tmp_path / "out"
    found = predict(asked(checkpoint, tmp_path / "scans", output), output)
    assert not found.failed
    mask = nibabel.load(output / "slice__mask.nii.gz")
    assert mask.shape == shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert not bytes(mask.header["descrip"]).strip(b"\0")
    assert found.triage["unit"].tolist() == ["mm2"]
    assert found.triage["volume"][0] == pytest.approx(np.asarray(mask.dataobj).sum() * 0.5 * 0.75)


def test_cases_come_by_uncertainty_and_are_flagged_from_the_threshold_on(tmp_path: Path) -> None:
    images = ImageFormat(3, 2, ("GTVn",))
    scans = tmp_path / "scans"
    for number, degrees in enumerate((5.0, 20.0, 33.0)):
        oblique(f"MDA-00{number}", degrees, number).write(scans)
    overrides = ("data=hecktor", "data.root=.", "inference.window=[16,16,8]")
    free = untrained(tmp_path / "free.ckpt", images, *overrides)
    table = predict(asked(free, scans, tmp_path / "free"), tmp_path / "free").triage
    totals = table["sv_total"].tolist()
    assert totals == sorted(totals, reverse=True)
    chosen = untrained(tmp_path / "chosen.ckpt", images, *overrides, poor=totals[1], good=totals[2])
    table = predict(asked(chosen, scans, tmp_path / "chosen"), tmp_path / "chosen").triage
    assert table["flagged"].tolist() == [True, True, False]
    assert table["threshold"].tolist() == pytest.approx([(totals[1] + totals[2]) / 2] * 3)
    assert (table["out_of_distribution"] == "").all()


def test_a_checkpoint_without_triage_sorts_and_flags_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = configuration("train", *NETWORK, "experiment=synthetic", "method=single")
    images = ImageFormat(2, 3, ("disc", "cup"))
    method = build_method(settings, images)
    save_method(method, tmp_path / "best.ckpt", checkpoint_entries(settings, images))
    photographs(tmp_path / "pictures", cases=2)
    pictures = sorted((tmp_path / "pictures").iterdir())
    table = pd.DataFrame({"case_id": [path.stem for path in pictures], "image": pictures, "spacing": ["2x3", None]})
    table.to_csv(tmp_path / "pictures.csv", index=False)
    found = predict(asked(tmp_path / "best.ckpt", tmp_path / "pictures.csv", tmp_path / "out"), tmp_path / "out")
    assert found.triage["flagged"].isna().all()
    assert "no case will be flagged; resume the training if it was interrupted" in caplog.text
    # without limits, sizes are in mm² wherever the size of a pixel is known
    assert set(zip(found.triage["case"], found.triage["unit"], strict=True)) == {
        (pictures[0].stem, "mm2"),
        (pictures[1].stem, "pixels"),
    }
    assert (tmp_path / "out" / "fundus_0000__total_variance__disc.tif").is_file()
    assert not list((tmp_path / "out").glob("*disagreement*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ckpt": None}, "ckpt: not set"),
        ({"input": "nowhere"}, "input=nowhere: no such file or folder"),
        ({"sensitivity": 1.5}, "sensitivity must be above 0"),
        ({"device": "toaster"}, "device=toaster: does not exist"),
        ({"ckpt": "nowhere.ckpt"}, "nowhere.ckpt: no such checkpoint"),
        ({"overwrite": "perhaps"}, "overwrite"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    petct: Path, tmp_path: Path, overrides: Mapping[str, Any], message: str
) -> None:
    settings = asked(petct, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        predict({**settings, **overrides}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_from_python_says_what_the_command_says(trained_run: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "pictures", cases=1)
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    output = tmp_path / "out"
    table = predict(asked(checkpoint, tmp_path / "pictures", output), output).triage
    model = edue_lightning.load_model(checkpoint, device="cpu")
    assert model.structures == ("disc", "cup")
    picture = tmp_path / "pictures" / "fundus_0000.png"
    array = np.asarray(Image.open(picture)).transpose(2, 0, 1) / np.float32(255)
    for found in (model.predict(array), model.predict_files(picture)):
        assert found.mask.shape == (2, 32, 32)
        np.testing.assert_allclose(found.table["sv"], table["sv"], rtol=1e-5)
        stored = np.asarray(Image.open(output / "fundus_0000__disagreement__cup.tif"))
        np.testing.assert_allclose(found.disagreement[1], stored, atol=1e-6)
    for wrong in (array[0], array[:2], array[None], array * np.nan, np.zeros((3, 0, 5))):
        with pytest.raises(UserError, match="image: "):
            model.predict(wrong)


def test_records_are_plain_and_damaged_ones_are_told(petct: Path, tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    Patient().write(scans)
    predict(asked(petct, scans, output), output)
    record = output / "records" / "CHUM-001.json"
    assert set(json.loads(record.read_text())) == {"images", "spacing", "files", "rows", "resampled"}
    record.write_text("{")
    found = predict(asked(petct, scans, output), output)
    assert "is damaged; remove it, or set overwrite=true" in found.failed["CHUM-001"]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a method for grey pictures, trained with known spacing."""
    path = tmp_path_factory.mktemp("slices") / "best.ckpt"
    return untrained(path, ImageFormat(2, 1, ("a",)), "data=qubiq", "data.root=.", poor=8.0, good=2.0)


def grey(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        values = np.random.default_rng(number).integers(0, 255, (24, 20), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{name}.png")
    return folder


def table_of(folder: Path, spacing: str, *names: str) -> Path:
    frame = pd.DataFrame({"case_id": names, "image": [f"{name}.png" for name in names], "spacing": spacing})
    frame.to_csv(folder / "images.csv", index=False)
    return folder / "images.csv"


def test_another_spacing_gives_no_earlier_row(slices: Path, tmp_path: Path) -> None:
    scans, output = grey(tmp_path / "scans", "one", "two"), tmp_path / "out"
    first = predict(asked(slices, table_of(scans, "1x1", "one", "two"), output), output).triage
    second = asked(slices, table_of(scans, "2x3", "one", "two"), output)
    refused = predict(second, output)
    assert refused.triage.empty
    assert "from other image files or another spacing; choose another output" in refused.failed["one"]
    again = predict({**second, "overwrite": True}, output)
    assert not again.failed
    for name in ("volume", "sv_total", "entropy"):
        assert again.triage.set_index("case")[name].to_dict() == pytest.approx(
            (first.set_index("case")[name] * 6).to_dict()
        )


def test_a_prediction_by_an_earlier_version_is_not_resumed(slices: Path, tmp_path: Path) -> None:
    scans, output = grey(tmp_path / "scans", "one"), tmp_path / "out"
    settings = asked(slices, scans, output)
    predict(settings, output)
    path = output / "prediction.yaml"
    held = path.read_text()
    assert "format: null\n" in held
    # the number was called so
    path.write_text(held.replace(f"version: {command._VERSION}\n", "").replace("format: null\n", "format: 2\n"))
    with pytest.raises(UserError, match="by another version of this program; choose another output"):
        predict(settings, output)
    assert not predict({**settings, "overwrite": True}, output).failed


def test_overwriting_removes_what_is_gone_or_fails_now(
    slices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans, output = grey(tmp_path / "scans", "gone", "fails", "stays"), tmp_path / "out"
    settings = asked(slices, scans, output)
    predict(settings, output)
    assert len(list(output.glob("gone__*"))) == len(list(output.glob("fails__*"))) == 5
    (output / "notes.txt").write_text("mine")
    (scans / "gone.png").unlink()
    (scans / "fails.png").write_bytes(b"no picture")
    predict(settings, output)
    assert "earlier files of fails and 1 more, which this input does not give or which failed now" in caplog.text
    assert list(output.glob("gone__*"))
    found = predict({**settings, "overwrite": True}, output)
    assert found.triage["case"].tolist() == ["stays"]
    assert list(found.failed) == ["fails"]
    assert {path.name.split("__")[0] for path in output.glob("*__*")} == {"stays"}
    assert [path.stem for path in (output / "records").iterdir()] == ["stays"]
    assert (output / "notes.txt").exists()


def test_overwriting_removes_files_of_a_case_that_was_being_written(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scans, output = grey(tmp_path / "scans", "one", "two"), tmp_path / "out"
    settings = asked(slices, scans, output)

    def killed(path: Path, write: Any) -> None:
        if path.name == "two.json":
            raise KeyboardInterrupt
        write_whole(path, write)

    with monkeypatch.context() as patched:
        patched.setattr(command, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(settings, output)
    assert len(list(output.glob("two__*"))) == 5
    # a file of one's own
    (output / "two__notes.txt").write_text("mine")
    (scans / "two.png").unlink()
    predict(settings, output)
    assert "also contains earlier files of two, which this input does not give" in caplog.text
    predict({**settings, "overwrite": True}, output)
    assert [path.name for path in output.glob("two__*")] == ["two__notes.txt"]
    assert len(list(output.glob("one__*"))) == 5
    assert [path.name for path in (output / "records").iterdir()] == ["one.json"]


def test_a_case_whose_masks_cannot_be_written_leaves_no_maps(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> list[str]:
        raise ImageError("no mask")

    monkeypatch.setattr(_Single, "masks", refused)
    scans, output = grey(tmp_path / "scans", "one"), tmp_path / "out"
    assert "no mask" in predict(asked(slices, scans, output), output).failed["one"]
    assert not list(output.glob("one__*"))
    assert not list((output / "records").iterdir())


def test_a_record_cannot_remove_files_elsewhere(slices: Path, tmp_path: Path) -> None:
    scans, output = grey(tmp_path / "scans", "one"), tmp_path / "out"
    settings = asked(slices, scans, output)
    predict(settings, output)
    record = output / "records" / "one.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "files": ["../scans/one.png"]}))
    assert "is damaged" in predict(settings, output).failed["one"]
    assert not predict({**settings, "overwrite": True}, output).failed
    assert (scans / "one.png").exists()


def test_a_case_whose_files_were_removed_is_predicted_again(slices: Path, tmp_path: Path) -> None:
    scans, output = grey(tmp_path / "scans", "one"), tmp_path / "out"
    settings = asked(slices, scans, output)
    predict(settings, output)
    (output / "one__mask.png").unlink()
    assert not predict(settings, output).failed
    assert (output / "one__mask.png").exists()


def test_cases_of_unknown_voxel_size_are_counted_as_not_flagged(
    slices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans, output = grey(tmp_path / "scans", "one", "two"), tmp_path / "out"
    found = predict(asked(slices, scans, output), output)
    assert found.triage["flagged"].isna().all()
    assert found.triage["volume"].isna().all()
    assert "2 cases are not flagged, since their voxel size is unknown" in caplog.text


def test_a_volume_s_voxel_size_comes_from_its_affine(petct: Path) -> None:
    model = edue_lightning.load_model(petct, device="cpu")
    volume = np.random.default_rng(0).normal(size=(2, 16, 18, 9))
    affine = np.diag([-1.5, 1.5, 4.0, 1.0])
    found = model.predict(volume, affine=affine).table
    assert found["unit"].tolist() == ["mm3"]
    same = model.predict(volume, affine=affine, spacing=(1.5, 1.5, 4.0)).table
    pd.testing.assert_frame_equal(found, same)
    with pytest.raises(UserError, match=r"spacing=\[1.5, 1.5, 3.0\]: contradicts the affine, whose voxels are"):
        model.predict(volume, affine=affine, spacing=(1.5, 1.5, 3.0))
    for wrong in (np.eye(3), np.diag([1.0, 1.0, 0.0, 1.0]), np.full((4, 4), np.nan), np.eye(4) * 2):
        with pytest.raises(UserError, match="affine: must be an invertible 4x4 matrix"):
            model.predict(volume, affine=wrong)
    sheared = affine @ np.array([[1, 0.6, 0, 0], [0, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(UserError, match=r"affine: axes 1 and 2 are at an angle of 53\.13 degrees.*; resample to"):
        model.predict(volume, affine=sheared)
    for spacing in ((1.0, 1.0), (1.0, 1.0, -1.0), (1.0, 1.0, math.nan)):
        with pytest.raises(UserError, match="must be 3 positive numbers"):
            model.predict(volume, spacing=spacing)


def test_the_input_may_not_lie_within_the_output(slices: Path, tmp_path: Path) -> None:
    scans = grey(tmp_path / "scans", "one")
    for given in (scans, scans / "one.png"):
        with pytest.raises(UserError, match="scans: contains the input; choose another folder"):
            predict(asked(slices, given, scans, "overwrite=true"), scans)


def test_a_second_prediction_below_the_input_predicts_the_same_cases(slices: Path, tmp_path: Path) -> None:
    scans = grey(tmp_path / "scans", "one", "two")
    for name in ("first", "second"):
        found = predict(asked(slices, scans, scans / name), scans / name)
        assert not found.failed
        assert sorted(found.triage["case"]) == ["one", "two"]


@pytest.mark.exhaustive
def test_the_trial_of_triage_runs(tmp_path: Path) -> None:
    overrides = ("experiment=synthetic_petct", "inference.window=[48,48,16]", "inference.overlap=0")
    checkpoint = untrained(tmp_path / "best.ckpt", ImageFormat(3, 2, ("GTVn",)), *overrides)
    script = Path(__file__).parents[2] / "experiments" / "triage" / "held_out.py"
    options = [f"ckpt={checkpoint}", "--volumes", "--cases", "5", "--folder", str(tmp_path / "trial")]
    done = subprocess.run(
        [sys.executable, str(script), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "voxels that differ from the network's own mask, of 5 cases: 0" in done.stdout
    assert "times its share" in done.stdout
