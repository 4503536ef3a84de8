"""Metrics from outside the package: in tables with intervals and direction, and refused where they cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from edue_lightning.metrics.catalogue import STATISTIC_NAMES, known_metrics
from edue_lightning.reporting.comparison import best_methods, compare, comparison_table
from edue_lightning.runs.files import (
    CASES_COLUMNS,
    DISTORTED_CASES_COLUMNS,
    METRICS_COLUMNS,
    TEXT_COLUMNS,
    Replicates,
    read_run,
    write_replicates,
)

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
        ({"n_raters": MissedShare()}, "extra.n_raters: there is a metric or statistic of this name"),
        ({"structure": MissedShare()}, "extra.structure: a column of the tables has this name"),
        ({"case_id": MissedShare()}, "extra.case_id: a column of the tables has this name"),
        ({"fingerprint": MissedShare()}, "extra.fingerprint: a column of the tables has this name"),
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
        held = read_run(folder).replicates
        replicates = {**held.arrays, ("nodule", "area_error"): value + held.arrays["nodule", "dice"] / 1000}
        write_replicates(Replicates(held.case_ids, replicates), folder / "bootstrap.npz")
    runs = {method: [read_run(tmp_path / method)] for method in ("one", "two")}
    frame = compare([run for (run,) in runs.values()])
    assert frame.set_index("metric").loc["area_error", "better"].tolist() == [better] * 2
    marked = best_methods(runs, "nodule", "area_error")
    assert marked == (frozenset({best}) if best else frozenset())
    table = comparison_table(frame, ("lidc", "test", "nodule"), {"area_error": marked}, bold=lambda text: f"**{text}**")
    column = table.set_index("method")[f"area_error{arrow}"]
    assert [method for method, cell in column.items() if cell.startswith("**")] == ([best] if best else [])


class Given(PerCaseMetric):
    """A metric that returns what it was given.

    Args:
        value: value of every case.
    """

    better = "high"

    def __init__(self, value: Any) -> None:
        self.value = value

    def of_case(self, case: Case) -> Tensor:
        return self.value


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5), torch.ones(1), torch.ones(3), torch.ones(2, 1)])
def test_an_own_metric_of_another_shape_is_refused_by_name(value: Any) -> None:
    settings = MetricSettings(extra={"given": Given(value)})
    with pytest.raises(UserError, match=r"metric given: must return a tensor \[2\] for each case") as error:
        case_statistics(*random_cases(0), settings=settings)
    assert "\n" not in str(error.value)


def test_shapes_that_make_up_for_each_other_are_refused_too() -> None:
    settings = MetricSettings(extra={"short": Given(torch.ones(1)), "long": Given(torch.ones(3))})
    table = CaseTable(["a", "b"], settings=settings)
    with pytest.raises(UserError, match="metric short: must return"):
        table.update(*random_cases(0))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_an_own_metric_may_be_of_any_type(dtype: torch.dtype) -> None:
    settings = MetricSettings(extra={"given": Given(torch.tensor([1, 0]).to(dtype))})
    found = case_statistics(*random_cases(0), settings=settings, names=["given"])
    assert found["given"].dtype == torch.float64
    assert found["given"].tolist() == [[1, 0]] * 3


def test_no_own_metric_is_called_like_a_column_of_a_table() -> None:
    for name in {*TEXT_COLUMNS, *METRICS_COLUMNS, *CASES_COLUMNS, *DISTORTED_CASES_COLUMNS, "n_raters"}:
        with pytest.raises(ValueError, match=rf"extra\.{name}: .*; choose another name"):
            known_metrics(MetricSettings(extra={name: MissedShare()}))
