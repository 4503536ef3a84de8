"""Metrics over cases, and their bootstrap, against naive loops and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from edue_lightning.metrics import CaseStatistics, case_statistics, resample_counts, summarise
from edue_lightning.metrics.summary import METRICS, MetricRow, Summary


def cases(n: int = 12, structures: int = 2, seed: int = 0) -> CaseStatistics:
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(n, 1, 1, 1, 1, generator=generator)
    logits = 3 * torch.randn(n, 3, structures, 7, 7, generator=generator) * (1.2 - difficulty)
    masks = logits[:, :1] + 4 * difficulty * torch.randn(n, 4, structures, 7, 7, generator=generator) > 0.5
    return case_statistics(logits, masks.to(torch.uint8), torch.ones(n, 4) > 0, torch.ones(n))


def value(summary: Summary, metric: str, structure: str = "a") -> MetricRow:
    (row,) = [row for row in summary.rows if (row.structure, row.metric) == (structure, metric)]
    return row


def naive(of: CaseStatistics, k: int, chosen: list[int]) -> dict[str, float]:
    """Compute metrics of the chosen cases (with repeats) the plain way."""
    column = {name: part[chosen, k].numpy() for name, part in vars(of).items()}
    bins = column["bins"].sum(axis=0)
    filled = bins[bins[:, 0] > 0]
    gaps = np.abs(filled[:, 1] / filled[:, 0] - filled[:, 2] / filled[:, 0])
    return {
        "dice": float(column["dice"].mean()),
        "nll": float(column["nll"].mean()),
        "brier": float(column["brier"].mean()),
        "ece": float((gaps * filled[:, 0]).sum() / filled[:, 0].sum()),
        "image_pearson": pearsonr(column["sv"], column["sv_star"])[0],
        "image_spearman": spearmanr(column["sv"], column["sv_star"])[0],
        "image_pearson_total": pearsonr(column["sv_total"], column["sv_star"])[0],
        "image_spearman_aula": spearmanr(-column["aula"], column["sv_star"])[0],
        "pixel_pearson": float(np.nanmean(column["pixel_pearson"])),
    }


def test_every_metric_and_every_replicate_equals_a_naive_loop() -> None:
    of = cases()
    summary = summarise(of, ["a", "b"], resamples=40, seed=3)
    counts = resample_counts(12, 40, seed=3)
    for k, structure in enumerate("ab"):
        for metric, expected in naive(of, k, list(range(12))).items():
            assert value(summary, metric, structure).value == pytest.approx(expected, abs=1e-9), metric
        for b in range(40):
            drawn = np.repeat(np.arange(12), counts[b].astype(int)).tolist()
            for metric, expected in naive(of, k, drawn).items():
                assert summary.replicates[structure, metric][b] == pytest.approx(expected, abs=1e-9), metric
    row = value(summary, "nll")
    assert (row.ci_low, row.ci_high) == pytest.approx(np.quantile(summary.replicates["a", "nll"], [0.025, 0.975]))


def test_the_mean_over_structures_uses_the_same_resamples() -> None:
    summary = summarise(cases(), ["a", "b"], resamples=30)
    for metric in METRICS:
        together = np.mean([summary.replicates["a", metric], summary.replicates["b", metric]], axis=0)
        np.testing.assert_array_equal(summary.replicates["mean", metric], together)
        both = np.mean([value(summary, metric, s).value for s in "ab"])
        assert value(summary, metric, "mean").value == pytest.approx(both, nan_ok=True)
    assert summary.means()["dice"] == value(summary, "dice", "mean").value
    alone = summarise(cases(structures=1), ["a"])
    assert {row.structure for row in alone.rows} == {"a"}
    assert alone.means()["dice"] == value(alone, "dice").value


def test_resamples_depend_on_the_number_of_cases_alone() -> None:
    counts = resample_counts(9, 500)
    np.testing.assert_array_equal(counts, resample_counts(9, 500))
    assert (counts.sum(axis=1) == 9).all()
    assert counts.mean() == pytest.approx(1)
    assert counts.var() == pytest.approx(8 / 9, rel=0.1)  # multinomial
    # two methods on the same cases: the replicates of the difference are those of paired cases
    first, second = cases(seed=1), cases(seed=1)
    shifted = CaseStatistics(**{**vars(second), "dice": second.dice - 0.1})
    one, other = (summarise(of, ["a", "b"], resamples=50).replicates["a", "dice"] for of in (first, shifted))
    np.testing.assert_allclose(one - other, 0.1)


def with_column(of: CaseStatistics, name: str, change: Tensor) -> CaseStatistics:
    return CaseStatistics(**{**vars(of), name: change})


def test_undefined_cases_are_left_out_and_counted() -> None:
    of = cases(structures=1)
    holed = of.sv_star.clone()
    holed[[2, 5]] = torch.nan
    row = value(summarise(with_column(of, "sv_star", holed), ["a"], resamples=20), "image_pearson")
    kept = [i for i in range(12) if i not in (2, 5)]
    assert row.value == pytest.approx(pearsonr(of.sv[kept, 0], of.sv_star[kept, 0])[0])
    assert (row.n_cases, row.n_undefined) == (10, 2)


@pytest.mark.parametrize("metric", ["image_pearson", "image_spearman"])
def test_a_correlation_over_fewer_than_three_cases_or_of_a_constant_is_undefined(metric: str) -> None:
    of = cases(structures=1)
    few = of.select(torch.tensor([0, 1]))
    assert np.isnan(value(summarise(few, ["a"], resamples=10), metric).value)
    constant = with_column(of, "sv", torch.full_like(of.sv, 0.1))
    row = value(summarise(constant, ["a"], resamples=10), metric)
    assert np.isnan([row.value, row.ci_low, row.ci_high]).all()


def test_spearman_with_ties() -> None:
    of = cases(structures=1)
    tied = with_column(of, "sv", (of.sv * 2).round())
    expected = spearmanr(tied.sv[:, 0], of.sv_star[:, 0])[0]
    assert value(summarise(tied, ["a"]), "image_spearman").value == pytest.approx(expected)


def test_reliability_rows_are_the_curve() -> None:
    of = cases(structures=1)
    rows = summarise(of, ["a"]).reliability
    assert len(rows) == 15
    assert (rows[0].bin_low, rows[-1].bin_high) == (0, 1)
    assert sum(row.count for row in rows) == 12 * 4 * 49
    for row in rows:
        if row.count:
            assert row.bin_low - 1e-6 <= row.mean_probability <= row.bin_high + 1e-6
        else:
            assert np.isnan(row.frequency)


def test_no_case_at_all_is_undefined_not_an_error() -> None:
    none = cases(structures=1).select(torch.zeros(12, dtype=torch.bool))
    summary = summarise(none, ["a"], resamples=5)
    assert all(np.isnan(row.value) and row.n_cases == 0 for row in summary.rows)
