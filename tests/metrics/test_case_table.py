"""The torchmetrics classes: batching, repeated cases, and several processes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor, multiprocessing

from edue_lightning.metrics import (
    BrierScore,
    CaseStatistics,
    CaseTable,
    Dice,
    ExpectedCalibrationError,
    ImagePearson,
    ImageSpearman,
    NegativeLogLikelihood,
    PixelPearson,
    case_statistics,
    summarise,
)


def random_cases(n: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    logits = torch.randn(n, 3, 2, 6, 6, generator=generator)
    masks = (torch.rand(n, 4, 2, 6, 6, generator=generator) > 0.6).to(torch.uint8)
    valid = torch.rand(n, 4, generator=generator) > 0.2
    return logits, masks, valid, torch.rand(n, generator=generator)


def assert_equal(first: CaseStatistics, second: CaseStatistics) -> None:
    for field in fields(CaseStatistics):
        torch.testing.assert_close(
            getattr(first, field.name), getattr(second, field.name), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("batches", [[7], [1, 1, 5], [3, 4]])
def test_batching_and_order_do_not_matter(batches: list[int]) -> None:
    case = random_cases()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    table = CaseTable(2)
    for chosen in order.split(batches):
        table.update(*(part[chosen] for part in case), case_index=chosen)
    found = table.cases()
    assert found.positions.tolist() == list(range(7))
    assert_equal(found.statistics, case_statistics(*case))


def test_a_repeated_case_counts_once() -> None:
    case = random_cases()
    table = CaseTable(2)
    table.update(*case, case_index=torch.arange(7))
    table.update(*(part[[0, 3]] for part in case), case_index=torch.tensor([0, 3]))
    assert_equal(table.cases().statistics, case_statistics(*case))


@pytest.mark.parametrize("n", [0, 1])
def test_one_case_and_none_keep_their_shape(n: int) -> None:
    table = CaseTable(1)
    if n:
        logits, masks, valid, size = random_cases(1)
        table.update(logits[:, :, :1], masks[:, :, :1], valid, size, case_index=torch.tensor([4]))
    found = table.cases()
    assert found.positions.tolist() == [4] * n
    assert found.statistics.dice.shape == (n, 1)
    assert found.statistics.bins.shape == (n, 1, 15, 3)
    table.reset()
    assert len(table.cases().statistics) == 0


def test_memory_does_not_grow_with_voxels() -> None:
    sizes = []
    for edge in (8, 32):
        table = CaseTable(1)
        table.update(
            torch.randn(2, 3, 1, edge, edge), torch.ones(2, 4, 1, edge, edge), torch.ones(2, 4) > 0, torch.ones(2)
        )
        sizes.append(sum(row.numel() for row in table.rows))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        (Dice, "dice"),
        (NegativeLogLikelihood, "nll"),
        (BrierScore, "brier"),
        (ExpectedCalibrationError, "ece"),
        (ImagePearson, "image_pearson"),
        (ImageSpearman, "image_spearman"),
        (PixelPearson, "pixel_pearson"),
    ],
)
def test_a_single_metric_equals_its_row(kind: type[Dice], metric: str) -> None:
    case = random_cases()
    single = kind(n_structures=2)
    for i in range(7):
        single.update(*(part[i : i + 1] for part in case))
    rows = summarise(case_statistics(*case), ["a", "b"]).rows
    expected = [row.value for row in rows if row.metric == metric and row.structure in "ab"]
    torch.testing.assert_close(single.compute(), torch.tensor(expected, dtype=torch.float64))


def _measure_share(rank: int, shares: list[list[int]], folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares)
    )
    case = random_cases()
    table = CaseTable(2).to("cpu")  # as the trainer does, which resets the metric's type
    for position in shares[rank]:
        table.update(*(part[position : position + 1] for part in case), case_index=torch.tensor([position]))
    found = table.cases()
    torch.save({"positions": found.positions, **vars(found.statistics)}, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [[[0, 2, 4, 6, 1], [3, 5]], [list(range(7)), []], [[0, 1, 2, 3], [4, 5, 6, 0]]])
def test_two_processes_with_uneven_shares_equal_one(shares: list[list[int]], tmp_path: Path) -> None:
    multiprocessing.spawn(_measure_share, (shares, str(tmp_path)), nprocs=2)
    expected = case_statistics(*random_cases())
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found.pop("positions").tolist() == list(range(7))
        assert_equal(CaseStatistics(**found), expected)
