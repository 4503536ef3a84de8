"""Contents of a run in W&B, read back from its offline files, and the dashboard that shows it."""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from metric_cases import random_cases
from processes import PATIENCE, wait_until
from scripts import load_script
from wandb.proto import wandb_internal_pb2

from edue_lightning.config.schema import configuration_folder
from edue_lightning.evaluation.result import Evaluation
from edue_lightning.evaluation.wandb_results import distortion_boxes
from edue_lightning.metrics import SCORES, MetricSettings, case_statistics, summarise
from edue_lightning.reporting.panels import Panel
from edue_lightning.runs.files import DISTORTION_SCORES
from edue_lightning.training.trackers import WandbSettings

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "wandb"
COST = {
    "parameters": 1000,
    "parameter_ratio": 1.25,
    "flops": 2e9,
    "flop_ratio": math.nan,
    "forward_passes": 1,
    "latency_ratio": 1.1,
    "train_seconds": 3.5,
}
BLOCK = 32768


@dataclass
class LoggedRun:
    """The content of one `.wandb` file."""

    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    media: Path = Path()

    def points(self, x: str, y: str) -> list[tuple[float, float]]:
        return [(row[x], row[y]) for row in self.history if y in row]

    def table(self, key: str) -> pd.DataFrame:
        content = json.loads((self.media / self.summary[key]["path"]).read_text())
        return pd.DataFrame(content["data"], columns=content["columns"])

    def every_key(self) -> set[str]:
        return {key for row in self.history for key in row} | set(self.summary)


