"""What every command shares: its options, and how its result is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from textwrap import fill, shorten
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import UseAppendAction, arg

from manners.settings import Settings
from manners.settings_load import Loaded, load
from manners.terminal import in_json, in_one_line
from manners.workspace import Workspace

Result = Mapping[str, Any]
"""What a command found out or did: printed whole with `--json`, as a summary without."""

CELL = 160
"""Longest text in a table's cell, in characters; `--json` has all of it."""
SENTENCE = "sentence"
"""The field of a record that says in words what the others say in figures."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    workspace: Annotated[Path, arg(metavar="DIR")] = Path()
    """The project's folder."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print the result as one JSON object; progress and logs go to stderr."""
    log_format: Literal["text", "json"] = "text"
    """How progress and logs are written on stderr: as people read them, or an object of JSON a line."""
    overrides: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="STAGE.FIELD=VALUE")] = ()
    """Change a setting for this command only."""

    def open(self) -> Workspace:
        """Return the workspace that was named."""
        return Workspace.open(self.workspace)

    def loaded(self) -> Loaded:
        """Return the settings with their origins; outside a workspace these are the defaults and `--set`."""
        return load(Workspace(self.workspace).toml, self.overrides)

    def settings(self) -> Settings:
        """Return the settings."""
        return self.loaded().settings


def show(result: Result, as_json: bool) -> None:
    """Print a command's result on stdout."""
    if as_json:
        print(in_json(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False)))
        return
    for name, value in _lines(_plain(result)):
        if isinstance(value, list) and all(SENTENCE in record for record in value):
            _print_sentences(name, value)
        elif isinstance(value, list):
            _print_table(value)
        else:
            print(f"{name}: {value}" if name else value)


def _plain(value: Any) -> Any:
    """Return `value` in JSON's own types; a number that is not finite becomes null, for JSON has none."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def _lines(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and printable values of nested mappings; a list of records is yielded as it is, to be a table."""
    match value:
        case dict() if value:
            for inner, item in value.items():
                yield from _lines(item, f"{name}.{in_one_line(inner)}".lstrip("."))
        case [{}, *_]:
            yield name, value
        case list():
            yield name, _text(value)
        case _:
            yield name, _text(value)


def _print_table(records: list[dict[str, Any]]) -> None:
    """Print records, one a row, each field in its column; wide where nobody looks on."""
    table = Table(box=None, pad_edge=False)
    columns = list(dict.fromkeys(name for record in records for name in record))
    for column in columns:
        table.add_column(column, overflow="fold")
    for record in records:
        table.add_row(*(shorten(_text(record.get(name)), CELL, placeholder=" ...") for name in columns))
    _console().print(table)


def _print_sentences(name: str, records: list[dict[str, Any]]) -> None:
    """Print records that say in words what they hold: each by its first field and its sentence, whole."""
    print(f"{name}:")
    width = _console().width
    for record in records:
        first, said = _text(next(iter(record.values()))), _text(record[SENTENCE])
        print(fill(f"{first}: {said}", width, initial_indent="  ", subsequent_indent="    "))


def _console() -> Console:
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=200)


def _text(value: Any) -> str:
    """Return a value as a person reads it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(_text, value)) or "none"
        case dict():
            return ", ".join(f"{in_one_line(name)} {_text(item)}" for name, item in value.items()) or "none"
    return in_one_line(str(value))
