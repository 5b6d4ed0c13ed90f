"""JSON, of a line and of a whole file: an array of objects is read one object at a time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from manners.errors import MannersError
from manners.store.files.containers import MAX_LINE
from manners.store.files.rows import BadRow, Fields, Reason

MOST_PARTS = 500_000
"""Most lists and objects in one row."""
DEEPEST = 100
"""How deep they may stand within each other: the trees of messages that were published go to some thirty."""
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
"""Texts, whole, and brackets."""
BOM = "\ufeff"
"""The mark of UTF-8, as a character."""


def json_object(text: str) -> Fields | BadRow:
    """Return the object that a JSON text writes, or what is wrong with it."""
    if refused := too_much(text):
        return refused
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError):
        return BadRow(Reason.NOT_A_ROW, "", "is not JSON")
    return _row(value)


def too_much(text: str) -> BadRow | None:
    """Return what is wrong with a text that would take far more memory than it is long, or is nested without end."""
    parts = text.count("[") + text.count("{")
    if parts > MOST_PARTS:
        return BadRow(Reason.TOO_LONG, "", f"holds {parts:,} lists and objects, more than {MOST_PARTS:,}")
    if parts > DEEPEST and _depth(text) > DEEPEST:
        return BadRow(Reason.NOT_A_ROW, "", f"is nested more than {DEEPEST} deep")
    return None


def _depth(text: str) -> int:
    """Return how deep lists and objects stand within each other, at most; brackets within texts do not count."""
    deepest = now = 0
    for mark in _MARKS.findall(text):
        if mark in "[{":
            now += 1
            deepest = max(deepest, now)
        elif mark in "]}":
            now -= 1
    return deepest


def rows_within(text: str) -> str:
    """Say where a text that is one JSON object, and nothing more, keeps rows within it; nothing where it is a row."""
    if too_much(text):
        return ""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(whole, dict) or not whole:
        return ""
    kept = [name for name, value in whole.items() if _are_rows(value)]
    if kept:
        return f"which keeps its rows in `{kept[0]}`: write that array into a file of its own"
    values = list(whole.values())
    columns = all(isinstance(value, list) and all(not isinstance(one, dict) for one in value) for value in values)
    numbered = all(isinstance(value, dict) and all(key.isdecimal() for key in value) for value in values)
    if columns or numbered:
        return "which holds columns: write its rows (pandas: `to_json(FILE, orient='records', lines=True)`)"
    return "whose fields are rows: write them as an array" if all(map(_is_row, values)) else ""


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_row, value))


def _is_row(value: Any) -> bool:
    """Tell an object that is a row from a message, an answer with its score, or numbers by name."""
    return isinstance(value, dict) and bool({"prompt", "chosen", "left", "conversation_a", "messages"} & value.keys())


def _constant(word: str) -> float | None:
    """Return what JSON has no word for; tables write NaN where there is nothing."""
    return None if word == "NaN" else float(word.replace("Infinity", "inf"))


def begins_array(line: str) -> bool:
    """Tell whether a line, the first of a file, begins an array of objects, rather than being some other value."""
    if not line.lstrip().startswith("["):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line.strip() == "[" or line.lstrip()[1:].lstrip()[:1] in ("", "{")
    return not value or any(isinstance(one, dict) for one in value)


def array_items(path: Path, read: Callable[[int], str]) -> Iterator[tuple[int, Fields | BadRow]]:
    """Yield the objects of an array with the number of the line on which each begins.

    What is no JSON ends the reading with a MannersError, since nobody knows where the next object would begin.
    """
    text = _Text(path, read)
    text.take("[")
    mark = text.take("]") if text.peek() == "]" else ","
    while mark == ",":
        text.peek()
        yield text.line, _row(text.value())
        mark = text.take(",]")
    if text.peek():
        raise text.wrong("something comes after the end of the array")


def _row(value: Any) -> Fields | BadRow:
    return value if isinstance(value, dict | BadRow) else BadRow(Reason.NOT_A_ROW, "", "is not a JSON object")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BadRow:
    """Return the object; where it names a field twice, of which one would be lost, what is wrong with it."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return BadRow(Reason.NOT_A_ROW, twice, "is there twice")


_SPACE = f" \t\r\n{BOM}"


class _Text:
    """A JSON text of which no more is held than the value that is read."""

    _decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)

    def __init__(self, path: Path, read: Callable[[int], str]) -> None:
        self._path, self._read = path, read
        self._held = ""
        self.line = 1

    def wrong(self, what: str) -> MannersError:
        return MannersError(f"{self._path}, line {self.line}: {what}; correct it, or fetch or write the file again.")

    def peek(self) -> str:
        """Return the next character that is no white space, nothing at the end."""
        while True:
            stripped = self._held.lstrip(_SPACE)
            self._drop(len(self._held) - len(stripped))
            if stripped or not self._more():
                return self._held[:1]

    def take(self, among: str) -> str:
        """Return the next character, which must be one of these."""
        mark = self.peek()
        if not mark:
            raise self.wrong("the array ends too early")
        if mark not in among:
            raise self.wrong(f"{mark!r} stands where {' or '.join(map(repr, among))} should")
        self._drop(1)
        return mark

    def value(self) -> Any:
        """Return the next value."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held)
                if refused := too_much(self._held[:end]):
                    value = refused
            except (ValueError, RecursionError) as error:
                if len(self._held) > MAX_LINE:
                    raise self.wrong("an object is longer than 8 MiB, or is not JSON") from error
                if not self._more():
                    raise self.wrong("this is not JSON, or it ends too early") from error
            else:
                self._drop(end)
                return value

    def _more(self) -> bool:
        """Read on, twice as much each time, so that a long value is not tried too often."""
        read = self._read(max(2**16, len(self._held)))
        self._held += read
        return bool(read)

    def _drop(self, count: int) -> None:
        self.line += self._held.count("\n", 0, count)
        self._held = self._held[count:]
