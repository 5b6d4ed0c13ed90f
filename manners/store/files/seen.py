"""Which fields of a file are used: what is in it and is not used is told to whoever brings it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manners.store.files.rows import BadRow, Fields

DEPTH = 4
"""How far into objects within objects unused fields are looked for."""


class Seen(dict[str, Any]):
    """A row that notes which of its fields, and of the fields of the objects in it, are asked for."""

    def __init__(self, fields: Fields, used: set[str], before: str = "") -> None:
        """Take a row; `used` is what is noted in, `before` what comes before the names."""
        super().__init__(fields)
        self._used, self._before = used, before

    def __getitem__(self, name: str) -> Any:
        """Return a field that is there; raises BadRow where its value is none that can be read."""
        return self._noted(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field; what it says instead of nothing is `default`."""
        value = super().get(name)
        if name in self:
            value = self._noted(name, value)
        return default if value is None else value

    def _noted(self, name: str, value: Any) -> Any:
        if isinstance(value, BadRow):
            raise value
        path = _path(self._before, name)
        self._used.add(path)
        return _noting(value, self._used, path + ".")


def _noting(value: Any, used: set[str], before: str) -> Any:
    if isinstance(value, dict):
        return Seen(value, used, before)
    return [_noting(one, used, before) for one in value] if isinstance(value, list) else value


def _path(before: str, name: str) -> str:
    # Trees hold replies to replies: one name for all of them.
    return before[:-1] if before.endswith(f"{name}.") else before + name


def names(fields: Fields, before: str = "", depth: int = DEPTH) -> Iterator[str]:
    """Yield the names of the fields of a row, and those with a value of the objects in it as `field.name`."""
    for name, value in fields.items():
        path = _path(before, name)
        if value is not None or not before:
            yield path
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, dict) and depth > 1:
                yield from names(one, path + ".", depth - 1)


def unused(there: set[str], used: set[str]) -> tuple[str, ...]:
    """Return the names that nobody asked for, but for those within a field that is itself one of them."""
    found: list[str] = []
    for name in sorted(there - used, key=lambda name: name.split(".")):  # what is within a field comes after it
        if not found or not name.startswith(f"{found[-1]}."):
            found.append(name)
    return tuple(sorted(found))
