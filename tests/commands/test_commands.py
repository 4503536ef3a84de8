"""The commands as a user runs them: through a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from processes import PATIENCE, SMALL, TABLES_ALONE, run_command, wait_until

from edue_lightning.runs.files import read_mapping
from edue_lightning.runs.record import method_settings, same_method

METRIC_COLUMNS = [
    *("method", "data", "split", "structure", "metric"),
    *("value", "ci_low", "ci_high", "n_cases", "n_undefined"),
]
RUN_FILES = {
    "config.yaml",
    "metrics.csv",
    "validation.csv",
    "cases.csv",
    "reliability.csv",
    "reliability.png",
    "quality_control.csv",
    "quality_control.png",
    "bootstrap.npz",
    "panels.npz",
    "model.json",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "logs/metrics.csv",
    "train.log",
}


def test_a_run_folder_holds_everything(trained_run: Path) -> None:
    files = {str(path.relative_to(trained_run)) for path in trained_run.rglob("*") if path.is_file()}
    assert files >= RUN_FILES
    assert list((trained_run / "panels").glob("*.png"))
    configuration = yaml.safe_load((trained_run / "config.yaml").read_text())
    assert configuration["network"]["features"] == [4, 6, 8, 8]
    assert configuration["command"].startswith("python -m edue_lightning.train experiment=synthetic")
    metrics = pd.read_csv(trained_run / "metrics.csv")
    assert list(metrics.columns) == [*METRIC_COLUMNS, "better", "no_interval"]
    assert set(metrics.method) == {"edue"}
    assert set(metrics.structure) == {"disc", "cup", "mean"}
    assert set(metrics.metric) >= {"dice", "nll", "ece", "brier", "image_pearson", "image_spearman", "pixel_pearson"}
    cases = pd.read_csv(trained_run / "cases.csv")
    assert len(cases) == 2 * 6  # a quarter of 24 cases, two structures
    assert json.loads((trained_run / "model.json").read_text())["forward_passes"] == 1


def test_calibration_curves_lie_in_the_offline_wandb_run(trained_run: Path) -> None:
    tables = list(trained_run.glob("wandb/offline-run-*/files/media/table/test/*.table.json"))
    (table,) = [json.loads(path.read_text()) for path in tables if path.name.startswith("reliability_")]
    logged = pd.DataFrame(table["data"], columns=table["columns"])
    written = pd.read_csv(trained_run / "reliability.csv")
    assert list(logged.columns) == list(written.columns)
    assert logged["count"].tolist() == written["count"].tolist()


def test_epochs_are_logged_as_plain_lines(trained_run: Path) -> None:
    lines = [line for line in (trained_run / "train.log").read_text().splitlines() if "epoch" in line]
    assert len(lines) == 2
    assert "val/nll" in lines[0]


def test_evaluate_gives_the_figures_of_the_training(trained_run: Path, tmp_path: Path) -> None:
    done = run_command(
        "evaluate",
        [f"ckpt={trained_run}/checkpoints/best.ckpt", "output=again", "bootstrap_resamples=50", "figures=false"],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "again" / "metrics.csv"), pd.read_csv(trained_run / "metrics.csv")
    )
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again" / "cases.csv"), pd.read_csv(trained_run / "cases.csv"))
    measured, trained = (read_mapping(folder / "config.yaml") for folder in (tmp_path / "again", trained_run))
    assert same_method(method_settings(measured), method_settings(trained))


def test_evaluate_on_another_split_and_data_set(trained_run: Path, tmp_path: Path) -> None:
    done = run_command(
        "evaluate",
        [
            f"ckpt={trained_run}/checkpoints/last.ckpt",
            "split=val",
            "data=synthetic",
            "data.source.n_cases=20",
            "data.source.size=32",
            "data.source.seed=9",
            "distortions=default",
            "distortions.severities=[1,5]",
            "output=elsewhere",
        ],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    detection = pd.read_csv(tmp_path / "elsewhere" / "detection.csv")
    assert set(detection["severity"]) == {0, 1, 5}
    cases = pd.read_csv(tmp_path / "elsewhere" / "cases.csv")
    assert set(cases.split) == {"val"}
    record = read_mapping(tmp_path / "elsewhere" / "config.yaml")
    # by the content of the file, too: no training measured it
    for name in ("last.ckpt", "renamed.ckpt"):
        known = method_settings(record | {"ckpt": name})
        assert not same_method(known, method_settings(read_mapping(trained_run / "config.yaml")))
        assert "evaluation.ckpt" in known


@pytest.mark.parametrize("workers", [0, 2])
def test_one_seed_gives_one_result(trained_run: Path, tmp_path: Path, workers: int) -> None:
    overrides = [*TABLES_ALONE, f"data.num_workers={workers}", f"hydra.run.dir={tmp_path}/run"]
    done = run_command("train", overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (trained_run, tmp_path / "run")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (trained_run / "metrics.csv").read_text() == (tmp_path / "run" / "metrics.csv").read_text()


def test_a_multirun_of_methods_and_seeds_is_compared(tmp_path: Path) -> None:
    done = run_command(
        "train",
        [
            "-m",
            *TABLES_ALONE,
            "trainer.max_epochs=1",
            "data.source.n_cases=16",
            "method=edue,deep_ensemble",
            "seed=0,1",
            "hydra.sweep.dir=runs",
        ],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/metrics.csv"))) == 4
    ensemble = next(tmp_path.glob("runs/*deep_ensemble*"))
    assert (ensemble / "checkpoints" / "best.ckpt").is_file()
    states = [
        torch.load(ensemble / "checkpoints" / f"member_{m}" / "best.ckpt", weights_only=True)["state_dict"]
        for m in range(5)
    ]
    whole = torch.load(ensemble / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for member, state in enumerate(states):
        assert all(torch.equal(whole[f"members.{member}.{name}"], value) for name, value in state.items())
    weights = [state["network.heads.0.conv.weight"] for state in states]
    assert len({tuple(w.flatten().tolist()) for w in weights}) == 5

    reported = run_command("report", ["runs=runs"], cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "report.html" in reported.stdout
    comparison = pd.read_csv(tmp_path / "runs" / "report" / "comparison.csv")
    assert list(comparison.columns) == [*METRIC_COLUMNS, "seeds", "better"]
    assert set(comparison.method) == {"edue", "deep_ensemble"}
    assert set(comparison.seeds) == {2}
    both = [pd.read_csv(p) for p in tmp_path.glob("runs/*_edue_*/metrics.csv")]
    nll = [float(m[(m.metric == "nll") & (m.structure == "cup")].value.iloc[0]) for m in both]
    row = comparison[(comparison.method == "edue") & (comparison.metric == "nll") & (comparison.structure == "cup")]
    assert float(row.value.iloc[0]) == pytest.approx(np.mean(nll))
    assert (tmp_path / "runs" / "report" / "report.html").stat().st_size > 10_000


def test_the_other_runs_of_a_sweep_go_on_after_one_has_failed(tmp_path: Path) -> None:
    sweep = [
        "-m",
        *TABLES_ALONE,
        "trainer.max_epochs=1",
        "data.source.n_cases=16",
        "test=false",
        "hydra.sweep.dir=runs",
    ]
    done = run_command("train", [*sweep, "optimizer.learning_rate=1e30,0.01"], cwd=tmp_path)
    assert done.returncode == 2
    assert [path.parent.name[0] for path in tmp_path.glob("runs/*/validation.csv")] == ["1"]
    first, last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "diverged" in first
    assert last == first.replace("error: ", "error: not every run of the sweep has finished: ", 1)
    assert "Traceback" not in done.stderr


def test_an_ensemble_with_a_rater_per_member_has_its_own_row(tmp_path: Path) -> None:
    overrides = [*TABLES_ALONE, "method=deep_ensemble", "method.target=rater_per_member", "method.members=2"]
    done = run_command("train", [*overrides, "trainer.max_epochs=1", "hydra.run.dir=run"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(pd.read_csv(tmp_path / "run" / "metrics.csv").method) == {"deep_ensemble_rater_per_member"}


# pages of the documentation train on a part of it
@pytest.mark.exhaustive
def test_the_whole_of_lidc_trains(tmp_path: Path) -> None:
    overrides = [*TABLES_ALONE[3:], "experiment=lidc", "trainer.max_epochs=1", "+trainer.limit_train_batches=2"]
    done = run_command("train", [*overrides, "hydra.run.dir=run"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(pd.read_csv(tmp_path / "run" / "metrics.csv").structure) == {"nodule"}


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("train", ["method.guidence.weight=1"], "guidence"),
        ("train", ["+method.lambda=1"], "method.lambda: unknown key"),
        ("train", ["method.guidance.weight=much"], "method.guidance.weight='much'"),
        ("train", ["experiment=hekctor"], "experiment/hekctor"),
        ("train", ["experiment=lidc", "data.root=/no/such/folder"], "/no/such/folder"),
        ("train", ["experiment=lidc", "data.source.size=4"], "size"),
        ("train", ["select_by=beauty"], "beauty"),
        ("train", ["distortions=default", "distortions.kinds=[fog]"], "fog"),
        ("evaluate", ["ckpt=nowhere.ckpt"], "nowhere.ckpt"),
        ("evaluate", [], "ckpt"),
        ("report", ["runs=/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_input_is_one_clear_message(tmp_path: Path, command: str, overrides: list[str], words: str) -> None:
    done = run_command(command, overrides, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 30
    assert not [path for path in tmp_path.rglob("config.yaml") if path.parent.name != ".hydra"]


def test_a_checkpoint_is_not_chosen_by_a_metric_that_is_undefined(tmp_path: Path) -> None:
    overrides = ["method=deep_ensemble", "select_by=image_pearson", "trainer.max_epochs=1", "hydra.run.dir=run"]
    done = run_command("train", [*TABLES_ALONE, *overrides], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: select_by=image_pearson: undefined on the validation cases")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_finished_run_is_not_overwritten(trained_run: Path, tmp_path: Path) -> None:
    files = [path for path in trained_run.rglob("*") if path.is_file() and path.name not in (".lock", "train.log")]
    before = {path: path.read_bytes() for path in files}
    assert trained_run / ".hydra" / "overrides.yaml" in before
    done = run_command("train", [*SMALL, "seed=5", f"hydra.run.dir={trained_run}"], cwd=tmp_path)
    assert done.returncode == 2
    assert "already holds a run; choose another folder, or resume that run with resume=auto" in done.stderr
    assert {path: path.read_bytes() for path in files} == before


def test_a_search_is_told_the_validation_nll_and_never_tests(tmp_path: Path) -> None:
    done = run_command("train", [*TABLES_ALONE, "test=false", f"hydra.run.dir={tmp_path}/run"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "metrics.csv").exists()
    validation = pd.read_csv(tmp_path / "run" / "validation.csv")
    assert set(validation["split"]) == {"val"}
    epochs = pd.read_csv(tmp_path / "run" / "logs" / "metrics.csv")["val/nll"].dropna()
    (nll,) = validation[(validation["metric"] == "nll") & (validation["structure"] == "mean")]["value"]
    assert nll == pytest.approx(epochs.min(), abs=1e-6)


def test_a_finished_run_is_left_alone_and_one_cut_off_goes_on(tmp_path: Path) -> None:
    overrides = [*TABLES_ALONE, "trainer.max_epochs=1", "test=false", "resume=auto", f"hydra.run.dir={tmp_path}/run"]
    assert run_command("train", overrides, cwd=tmp_path).returncode == 0
    checkpoint, validation = tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "run" / "validation.csv"
    first, content = checkpoint.stat().st_mtime_ns, validation.read_text()

    again = run_command("train", overrides, cwd=tmp_path)
    assert again.returncode == 0
    assert "not run again" in again.stdout + again.stderr
    assert checkpoint.stat().st_mtime_ns == first

    validation.unlink()
    resumed = run_command("train", overrides, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes after" in resumed.stdout + resumed.stderr
    assert checkpoint.stat().st_mtime_ns == first
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert validation.read_text() == content

    other = run_command("train", [*overrides, "optimizer.learning_rate=0.01"], cwd=tmp_path)
    assert other.returncode == 2
    assert "another optimizer" in other.stderr
    assert validation.read_text() == content


@pytest.mark.exhaustive
def test_a_dead_wandb_server_does_not_stop_a_training(tmp_path: Path) -> None:
    done = run_command(
        "train",
        [*SMALL, "trainer.max_epochs=1", "logger.mode=online", "hydra.run.dir=run"],
        cwd=tmp_path,
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_an_interrupted_training_ends_at_once_and_keeps_its_last_epoch(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edue_lightning.train", *SMALL, "trainer.max_epochs=5000", "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # where the tests themselves run in the background, the signal would be ignored from the start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    try:
        wait_until(last.exists, process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert "Traceback" not in error
    assert torch.load(last, weights_only=True)["state_dict"]
    assert not (tmp_path / "run" / "metrics.csv").exists()
