"""The one exception a user is meant to read."""

from __future__ import annotations


class MannersError(Exception):
    """A mistake or a limit that the user can act on: one sentence saying what, where, and what to do.

    The command line prints it without a stack trace and exits with 1. Anything else that escapes is a bug of ours.
    """


class Unavailable(MannersError):
    """A part outside the program cannot do its work now (the database is away, busy or full): try again later.

    Over HTTP it is 503, so that whoever sent something keeps it and sends it again.
    """


class UsageError(MannersError):
    """The command was called wrongly (an unknown setting, a value out of range); the command line exits with 2."""
