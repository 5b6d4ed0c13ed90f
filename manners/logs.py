"""What is said on stderr: the same again is counted, and with `--log-format json` each line is an object for programs.

Nobody can fill a disk by making the same mistake a million times.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

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
        fail(described(error))
        if times > 1:
            print(f"[{times} times since it was last said]", file=sys.stderr)


def _place(error: BaseException | None) -> str:
    """Return the kind of an error and where it came from."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__


Format = Literal["text", "json"]
FORMAT = "MANNERS_LOG_FORMAT"
"""What tells the processes that a command starts how they are to write."""
LEVEL = re.compile(r"(debug|info|warning|error|critical): +", re.IGNORECASE)
"""How lines begin that say how bad it is."""


class JsonLines(io.TextIOBase):
    """A stream that writes each line that it is given as a JSON object to the one beneath it.

    {"time": UTC in ISO 8601, "level": "info", "message": the line}

    Lines of several threads stay apart. What is written is ASCII: it steers no terminal.
    """

    def __init__(self, beneath: TextIO) -> None:
        """Write to a stream."""
        self._beneath = beneath
        self._begun = threading.local()
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Take a text; lines that it ends are written."""
        *lines, rest = (getattr(self._begun, "text", "") + text).replace("\r", "\n").split("\n")
        self._begun.text = rest
        for line in filter(str.strip, lines):
            found = LEVEL.match(line)
            self.say(found[1].lower() if found else "info", line[found.end() :] if found else line)
        return len(text)

    def say(self, level: str, message: str) -> None:
        """Write one object."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": at, "level": level, "message": message})
        with self._lock:
            self._beneath.write(line + "\n")
            self._beneath.flush()

    def flush(self) -> None:
        """Write what waits beneath; a line that has not ended waits here."""
        self._beneath.flush()

    def fileno(self) -> int:
        """Return the system's number of the stream."""
        return self._beneath.fileno()

    def writable(self) -> bool:
        """Return that it is written to."""
        return True


class _Objects(logging.Handler):
    """Writes log records, with their level; of an error its kind and place, never what it says."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        said = record.getMessage() + (f" ({described(error)})" if error else "")
        self._lines.say(record.levelname.lower(), said)


def fail(line: str) -> None:
    """Write on stderr what has failed: as it is, or as an object of level `error`."""
    if isinstance(sys.stderr, JsonLines):
        sys.stderr.say("error", line)
    else:
        print(line, file=sys.stderr)


@contextmanager
def written(as_: Format) -> Iterator[None]:
    """Have all that is said on stderr inside the block written in a format, also by processes that it starts."""
    if as_ == "text":
        yield
        return
    before, before_it = sys.stderr, os.environ.get(FORMAT)
    lines = JsonLines(before)
    handler = _Objects(lines)
    replaced: Any = lines
    sys.stderr, os.environ[FORMAT] = replaced, as_
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        sys.stderr = before
        if before_it is None:
            os.environ.pop(FORMAT, None)
        else:
            os.environ[FORMAT] = before_it


def write_as_told() -> None:
    """Write on stderr as the process that started this one does."""
    if os.environ.get(FORMAT) == "json":
        replaced: Any = JsonLines(sys.stderr)
        sys.stderr = replaced
