"""Text for messages stays on one line, whatever goes into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edue_lightning.prediction.outputs import DISAGREEMENT, MASK, OVERLAY, PROBABILITY, TOTAL_VARIANCE
from edue_lightning.text import ambiguous_structures, one_line, reason_of
from edue_lightning.uncertainty import MAPS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first line\n  second\tline "), "first line second line"),
        (KeyError(), "KeyError"),
        (ValueError(" \n"), "ValueError"),
        (OSError("no \x1b[31mroom\ud800"), "no ?[31mroom?"),
    ],
)
def test_a_reason_is_one_line_that_can_be_printed(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
    reason_of(error).encode()


def test_a_reason_names_a_file_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    assert (
        reason_of(ValueError(f"cannot identify image file '{path}'"), path) == "cannot identify image file 'image.png'"
    )


def test_reasons_and_lines_have_a_largest_length() -> None:
    assert len(reason_of(ValueError("x" * 5000))) == 300
    assert one_line("a\0b\x01c") == "a?b?c"
    assert one_line("a" * 600 + "b" * 600) == "a" * 500 + " ... " + "b" * 500


@pytest.mark.parametrize(
    "kind", [MASK, PROBABILITY, OVERLAY, DISAGREEMENT, TOTAL_VARIANCE, *MAPS, "member0", "member_1", "layers", "panel"]
)
def test_structures_that_begin_as_files_of_another_are_ambiguous(kind: str) -> None:
    assert ambiguous_structures(["disc", f"{kind}__disc"]) == (f"{kind}__disc", "disc")
    assert ambiguous_structures([f"left__{kind}__disc", "disc"]) == (f"left__{kind}__disc", "disc")


def test_other_structures_with_the_separator_are_not_ambiguous() -> None:
    assert ambiguous_structures(["disc", "left__disc", "mask", "mask__cup", "disc__mask"]) is None
