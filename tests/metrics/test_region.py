"""The region of a case: voxels outside of it count in no statistic and no metric."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edue_lightning import metrics
from edue_lightning.metrics import CaseStatistics, CaseTable, case_statistics
from tests.helpers.metric_cases import Cases, random_cases


def assert_same(found: CaseStatistics, expected: CaseStatistics) -> None:
    assert found.columns.keys() == expected.columns.keys()
    for name, values in expected.columns.items():
        # its windows are of the whole image's size, where an image cut to the region may be smaller than a window
        if name == "sv_patch":
            continue
        torch.testing.assert_close(found[name], values, equal_nan=True, msg=name)


def boxed(cases: Cases, box: tuple[slice, ...]) -> tuple[Tensor, Cases]:
    """Return a region of a box, and the cases cut to it."""
    region = torch.zeros(len(cases.logits), *cases.logits.shape[3:], dtype=torch.bool)
    region[:, *box] = True
    cut = Cases(cases.logits[:, :, :, *box], cases.masks[:, :, :, *box], cases.valid, cases.spacing)
    return region, cut


@pytest.mark.parametrize("size", [(11, 9), (5, 6, 7)])
def test_every_statistic_within_a_box_is_that_of_the_box_cut_out(size: tuple[int, ...]) -> None:
    cases = random_cases(4, size=size)
    region, cut = boxed(cases, tuple(slice(1, length - 2) for length in size))
    assert_same(case_statistics(*cases, region=region), case_statistics(*cut))
    whole = case_statistics(*cases)
    assert not torch.equal(whole["sv"], case_statistics(*cut)["sv"])


def test_nothing_outside_changes_a_statistic() -> None:
    cases = random_cases(5, size=(10, 10))
    region = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(1)) > 0.4
    outside = ~region[:, None, None]
    other = cases._replace(
        logits=torch.where(outside, 7.0, cases.logits), masks=torch.where(outside, 1 - cases.masks, cases.masks)
    )
    other = other._replace(masks=other.masks * cases.valid[:, :, None, None, None])
    assert_same(case_statistics(*other, region=region), case_statistics(*cases, region=region))


def test_a_region_everywhere_is_none() -> None:
    cases = random_cases(6)
    everywhere = torch.ones(3, *cases.logits.shape[3:], dtype=torch.bool)
    assert_same(case_statistics(*cases, region=everywhere), case_statistics(*cases))


def test_tables_and_single_metrics_take_a_region() -> None:
    cases = random_cases(7, size=(9, 9))
    region, cut = boxed(cases, (slice(2, 8), slice(0, 5)))
    table = CaseTable(("a", "b"))
    table.update(*cases, torch.arange(3), region)
    assert_same(table.cases().statistics, case_statistics(*cut))
    single = metrics.Dice(2)
    single.update(*cases, region=region)
    torch.testing.assert_close(single.compute(), metrics.dice(*cut))
    torch.testing.assert_close(
        metrics.negative_log_likelihood(*cases, region=region), metrics.negative_log_likelihood(*cut)
    )


@pytest.mark.parametrize(
    ("region", "line"),
    [
        (torch.ones(3, 9, 8), r"region must be bool \[B, \*S\] = \[3, 9, 8\], not torch.float32"),
        (torch.ones(3, 9, 7) > 0, r"region must be bool \[B, \*S\] = \[3, 9, 8\], not torch.bool \[3, 9, 7\]"),
        (torch.zeros(3, 9, 8) > 0, "region must hold at least one voxel of each case"),
    ],
)
def test_a_region_that_is_none_is_refused(region: Tensor, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        case_statistics(*random_cases(0), region=region)
