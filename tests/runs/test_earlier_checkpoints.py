"""Checkpoints and configurations of the earlier package layout, which must load, predict and measure as they did.

The fixtures were made at commit 47e9874, before any module moved: 40 epochs on 16 synthetic cases per
method, the metrics of `evaluate split=all`, and what `load_model(...).predict` returned for the image below.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edue_lightning
from edue_lightning.config.build import build_data, build_metric_settings
from edue_lightning.config.schema import check_only_ours, with_current_targets
from edue_lightning.evaluation.measure import Measurement, measure_method
from edue_lightning.runs.checkpoints import load_method
from edue_lightning.runs.trainer import build_test_trainer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "earlier_layout"
FIGURES: dict[str, dict[str, Any]] = json.loads((FIXTURES / "figures.json").read_text())
TRAINER = {"_target_": "pytorch_lightning.Trainer", "_partial_": True, "accelerator": "cpu", "devices": 1}
# another processor may round one voxel to the other side of a threshold
TOLERANCE = {"rel": 2e-3, "abs": 2e-3}


def image() -> NDArray[np.float32]:
    """Return the image `[3, 32, 32]` that the predictions of the fixtures were made on."""
    rows, columns = np.mgrid[0:32, 0:32]
    distance = np.hypot(rows - 15.5, columns - 13.0)
    disc = 1 / (1 + np.exp((distance - 9.0) / 1.5))
    cup = 0.5 / (1 + np.exp((distance - 5.0) / 1.5)) + 0.1 * np.sin(rows / 3.0)
    return np.stack([disc, cup, 0.3 + 0.02 * np.cos(columns / 2.0)]).astype(np.float32)


def test_every_method_has_a_fixture() -> None:
    assert {path.stem for path in FIXTURES.glob("*.ckpt")} == set(FIGURES)
    assert len(FIGURES) == 12


@pytest.mark.parametrize("method", sorted(FIGURES))
def test_an_earlier_checkpoint_predicts_as_it_did(method: str) -> None:
    predicted = edue_lightning.load_model(FIXTURES / f"{method}.ckpt", "cpu").predict(image())
    expected = FIGURES[method]
    assert predicted.probability.mean(axis=(1, 2)) == pytest.approx(expected["probability_mean"], rel=1e-4)
    assert predicted.disagreement.mean(axis=(1, 2)) == pytest.approx(expected["disagreement_mean"], rel=1e-3)
    rows = {row["structure"]: row for row in predicted.table.to_dict("records")}
    assert len(rows) == len(expected["rows"])
    for wanted in expected["rows"]:
        row = rows[wanted["structure"]]
        for name in ("sv", "sv_total", "entropy", "volume", "volume_low", "volume_high"):
            value = row[name]
            assert wanted[name] is None if math.isnan(value) else value == pytest.approx(wanted[name], rel=1e-3), name


@pytest.mark.parametrize("method", sorted(FIGURES))
def test_an_earlier_checkpoint_evaluates_to_the_same_figures(method: str) -> None:
    loaded = load_method(FIXTURES / f"{method}.ckpt")
    data = build_data(loaded.configuration)
    settings = build_metric_settings(loaded.configuration["metrics"], data.source.structures)
    evaluation = measure_method(
        loaded.method, data, Measurement(method, "all", settings, 0), build_test_trainer(TRAINER)
    )
    found = {f"{row.structure}/{row.metric}": row.value for row in evaluation.summary.rows}
    expected = {name: math.nan if value is None else value for name, value in FIGURES[method]["metrics"].items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True, **TOLERANCE)


def test_every_earlier_target_still_leads_to_a_class() -> None:
    targets = (FIXTURES / "targets.txt").read_text().split()
    assert len(targets) == 28
    for target in targets:
        if target.startswith("edue_lightning."):
            check_only_ours(with_current_targets({"_target_": target}), "earlier configuration")
