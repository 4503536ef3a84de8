"""Text for messages: one line, whatever a stranger's file or another library puts into it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST_LINE = 1000
# line ends, terminal control characters and lone surrogates, as file names may hold them
_BREAKS_LINE = re.compile("[\x01-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MOST_NAME_BYTES = 160  # of the 255 that a file system allows; the ending of a result needs some


def one_line(text: str) -> str:
    """Return a text as one line of at most 1,000 characters that can be shown and written anywhere."""
    shown = _BREAKS_LINE.sub("?", text)
    half = _LONGEST_LINE // 2
    return shown if len(shown) <= _LONGEST_LINE else f"{shown[:half]} ... {shown[-half:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def can_be_in_file_name(text: str) -> bool:
    """Return whether a text can be a part of one file name, wherever results are written."""
    return text != "" and text.isprintable() and len(text.encode()) <= _MOST_NAME_BYTES and not {*"/\\"} & {*text}


def counted(problems: Sequence[str]) -> str:
    """Return the number of problems in words."""
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


def times(shape: Sequence[int]) -> str:
    """Return a shape such as 64x64."""
    return "x".join(map(str, shape))
