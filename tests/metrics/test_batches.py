"""Cases measured together: each has the numbers that it has alone, and those of the code that measured one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from edue_lightning.metrics import CaseTable, MetricSettings, case_statistics
from edue_lightning.metrics.catalogue import METRICS
from edue_lightning.metrics.thresholds import BestThresholds
from edue_lightning.uncertainty import MaskRule, Readout

# every statistic of these configurations by the code of before there were batches, which measured case by case
EARLIER = Path(__file__).parents[1] / "fixtures" / "case_statistics.npz"
MAPS = ("probability", "disagreement", "decision")
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "logits": {},
    "probabilities": {"contents": "probabilities"},
    "float64": {"dtype": torch.float64, "size": (5, 6, 7)},
    "bfloat16": {"dtype": torch.bfloat16},
    "single": {"members": 1},
    "sure": {"scale": 400.0},
    "equal": {"equal": True},
    "region": {"region": True, "structures": 3},
    "region of probabilities": {"region": True, "contents": "probabilities", "size": (5, 6, 7)},
    "levels": {"readout": Readout(levels=True)},
    "own maps": {"readout": Readout(own_maps=MAPS)},
    "own decision": {"readout": Readout(own_maps=("decision",)), "contents": "probabilities"},
    "raters' rule": {"readout": Readout(levels=True, mask=MaskRule("raters", raters=4))},
    "expected Dice": {"readout": Readout(mask=MaskRule("expected_dice"))},
    "settings": {"settings": MetricSettings(majority_tie="background", ged_distance="dice", surface_tolerance=0.5)},
}
# that code took the soft Dice confidence from the decision; `test_case_scores` has today's against a loop
OTHER_CONFIDENCE = ("own maps", "own decision", "raters' rule")


class Arguments(NamedTuple):
    """Arguments of `case_statistics`."""

    members: Tensor
    masks: Tensor
    valid: Tensor
    spacing: Tensor
    region: Tensor | None
    options: dict[str, Any]

    def measured(self, cases: slice = slice(None)) -> dict[str, Tensor]:
        region = None if self.region is None else self.region[cases]
        parts = (part[cases] for part in (self.members, self.masks, self.valid, self.spacing))
        return dict(case_statistics(*parts, region=region, **self.options).columns)


def arguments(
    number: int,
    *,
    cases: int = 6,
    members: int = 4,
    structures: int = 2,
    size: tuple[int, ...] = (9, 8),
    scale: float = 3.0,
    dtype: torch.dtype = torch.float32,
    equal: bool = False,
    region: bool = False,
    contents: str = "logits",
    **options: Any,
) -> Arguments:
    """Return cases of four raters, some of them missing; NumPy keeps the numbers of this generator for ever."""
    draw = np.random.RandomState(number)
    own = len(options["readout"].own_maps) if "readout" in options else 0
    shared = scale * draw.normal(size=(cases, 1, structures, *size))
    logits = shared + 0.6 * scale * draw.normal(size=(cases, members + own, structures, *size))
    if equal:
        logits[:] = logits[:, :1]
    if "readout" in options and options["readout"].levels:
        logits[:, :members] = -np.sort(-logits[:, :members], axis=1)
    given = torch.from_numpy(logits).to(dtype)
    if contents == "probabilities":
        given = torch.sigmoid(given.double()).to(dtype)
    masks = (shared > 0.5 * scale * draw.normal(size=(cases, 4, structures, *size))).astype(np.uint8)
    masks[0, :, 0] = 0
    valid = np.ones((cases, 4), dtype=bool)
    valid[1, 0], valid[2, 1:], valid[3], valid[4, 2] = False, False, False, False
    # masks of other raters may hold anything
    masks[1, 0] = 7
    inside = draw.rand(cases, *size) > 0.3
    inside[-1], inside[0] = True, inside[1]
    spacing = torch.from_numpy(0.4 + draw.rand(cases, len(size))).float()
    chosen = torch.from_numpy(inside) if region else None
    return Arguments(
        given, torch.from_numpy(masks), torch.from_numpy(valid), spacing, chosen, {"contents": contents, **options}
    )


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_number_is_that_of_the_code_that_measured_case_by_case(name: str) -> None:
    found = arguments(list(CONFIGURATIONS).index(name), **CONFIGURATIONS[name]).measured()
    with np.load(EARLIER) as stored:
        prefix = f"{name}/"
        expected = {
            key.removeprefix(prefix): torch.from_numpy(stored[key]) for key in stored.files if key.startswith(prefix)
        }
    if name in OTHER_CONFIDENCE:
        earlier, today = (columns.pop("soft_dice_confidence") for columns in (expected, found))
        assert not torch.allclose(earlier, today, equal_nan=True)
    assert_close(found, {column: expected[column] for column in found}, 1e-9)
    assert expected.keys() == found.keys()


@pytest.mark.parametrize("name", ["logits", "region of probabilities", "expected Dice"])
def test_a_case_has_the_same_numbers_in_a_batch_as_alone(name: str) -> None:
    given = arguments(50, **CONFIGURATIONS[name])
    alone = [given.measured(slice(i, i + 1)) for i in range(6)]
    together = {column: torch.cat([one[column] for one in alone]) for column in alone[0]}
    assert_close(given.measured(), together, 1e-12)
    # in parts of a batch too
    assert_close(given.measured(slice(1, 4)), {column: values[1:4] for column, values in together.items()}, 1e-12)


def test_thresholds_of_a_batch_are_those_of_its_cases_one_by_one() -> None:
    given = arguments(51, cases=8)
    together, alone = (BestThresholds(("a", "b")) for _ in range(2))
    together.update(*given[:4], torch.arange(8))
    for i in range(8):
        alone.update(*(part[i : i + 1] for part in given[:4]), torch.tensor([i]))
    torch.testing.assert_close(together.compute(), alone.compute(), equal_nan=True)
    assert together.thresholds() == alone.thresholds()


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def operations() -> Iterator[list[str]]:
    """Record the names of the operations that a device is asked for."""
    with _Operations() as mode:
        yield mode.names


def test_neither_operations_nor_waits_for_the_device_grow_with_the_cases() -> None:
    # distances between surfaces are computed off the device
    metrics = [name for name in METRICS if name not in ("hd95", "nsd")]
    counts = []
    for cases in (6, 60):
        given = arguments(52, cases=cases)
        table = CaseTable(("a", "b"), metrics)
        given.valid[:] = True
        given.masks.clamp_(max=1)
        with operations() as names:
            table.update(*given[:4], torch.arange(cases))
        counts.append((len(names), names.count("aten._local_scalar_dense.default")))
    assert counts[0] == counts[1]


def test_groups_of_equally_many_raters_are_measured_at_once() -> None:
    given = arguments(53, cases=40)
    given.valid[:] = True
    given.valid[::2, 1] = False
    given.valid[1::4, 2] = False
    given.masks.clamp_(max=1)
    found = []
    for cases in (slice(None), slice(0, 4)):
        with operations() as names:
            given.measured(cases)
        found.append(len(names))
    # the cases with three raters, whichever is missing, are one group, those with four another; one by one, ten times
    assert found[0] < 1.2 * found[1]
