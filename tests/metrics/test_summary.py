"""Metrics over cases, and their bootstrap, against naive loops and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from edue_lightning.metrics import (
    METRICS,
    CaseStatistics,
    MetricSettings,
    case_statistics,
    interval,
    resample_counts,
    summarise,
)
from edue_lightning.metrics.selective import distance_to_ideal_area, risk_coverage
from edue_lightning.metrics.summary import MetricRow, Summary

POOR_AT_HALF = MetricSettings(poor_dice=0.5)
POOR = MetricSettings(poor_dice={"a": 0.68, "b": 0.7})


def cases(n: int = 12, structures: int = 2, seed: int = 0) -> CaseStatistics:
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(n, 1, 1, 1, 1, generator=generator)
    logits = 3 * torch.randn(n, 3, structures, 7, 7, generator=generator) * (1.2 - difficulty)
    masks = logits[:, :1] + 4 * difficulty * torch.randn(n, 4, structures, 7, 7, generator=generator) > 0.5
    return case_statistics(logits, masks.to(torch.uint8), torch.ones(n, 4) > 0)


def select(of: CaseStatistics, chosen: Tensor) -> CaseStatistics:
    return CaseStatistics({name: values[chosen] for name, values in of.columns.items()})


def value(summary: Summary, metric: str, structure: str = "a") -> MetricRow:
    (row,) = [row for row in summary.rows if (row.structure, row.metric) == (structure, metric)]
    return row


MEANS = (
    *("d_max", "d_match", "matched_iou", "dice_consensus", "dice_dissensus"),
    *("dice", "dice_per_rater", "d_soft", "hd95", "nsd", "nll", "brier", "adaptive_ece", "ged2", "volume_crps"),
    *("layer_agreement", "aula", "model_agreement", "pixel_pearson", "pixel_pearson_total", "pixel_s_ncc"),
)
NAIVE_SELECTIVE_SCORES = {
    "_expected_entropy": ("expected_entropy", 1),
    "_mutual_information": ("mutual_information", 1),
    "_total_normalised": ("sv_total_normalised", 1),
    "_soft_dice": ("soft_dice_confidence", -1),
    "_patch": ("sv_patch", 1),
    "_top": ("sv_top", 1),
}
NAIVE_SCORES = {
    "": ("sv", 1),
    "_total": ("sv_total", 1),
    "_normalised": ("sv_normalised", 1),
    "_entropy": ("entropy", 1),
    "_aula": ("aula", -1),
    "_model_agreement": ("model_agreement", -1),
}


def naive_ece(bins: np.ndarray) -> tuple[float, float]:
    """Return the ECE, and the mean gap over the filled bins."""
    filled = bins[bins[:, 0] > 0]
    gaps = np.abs(filled[:, 1] - filled[:, 2]) / filled[:, 0]
    return float(np.average(gaps, weights=filled[:, 0])), float(gaps.mean())


def naive(of: CaseStatistics, k: int, chosen: list[int]) -> dict[str, float]:
    """Compute every metric of the chosen cases (with repeats) the plain way."""
    column = {name: part[chosen, k].numpy() for name, part in of.columns.items()}
    bins = column["bins"].sum(axis=0)
    filled = bins[bins[:, 0] > 0]
    share, frequency = filled[:, 0] / filled[:, 0].sum(), filled[:, 2] / filled[:, 0]
    gaps = np.abs(filled[:, 1] / filled[:, 0] - frequency)
    found = {name: float(np.nanmean(column[name])) for name in MEANS}
    found |= {
        "ece": float((gaps * share).sum()),
        "ace": float(gaps.mean()),
        "mce": float(gaps.max()),
        "thresholded_ece": float(np.mean([naive_ece(bins[first:])[0] for first in range(1, 8)])),
        **dict(zip(("ece_union", "ace_union"), naive_ece(column["union_bins"].sum(axis=0)), strict=True)),
        "brier_calibration": float((gaps**2 * share).sum()),
        "brier_refinement": float((frequency * (1 - frequency) * share).sum()),
    }
    once = np.ones((1, len(chosen)))
    poor = (column["dice"] < POOR.poor_dice_of("ab"[k])).astype(float)
    for suffix, (name, sign) in NAIVE_SCORES.items():
        raters = column["sv_star_normalised" if suffix == "_normalised" else "sv_star"]
        found[f"image_pearson{suffix}"] = pearsonr(sign * column[name], raters)[0]
        found[f"image_spearman{suffix}"] = spearmanr(sign * column[name], raters)[0]
    for suffix, (name, sign) in {**NAIVE_SCORES, **NAIVE_SELECTIVE_SCORES}.items():
        score = sign * column[name]
        curve = risk_coverage(score, 1 - column["dice"], once)  # itself against a naive loop in its own test
        found |= {
            f"d_auc{suffix}": float(distance_to_ideal_area(score, poor, once)[0]),
            f"aurc{suffix}": float(curve.area[0]),
            f"e_aurc{suffix}": float(curve.excess[0]),
            f"normalised_aurc{suffix}": float(curve.normalised[0]),
        }
    return found


def test_every_metric_and_every_replicate_equals_a_naive_loop() -> None:
    of = cases()
    summary = summarise(of, ["a", "b"], settings=POOR, resamples=40, seed=3)
    counts = resample_counts(12, 40, seed=3)
    for k, structure in enumerate("ab"):
        expected = naive(of, k, list(range(12)))
        assert expected.keys() == METRICS.keys()
        for metric, wanted in expected.items():
            assert value(summary, metric, structure).value == pytest.approx(wanted, abs=1e-9), metric
        for b in range(40):
            drawn = np.repeat(np.arange(12), counts[b].astype(int)).tolist()
            for metric, wanted in naive(of, k, drawn).items():
                found = summary.replicates[structure, metric][b]
                assert found == pytest.approx(wanted, abs=1e-9, nan_ok=True), metric
    row = value(summary, "nll")
    assert (row.ci_low, row.ci_high) == pytest.approx(np.quantile(summary.replicates["a", "nll"], [0.025, 0.975]))


def test_the_brier_score_splits_where_each_bin_holds_one_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = (torch.arange(15) + 0.5) / 15
    members = levels[torch.randint(15, (6, 1, 1, 9, 9), generator=generator)]
    masks = (torch.rand(6, 3, 1, 9, 9, generator=generator) < members).byte()
    of = case_statistics(members, masks, torch.ones(6, 3) > 0, contents="probabilities")
    summary = summarise(of, ["a"])
    split = [value(summary, f"brier_{part}").value for part in ("calibration", "refinement")]
    assert sum(split) == pytest.approx(value(summary, "brier").value, abs=1e-7)


def test_only_the_metrics_asked_for_are_computed() -> None:
    of = cases()
    kept = CaseStatistics({name: of[name] for name in ("dice", "nll")})
    summary = summarise(kept, ["a", "b"], metrics=["nll", "dice"])
    assert [row.metric for row in summary.rows if row.structure == "a"] == ["nll", "dice"]
    assert summary.reliability == []


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
    shifted = with_column(second, "dice", second["dice"] - 0.1)
    one, other = (summarise(of, ["a", "b"], resamples=50).replicates["a", "dice"] for of in (first, shifted))
    np.testing.assert_allclose(one - other, 0.1)


def test_cases_of_one_group_are_drawn_together() -> None:
    groups = ["b", "a", "b", "c", "a", "b"]
    counts = resample_counts(6, 400, groups=groups)
    for first, second in ((0, 2), (0, 5), (1, 4)):
        np.testing.assert_array_equal(counts[:, first], counts[:, second])
    # in the order of their names
    per_group = counts[:, [1, 0, 3]]
    assert (per_group.sum(axis=1) == 3).all()
    assert per_group.mean() == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(per_group, resample_counts(3, 400))


def test_groups_of_one_case_leave_the_draws_as_they_are() -> None:
    alone = [f"patient {case:02}" for case in range(12)]
    np.testing.assert_array_equal(resample_counts(12, 30, 5), resample_counts(12, 30, 5, alone))
    with pytest.raises(ValueError, match="the group of each of the 12 cases, not of 11"):
        resample_counts(12, 30, groups=alone[1:])


@pytest.mark.parametrize(("grouped", "low", "high"), [(True, 0.88, 0.99), (False, 0.2, 0.6)])
def test_an_interval_over_patients_covers_the_truth_as_often_as_it_says(grouped: bool, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    patients, slices, trials = 30, 20, 200
    groups = np.repeat(np.arange(patients), slices)
    covered = 0
    for _ in range(trials):
        # slices of one patient are alike: the truth is a Dice of 0.7
        dice = 0.7 + 0.1 * rng.normal(size=patients)[groups] + 0.02 * rng.normal(size=patients * slices)
        of = CaseStatistics({"dice": torch.from_numpy(dice)[:, None]})
        summary = summarise(of, ["a"], metrics=["dice"], resamples=300, groups=groups.tolist() if grouped else None)
        row = value(summary, "dice")
        covered += row.ci_low <= 0.7 <= row.ci_high
    assert low < covered / trials < high


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_too_few_cases_give_no_interval_and_the_reason(n: int) -> None:
    summary = summarise(select(cases(structures=1), torch.arange(n)), ["a"], resamples=200)
    row = value(summary, "dice")
    assert not np.isnan(row.value)
    if n < 5:
        assert np.isnan([row.ci_low, row.ci_high]).all()
        assert row.no_interval == f"{n} independent cases or groups of cases, fewer than 5"
        assert np.isnan(summary.replicates["a", "dice"]).all()
    else:
        assert row.ci_low < row.value < row.ci_high
        assert row.no_interval == ""


def test_many_cases_of_few_patients_give_no_interval() -> None:
    groups = [case % 4 for case in range(12)]
    row = value(summarise(cases(), ["a", "b"], resamples=50, groups=groups), "nll")
    assert np.isnan([row.ci_low, row.ci_high]).all()
    assert row.no_interval.startswith("4 independent")


def test_an_undefined_value_and_no_resamples_are_reasons_too() -> None:
    of = cases(structures=1)
    assert value(summarise(of, ["a"]), "dice").no_interval == "no resamples"
    constant = with_column(of, "sv", torch.full_like(of["sv"], 0.1))
    assert value(summarise(constant, ["a"], resamples=20), "image_pearson").no_interval == "undefined value"


def test_an_interval_needs_most_of_its_replicates() -> None:
    replicates = np.arange(100.0)
    assert interval(np.where(replicates < 20, np.nan, replicates)) == pytest.approx((21.975, 97.025))
    assert np.isnan(interval(np.where(replicates < 21, np.nan, replicates))).all()
    # one poor case of twelve: a resample misses it more often than once in three
    of = cases(structures=1)
    dice = torch.full_like(of["dice"], 0.9)
    dice[0] = 0.1
    row = value(summarise(with_column(of, "dice", dice), ["a"], resamples=400), "d_auc")
    assert not np.isnan(row.value)
    assert np.isnan([row.ci_low, row.ci_high]).all()
    assert row.no_interval in {
        f"only {share} % of the replicates are defined".replace(" %", "%") for share in range(80)
    }


def test_a_structure_without_an_interval_leaves_the_mean_without_one() -> None:
    of = cases()
    holed = of["dice"].clone()
    holed[3:, 1] = torch.nan
    summary = summarise(with_column(of, "dice", holed), ["a", "b"], resamples=50)
    assert value(summary, "dice", "a").no_interval == ""
    for structure in ("b", "mean"):
        row = value(summary, "dice", structure)
        assert row.no_interval.startswith("3 independent"), structure
        assert np.isnan([row.ci_low, row.ci_high]).all()


def with_column(of: CaseStatistics, name: str, change: Tensor) -> CaseStatistics:
    return CaseStatistics({**of.columns, name: change})


def test_undefined_cases_are_left_out_and_counted() -> None:
    of = cases(structures=1)
    holed = of["sv_star"].clone()
    holed[[2, 5]] = torch.nan
    row = value(summarise(with_column(of, "sv_star", holed), ["a"], resamples=20), "image_pearson")
    kept = [i for i in range(12) if i not in (2, 5)]
    assert row.value == pytest.approx(pearsonr(of["sv"][kept, 0], of["sv_star"][kept, 0])[0])
    assert (row.n_cases, row.n_undefined) == (10, 2)


@pytest.mark.parametrize("metric", ["image_pearson", "image_spearman"])
def test_a_correlation_over_fewer_than_three_cases_or_of_a_constant_is_undefined(metric: str) -> None:
    of = cases(structures=1)
    few = select(of, torch.tensor([0, 1]))
    assert np.isnan(value(summarise(few, ["a"], resamples=10), metric).value)
    constant = with_column(of, "sv", torch.full_like(of["sv"], 0.1))
    row = value(summarise(constant, ["a"], resamples=10), metric)
    assert np.isnan([row.value, row.ci_low, row.ci_high]).all()


def test_spearman_with_ties() -> None:
    of = cases(structures=1)
    tied = with_column(of, "sv", (of["sv"] * 2).round())
    expected = spearmanr(tied["sv"][:, 0], of["sv_star"][:, 0])[0]
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
    none = select(cases(structures=1), torch.zeros(12, dtype=torch.bool))
    summary = summarise(none, ["a"], resamples=5)
    assert all(np.isnan(row.value) and row.n_cases == 0 for row in summary.rows)


def test_each_metric_counts_the_cases_that_define_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 3, 1, 7, 7, generator=generator)
    masks = torch.rand(9, 4, 1, 7, 7, generator=generator) > 0.5
    valid = torch.ones(9, 4, dtype=torch.bool)
    valid[0] = False  # no rater: defines nothing
    valid[1, 1:] = False  # one rater: no disagreement
    masks[2] = masks[2, :1]  # raters who agree: no correlation over voxels
    logits[3] = -9  # no prediction: no surface, no score by size
    summary = summarise(case_statistics(logits, masks, valid), ["a"], settings=POOR_AT_HALF, resamples=5)
    expected = {
        **dict.fromkeys(("dice", "nll", "ece", "d_soft", "ged2", "volume_crps", "aurc", "d_auc", "aula"), 8),
        **dict.fromkeys(("hd95", "aurc_normalised", "d_auc_normalised"), 7),
        **dict.fromkeys(("image_pearson", "image_spearman_entropy", "image_pearson_model_agreement"), 7),
        "image_pearson_normalised": 6,
        "pixel_pearson": 5,
        "nsd": 8,
    }
    for metric, n in expected.items():
        row = value(summary, metric)
        assert (row.n_cases, row.n_undefined) == (n, 9 - n), metric
