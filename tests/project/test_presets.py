"""The comparison of presets (experiments/presets/compare_presets.py): its jobs fit the code, its table the runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from lidc_slice_files import write_data_set
from scripts import load_script

from edue_lightning.training.run import check_training

SCRIPT = Path(__file__).parents[2] / "experiments" / "presets" / "compare_presets.py"


@pytest.fixture(scope="module")
def presets() -> ModuleType:
    return load_script(SCRIPT)


def test_the_recipes_of_a_method_differ_in_the_recipe_alone(presets: ModuleType, tmp_path: Path) -> None:
    made = {name: presets.configuration(name, 8, tmp_path / "ün,x", tmp_path) for name in presets.JOBS}
    assert len(made) == 6
    for configuration in made.values():
        check_training(configuration)
        assert configuration["test"] is False
    for method in ("single", "edue"):
        default, preset, residual = (made[f"{method}_{recipe}"] for recipe in presets.RECIPES)
        assert default["method"] == preset["method"] == residual["method"]
        assert default["trainer"] == preset["trainer"] == residual["trainer"]
        assert default["data"]["source"] == preset["data"]["source"]
        assert default["data"]["batch_size"] == preset["data"]["batch_size"]
        assert {key for key in preset if preset[key] != residual[key]} == {"network"}


def test_jobs_are_trained_once_and_make_the_table(
    presets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_data_set(tmp_path / "slices")
    small = ("data.source.size=32", "+trainer.limit_train_batches=1")
    monkeypatch.setattr(presets, "COMMON", (*presets.COMMON[:-1], *small))
    monkeypatch.setitem(presets.JOBS, "single_default", (*presets.JOBS["single_default"], "network.features=[4,6]"))
    presets.run(root, tmp_path / "runs", 1, ["single_default"])
    found = presets.table(tmp_path / "runs")
    assert found[["method", "recipe", "epochs"]].to_numpy().tolist() == [["single", "default", 1]]
    written = pd.read_csv(tmp_path / "runs/1/single_default/validation.csv").set_index("metric")["value"]
    assert found["nll"].item() == pytest.approx(written["nll"], abs=5e-5)
    cost = json.loads((tmp_path / "runs/1/single_default/model.json").read_text())
    assert found["parameters"].item() == cost["parameters"]
    begun = (tmp_path / "runs/1/single_default/validation.csv").stat().st_mtime_ns
    presets.run(root, tmp_path / "runs", 1, ["single_default"])
    assert (tmp_path / "runs/1/single_default/validation.csv").stat().st_mtime_ns == begun
