"""Structures that exclude each other, from label maps to reports: training, evaluation, prediction and comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from nnunet_files import VERSION_2, save, write_nnunet
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import evaluate
from edue_lightning.methods import SingleNetwork
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.run import predict
from edue_lightning.report import report
from edue_lightning.reporting.data_check import check
from edue_lightning.reporting.panels import load_panels
from edue_lightning.runs.checkpoints import load_method
from edue_lightning.training.run import train
from edue_lightning.uncertainty import Readout

EDGE = 24
CASES = 12
RATERS = ("", "_ANNA", "_BEN")
PNG = {**VERSION_2, "file_ending": ".png"}


def labels_of(case: int, rater: int) -> NDArray[np.uint8]:
    """Return a liver (1) with a tumour (2) on its right; raters place the border between the two differently."""
    labels = np.zeros((EDGE, EDGE), dtype=np.uint8)
    top, left = 4 + case % 3, 3 + case % 4
    labels[top : top + 12, left : left + 9 + rater] = 1
    labels[top : top + 12, left + 7 + rater : left + 14] = 2
    return labels


def write(root: Path) -> Path:
    write_nnunet(root, PNG, cases=CASES, raters=RATERS, shape=(EDGE, EDGE), ending=".png")
    for case in range(CASES):
        noise = np.random.default_rng(case).integers(0, 40, (EDGE, EDGE))
        save(root / "imagesTr" / f"case_{case:03d}_0000.png", (labels_of(case, 1) * 90 + noise).astype(np.uint8))
        for rater, name in enumerate(RATERS):
            save(root / f"labelsTr{name}" / f"case_{case:03d}.png", labels_of(case, rater))
    return root


def composed(command: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose(command, overrides=list(overrides)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "Dataset001_liver")


CPU = ["device=cpu", "overlay=flagged"]
OF_METHODS = {
    "edue": ["method=edue", "inference=default", "inference.window=[16,16]", "mask=validation"],
    "edue_levels_mask": ["method=edue_levels_mask", "trainer.max_epochs=60"],
}
EACH = pytest.mark.parametrize("name", ["edue", pytest.param("edue_levels_mask", marks=pytest.mark.exhaustive)])


@pytest.fixture(scope="module")
def run_of(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a run by its method: EDUE in windows, or levels with a mask head."""
    folder = tmp_path_factory.mktemp("runs")
    shared = [
        *("data=nnunet", f"data.root={data}", "data.cache=null", "data.source.exclusive=true"),
        *("data.fractions.draw=permutation", "data.fractions.val=0.25", "data.fractions.test=0.25"),
        *("network.features=[4,6]", "trainer.max_epochs=20", "trainer.accelerator=cpu", "bootstrap_resamples=20"),
        *("logger.mode=disabled", "optimizer.learning_rate=0.02", "data.batch_size=2", "temperature=validation"),
    ]

    def run_of(name: str) -> Path:
        if not (folder / name).exists():
            train(composed("train", *shared, *OF_METHODS[name]), folder / name)
        return folder / name

    return run_of


