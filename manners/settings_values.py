"""Which values a field of the settings may hold: its annotation and range, checked and put into words."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from manners.errors import UsageError


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds of a number."""

    low: float
    high: float


def fits(value: object, hint: Any) -> bool:
    """Return whether `value` is one that the annotation `hint` of a settings field allows (a bool is no number)."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, bounds = args
        return fits(value, base) and bounds.low <= value <= bounds.high
    if origin in (Union, types.UnionType):
        return any(fits(value, member) for member in args)
    if origin is Literal:
        return value in args
    if origin is dict:
        return isinstance(value, Mapping) and all(str(name).isidentifier() and _is_plain(value[name]) for name in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _is_plain(value: object) -> bool:
    """Return whether a value is one of JSON's."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    return (
        all(map(_is_plain, value)) if isinstance(value, list) else value is None or isinstance(value, str | int | float)
    )


def allowed(hint: Any) -> str:
    """Return in words which values the annotation `hint` allows, such as `0.001 to 10, or none`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        whole = "a whole number, " if args[0] is int else ""
        return f"{whole}{args[1].low:.12g} to {args[1].high:.12g}"
    if origin in (Union, types.UnionType):
        return ", or ".join(allowed(member) for member in args)
    if origin is Literal:
        return " | ".join(str(choice) for choice in args)
    if origin is dict:
        return "a table, such as {enable_thinking = false}"
    return {bool: "true | false", str: "text", type(None): "none"}[hint]


def stage_of(record: type) -> str:
    """Return the name under which a stage's settings are set: `ppo` for `PPOSettings`, nothing for `Settings`."""
    return record.__name__.removesuffix("Settings").lower()


def check(record: Any) -> None:
    """Raise `UsageError` naming stage, field, value and range where a field of `record` holds what it may not."""
    hints = get_type_hints(type(record), include_extras=True)
    for entry in fields(record):
        value = getattr(record, entry.name)
        if not fits(value, hints[entry.name]):
            name = f"{stage_of(type(record))}.{entry.name}".lstrip(".")
            raise UsageError(f"{name} cannot be {value!r}: it takes {allowed(hints[entry.name])}.")
