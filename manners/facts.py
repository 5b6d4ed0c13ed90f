"""Results as JSON: frozen records go out as facts at the edge, and come back as the same records.

A field that is None is not known, and is left out of the JSON; one whose metadata is `NULL` is written as null, since
there it says something (`ppo.stopped`: nothing has stopped the run). What an older version wrote lacks fields that came
later, so every field of a result has a default; what it wrote beyond them is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from manners.errors import MannersError

Facts = dict[str, Any]
"""What a record holds, in JSON's types."""
Record = TypeVar("Record")
NULL: Mapping[str, bool] = MappingProxyType({"null": True})
"""Metadata of a field whose None is a finding."""


def to_facts(record: Any) -> Facts:
    """Return a record's fields in JSON's types, in the order in which they are declared."""
    return {
        entry.name: _plain(value)
        for entry in fields(record)
        if (value := getattr(record, entry.name)) is not None or entry.metadata.get("null")
    }


def scalars(record: Any) -> Facts:
    """Return the numbers and texts among a record's facts: what is kept beside a version and a round."""
    return {name: value for name, value in to_facts(record).items() if isinstance(value, int | float | str)}


def from_facts(
    kind: type[Record], facts: Mapping[str, Any], where: str, remedy: str = "remove it, and run that stage again"
) -> Record:
    """Return the record that `to_facts` wrote; fields that are missing take their defaults.

    Raises MannersError, naming `where` it stood, the field and the remedy, where a value is of another type.
    """
    try:
        return TypeAdapter(kind).validate_python(facts)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise MannersError(f"{where} is damaged ({field}: {first['msg']}): {remedy}.") from error


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_facts(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum | Path):
        return str(value)
    return value