@EACH
def test_a_training_on_label_maps_predicts_one_class_per_voxel(
    run_of: Callable[[str], Path], data: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = run_of(name) / "checkpoints" / "best.ckpt"
    method = load_method(checkpoint).method
    assert method.readout.exclusive
    temperature = method.temperature_by_structure
    assert temperature is not None
    assert temperature["liver"] == temperature["tumour"] != 1
    images = data / "imagesTr"
    done = predict(
        composed("predict", f"ckpt={checkpoint}", f"input={images}", f"output={tmp_path / 'out'}", *CPU),
        tmp_path / "out",
    )
    assert not done.failed
    model = Model(checkpoint, "cpu")
    for case in range(CASES):
        masks = [
            np.asarray(Image.open(tmp_path / "out" / f"case_{case:03d}__mask__{structure}.png")) > 0
            for structure in ("liver", "tumour")
        ]
        maps = np.stack(
            [
                np.asarray(Image.open(tmp_path / "out" / f"case_{case:03d}__probability__{structure}.tif"))
                for structure in ("liver", "tumour")
            ]
        )
        assert not (masks[0] & masks[1]).any()
        assert maps.sum(axis=0).max() <= 1 + 1e-5
        found = model.predict_files(images / f"case_{case:03d}_0000.png")
        np.testing.assert_array_equal(found.mask, np.stack(masks))
        np.testing.assert_allclose(found.probability, maps, atol=1e-6)
        true = [labels_of(case, 1) == k for k in (1, 2)]
        overlap = [(mask & label).sum() / (mask | label).sum() for mask, label in zip(masks, true, strict=True)]
        assert min(overlap) > 0.5


@EACH
def test_predictions_in_files_are_measured_as_the_model_is(
    run_of: Callable[[str], Path], data: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = run_of(name) / "checkpoints" / "best.ckpt"
    shared = ["split=test", "bootstrap_resamples=0", "figures=false", "trainer.accelerator=cpu"]
    evaluate(composed("evaluate", f"ckpt={checkpoint}", "save_predictions=true", *shared), tmp_path / "own")
    own = pd.read_csv(tmp_path / "own" / "cases.csv")
    trained = pd.read_csv(run_of(name) / "cases.csv")
    pd.testing.assert_frame_equal(own[["dice", "nll", "sv"]], trained[["dice", "nll", "sv"]], rtol=1e-5)
    assert own["dice"].mean() > 0.6
    folder = tmp_path / "own" / "predictions"
    stored = json.loads((folder / "readout.json").read_text())
    assert stored["exclusive"] is True
    on = [
        *("data=nnunet", f"data.root={data}", "data.cache=null", "data.source.exclusive=true"),
        *("data.fractions.draw=permutation", "data.fractions.val=0.25", "data.fractions.test=0.25"),
    ]
    rule = load_method(checkpoint).method.readout.mask.options.replace("'", "").split(" ", 1)
    evaluate(composed("evaluate", f"predictions={folder}", *on, *rule, *shared), tmp_path / "again")
    again = pd.read_csv(tmp_path / "again" / "cases.csv")
    numbers = ["dice", "nll", "ged2", "sv", "soft_dice_confidence", "predicted_area", "area", "model_agreement"]
    pd.testing.assert_frame_equal(again[numbers], own[numbers], rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="says that the structures exclude each other"):
        evaluate(
            composed("evaluate", f"predictions={folder}", *on, "data.source.exclusive=false", *shared), tmp_path / "no"
        )


def test_a_model_measures_only_structures_like_its_own(
    run_of: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    checkpoint = run_of("edue") / "checkpoints" / "best.ckpt"
    other = ["data=nnunet", f"data.root={data}", "data.cache=null", "split=test", "trainer.accelerator=cpu"]
    with pytest.raises(UserError, match=r"was trained for .*\(data\.source\.exclusive=true\), but data=nnunet has"):
        evaluate(composed("evaluate", f"ckpt={checkpoint}", *other, "allow_overlap=true"), tmp_path / "out")


def test_probabilities_that_exceed_one_are_refused(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    for case in range(CASES):
        np.savez(folder / f"case_{case:03d}.npz", members=np.full((2, 2, EDGE, EDGE), 0.7, dtype=np.float32))
    on = ["data=nnunet", f"data.root={data}", "data.cache=null", "split=all", "bootstrap_resamples=0"]
    with pytest.raises(UserError, match=r"add up to 1\.4 at a voxel, but they exclude each other"):
        evaluate(composed("evaluate", f"predictions={folder}", *on, "data.source.exclusive=true"), tmp_path / "no")


def test_the_panels_show_masks_and_majority_of_all_structures_together(run_of: Callable[[str], Path]) -> None:
    panels = {(panel.case_id, panel.structure): panel for panel in load_panels(run_of("edue") / "panels.npz")}
    for panel in panels.values():
        other = panels.get((panel.case_id, "tumour" if panel.structure == "liver" else "liver"))
        assert panel.agreed is not None
        assert panel.consensus.any()
        if other is not None and other.mask.shape == panel.mask.shape:
            assert not (panel.mask & other.mask).any()
            assert not (panel.consensus & other.consensus).any()


@pytest.mark.exhaustive
def test_the_report_compares_runs_of_exclusive_structures(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    runs = run_of("edue").parent
    run_of("edue_levels_mask")
    written = report(composed("report", f"runs={runs}", f"output={tmp_path / 'report'}"))
    text = written.markdown.read_text()
    for name in ("edue", "edue_levels_mask", "liver", "tumour"):
        assert name in text
    recorded = yaml.safe_load((run_of("edue") / "config.yaml").read_text())
    assert recorded["data"]["source"]["exclusive"] is True


def test_the_check_says_that_structures_exclude_each_other(data: Path, tmp_path: Path) -> None:
    settings = composed("check", "data=nnunet", f"data.root={data}", "data.cache=null", "data.source.exclusive=true")
    found = check(settings, tmp_path / "out")
    assert not found.problems
    assert "structures exclude each other (data.source.exclusive=true)" in found.text()


def test_a_loss_or_method_that_does_not_know_exclusive_structures_is_refused(data: Path, tmp_path: Path) -> None:
    node = ["data=nnunet", f"data.root={data}", "data.cache=null", "data.source.exclusive=true", "logger.mode=disabled"]
    known = composed("train", *node)
    with pytest.raises(UserError, match=r"loss: torch\.nn\.MSELoss takes no argument exclusive"):
        train({**known, "loss": {"_target_": "torch.nn.MSELoss"}}, tmp_path / "a")
    with pytest.raises(UserError, match=r"loss\.exclusive=True: has no effect, the program sets it itself"):
        train({**known, "loss": {**known["loss"], "exclusive": True}}, tmp_path / "b")


def test_a_method_whose_read_out_forgets_that_structures_exclude_each_other_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forgetful(SingleNetwork):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.readout = Readout()

    known = composed("train", "data=nnunet", "data.root=none", "method=single", "network.features=[4,6]")
    monkeypatch.setattr("edue_lightning.methods.SingleNetwork", Forgetful)
    with pytest.raises(UserError, match="its read-out does not know that the structures exclude each other"):
        build_method(known, ImageFormat(2, 1, ("a", "b"), exclusive=True))
    assert not build_method(known, ImageFormat(2, 1, ("a", "b"))).readout.exclusive


def test_windows_and_temperature_change_logits_before_the_softmax(run_of: Callable[[str], Path], data: Path) -> None:
    method = load_method(run_of("edue") / "checkpoints" / "best.ckpt").method
    assert method.inference.window == [16, 16]
    image = torch.rand(1, 1, EDGE, EDGE)
    with torch.inference_mode():
        found = method.predict(image).sigmoid()
        raw = method.inference(method.network, image)
        assert method.temperature is not None
        odds = (raw / method.temperature[:, None, None]).exp()
    torch.testing.assert_close(found, odds / (1 + odds.sum(dim=2, keepdim=True)))
    assert replace(method.readout, exclusive=False).log_odds(raw) is raw
