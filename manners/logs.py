"""What is said again is counted, not said again: nobody can fill a disk by making the same mistake a million times."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import OrderedDict

from manners.errors import described

QUIET = 60.0
"""Seconds for which what was said is only counted."""
REMEMBERED = 1000
"""Different things that are counted; the ones said longest ago are forgotten first."""


class Repeats:
    """Says of each thing whether it is to be said now; safe to use from many threads."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._lock = threading.Lock()
        self._said = OrderedDict[str, tuple[float, int]]()
        """When each was said last, and how often it was not said since."""

    def times(self, what: str) -> int:
        """Return for how many occasions this is to be said now: 0 where it was said within the last minute."""
        with self._lock:
            now = time.monotonic()
            then, left_out = self._said.get(what, (-QUIET, 0))
            if now - then < QUIET:
                self._said[what] = then, left_out + 1
                return 0
            self._said.pop(what, None)
            self._said[what] = now, 0
            if len(self._said) > REMEMBERED:
                self._said.popitem(last=False)
            return left_out + 1


class Counted(logging.Filter):
    """A filter for a handler: lets a record through once a minute, with how often it came meanwhile.

    Records are one thing that have the same text before its values are put in, and the same kind of error.
    """

    def __init__(self) -> None:
        """Begin with nothing said."""
        super().__init__()
        self._repeats = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record."""
        error = record.exc_info[1] if record.exc_info else None
        times = self._repeats.times(f"{record.name} {record.msg} {_place(error)}")
        if times > 1:
            record.msg = f"{record.msg} [{times} times since it was last said]"
        return times > 0


_repeats = Repeats()


def complain(error: BaseException) -> None:
    """Print on stderr what kind of error it is and where it arose; the same again is counted for a minute.

    Never what it says, which may be the words of whoever was served.
    """
    if times := _repeats.times(_place(error)):
        print(described(error), file=sys.stderr)
        if times > 1:
            print(f"[{times} times since it was last said]", file=sys.stderr)


def _place(error: BaseException | None) -> str:
    """Return the kind of an error and where it came from."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__
