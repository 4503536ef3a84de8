"""The one kind of error that a user can mend, told in one line."""

from __future__ import annotations

from collections.abc import Sequence


def counted(problems: Sequence[str]) -> str:
    """Return how many problems there are, in words."""
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


class UserError(Exception):
    """Something the user can mend: the message names the file or setting, and the mend.

    The commands print the message alone, without a traceback, and exit with status 2.
    """
