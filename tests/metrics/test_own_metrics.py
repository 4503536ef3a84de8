"""Metrics from outside the package: in tables with intervals and direction, and refused where they cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from metric_cases import random_cases
from run_files import write_run
from torch import Tensor

from edue_lightning.config.build import build_metric_settings
from edue_lightning.config.schema import TRUSTED_PACKAGES, check_configuration, check_only_ours
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import EvaluateConfiguration
from edue_lightning.metrics import METRICS, Case, CaseTable, MetricSettings, PerCaseMetric, case_statistics
from edue_lightning.metrics.catalogue import STATISTIC_NAMES
from edue_lightning.reporting.comparison import best_methods, compare, comparison_table
from edue_lightning.runs.files import read_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend"


class MissedShare(PerCaseMetric):
    """Share of the consensus that the prediction misses.

    Args:
        scale: factor.
    """

    better = "low"
    fewest_raters = 2

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def of_case(self, case: Case) -> Tensor:
        missed = (case.consensus & ~case.predicted).sum(dim=1).double()
        return self.scale * missed / case.consensus.sum(dim=1)


OWN = MetricSettings(extra={"missed": MissedShare(), "missed_percent": MissedShare(100.0)})


def test_an_own_metric_stands_in_every_table() -> None:
    cases = random_cases(0, cases=8)
    cases.valid[3, 1:] = False
    table = CaseTable(["a", "b"], settings=OWN)
    table.update(*cases)
    found = table.cases().statistics
    assert tuple(found.columns) == (*STATISTIC_NAMES, "missed", "missed_percent")
    torch.testing.assert_close(found["missed_percent"], 100 * found["missed"], equal_nan=True)
    assert found["missed"].isnan()[:, 0].tolist() == [i == 3 for i in range(8)]
    summary = table.summary(50)
    assert list(dict.fromkeys(row.metric for row in summary.rows)) == [*METRICS, "missed", "missed_percent"]
    (row,) = [row for row in summary.rows if (row.structure, row.metric) == ("a", "missed")]
    assert row.value == pytest.approx(float(found["missed"][:, 0].nanmean()))
    assert row.ci_low < row.value < row.ci_high
    assert (row.better, row.n_cases, row.n_undefined) == ("low", 7, 1)


def test_an_own_metric_can_be_asked_for_alone() -> None:
    cases = random_cases(0)
    alone = CaseTable(["a", "b"], metrics=["missed"], settings=OWN)
    alone.update(*cases)
    assert list(alone.cases().statistics.columns) == ["missed"]
    assert [row.metric for row in alone.summary().rows] == ["missed"] * 3
    found = case_statistics(*cases, settings=OWN, names=["dice", "missed"])
    torch.testing.assert_close(found["missed"], alone.cases().statistics["missed"], equal_nan=True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"missed": 3}, "extra.missed must be a PerCaseMetric"),
        ({"dice": MissedShare()}, "extra.dice: there is a metric or statistic of this name"),
        ({"sv": MissedShare()}, "extra.sv: there is a metric or statistic of this name"),
    ],
)
def test_other_objects_and_names_that_are_taken_are_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaseTable(["a"], settings=MetricSettings(extra=extra))


def configured(**call: Any) -> dict[str, Any]:
    return {"_target_": "edue_lightning.metrics.MetricSettings", "poor_dice": 0.7, "extra": {"area_error": call}}


def test_a_configuration_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delenv(TRUSTED_PACKAGES, raising=False)
    node = configured(_target_="my_package.metrics.AreaError")
    settings = build_metric_settings(node, ["a", "b"])
    found = case_statistics(*random_cases(0), settings=settings)
    assert (found["area_error"] >= 0).all()
    with pytest.raises(UserError, match=r"x\.ckpt: refused, its configuration calls 'my_package"):
        check_only_ours(node, "x.ckpt")
    monkeypatch.setenv(TRUSTED_PACKAGES, "my_package")
    check_only_ours(node, "x.ckpt")
    with pytest.raises(UserError, match=r"metrics: extra\.area_error must be a PerCaseMetric"):
        build_metric_settings(configured(_target_="edue_lightning.methods.Inference"), ["a"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"_target_": "my_package.metrics.NoSuch"}, r"metrics.extra.area_error._target_=.*no such class"),
        ({"_target_": "my_package.metrics.AreaError", "factor": 2}, r"metrics.extra.area_error.factor: unknown key"),
    ],
)
def test_a_misspelt_configuration_is_refused_by_its_path(
    call: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    with pytest.raises(UserError, match=message):
        check_configuration({"metrics": configured(**call)}, EvaluateConfiguration)


@pytest.mark.parametrize(
    ("better", "arrow", "best"), [("low", " ↓", "one"), ("high", " ↑", "two"), ("neither", "", "")]
)
def test_a_report_knows_its_direction(tmp_path: Path, better: str, arrow: str, best: str) -> None:
    for method, value in (("one", 0.1), ("two", 0.2)):
        folder = write_run(tmp_path / method, method, 0)
        metrics = pd.read_csv(folder / "metrics.csv").assign(better="high")
        own = metrics.iloc[:1].assign(metric="area_error", value=value, better=better)
        pd.concat([metrics, own]).to_csv(folder / "metrics.csv", index=False)
        archive = dict(np.load(folder / "bootstrap.npz"))
        archive["nodule/area_error"] = value + archive["nodule/dice"] / 1000
        np.savez(folder / "bootstrap.npz", **archive)
    runs = {method: [read_run(tmp_path / method)] for method in ("one", "two")}
    frame = compare([run for (run,) in runs.values()])
    assert frame.set_index("metric").loc["area_error", "better"].tolist() == [better] * 2
    marked = best_methods(runs, "nodule", "area_error")
    assert marked == (frozenset({best}) if best else frozenset())
    table = comparison_table(frame, ("lidc", "test", "nodule"), {"area_error": marked}, bold=lambda text: f"**{text}**")
    column = table.set_index("method")[f"area_error{arrow}"]
    assert [method for method, cell in column.items() if cell.startswith("**")] == ([best] if best else [])
