"""Files of rows: CSV, JSON, Parquet and Arrow, read and written one row at a time, whatever the rows mean."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from manners.errors import MannersError
from manners.store.files.arrays import BOM, array_items, begins_array, json_object, rows_within
from manners.store.files.containers import (
    MAX_LINE,
    MOST_COLUMNS,
    MOST_IN_RECORD,
    SUFFIXES,
    Layout,
    layout_of,
    opened,
    shards,
    stated_separator,
    suffix_of,
)
from manners.store.files.fields import truth
from manners.store.files.rows import BadRow, Fields, Reason, damaged

__all__ = ["MAX_LINE", "SUFFIXES", "layouts", "places", "read_rows", "rows_of", "suffix_of", "write_rows"]

Numbered = tuple[int, Fields | BadRow]
Lines = Iterator[str | BadRow]

ESCAPED = "escaped"
"""The column of our sheets that says of a row: a cell that a spreadsheet could take for a formula begins with `'`."""
SHEETS = (".csv", ".tsv")
_AROUND = f'{BOM}"'
"""What may stand around a name in a header that is not the first line of its file."""
_FORMULA = re.compile(
    r"[\t\r\n]|[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20\u2212']"
)
"""How a text begins that some spreadsheet takes for a formula: also behind what it strips, and in wide characters."""
WRITTEN = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".txt")


def layouts(path: Path) -> list[Layout]:
    """Return how each file of a path is read: a file, or a folder of shards. Raises as `read_rows` does."""
    with _said(path):
        return [layout_of(file) for file in shards(path)]


def read_rows(path: Path) -> Iterator[Numbered]:
    """Yield each row with its line number (Parquet and Arrow: its row number), from 1; a bad one as a `BadRow`.

    A folder of shards is read in the order of their names, its rows numbered through: `places` says which file a number
    is in. A `.txt` file has one field, `prompt`, and its blank lines are no rows. Raises MannersError when the file
    as a whole cannot be read.
    """
    yield from rows_of(layouts(path))


def rows_of(files: Iterable[Layout]) -> Iterator[Numbered]:
    """Yield the rows of files whose `layouts` are known, as `read_rows` does."""
    before = 0
    for layout in files:
        number = 0
        for number, fields in _read_file(layout):
            yield before + number, fields
        before += number


def places(path: Path, numbers: Sequence[int]) -> str:
    """Return where rows of `read_rows` stand, for people, in their order: each file, and their lines or rows in it."""
    before = 0
    left = sorted(set(numbers))
    told = []
    found = layouts(path)
    for layout in found:
        last = left[-1] if layout is found[-1] else before + max((row for row, _ in _read_file(layout)), default=0)
        if here := [str(number - before) for number in left if number <= last]:
            told.append(f"{layout.path}, {layout.unit} {', '.join(here)}")
        before, left = last, left[len(here) :]
        if not left:
            break
    return "; ".join(told)


def _read_file(layout: Layout) -> Iterator[Numbered]:
    with _said(layout.path):
        if layout.kind in (".parquet", ".arrow"):
            from manners.store.files import parquet

            yield from parquet.read_rows(layout.path)
            return
        with opened(layout) as file:
            if layout.kind == ".json":
                yield from _read_array(layout, file)
            elif layout.kind == ".jsonl":
                yield from _read_json(_lines(file.readline), layout.path)
            elif layout.kind == ".txt":
                yield from _read_text(_lines(file.readline), layout.path)
            else:
                yield from _read_csv(_lines(file.readline), layout.separator)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn what reading a file may raise into one sentence."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno is None:
            # Not the system's: the packing's.
            raise damaged(path, error) from error
        raise MannersError(
            f"{path} cannot be read ({error.strerror or error}); check its name and its rights."
        ) from error


def _lines(read_line: Callable[[int], bytes]) -> Lines:
    """Yield the decoded lines with their ends; only a line feed ends a line, and no more than `MAX_LINE` is held."""
    first = True
    while line := read_line(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := read_line(MAX_LINE)):
                pass
            yield BadRow(Reason.TOO_LONG, "", "is longer than 8 MiB")
        else:
            try:
                text = line.decode()
                # Files that were put together from others have the mark of UTF-8 more than once.
                yield text.lstrip(BOM) if first else text
            except UnicodeDecodeError as error:
                yield BadRow(Reason.NOT_UTF8, "", f"is not UTF-8 at byte {error.start + 1}")
        first = False


def _read_json(lines: Lines, path: Path) -> Iterator[Numbered]:
    first = True
    for number, line in enumerate(lines, start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            if first and begins_array(line):
                raise MannersError(f"{path} holds one JSON array, not an object on each line; name it with .json.")
            yield number, json_object(line.lstrip(BOM))
        else:
            continue
        first = False


def _read_array(layout: Layout, file: IO[bytes]) -> Iterator[Numbered]:
    """Read a `.json` file: an array of objects or, as many are in fact, an object on each line."""
    start = file.read(MAX_LINE).decode("utf-8", "surrogateescape").lstrip(BOM).lstrip()
    with opened(layout) as again:
        if start.startswith("["):
            # A byte that is no text becomes half a surrogate, which is found with its line and its field.
            text = io.TextIOWrapper(again, encoding="utf-8", errors="surrogateescape", newline="")
            yield from array_items(layout.path, text.read)
            return
        if within := rows_within(start):
            raise MannersError(f"{layout.path} is one JSON object, {within}.")
        for number, fields in _read_json(_lines(again.readline), layout.path):
            if isinstance(fields, BadRow) and number == 1 and fields.reason is Reason.NOT_A_ROW:
                raise MannersError(f"{layout.path} is neither an array of JSON objects nor one on each line.")
            yield number, fields


def _read_text(lines: Lines, path: Path) -> Iterator[Numbered]:
    first: list[str] = []
    for number, line in enumerate(lines, start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            if len(first) < 2:
                first.append(line.strip())
                _refuse_rows(path, first)
            yield number, {"prompt": line.rstrip("\r\n")}


def _refuse_rows(path: Path, first: list[str]) -> None:
    """Raise MannersError where the first lines of a text are rows of something else, and no prompts."""
    if isinstance(json_object(first[0]), dict):
        raise MannersError(f"{path} holds objects of JSON, and no line is a prompt; name it with .jsonl at the end.")
    tabs = {line.count("\t") for line in first}
    cells = [cell.strip('" ').lower() for cell in re.split("[\t,;|]", first[0])]
    names = all(re.fullmatch(r"[\w.-]+", cell) for cell in cells) and not _NAMES.isdisjoint(cells)
    if names or (len(first) > 1 and len(tabs) == 1 and tabs != {0}):
        raise MannersError(f"{path} holds columns, and no line is a prompt; name it with .csv or .tsv at the end.")


_NAMES = frozenset(("prompt", "prompts", "messages", "conversation", "conversations", "instruction"))
"""What a column of prompts is called, where the first line of a text names columns."""


def _read_csv(lines: Lines, separator: str) -> Iterator[Numbered]:
    csv.field_size_limit(MAX_LINE)
    bad: list[BadRow] = []
    held = _Held()
    reader = csv.reader(_decoded(lines, bad, held), strict=True, delimiter=separator)
    header: list[str] = []
    start = 1
    while (values := _next_record(reader, bad)) is not None:
        end = reader.line_num
        held.size = 0
        if isinstance(values, list) and not header and end == 1 and stated_separator(separator.join(values)):
            values = []
        if isinstance(values, BadRow):
            # Whatever else began on the lines that were passed over is as bad: each is counted.
            yield from ((number, values) for number in range(start, end + 1))
            if not header:
                # Without its header nothing in the file can be understood.
                return
        elif not header:
            header = _named(_trimmed(values, 0))
            if twice := next((name for name, count in Counter(header).items() if count > 1), None):
                yield start, BadRow(Reason.NOT_A_ROW, twice, "is there twice among the columns")
                return
        elif [cell.strip(_AROUND) for cell in _trimmed(values, 0)] == header:
            yield start, BadRow(Reason.NOT_A_ROW, "", "is the header again, as where files were put together")
        elif any(values):
            yield start, _record(header, _trimmed(values, len(header)))
        start = end + 1


def _named(header: list[str]) -> list[str]:
    """Return a header in which every column has a name, also one that has none in the file."""
    return [name or f"column {place}" for place, name in enumerate(header, start=1)]


def _trimmed(values: list[str], size: int) -> list[str]:
    """Return the cells of a record without the empty ones that spreadsheets leave at the end of a line."""
    end = len(values)
    while end > size and not values[end - 1]:
        end -= 1
    return values[:end]


def _record(header: list[str], values: list[str]) -> Fields | BadRow:
    if len(values) != len(header):
        title = (
            "; if the names of the columns are further down, take away what is above them" if len(header) == 1 else ""
        )
        header_line = f"the header ({header[0][:40]!r})" if title else "the header"
        return BadRow(Reason.NOT_A_ROW, "", f"has {len(values)} fields where {header_line} has {len(header)}{title}")
    fields = dict(zip(header, values, strict=True))
    if not truth(fields.get(ESCAPED, "")):
        return fields
    return {name: value.removeprefix("'") for name, value in fields.items() if name != ESCAPED}


@dataclass
class _Held:
    """How much of a record has been read whose end has not come."""

    size: int = 0


def _decoded(lines: Lines, bad: list[BadRow], held: _Held) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        held.size += 0 if isinstance(line, BadRow) else len(line)
        if held.size > MOST_IN_RECORD:
            raise MannersError(
                f"line {number} is still the row that began {MOST_IN_RECORD >> 20} MiB before: a quotation mark is"
                " missing; correct the file and try again."
            )
        if isinstance(line, BadRow):
            bad.append(line)
            # It may sit inside a quoted field: an empty line in its place keeps the numbers right.
            line = "\n"
        yield line


def _next_record(reader: Iterator[list[str]], bad: list[BadRow]) -> list[str] | BadRow | None:
    """Return the next record, the reason why it cannot be read, or None at the end."""
    bad.clear()
    try:
        values = next(reader)
    except StopIteration:
        return None
    except csv.Error as error:
        what = "a carriage return alone ends a line" if "new-line" in str(error) else str(error)
        return bad[0] if bad else BadRow(Reason.NOT_A_ROW, "", f"is not CSV ({what})")
    if len(values) > MOST_COLUMNS:
        return BadRow(Reason.TOO_LONG, "", f"has {len(values):,} fields, more than {MOST_COLUMNS:,}")
    return bad[0] if bad else values


def write_rows(path: Path, columns: Mapping[str, type], rows: Iterable[Fields]) -> None:
    """Write rows with these columns (name to str, int, float, bool or list); a JSON line leaves out what is None.

    The file appears whole or not at all. A list is a list of messages and does not fit into CSV. A sheet begins with
    the mark by which spreadsheets know UTF-8, and a text in it that they could take for a formula with `'`, which its
    column `escaped` says.
    """
    suffix = suffix_of(path)
    if suffix not in WRITTEN:
        raise MannersError(f"{path}: files of this kind are only read; choose a name that ends in .csv or .jsonl.")
    if suffix.startswith(SHEETS) and list in columns.values():
        raise MannersError(f"{path} cannot hold message lists; choose a name that ends in .jsonl or .parquet.")
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)  # one that was left behind, or a link that somebody has put there
        if suffix == ".parquet":
            from manners.store.files import parquet

            parquet.write_rows(part, columns, rows)
        else:
            with _text_writer(part, suffix) as file:
                _write_lines(file, suffix, columns, rows)
        os.replace(part, path)
    except OSError as error:
        raise MannersError(
            f"{path} cannot be written ({error.strerror or error}); check its folder and the disk."
        ) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _text_writer(path: Path, suffix: str) -> Iterator[IO[str]]:
    encoding = "utf-8-sig" if suffix.startswith(SHEETS) else "utf-8"
    with path.open("wb") as raw:
        # No name and no time in the gzip header: the same rows make the same file.
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if suffix.endswith(".gz") else raw
        with packed, io.TextIOWrapper(packed, encoding=encoding, newline="") as file:
            yield file


def _write_lines(file: IO[str], suffix: str, columns: Mapping[str, type], rows: Iterable[Fields]) -> None:
    if suffix.startswith(SHEETS):
        separator = "\t" if suffix.startswith(".tsv") else ","
        writer = csv.DictWriter(file, [*columns, ESCAPED], restval="", delimiter=separator)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()} | {ESCAPED: "true"})
        return
    for row in rows:
        if suffix == ".txt":
            file.write(row["prompt"] + "\n")
        else:
            present = {name: row[name] for name in columns if row.get(name) is not None}
            file.write(json.dumps(present, ensure_ascii=False) + "\n")


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value if isinstance(value, str) and _FORMULA.match(value) else value
