"""The torchmetrics classes and their functional twins: batching, repeated cases, and several processes."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.distributed
from metric_cases import Cases, random_cases
from torchmetrics import Metric
from two_processes import in_two_processes

import edue_lightning.metrics as metrics
from edue_lightning.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    SCORES,
    CaseMetric,
    CaseStatistics,
    CaseTable,
    MetricSettings,
    OutOfDistributionAUPR,
    OutOfDistributionAUROC,
    QualityControlCurve,
    ReliabilityCurve,
    case_statistics,
    quality_control_curve,
    summarise,
)
from edue_lightning.metrics.scores import CORRELATED_SCORES

SETTINGS = MetricSettings(poor_dice={"a": 0.45, "b": 0.48})
CLASSES = [
    kind
    for _, kind in inspect.getmembers(metrics, inspect.isclass)
    if issubclass(kind, CaseMetric) and kind is not CaseMetric
]
FUNCTIONS = {
    function.__doc__.partition("`")[2].partition("`")[0]: function
    for _, function in inspect.getmembers(metrics, inspect.isfunction)
    if (function.__doc__ or "").startswith("Return `")
}


def seven_cases() -> Cases:
    cases = random_cases(7, cases=7, size=(6, 6))
    cases.valid[4] = False
    cases.valid[6, 1:] = False
    return cases


def assert_equal(first: CaseStatistics, second: CaseStatistics) -> None:
    assert first.columns.keys() == second.columns.keys()
    for name in first.columns:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("batches", [[7], [1, 1, 5], [3, 4]])
def test_batching_and_order_do_not_matter(batches: list[int]) -> None:
    cases = seven_cases()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    table = CaseTable(["a", "b"])
    for chosen in order.split(batches):
        table.update(*cases.select(chosen), case_index=chosen)
    found = table.cases()
    assert found.positions.tolist() == list(range(7))
    assert_equal(found.statistics, case_statistics(*cases))
    for row, other in zip(
        table.summary(20).rows, summarise(found.statistics, ["a", "b"], resamples=20).rows, strict=True
    ):
        assert str(row) == str(other)


def test_a_repeated_case_counts_once() -> None:
    cases = seven_cases()
    table = CaseTable(["a", "b"])
    table.update(*cases, case_index=torch.arange(7))
    table.update(*cases.select(torch.tensor([0, 3])), case_index=torch.tensor([0, 3]))
    assert_equal(table.cases().statistics, case_statistics(*cases))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.filterwarnings("ignore:.*was called before the ``update``")
def test_one_case_and_none_keep_their_shape(n: int) -> None:
    table = CaseTable(["a"])
    if n:
        table.update(*random_cases(1, cases=1, structures=1), case_index=torch.tensor([4]))
    found = table.cases()
    assert found.positions.tolist() == [4] * n
    assert found.statistics["dice"].shape == (n, 1)
    assert found.statistics["bins"].shape == (n, 1, 15, 3)
    table.reset()
    assert len(table.cases().statistics) == 0


def test_memory_does_not_grow_with_voxels() -> None:
    sizes = []
    for edge in (8, 32):
        table = CaseTable(["a"])
        table.update(torch.randn(2, 3, 1, edge, edge), torch.ones(2, 4, 1, edge, edge), torch.ones(2, 4) > 0)
        sizes.append(sum(row.numel() for row in table.rows))
    assert sizes[0] == sizes[1]


def test_settings_must_name_the_structures() -> None:
    with pytest.raises(ValueError, match="poor_dice must name the structures disc, cup, not a, b"):
        CaseTable(["disc", "cup"], settings=SETTINGS)
    with pytest.raises(ValueError, match="surface_tolerance must not be negative"):
        CaseTable(["disc"], settings=MetricSettings(surface_tolerance=-1.0))


def test_every_metric_has_a_class_and_a_functional_twin() -> None:
    named = {kind.definition.name for kind in CLASSES}
    correlations = {f"image_{kind}{suffix}" for kind in ("pearson", "spearman") for suffix in CORRELATED_SCORES}
    selective = {f"{kind}{suffix}" for kind in ("d_auc", "aurc", "e_aurc", "normalised_aurc") for suffix in SCORES}
    variants = (correlations | selective) - named
    assert named | variants == set(METRICS)
    assert set(FUNCTIONS) == {kind.__name__ for kind in CLASSES}
    assert all(">>>" in kind.__doc__ for kind in CLASSES)


@pytest.mark.parametrize("kind", [*CLASSES, OutOfDistributionAUROC, OutOfDistributionAUPR], ids=lambda k: k.__name__)
def test_a_class_has_its_direction_as_in_torchmetrics(kind: type[Metric]) -> None:
    assert kind.is_differentiable is False
    assert kind.full_state_update is False
    if issubclass(kind, CaseMetric):
        directions = {"high": True, "low": False, "neither": None}
        assert kind.higher_is_better is directions[METRICS[kind.definition.name].better]
        assert (kind.higher_is_better is False) == (kind.definition.name in LOWER_IS_BETTER)
    else:
        assert kind.higher_is_better is True


def test_curves_have_no_direction() -> None:
    assert ReliabilityCurve.higher_is_better is None
    assert QualityControlCurve.higher_is_better is None


def test_a_class_plots_its_values_as_in_torchmetrics() -> None:
    metric = metrics.Dice(["a", "b"])
    values = []
    for i in range(3):
        values.append(metric(*seven_cases().select(slice(i, i + 1))))
    for drawn in (None, values):
        figure, axes = metric.plot(drawn)
        assert axes.get_ylabel() == "Dice"
        assert len([line for line in axes.lines if len(line.get_xdata())]) == 2
        assert any("Optimal" in text.get_text() for text in axes.texts)
        plt.close(figure)


@pytest.mark.parametrize("kind", [*CLASSES, CaseTable, ReliabilityCurve], ids=lambda kind: kind.__name__)
def test_a_metric_can_be_copied_and_stored_with_its_cases(kind: type[Metric]) -> None:
    metric = kind(["a", "b"], settings=SETTINGS)
    metric.update(*seven_cases())
    for copied in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        torch.testing.assert_close(copied.compute(), metric.compute(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_class_and_functional_twin_equal_the_row_of_the_table(kind: type[CaseMetric]) -> None:
    cases = seven_cases()
    single = kind(["a", "b"], settings=SETTINGS)
    for i in range(7):
        single.update(*cases.select(slice(i, i + 1)))
    rows = summarise(case_statistics(*cases), ["a", "b"], settings=SETTINGS).rows
    expected = [row.value for row in rows if row.metric == kind.definition.name and row.structure in "ab"]
    expected = torch.tensor(expected, dtype=torch.float64)
    assert not expected.isnan().any()
    torch.testing.assert_close(single.compute(), expected)
    twin = FUNCTIONS[kind.__name__]
    torch.testing.assert_close(twin(*cases, structures=["a", "b"], settings=SETTINGS), expected)
    probabilities = torch.sigmoid(cases.logits.double())
    found = twin(probabilities, *cases[1:], structures=["a", "b"], settings=SETTINGS, contents="probabilities")
    torch.testing.assert_close(found, expected)


def test_curves_equal_the_tables() -> None:
    cases = seven_cases()
    statistics = case_statistics(*cases)
    curve = ReliabilityCurve(2)
    curve.update(*cases)
    for k in range(2):
        rows = [row for row in summarise(statistics, ["0", "1"]).reliability if row.structure == str(k)]
        expected = torch.tensor([[row.count, row.mean_probability, row.frequency] for row in rows], dtype=torch.float64)
        torch.testing.assert_close(curve.compute()[k], expected, equal_nan=True)
    control = QualityControlCurve(["a", "b"], settings=SETTINGS)
    control.update(*cases)
    for k, structure in enumerate("ab"):
        rated = [0, 1, 2, 3, 5, 6]
        sv, dice = (statistics[name][rated, k].numpy() for name in ("sv", "dice"))
        expected = quality_control_curve(sv, (dice < SETTINGS.poor_dice_of(structure)).astype(float))
        flagged, missed = control.compute()[k]
        assert flagged.tolist() == pytest.approx(expected.flagged)
        assert missed.tolist() == pytest.approx(expected.missed)


def _measure_share(rank: int, shares: list[list[int]], folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares)
    )
    cases = seven_cases()
    table = CaseTable(["a", "b"]).to("cpu")  # as the trainer does, which resets the metric's type
    for position in torch.tensor(shares[rank], dtype=torch.int64):
        table.update(*cases.select(position[None]), case_index=position[None])
    found = table.cases()
    torch.save({"positions": found.positions, "columns": found.statistics.columns}, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [[[0, 2, 4, 6, 1], [3, 5]], [list(range(7)), []], [[0, 1, 2, 3], [4, 5, 6, 0]]])
def test_two_processes_with_uneven_shares_equal_one(shares: list[list[int]], tmp_path: Path) -> None:
    in_two_processes(_measure_share, shares, str(tmp_path))
    expected = case_statistics(*seven_cases())
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found["positions"].tolist() == list(range(7))
        assert_equal(CaseStatistics(found["columns"]), expected)


def _single_metrics(share: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return every class's value of a process that has a share of the cases."""
    cases = seven_cases()
    values = {}
    for kind in CLASSES:
        single = kind(["a", "b"], settings=SETTINGS)
        for position in share:
            single.update(*cases.select(position[None]))
        values[kind.__name__] = single.compute()
    for detection in (OutOfDistributionAUROC(), OutOfDistributionAUPR()):
        for position in share:
            detection.update(torch.tensor([3.0, 1, 4, 1, 5, 9, 2])[position[None]], (position[None] % 3 == 0))
        values[type(detection).__name__] = detection.compute()
    return values


