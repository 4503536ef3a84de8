"""Trackers beside the CSV files: TensorBoard and MLflow; Weights & Biases has a file of its own."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from trainings import configuration

from edue_lightning.errors import UserError
from edue_lightning.training import trackers
from edue_lightning.training.run import train
from edue_lightning.training.trackers import MLFLOW_RUN_FILE, MlflowSettings, TensorBoardSettings


def settings_of(*overrides: str) -> dict[str, Any]:
    settings = configuration("method=single", "test=true", "figures=false", *overrides)
    settings["logger"].pop("mode", None)
    return settings


def test_tensorboard_has_the_curves_and_the_results_of_the_tables(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = settings_of()
    settings["logger"] = {"_target_": "edue_lightning.training.trackers.TensorBoardSettings"}
    train(settings, tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curves = pd.read_csv(tmp_path / "logs" / "metrics.csv").dropna(subset=["val/nll"])
    found = [(event.step, event.value) for event in events.Scalars("val/nll")]
    assert [step for step, _ in found] == curves["step"].tolist()
    assert [value for _, value in found] == pytest.approx(curves["val/nll"].tolist())
    metrics = pd.read_csv(tmp_path / "metrics.csv").set_index(["structure", "metric"])["value"]
    assert events.Scalars("test/disc/nll")[0].value == pytest.approx(metrics["disc", "nll"])
    # undefined for a single network, and left out
    assert math.isnan(metrics["disc", "image_pearson"])
    assert "test/disc/image_pearson" not in events.Tags()["scalars"]
    assert "_hparams_/session_start_info" in str(events.summary_metadata)


def test_mlflow_has_the_curves_and_results_and_a_resumed_run_is_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    # a database is slow to make
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = f"file://{tmp_path}/mlruns"
    settings = settings_of()
    settings["logger"] = {
        "_target_": "edue_lightning.training.trackers.MlflowSettings",
        **{"tracking_uri": address, "experiment_name": "eyes", "tags": {"site": "A"}},
    }
    train(settings, tmp_path / "run")
    client = tracking.MlflowClient(address)
    (experiment,) = (one for one in client.search_experiments() if one.name == "eyes")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (tmp_path / "run" / MLFLOW_RUN_FILE).read_text().strip() == run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["site"] == "A"
    assert run.data.params["optimizer/learning_rate"] == str(settings["optimizer"]["learning_rate"])
    curves = pd.read_csv(tmp_path / "run" / "logs" / "metrics.csv").dropna(subset=["val/nll"])
    history = client.get_metric_history(run.info.run_id, "val/nll")
    assert [point.step for point in history] == curves["step"].tolist()
    assert [point.value for point in history] == pytest.approx(curves["val/nll"].tolist())
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index(["structure", "metric"])["value"]
    assert run.data.metrics["test/disc/nll"] == pytest.approx(metrics["disc", "nll"])

    again = MlflowSettings(address, "eyes").start("again", tmp_path / "run", settings)
    assert again is not None
    again.curves("member_1", 0).log_metrics({"val/nll": 0.5}, step=7)
    again.finish(failed=True)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.metrics["member_1-val/nll"] == 0.5


def test_a_dead_mlflow_server_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, trackers.__name__):
        assert MlflowSettings("http://127.0.0.1:9").start("a run", tmp_path, {}) is None
    assert "MLflow cannot run" in caplog.text
    assert not (tmp_path / MLFLOW_RUN_FILE).exists()


def test_a_tracker_that_fails_logs_no_more_and_the_training_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    tracker = TensorBoardSettings().start("a run", tmp_path, {})
    assert tracker is not None
    logger = tracker.curves("", 0)
    calls: list[int] = []

    def full(metrics: object, step: int) -> None:
        calls.append(step)
        raise OSError("no space left on device")

    logger._logger.log_metrics = full  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, trackers.__name__):
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
    assert calls == [0]
    assert caplog.text.count("TensorBoard failed to log the curves: no space left on device") == 1


def test_a_missing_package_is_told_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for make in (TensorBoardSettings, lambda: MlflowSettings("sqlite:///a.db")):
        with pytest.raises(
            UserError, match=r'needs the package .*; pip install "edue-lightning\[loggers\]", or choose'
        ):
            make()
