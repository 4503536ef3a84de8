"""Messages about a measurement's undefined values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from edue_lightning.evaluation.result import Evaluation
from edue_lightning.metrics import CaseTable, MetricSettings


def evaluation(
    members: int, cases: int, structures: tuple[str, ...] = ("disc", "cup"), resamples: int = 0
) -> Evaluation:
    """Return an evaluation of random members and random raters."""
    generator = torch.Generator().manual_seed(0)
    table = CaseTable(structures)
    logits = torch.randn(cases, members, len(structures), 9, 9, generator=generator)
    masks = torch.randint(2, (cases, 3, len(structures), 9, 9), generator=generator, dtype=torch.uint8)
    table.update(logits, masks, torch.ones(cases, 3, dtype=torch.bool))
    names = [str(case) for case in range(cases)]
    found = table.cases().statistics
    settings = MetricSettings()
    summary = table.summary(resamples)
    return Evaluation("mine", "data", "test", structures, names, names, found, summary, settings, [], members, None)


@pytest.mark.parametrize("structures", [("disc",), tuple(f"structure {number}" for number in range(12))])
def test_undefined_values_are_one_short_line(structures: tuple[str, ...]) -> None:
    found = evaluation(1, 6, structures)
    line = found.undefined_line()
    undefined = sum(np.isnan(row.value) for row in found.summary.rows)
    assert line is not None
    assert line.startswith(f"{undefined} of {len(found.summary.rows)} values undefined, empty in metrics.csv: ")
    assert "single network" in line
    assert len(line) <= 160
    assert "\n" not in line
    longest = dataclasses.replace(evaluation(1, 1, structures)).undefined_line("validation.csv")
    assert longest is not None
    assert "too few cases" in longest
    assert len(longest) <= 160


def test_nothing_is_said_where_all_is_defined() -> None:
    found = evaluation(3, 6)
    rows = [row for row in found.summary.rows if not np.isnan(row.value)]
    assert rows
    whole = dataclasses.replace(found, summary=dataclasses.replace(found.summary, rows=rows))
    assert whole.undefined_line() is None


@pytest.mark.parametrize(("cases", "resamples"), [(1, 20), (4, 20), (9, 0), (9, 20)])
def test_values_without_an_interval_are_one_line_with_the_reason(cases: int, resamples: int) -> None:
    found = evaluation(3, cases, resamples=resamples)
    line = found.missing_intervals_line("validation.csv")
    if cases >= 5:
        # without resamples nobody asked for intervals
        assert line is None or "of the replicates are defined" in line
        assert resamples or line is None
        return
    defined = sum(not np.isnan(row.value) for row in found.summary.rows)
    assert line is not None
    assert line.startswith(
        f"{defined} of {defined} values without an interval, see the column no_interval of validation"
    )
    assert f"{cases} independent cases or groups of cases, fewer than 5" in line
    frame = found.metrics_frame()
    assert (frame["no_interval"] != "").all()
    assert frame[["ci_low", "ci_high"]].isna().all(axis=None)
    assert "[no interval]" in found.headline()