def records(path: Path) -> Iterator[Any]:
    """Read the file as a LevelDB log: blocks of 32 KiB, a record in one piece or several."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    position, record = 7, b""
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):
            # not written to its end yet
            return
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        # 1: whole, 2: first, 3: middle, 4: last
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def set_items(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inside = target
        for key in outer:
            inside = inside.setdefault(key, {})
        value = json.loads(item.value_json)
        # W&B keeps an undefined number as null
        inside[last] = math.nan if value is None else value


def read_run(folder: Path) -> LoggedRun:
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    run = LoggedRun(media=path.parent / "files")
    for record in complete_records(path):
        if record.HasField("history"):
            run.history.append({})
            set_items(run.history[-1], record.history.item)
        elif record.HasField("summary"):
            set_items(run.summary, record.summary.update)
        elif record.HasField("metric"):
            run.steps[record.metric.name] = record.metric.step_metric
    return run


def complete_records(path: Path) -> list[Any]:
    """Wait for the last record: `finish` may return before the process that writes the file has flushed it."""
    found: list[Any] = []

    def complete() -> bool:
        found[:] = records(path)
        return bool(found) and found[-1].HasField("exit")

    wait_until(complete)
    return found


def evaluation(structures: tuple[str, ...], members: int = 3) -> Evaluation:
    settings = MetricSettings()
    batches = random_cases(3, cases=8, members=members, structures=len(structures))
    cases = case_statistics(*batches, settings=settings)
    rng = np.random.default_rng(0)
    panels = [
        Panel(
            case_id=f"case-{number}",
            structure=structure,
            image=rng.random((8, 8)).astype(np.float32),
            masks=(rng.random((3, 8, 8)) > 0.5).astype(np.uint8),
            rater_variance=rng.random((8, 8)).astype(np.float32) / 4,
            member_variance=rng.random((8, 8)).astype(np.float32) / 4,
            mean_probability=rng.random((8, 8)).astype(np.float32),
            sv=1.0,
            sv_star=2.0,
        )
        for number in range(2)
        for structure in structures
    ]
    return Evaluation(
        label="edue",
        data="synthetic",
        split="test",
        structures=structures,
        case_ids=[f"case-{number}" for number in range(8)],
        groups=[f"patient-{number}" for number in range(8)],
        cases=cases,
        summary=summarise(cases, structures, settings=settings),
        settings=settings,
        panels=panels,
        members=members,
        note="made up",
    )


def distorted_cases(structures: tuple[str, ...]) -> pd.DataFrame:
    """Five cases whose SV is 0..4 when clean and 10 more a step of severity, and whose AULA nobody can compute."""
    rows = [
        {
            "method": "edue",
            "data": "synthetic",
            "split": "test",
            "case_id": f"case-{case}",
            "structure": structure,
            "distortion": distortion,
            "severity": severity,
            **{score: math.nan if score == "aula" else float(case + 10 * severity) for score in DISTORTION_SCORES},
            "dice": 0.5,
        }
        for structure in structures
        for distortion, severity in (("none", 0), ("noise", 1), ("noise", 2))
        for case in range(5)
    ]
    return pd.DataFrame(rows)


def detection(structures: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        {
            "method": "edue",
            "data": "synthetic",
            "split": "test",
            "structure": structure,
            "score": score,
            "distortion": distortion,
            "severity": severity,
            "auroc": math.nan if score == "aula" else area + position / 4,
            "aupr": 0.5,
            "n_clean": 5,
            "n_distorted": 5,
        }
        for position, structure in enumerate(structures)
        for score, _ in SCORES.values()
        for distortion, severity, area in (("noise", 0, 0.1), ("all", 1, 0.2), ("all", 2, 0.3), ("all", 0, 0.5))
    ]
    return pd.DataFrame(rows)


def logged(found: Evaluation, folder: Path, *, distorted: bool = True) -> LoggedRun:
    tracker = WandbSettings().start("edue-synthetic-0", folder, {"label": "edue", "data": {"name": "synthetic"}})
    assert tracker is not None
    # what a training leaves in the history before
    tracker.run.log({"val/nll": 0.3, "trainer/global_step": 5})
    names = tuple(found.structures)
    frames = (detection(names), distorted_cases(names)) if distorted else (None, None)
    tracker.log_results(found, *frames, COST)
    tracker.finish(failed=False)
    return read_run(folder)


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation(("disc", "cup"))


@pytest.fixture(scope="module")
def run(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> LoggedRun:
    return logged(found, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def dashboard() -> ModuleType:
    pytest.importorskip("wandb_workspaces")
    return load_script(EXPERIMENT / "dashboard.py")


def same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


def test_the_summary_is_the_table_of_metrics(found: Evaluation, run: LoggedRun) -> None:
    frame = found.metrics_frame()
    assert set(frame["structure"]) == {"disc", "cup", "mean"}
    for row in frame.itertuples():
        assert same(run.summary[f"test/{row.structure}/{row.metric}"], row.value), (row.structure, row.metric)


def test_the_summary_holds_cost_and_detection(run: LoggedRun) -> None:
    assert all(same(run.summary[f"cost/{name}"], value) for name, value in COST.items())
    areas = [run.summary[f"test/{structure}/ood_auroc/sv"] for structure in ("disc", "cup", "mean")]
    assert areas == [0.5, 0.75, 0.625]
    assert math.isnan(run.summary["test/disc/ood_auroc/aula"])
    assert math.isnan(run.summary["test/mean/ood_auroc/aula"])


@pytest.mark.parametrize("structure", ["disc", "cup"])
def test_calibration_is_a_line_over_an_axis_of_its_own(found: Evaluation, run: LoggedRun, structure: str) -> None:
    frame = found.reliability_frame()
    frame = frame[(frame["structure"] == structure) & (frame["count"] > 0)]
    x, y = "test/calibration/mean_probability", f"test/calibration/{structure}/frequency"
    assert len(frame) > 5
    assert run.points(x, y) == list(zip(frame["mean_probability"], frame["frequency"], strict=True))
    assert run.steps[y] == x


@pytest.mark.parametrize("structure", ["disc", "cup"])
@pytest.mark.parametrize("score", ["sv", "entropy", "aula"])
def test_quality_control_is_a_line_over_an_axis_of_its_own(
    found: Evaluation, run: LoggedRun, structure: str, score: str
) -> None:
    frame = found.quality_control_frame()
    frame = frame[(frame["structure"] == structure) & (frame["score"] == score)]
    x, y = "test/quality_control/flagged", f"test/quality_control/{structure}/{score}/missed"
    assert len(frame) == 9
    assert run.points(x, y) == list(zip(frame["flagged"], frame["missed"], strict=True))
    assert run.steps[y] == x


def test_a_curve_leaves_no_last_point_in_the_summary(run: LoggedRun) -> None:
    assert not [key for key in run.summary if "frequency" in key or "missed" in key or "flagged" in key]


def test_the_tables_are_those_of_the_files(found: Evaluation, run: LoggedRun) -> None:
    tables = {
        "reliability": found.reliability_frame(),
        "quality_control": found.quality_control_frame(),
        "detection": detection(("disc", "cup")),
        "distorted_cases": distorted_cases(("disc", "cup")),
    }
    for name, frame in tables.items():
        table = run.table(f"test/{name}")
        assert list(table.columns) == list(frame.columns)
        for column in frame.columns:
            assert all(map(equal_cells, table[column], frame[column])), (name, column)


def equal_cells(logged: Any, written: Any) -> bool:
    # JSON has no NaN, which W&B writes as a word
    missing = logged is None or logged == "NaN" or logged != logged
    return bool(pd.isna(written)) if missing else bool(logged == written)


def test_boxes_are_quantiles_of_the_cases(run: LoggedRun) -> None:
    boxes = run.table("test/ood_boxes").set_index(["structure", "score", "distortion", "severity"])
    box = boxes.loc[("cup", "sv", "noise", 2)]
    assert [box[name] for name in ("lower", "median", "upper")] == [21.0, 22.0, 23.0]
    assert (box["low"], box["high"]) == pytest.approx((20.2, 23.8))
    assert (box["run"], box["n_cases"]) == ("edue-synthetic-0", 5)
    assert boxes.loc[("disc", "entropy", "none", 0), "median"] == 2.0
    # an undefined score has no box
    assert "aula" not in boxes.index.get_level_values("score")
    assert len(boxes) == 2 * (len(DISTORTION_SCORES) - 1) * 3


def test_boxes_leave_out_undefined_cases() -> None:
    frame = distorted_cases(("disc",))
    frame.loc[(frame["case_id"] == "case-0"), "sv"] = math.nan
    boxes = distortion_boxes(frame, "run")
    box = boxes[(boxes["score"] == "sv") & (boxes["severity"] == 0)].iloc[0]
    assert (box["median"], box["n_cases"]) == (2.5, 4)


def test_panels_are_pictures_under_one_key(run: LoggedRun) -> None:
    panels = run.summary["test/panels"]
    assert panels["count"] == 4
    assert panels["captions"][1] == "case-0, cup, made up"
    assert all((run.media / name).is_file() for name in panels["filenames"])


def test_undefined_values_of_a_single_network_are_logged(tmp_path: Path) -> None:
    single = evaluation(("nodule",), members=1)
    run = logged(single, tmp_path, distorted=False)
    assert math.isnan(run.summary["test/nodule/image_pearson"])
    assert run.summary["test/nodule/nll"] == run.summary["test/mean/nll"] == single.summary.means()["nll"]
    assert not [key for key in run.every_key() if "ood" in key or "distort" in key or "detection" in key]
    assert len(run.points("test/calibration/mean_probability", "test/calibration/nodule/frequency")) > 5


def test_the_dashboard_names_only_what_a_run_logs(dashboard: ModuleType, run: LoggedRun) -> None:
    content = dashboard.specification(dashboard.workspace("team", "project", ["mean", "disc", "cup"]))
    keys, patterns = named_keys(content), named_patterns(content)
    assert len(keys) > 60
    assert keys <= run.every_key()
    assert len(patterns) == 1 + len(SCORES)
    for pattern in patterns:
        matched = {key for key in run.every_key() if re.search(pattern, key)}
        assert len(matched) == 2
        assert {key.split("/")[2] for key in matched} == {"disc", "cup"}


def test_the_dashboard_draws_every_result(dashboard: ModuleType) -> None:
    sections = dashboard.specification(dashboard.workspace("team", "project", ["mean"]))["section"]
    panels = [panel for section in sections["panelBankConfig"]["sections"] for panel in section["panels"]]
    assert {panel["viewType"] for panel in panels} == {
        "Run History Line Plot",
        "Bar Chart",
        "Scatter Plot",
        "Media Browser",
        "Vega2",
        "Weave",
    }
    shown = named_keys(sections)
    assert {f"test/mean/{name}" for name in ("dice", "nll", "ece", "image_pearson", "pixel_pearson")} <= shown
    assert {f"test/mean/ood_auroc/{score}" for score, _ in SCORES.values()} <= shown
    assert [key["name"] for key in sections["runSets"][0]["grouping"]] == ["data.value.name", "label.value"]


def test_the_box_chart_reads_columns_that_are_logged(dashboard: ModuleType, run: LoggedRun) -> None:
    text = json.dumps(dashboard.box_chart())
    columns, words = (set(re.findall(rf"\$\{{{kind}:(\w+)\}}", text)) for kind in ("field", "string"))
    content = dashboard.specification(dashboard.workspace("team", "project", ["mean"]))
    settings = [panel["config"] for panel in panels_of(content) if panel["viewType"] == "Vega2"]
    assert len(settings) == len(DISTORTION_SCORES)
    for chart in settings:
        assert columns <= set(chart["fieldSettings"])
        assert set(chart["fieldSettings"].values()) <= set(run.table("test/ood_boxes").columns)
        assert words == set(chart["stringSettings"])


def test_a_dry_run_needs_neither_server_nor_key(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    done = subprocess.run(
        [sys.executable, EXPERIMENT / "dashboard.py", "--entity", "team", "--project", "project", "--dry-run"],
        # no key, no home that could hold one, and a server that does not answer
        env={"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "test/mean/nll" in named_keys(json.loads(done.stdout))


def test_the_sweep_calls_the_training_as_it_is_called_by_hand() -> None:
    sweep = yaml.safe_load((EXPERIMENT / "sweep.yaml").read_text())
    assert sweep["program"] == "edue_lightning.train"
    assert sweep["metric"] == {"name": "val/nll", "goal": "minimize"}
    assert set(sweep["parameters"]) == {"method", "seed", "optimizer.learning_rate"}
    assert sweep["command"][:4] == ["${env}", "${interpreter}", "-m", "${program}"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    own = [argument for argument in sweep["command"] if "=" in argument]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        for method in sweep["parameters"]["method"]["values"]:
            overrides = [*own, f"method={method}", "seed=1", "optimizer.learning_rate=0.001"]
            assert compose("train", overrides).optimizer.learning_rate == 0.001


def panels_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    sections = content["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def named_keys(content: Any) -> set[str]:
    """Return every text in a specification that has the form of a key, without the section that a panel puts before."""
    if isinstance(content, dict):
        return {key for value in content.values() for key in named_keys(value)}
    if isinstance(content, list):
        return {key for value in content for key in named_keys(value)}
    if not isinstance(content, str):
        return set()
    name = re.sub(r"^(summary:|summary_metrics\.)", "", content)
    return {name} if name.startswith(("test/", "cost/", "val/", "train/")) else set()


def named_patterns(content: dict[str, Any]) -> list[str]:
    return [panel["config"]["metricRegex"] for panel in panels_of(content) if "metricRegex" in panel["config"]]
