"""The one exception a user is meant to read."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any


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


class Blocked(MannersError):
    """The gate lets a version not through, or a check fails: `facts` say why, and are printed beside the sentence."""

    def __init__(self, sentence: str, facts: Mapping[str, Any]) -> None:
        """Take what a person reads, and what a program reads."""
        super().__init__(sentence)
        self.facts = facts


def described(fault: BaseException) -> str:
    """Return the kinds of a fault and of those behind it, and the lines of code that it came through.

    Never what it says: that may be the words of whoever was served.
    """
    kinds: list[str] = []
    behind: BaseException | None = fault
    while behind is not None and len(kinds) < 10:
        kinds.append(type(behind).__qualname__)
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    frames = traceback.extract_tb(fault.__traceback__)[-8:]
    where = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{' from '.join(kinds)} at {where}"
