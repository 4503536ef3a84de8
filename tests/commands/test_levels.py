"""EDUE with levels and the rules for masks, from training to predicted files, each command in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import yaml
from PIL import Image
from processes import TABLES_ALONE, run_command

from edue_lightning.prediction.model import Model
from edue_lightning.runs.checkpoints import load_method, read_checkpoint, write_checkpoint
from edue_lightning.uncertainty import majority_threshold

CKPT = "run/checkpoints/best.ckpt"
COLUMNS = ["structure", "metric", "value", "n_cases"]
TRAINING = [
    *(*TABLES_ALONE, "data.source.raters=3", "method=edue_levels_mask", "mask=validation", "hydra.run.dir=run"),
    *("optimizer.learning_rate=0.01", "network.foreground_prior=0.5"),
]


def metrics_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv")[COLUMNS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of levels whose masks are taken at thresholds chosen on validation."""
    folder = tmp_path_factory.mktemp("levels")
    done = run_command("train", TRAINING, cwd=folder)
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name in ("a", "b"):
        Image.fromarray((rng.random((32, 40, 3)) * 255).astype(np.uint8)).save(folder / f"images/{name}.png")
    return folder


@pytest.mark.slow
def test_a_training_fills_in_what_it_left_to_the_data(place: Path) -> None:
    # tensors and plain values alone
    checkpoint = read_checkpoint(place / CKPT)
    facts = checkpoint["edue_mask"]
    assert facts["raters"] == 3
    assert set(facts["thresholds"]) == {"disc", "cup"}
    configuration = yaml.safe_load((place / "run/config.yaml").read_text())
    assert configuration["method"]["levels"] == 3
    method = load_method(place / CKPT).method
    assert method.label == "edue_levels_mask"
    assert method.readout.own_maps == ("decision",)
    assert method.readout.mask.fixed(method.structures) == [facts["thresholds"][name] for name in method.structures]
    # the same command finds the run finished, although it leaves the number of levels open
    done = run_command("train", [*TRAINING, "resume=auto"], cwd=place)
    assert done.returncode == 0, done.stderr
    assert "is already finished" in done.stdout


@pytest.mark.slow
def test_thresholds_for_an_earlier_confidence_flag_no_case(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = read_checkpoint(place / CKPT)
    del checkpoint["edue_triage"]["by_majority"]
    for one in checkpoint["edue_triage"]["structures"].values():
        one |= {"score": "soft_dice_confidence", "expected_dice": None}
    write_checkpoint(checkpoint, place / "earlier.ckpt")
    model = Model(place / "earlier.ckpt")
    assert model.triage is None
    assert model.has_triage_data
    assert "earlier.ckpt: its thresholds are for the soft_dice_confidence of an earlier version" in caplog.text
    assert Model(place / CKPT).triage is not None
    done = run_command("export", ["ckpt=earlier.ckpt", "format=onnx", "output=earlier.onnx"], cwd=place)
    assert done.returncode == 0, done.stderr
    stored = onnxruntime.InferenceSession(place / "earlier.onnx").get_modelmeta().custom_metadata_map["edue_lightning"]
    assert json.loads(stored)["triage"] is None


@pytest.mark.slow
@pytest.mark.exhaustive
def test_evaluations_of_a_checkpoint_and_of_its_predictions_agree_under_every_rule(place: Path) -> None:
    done = run_command("evaluate", [f"ckpt={CKPT}", "output=own", "save_predictions=true"], cwd=place)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(metrics_of(place / "run"), metrics_of(place / "own"), rtol=1e-6)
    thresholds = read_checkpoint(place / CKPT)["edue_mask"]["thresholds"]
    given = f"mask.thresholds={{disc:{thresholds['disc']},cup:{thresholds['cup']}}}"
    data = ["data=synthetic", "data.source.n_cases=24", "data.source.size=32", "data.source.raters=3"]
    data += ["data.fractions.draw=permutation", "predictions=own/predictions"]
    found = {}
    for rule, more in (("half", []), ("raters", ["mask.raters=3"]), ("validation", [given]), ("expected_dice", [])):
        for output, command in (
            (f"checkpoint_{rule}", [f"ckpt={CKPT}"]),
            (f"predictions_{rule}", [*data, *more]),
        ):
            done = run_command("evaluate", [*command, f"mask={rule}", f"output={output}"], cwd=place)
            assert done.returncode == 0, done.stderr
            assert yaml.safe_load((place / output / "config.yaml").read_text())["mask"]["rule"] == rule
        found[rule] = metrics_of(place / f"checkpoint_{rule}")
        pd.testing.assert_frame_equal(found[rule], metrics_of(place / f"predictions_{rule}"), rtol=1e-4, atol=1e-5)
    nll = {rule: table[table["metric"] == "nll"]["value"].tolist() for rule, table in found.items()}
    assert len(set(map(tuple, nll.values()))) == 1
    areas = {rule: pd.read_csv(place / f"checkpoint_{rule}/cases.csv")["predicted_area"].tolist() for rule in found}
    assert len(set(map(tuple, areas.values()))) > 1
    assert max(areas["expected_dice"]) > 0
    refused = run_command("evaluate", [*data, "mask=validation", "output=refused"], cwd=place)
    assert refused.returncode != 0
    assert "needs mask.thresholds for disc, cup" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rule", [None, "raters", "expected_dice"])
def test_predicted_masks_follow_the_rule(place: Path, rule: str | None) -> None:
    output = place / f"predicted_{rule}"
    command = [f"ckpt={CKPT}", "input=images", f"output={output}", "device=cpu"]
    done = run_command("predict", [*command, *([] if rule is None else [f"mask={rule}"])], cwd=place)
    assert done.returncode == 0, done.stderr
    triage = pd.read_csv(output / "triage.csv").set_index(["case", "structure"])
    node = None if rule is None else {"_target_": "edue_lightning.uncertainty.MaskRule", "rule": rule}
    model = Model(place / CKPT, "cpu", mask=node)
    for case in ("a", "b"):
        expected = model.predict_files(place / f"images/{case}.png")
        if rule == "raters":
            np.testing.assert_allclose(expected.thresholds, majority_threshold(3, "foreground"))
            np.testing.assert_array_equal(expected.decision, expected.probability)
        for k, structure in enumerate(model.structures):
            mask = np.asarray(Image.open(output / f"{case}__mask__{structure}.png"))
            np.testing.assert_array_equal(mask > 0, expected.decision[k] >= expected.thresholds[k])
            assert triage.loc[(case, structure), "volume"] == (mask > 0).sum()
            own = np.asarray(Image.open(output / f"{case}__disagreement__{structure}.tif"))
            np.testing.assert_allclose(own, expected.disagreement[k], atol=1e-6)
            assert own.max() > 0
