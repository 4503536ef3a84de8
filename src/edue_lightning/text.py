"""Text for messages: single lines, whatever another library or a stranger's file puts into them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

_LONGEST_LINE = 1000
_LONGEST_REASON = 300
# line ends, terminal control characters and lone surrogates, as file names may hold them
_BREAKS_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_KIND_OF_FILE = re.compile(r"mask|probability|overlay|disagreement|total_variance|layers|panel|decision|member_?[0-9]+")
_RESULT = re.compile(rf"__(?:{_KIND_OF_FILE.pattern})(?:__.*)?\.[^/]*")
_MOST_NAME_BYTES = 160  # file systems allow 255; the rest is for the endings of results
_BLANKS = re.compile(r"\s+")
_BLANKS_IN_NUMBERS = re.compile(r"(?<=\d)\s+(?=\d)")
_PLAIN_NAME = re.compile(r"[\w\- ][\w.\- ]*")

NO_FILE_NAME = "cannot be a file name; use letters, digits, '.', '_', '-' and blanks, and no '.' in front"
"""Problem of a case's name for which `is_plain_name` is false."""


def one_line(text: str) -> str:
    """Return a text as a single line of at most 1,000 characters that any terminal and file can hold."""
    shown = _BREAKS_LINE.sub("?", text)
    half = _LONGEST_LINE // 2
    return shown if len(shown) <= _LONGEST_LINE else f"{shown[:half]} ... {shown[-half:]}"


def reason_of(error: BaseException, path: Path | None = None) -> str:
    """Return an error's message as a single line of at most 300 characters, or the name of its type if it is empty.

    Args:
        error: error of any library.
        path: file that appears by its name alone, not by its whole path.
    """
    message = str(error) if path is None else str(error).replace(str(path), path.name)
    return one_line(" ".join(message.split())[:_LONGEST_REASON]) or type(error).__name__


def can_be_in_file_name(text: str) -> bool:
    """Return whether a text can be part of a file name on every file system that results are written to."""

    is_name = text.isprintable() and text not in ("", ".", "..") and not {*"/\\"} & {*text}
    return is_name and len(text.encode()) <= _MOST_NAME_BYTES


def is_plain_name(text: str) -> bool:
    """Return whether a text has letters, digits, '.', '_', '-' and blanks alone, and can be a file name.

    >>> is_plain_name("case 1"), is_plain_name("../case"), is_plain_name(".case")
    (True, False, False)
    """
    return _PLAIN_NAME.fullmatch(text) is not None and can_be_in_file_name(text)


def name_in_files(name: str) -> str:
    """Return what a name becomes on file systems that know no upper and lower case, and compose letters with accents.

    Results of two cases share files there if this text is the same for both names, such as `A` and `a`.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def ambiguous_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of different names that some file systems take for one, see `name_in_files`."""
    groups: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for name in names:
        groups[name_in_files(name)][name] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def ambiguous_structures(structures: Sequence[str]) -> tuple[str, str] | None:
    """Return two names of structures for which files of two cases could have one name, or None if there are none.

    Files are named `CASE__KIND__STRUCTURE`, so with the structures `disc` and `mask__disc` the file
    `x__mask__mask__disc` could belong to the case `x` or to the case `x__mask`.
    """
    names = set(structures)
    for longer in structures:
        for joint in re.finditer("(?=__)", longer):
            start, shorter = longer[: joint.start()], longer[joint.start() + 2 :]
            if shorter in names and _KIND_OF_FILE.fullmatch(start.rpartition("__")[2]):
                return longer, shorter
    return None


def is_result_of(case_id: str, name: str) -> bool:
    """Return whether a file is named like a result of a case: `CASE__KIND` or `CASE__KIND__STRUCTURE`, and an ending.

    >>> is_result_of("x", "x__mask__disc.nii.gz"), is_result_of("x", "x__2.nii.gz")
    (True, False)
    """
    return name.startswith(case_id) and _RESULT.fullmatch(name, len(case_id)) is not None


def natural_key(text: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Return a key for sorting names as people count them, `rater 2` before `rater 10`.

    >>> sorted(["rater 10", "rater 2", "anna"], key=natural_key)
    ['anna', 'rater 2', 'rater 10']
    """
    parts = re.split(r"0*(\d+)", text)
    # every second part is a number, so parts of two names can be compared; the longer number is the larger one
    return tuple((len(part), part) if place % 2 else part for place, part in enumerate(parts)), text


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 case` or `12 cases`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def times(values: Iterable[float], digits: int | None = None) -> str:
    """Return numbers along axes, such as the shape 64x64, or 0.7x0.7x2.5 with so many significant digits."""
    return "x".join(str(value) if digits is None else f"{value:.{digits}g}" for value in values)


def named(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names and the number of the others, such as `a, b and 7 more`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def spelling_problems(what: str, names: Iterable[str]) -> list[str]:
    """Return one line per group of names that are most likely one: they differ in upper and lower case or blanks only.

    >>> spelling_problems("raters", ["Ben", "Eva", "ben", "1 2", "12"])
    ["raters 'Ben', 'ben' differ in upper and lower case or blanks only; write one name"]

    Args:
        what: what the names are those of.
        names: names, each any number of times.
    """
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        plain = unicodedata.normalize("NFKC", name).casefold()
        # blanks between digits separate numbers
        spellings[_BLANKS.sub("", _BLANKS_IN_NUMBERS.sub("|", plain))].append(name)
    return [
        f"{what} {', '.join(map(repr, same))} differ in upper and lower case or blanks only; write one name"
        for same in spellings.values()
        if len(same) > 1
    ]


def listed(names: Sequence[str], most: int | None = None) -> str:
    """Return names as a list in a sentence.

    >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=2), listed(["a"])
    ('a, b and c', 'a, b and 1 more', 'a')

    Args:
        names: names in order.
        most: number of names that are written; of more, the number of the others follows. None for all.
    """
    if most is not None and len(names) > most:
        return named(names, most)
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
