"""Files of rows: CSV, JSON lines and Parquet, read and written one row at a time, whatever the rows mean."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from manners.errors import MannersError
from manners.store.rows import BadRow, Fields, Reason, damaged

MAX_LINE = 8 * 2**20
"""Longest line, and longest CSV field, in bytes; a longer one is refused before it is loaded."""

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".txt")


def suffix_of(path: Path) -> str:
    """Return the suffix that says what the file is made of. Raises MannersError when it is none of `SUFFIXES`."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise MannersError(
        f"{path} has no known suffix; name it {', '.join(SUFFIXES[:-1])} or, for prompts, {SUFFIXES[-1]}."
    )


def read_rows(path: Path) -> Iterator[tuple[int, Fields | BadRow]]:
    """Yield each row with its line number (Parquet: its row number), from 1; a bad one as the `BadRow` that says why.

    A `.txt` file has one field, `prompt`, and its blank lines are no rows. Raises MannersError when the file as a whole
    cannot be read.
    """
    readers: dict[str, Callable[[Iterator[str | BadRow]], Iterator[tuple[int, Fields | BadRow]]]]
    readers = {".jsonl": _read_json, ".csv": _read_csv, ".txt": _read_text}
    suffix = suffix_of(path)
    try:
        if suffix == ".parquet":
            from manners.store import parquet

            yield from parquet.read_rows(path)
            return
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if suffix.endswith(".gz") else raw as file:
            yield from readers[suffix.removesuffix(".gz")](_lines(file.readline))
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise MannersError(
            f"{path} cannot be read ({error.strerror or error}); check its name and its rights."
        ) from error


def _lines(read_line: Callable[[int], bytes]) -> Iterator[str | BadRow]:
    """Yield the decoded lines with their ends; only a line feed ends a line, and no more than `MAX_LINE` is held."""
    first = True
    while line := read_line(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := read_line(MAX_LINE)):
                pass
            yield BadRow(Reason.TOO_LONG, "", "is longer than 8 MiB")
        else:
            try:
                yield line.decode("utf-8-sig" if first else "utf-8")
            except UnicodeDecodeError as error:
                yield BadRow(Reason.NOT_UTF8, "", f"is not UTF-8 at byte {error.start + 1}")
        first = False


def _read_json(lines: Iterator[str | BadRow]) -> Iterator[tuple[int, Fields | BadRow]]:
    for number, line in enumerate(lines, start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _json_object(line)


def _json_object(line: str) -> Fields | BadRow:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return BadRow(Reason.NOT_A_ROW, "", "is not JSON")
    return fields if isinstance(fields, dict) else BadRow(Reason.NOT_A_ROW, "", "is not a JSON object")


def _read_text(lines: Iterator[str | BadRow]) -> Iterator[tuple[int, Fields | BadRow]]:
    for number, line in enumerate(lines, start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, {"prompt": line.rstrip("\r\n")}


def _read_csv(lines: Iterator[str | BadRow]) -> Iterator[tuple[int, Fields | BadRow]]:
    csv.field_size_limit(MAX_LINE)
    bad: list[BadRow] = []
    reader = csv.reader(_decoded(lines, bad), strict=True)
    header: list[str] = []
    start = 1
    while (values := _next_record(reader, bad)) is not None:
        if not header:
            if isinstance(values, list) and len(set(values)) < len(values):
                values = BadRow(Reason.NOT_A_ROW, "", "names a column twice")
            if isinstance(values, BadRow):
                # Without its header nothing in the file can be understood.
                yield start, values
                return
            header = values
        elif isinstance(values, BadRow):
            yield start, values
        elif values and len(values) != len(header):
            yield start, BadRow(Reason.NOT_A_ROW, "", f"has {len(values)} fields where the header has {len(header)}")
        elif values:
            yield start, dict(zip(header, values, strict=True))
        start = reader.line_num + 1


def _decoded(lines: Iterator[str | BadRow], bad: list[BadRow]) -> Iterator[str]:
    for line in lines:
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
        return bad[0] if bad else BadRow(Reason.NOT_A_ROW, "", f"is not CSV ({error})")
    return bad[0] if bad else values


def write_rows(path: Path, columns: Mapping[str, type], rows: Iterable[Fields]) -> None:
    """Write rows with these columns (name to str, int, float, bool or list); a JSON line leaves out what is None.

    The file appears whole or not at all. A list is a list of messages and does not fit into CSV.
    """
    suffix = suffix_of(path)
    if suffix.startswith(".csv") and list in columns.values():
        raise MannersError(f"{path} cannot hold message lists; choose a name that ends in .jsonl or .parquet.")
    part = path.with_name(path.name + ".part")
    try:
        if suffix == ".parquet":
            from manners.store import parquet

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
    with path.open("wb") as raw:
        # No name and no time in the gzip header: the same rows make the same file.
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if suffix.endswith(".gz") else raw
        with packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as file:
            yield file


def _write_lines(file: IO[str], suffix: str, columns: Mapping[str, type], rows: Iterable[Fields]) -> None:
    if suffix.startswith(".csv"):
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({n: str(v).lower() if isinstance(v, bool) else v for n, v in row.items()})
        return
    for row in rows:
        if suffix == ".txt":
            file.write(row["prompt"] + "\n")
        else:
            present = {name: row[name] for name in columns if row.get(name) is not None}
            file.write(json.dumps(present, ensure_ascii=False) + "\n")
