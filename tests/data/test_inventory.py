"""Cases compared with each other: what is twice, inverted or constant is found, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edue_lightning.data.inventory import CaseTraits, ComparedCase, repeated_pictures, suspicions, traits_of
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, Split

SIZE = (24, 32)


def disc(row: int = 12, column: int = 16, radius: float = 7) -> NDArray[np.uint8]:
    y, x = np.indices(SIZE)
    return (np.hypot(y - row, x - column) < radius).astype(np.uint8)


def case(
    name: str,
    masks: Sequence[NDArray | None],
    seed: int | None = None,
    group: str | None = None,
    split: Split | None = None,
    image: NDArray | None = None,
) -> ComparedCase:
    """Return a case of one structure; None is a rater who did not outline it."""
    if image is None:
        image = np.random.default_rng(sum(name.encode()) if seed is None else seed).normal(size=(1, *SIZE))
    stacked = np.stack([np.zeros(SIZE, dtype=np.uint8) if mask is None else mask for mask in masks])
    sample = RaterSample(
        torch.from_numpy(image.astype(np.float32)),
        torch.from_numpy(stacked[:, None]),
        torch.tensor([mask is not None for mask in masks]),
        name,
    )
    return ComparedCase(CaseRecord(name, group or name, split), f"{name}.png", traits_of(sample))


def healthy(count: int = 4) -> list[ComparedCase]:
    return [case(f"c{n}", [disc(10, 10 + n), disc(11, 10 + n, 6), disc(12, 10 + n, 8)]) for n in range(count)]


def test_nothing_is_wrong_with_healthy_cases() -> None:
    assert repeated_pictures(healthy()) == ([], [])
    assert suspicions(healthy(), ("a", "b", "c"), ("disc",)) == []


def test_traits_survive_a_file() -> None:
    for one in (*healthy(), case("x", [None, 1 - disc()]), case("y", [disc()], image=np.zeros((1, *SIZE)))):
        assert CaseTraits.from_plain(json.loads(json.dumps(one.traits))) == one.traits


@pytest.mark.parametrize(
    ("groups", "splits", "is_problem"),
    [
        (("p", "q"), (None, None), True),
        (("p", "p"), (None, None), False),
        (("p", "p"), ("train", "train"), False),
        (("p", "q"), ("train", "train"), True),
        (("p", "p"), ("train", "test"), True),
    ],
)
def test_the_same_picture_in_two_cases(
    groups: tuple[str, str], splits: tuple[Split | None, Split | None], is_problem: bool
) -> None:
    twice = [
        case(name, [disc()], seed=7, group=group, split=split)
        for name, group, split in zip("xy", groups, splits, strict=True)
    ]
    problems, warnings = repeated_pictures([*healthy(), *twice])
    if is_problem:
        ((first, line),) = problems
        assert (first.record.case_id, warnings) == ("x", [])
        assert line.startswith("holds the same picture as case 'y' (y.png), so a training case may be a test case; ")
    else:
        assert (problems, warnings) == ([], ["case 'x' (x.png) holds the same picture as case 'y' (y.png)"])


def test_pictures_of_a_single_value_are_constant_and_not_the_same() -> None:
    flat = [case(name, [disc()], image=np.full((2, *SIZE), 0.5)) for name in "xy"]
    half = case("z", [disc(4)], image=np.stack([np.ones(SIZE), np.random.default_rng(0).normal(size=SIZE)]))
    assert repeated_pictures([*flat, half]) == ([], [])
    first, second = [line for line in suspicions([*flat, half], None, ("disc",)) if line.startswith("channel")]
    assert first.startswith("channel 1 holds a single value in 3 of 3 cases: 'x' (x.png), 'y' (y.png), 'z' (z.png);")
    assert second.startswith("channel 2 holds a single value in 2 of 3 cases")


def test_the_arrangement_of_the_same_numbers_counts() -> None:
    values = np.random.default_rng(0).normal(size=(1, 4, 9))
    turned = values.reshape(1, 9, 4)
    samples = [
        RaterSample(
            torch.from_numpy(image.astype(np.float32)),
            torch.zeros(1, 1, *image.shape[1:], dtype=torch.uint8),
            torch.ones(1, dtype=torch.bool),
            "x",
        )
        for image in (values, turned)
    ]
    assert traits_of(samples[0]).picture != traits_of(samples[1]).picture


def test_inverted_masks_of_a_rater() -> None:
    inverted = [case(f"x{n}", [disc(8 + n), 1 - disc(9, 9 + n), disc(10 + n, 15)]) for n in range(2)]
    (line,) = suspicions([*healthy(), *inverted], ("anna", "ben", "cleo"), ("disc",))
    assert line == (
        "masks of disc by rater 'ben' mark most of the image and its border in 2 of 6 cases: 'x0' (x0.png), "
        "'x1' (x1.png), where other raters do not; if they are inverted, save them with 0 outside"
    )
    everyone = [case(f"x{n}", [1 - disc(8 + 2 * n), 1 - disc(9 + 2 * n)]) for n in range(2)]
    (line,) = suspicions(everyone, None, ("disc",))
    assert line.startswith("masks of disc by raters mark most of the image and its border in 2 of 2 cases")
    assert "other raters" not in line


def test_large_masks_within_the_image_are_not_inverted() -> None:
    large = np.ones(SIZE, dtype=np.uint8)
    large[0] = large[:, -1] = 0
    assert suspicions([case("x", [large, large * disc(radius=9)])], None, ("disc",)) == []
    border = np.ones(SIZE, dtype=np.uint8)
    border[2:-2, 2:-2] = 0
    assert suspicions([case("x", [border, border * disc(2)])], None, ("rim",)) == []


def test_two_raters_with_the_same_masks_everywhere() -> None:
    copied = [case(f"x{n}", [disc(8 + n), disc(9, 9 + n), disc(8 + n)]) for n in range(3)]
    (line,) = suspicions(copied, ("anna", "ben", "cleo"), ("disc",))
    assert line.startswith("raters 'anna' and 'cleo' have the same masks in all 3 cases that both outlined; ")
    # in few cases it may be chance, and so it is for anonymous readers
    assert suspicions(copied[:2], ("anna", "ben", "cleo"), ("disc",)) == []
    assert suspicions(copied, None, ("disc",)) == []
    assert suspicions([*copied, *healthy()], ("anna", "ben", "cleo"), ("disc",)) == []


def test_a_mask_in_cases_of_two_patients() -> None:
    (line,) = suspicions(
        [*healthy(), case("x", [disc(), None, disc(3, 3, 3)]), case("y", [None, disc()])], None, ("s",)
    )
    assert line == "cases 'x' (x.png), 'y' (y.png) share a mask of s; check that each has its own"
    same_patient = [case("x", [disc()], group="p"), case("y", [disc()], group="p")]
    small = [case("x", [disc(radius=3)]), case("y", [disc(radius=3)])]
    empty = [case("x", [0 * disc()]), case("y", [0 * disc()])]
    for cases in (same_patient, small, empty):
        assert suspicions(cases, None, ("s",)) == []
