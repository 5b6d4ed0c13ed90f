"""Texts of strangers on a terminal: what would steer it, or turn a line round, is shown by its number."""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, with escape (1b) and its one-byte form (9b); tab and line feed apart
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"  # marks and overrides of direction, and what has no width
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
"""Characters that a terminal obeys in place of showing them. Joiners (200c, 200d) stay: scripts and emoji need them."""


def visible(text: str) -> str:
    """Return a text in which what steers a terminal is shown, as `\\x1b` or `\\u202e`; its lines and tabs stay."""
    return STEERING.sub(by_number, text)


def in_one_line(text: str) -> str:
    """Return a text as `visible`, on one line: whoever wrote it cannot begin another that looks like ours."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def in_json(text: str) -> str:
    """Return a JSON text that says the same to a program, and steers no terminal."""
    return STEERING.sub(lambda found: _utf16(found[0]), text)


def by_number(found: re.Match[str]) -> str:
    """Return a character that was found as its number, as `\\x1b` or `\\u202e`."""
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _utf16(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class Shown(io.TextIOBase):
    """A stream that writes what is visible to the one beneath it.

    A carriage return at the very beginning passes: with it the bars of libraries go back to the start of their line.
    """

    def __init__(self, beneath: TextIO) -> None:
        """Write to a stream."""
        self.beneath = beneath

    def write(self, text: str) -> int:
        """Write a text, and return how long it was."""
        rest = text.removeprefix("\r")
        self.beneath.write(text[: len(text) - len(rest)] + visible(rest))
        return len(text)

    def flush(self) -> None:
        """Write what waits."""
        self.beneath.flush()

    def isatty(self) -> bool:
        """Return no: whoever asks would steer, with colours, what is not to be steered."""
        return False

    def fileno(self) -> int:
        """Return the system's number of the stream."""
        return self.beneath.fileno()

    def writable(self) -> bool:
        """Return that it is written to."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # as a property there too
        """What the stream beneath writes characters in."""
        return self.beneath.encoding


def beneath(stream: TextIO) -> TextIO:
    """Return the stream itself, for our own bars, which steer the terminal."""
    return stream.beneath if isinstance(stream, Shown) else stream


@contextmanager
def shown_errors() -> Iterator[None]:
    """Let whatever is said on stderr inside the block, by us or by a library, be `visible`; tracebacks for good."""
    before = sys.stderr
    stream: Any = Shown(before)
    sys.stderr = stream
    sys.excepthook = _excepthook
    try:
        yield
    finally:
        sys.stderr = before


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