def _measure_singles(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(_single_metrics(torch.tensor([[6, 0, 4, 2, 1], [5, 3]][rank])), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_every_class_gives_in_two_processes_what_it_gives_in_one(tmp_path: Path) -> None:
    in_two_processes(_measure_singles, str(tmp_path))
    expected = _single_metrics(torch.arange(7))
    assert len(expected) == len(CLASSES) + 2
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_the_page_lists_every_metric_with_its_class_function_and_direction() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `") and line.count(" | ") == 6]
    names = [row[0].strip("| `") for row in rows]
    assert names == [kind.definition.name for name in names for kind in CLASSES if kind.definition.name == name]
    assert len(names) == len(CLASSES)
    for name, row in zip(names, rows, strict=True):
        kind = getattr(metrics, row[1].strip("`"))
        twin = name if row[2] == "same as the metric" else row[2].strip("`")
        assert kind.definition.name == name
        assert FUNCTIONS[kind.__name__] is getattr(metrics, twin)
        assert METRICS[name].better == row[4]
        low, high = kind.plot_lower_bound, kind.plot_upper_bound
        assert row[3].startswith(f"[{low:g}, "), name
        assert "M - 2" in row[3] or (high is None) == ("∞" in row[3]), name
        assert high is None or row[3].endswith(f", {high:g}]"), name
