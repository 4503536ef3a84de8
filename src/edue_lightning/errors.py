"""The one kind of error that a user can mend, told in one line."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: the message names the file or setting, and the mend.

    The commands print the message alone, without a traceback, and exit with status 2.
    """
