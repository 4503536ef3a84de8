"""Arguments that a metric would misread are refused, each with one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from metric_cases import Cases, random_cases
from torch import Tensor

from edue_lightning.metrics import (
    CaseTable,
    Dice,
    MetricSettings,
    OutOfDistributionAUROC,
    case_statistics,
    ood_aupr,
    ood_auroc,
    volume_crps,
)

Call = Callable[[Cases], object]


def _updated_table(cases: Cases) -> CaseTable:
    table = CaseTable(["a", "b"])
    table.update(*cases)
    return table


def _updated_dice(cases: Cases) -> Dice:
    metric = Dice(2)
    metric.update(*cases)
    return metric


ENTRIES: dict[str, Call] = {
    "case_statistics": lambda cases: case_statistics(*cases),
    "CaseTable": _updated_table,
    "Dice": _updated_dice,
    "volume_crps": lambda cases: volume_crps(*cases),
}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Cases], Cases]:
    return lambda cases: cases._replace(**{name: change(getattr(cases, name))})


def _with_two(masks: Tensor) -> Tensor:
    masks = masks.clone()
    masks[2, 1, 1, 3, 3] = 2
    return masks


WRONG = {
    "valid as numbers": (changed("valid", Tensor.long), "valid must be bool, not torch.int64; for numbers 0 and 1"),
    "valid as floats": (changed("valid", Tensor.float), "valid must be bool, not torch.float32"),
    "valid of fewer raters": (changed("valid", lambda v: v[:, :3]), "valid must be [B, R] = [3, 4]"),
    "valid of one case": (changed("valid", lambda v: v[0]), "valid must be [B, R] = [3, 4]"),
    "masks turned": (changed("masks", lambda m: m.transpose(-1, -2)), "masks must be [B, R, K, *S] = [3, R, 2, 9, 8]"),
    "raters and structures swapped": (changed("masks", lambda m: m.transpose(1, 2)), "masks must be [B, R, K, *S]"),
    "masks of one structure": (changed("masks", lambda m: m[:, :, :1]), "masks must be [B, R, K, *S]"),
    "masks of one case": (changed("masks", lambda m: m[:1]), "masks must be [B, R, K, *S]"),
    "masks without structures": (changed("masks", lambda m: m[:, :, 0]), "masks must be [B, R, K, *S]"),
    "soft masks": (
        changed("masks", lambda m: 0.3 * m + 0.1),
        "masks must hold 0 and 1 only, not values from 0.1 to 0.4",
    ),
    "masks of 255": (changed("masks", lambda m: m * 255), "divide masks of 0 and 255 by 255"),
    "one label of 2": (changed("masks", _with_two), "masks must hold 0 and 1 only, not values from 0 to 2"),
    "negative masks": (changed("masks", lambda m: -m.float()), "masks must hold 0 and 1 only"),
    "masks of NaN": (changed("masks", lambda m: m * torch.nan), "masks must hold 0 and 1 only"),
    "masks in the place of members": (
        lambda cases: cases._replace(logits=cases.masks),
        "members must be floating-point logits, not torch.uint8; masks are the second argument",
    ),
    "members in the place of masks": (
        lambda cases: cases._replace(masks=cases.logits, valid=cases.valid[:, :3]),
        "masks must hold 0 and 1 only",
    ),
    "members without structures": (
        lambda cases: cases._replace(logits=cases.logits[:, :, 0, 0]),
        "members must be [B, M, K, *S]",
    ),
    "no member": (changed("logits", lambda m: m[:, :0]), "members must be [B, M, K, *S], none of them 0"),
    "negative spacing": (changed("spacing", torch.neg), "spacing must be positive and finite"),
    "no spacing": (changed("spacing", lambda s: 0 * s), "spacing must be positive and finite"),
    "unknown spacing": (changed("spacing", lambda s: s * torch.nan), "spacing must be positive and finite"),
    "spacing of three axes": (
        changed("spacing", lambda s: torch.cat([s, s[:, :1]], dim=1)),
        "spacing must be [B, n] = [3, 2]",
    ),
    "spacing of one case": (changed("spacing", lambda s: s[0]), "spacing must be [B, n] = [3, 2], one row per case"),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_refused(entry: str, wrong: str) -> None:
    change, message = WRONG[wrong]
    with pytest.raises(ValueError, match=re.escape(message)) as found:
        ENTRIES[entry](change(random_cases(0)))
    assert "\n" not in str(found.value)


def test_another_number_of_structures_is_refused() -> None:
    cases = random_cases(0, structures=3)
    for refused in (lambda: case_statistics(*cases, ["a", "b"]), lambda: _updated_table(cases)):
        with pytest.raises(ValueError, match=r"members have K = 3 structures, but 2 are named: a, b"):
            refused()
    with pytest.raises(ValueError, match="K = 3 structures, but 1 are named"):
        Dice().update(*cases)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 1]), r"case_index must be \[B\] = \[3\], not \[2\]"),
        (torch.tensor([[0, 1, 2]]), r"case_index must be \[B\] = \[3\]"),
        (torch.tensor(1), r"case_index must be \[B\] = \[3\]"),
        (torch.tensor([0.0, 1.0, 2.0]), "case_index must hold whole numbers, not torch.float32"),
        (torch.tensor([False, True, True]), "case_index must hold whole numbers, not torch.bool"),
        (torch.tensor([0, -1, -1]), "case_index must not be negative"),
    ],
)
def test_a_wrong_case_index_is_refused(index: Tensor, message: str) -> None:
    table = CaseTable(["a", "b"])
    with pytest.raises(ValueError, match=message):
        table.update(*random_cases(0), case_index=index)
    # nothing was added
    assert len(table.rows) == 0


def test_contents_must_be_known() -> None:
    with pytest.raises(ValueError, match="contents must be one of logits, probabilities, not 'probs'"):
        case_statistics(*random_cases(0), contents="probs")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"majority_tie": "Foreground"}, "majority_tie must be one of foreground, background, not 'Foreground'"),
        ({"ged_distance": "DICE"}, "ged_distance must be one of iou, dice, not 'DICE'"),
        ({"poor_dice": 80.0}, "poor_dice must be at most 1"),
        ({"poor_dice": float("nan")}, "poor_dice must not be negative"),
        ({"surface_tolerance": {"a": 1.0}}, "surface_tolerance must name the structures 0, 1, not a"),
    ],
)
def test_a_wrong_setting_is_refused_by_every_entry(setting: dict[str, object], message: str) -> None:
    settings = MetricSettings(**setting)  # type: ignore[arg-type]
    for refused in (
        lambda: case_statistics(*random_cases(0), settings=settings),
        lambda: CaseTable(["0", "1"], settings=settings),
        lambda: volume_crps(*random_cases(0), settings=settings),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_masks_of_missing_raters_are_ignored() -> None:
    cases = random_cases(0)
    masks = cases.masks.float()
    masks[~cases.valid] = torch.nan
    expected = case_statistics(*cases)
    found = case_statistics(cases.logits, masks, cases.valid, cases.spacing)
    for name in expected.columns:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64])
def test_masks_of_every_type_give_the_same_numbers(dtype: torch.dtype) -> None:
    cases = random_cases(0)
    expected = case_statistics(*cases)
    found = case_statistics(cases.logits, cases.masks.to(dtype), cases.valid, cases.spacing)
    for name in expected.columns:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("function", [ood_auroc, ood_aupr, lambda *given: OutOfDistributionAUROC().update(*given)])
def test_detection_refuses_labels_that_are_not_bool_and_other_shapes(function: Callable[..., object]) -> None:
    score = torch.tensor([0.1, 0.4, 0.3])
    with pytest.raises(ValueError, match=r"distorted must be bool, not torch.int64"):
        function(score, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"must both be \[N\], not \[3\] and \[2\]"):
        function(score, torch.tensor([False, True]))
    with pytest.raises(ValueError, match=r"must both be \[N\]"):
        function(score[:, None], torch.tensor([[False], [True], [True]]))
