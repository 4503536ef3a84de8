"""The error that a user can fix."""

from __future__ import annotations


class UserError(Exception):
    """An error the user can fix, reported in one line.

    The message names the file or setting, what is wrong with it and what to do. Commands print it without a traceback
    and exit with status 2.
    """
