"""The keys of `report.json`, as docs/report.md lists them: made from the records of the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from manners.docstrings import docstrings
from manners.results import ReportFacts
from manners.types import Interval

WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Interval: "interval"}


def table(results: Mapping[str, type]) -> str:
    """Return every key of `report.json` with its kind and meaning, as a table in Markdown.

    `results` are the records of the stages that it holds, by their names.
    """
    rows = [row for row in keys(ReportFacts) if row[0] not in ("stages", "sections")]
    for name, record in results.items():
        rows += [*keys(record, f"{name}."), (f"{name}.seconds", "number", "What the stage took.")]
    lines = ["| key | kind | meaning |", "|---|---|---|"]
    return "\n".join(lines + [f"| `{key}` | {kind} | {meaning} |" for key, kind, meaning in rows])


def keys(record: type, before: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield name, kind and meaning of every fact of a record, those of records inside it in their place."""
    hints = get_type_hints(record)
    meanings = docstrings(record)
    for entry in fields(record):
        inner, kind = _kind(hints[entry.name])
        name = f"{before}{entry.name}"
        yield name, kind, meanings[entry.name]
        if inner is not None:
            yield from keys(inner, f"{name}[]." if kind == "list" else f"{name}.")


def _kind(hint: Any) -> tuple[type | None, str]:
    """Return the record whose fields a key holds, if there is one, and the kind of its value in words."""
    if hint in WORDS:
        return None, WORDS[hint]
    args = [arg for arg in get_args(hint) if arg not in (NoneType, Ellipsis)]
    if is_dataclass(hint) and isinstance(hint, type):
        return hint, "object"
    if get_origin(hint) is tuple:
        inner, kind = _kind(args[0])
        ends = "low and high" if Ellipsis not in get_args(hint) else f"list of {kind}s"
        return inner, "list" if inner else ends
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        inner, kind = _kind(args[1])
        if inner:
            kind = " and ".join(f"`{entry.name}`" for entry in fields(inner))
        return None, f"by name: {kind}"
    kinds = [_kind(arg) for arg in args]
    return kinds[0][0] if len(kinds) == 1 else None, " or ".join(kind for _, kind in kinds)
