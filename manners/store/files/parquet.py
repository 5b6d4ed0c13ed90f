"""Rows in Parquet and Arrow files; imported where there is one: pyarrow takes longer to load than a page may take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manners.errors import MannersError
from manners.store.files.containers import MAX_LINE
from manners.store.files.rows import BadRow, Fields, Reason, damaged
from manners.store.files.unfolding import WHOLE, refuse_arrow, refuse_parquet, rows_at_once, unfolded


def read_rows(path: Path) -> Iterator[tuple[int, Fields | BadRow]]:
    """Yield each row with its number, from 1. Raises MannersError when the file is damaged."""
    number = 0
    try:
        for batch in _batches(path):
            if len(set(batch.schema.names)) < len(batch.schema.names):
                raise MannersError(f"{path} names a column twice; give each a name of its own.")
            for part in _parts(batch):
                for fields in [_TOO_LONG] if part is None else _batch_rows(part):
                    number += 1
                    yield number, fields
    except (pa.ArrowException, OSError, SystemError, MemoryError) as error:
        # The last two come of lengths that a damaged file states.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise damaged(path, error) from error


def _batches(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        metadata = pq.read_metadata(path)
        with pq.ParquetFile(path, read_dictionary=refuse_parquet(path, metadata)) as file:
            yield from file.iter_batches(batch_size=rows_at_once(metadata))
        return
    refuse_arrow(path)
    with pa.OSFile(str(path)) as source:
        # An Arrow file says so at its beginning; what datasets are kept in is the same without a beginning and an end.
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            # Its lengths are taken as they stand there, and a wrong one would end the process.
            batch.validate(full=True)
            yield from (batch.slice(start, 512) for start in range(0, batch.num_rows, 512))


def _parts(batch: Any) -> Iterator[Any | None]:
    """Yield a batch in parts that take little memory as rows; None in place of a row that is longer than any line."""
    size = unfolded(batch)
    if size is not None and size <= WHOLE:
        yield batch
        return
    for row in range(batch.num_rows):
        part = batch.slice(row, 1)
        size = unfolded(part)
        yield None if size is not None and size > MAX_LINE + 4096 * batch.num_columns else part


_TOO_LONG = BadRow(Reason.TOO_LONG, "", "is longer than 8 MiB")


def _batch_rows(batch: Any) -> list[Fields | BadRow]:
    """Return the rows of a batch, times in microseconds, the finest that Python has."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            times = batch.column(place).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(place, field.name, times)
    other = [
        name for name, kind in zip(batch.schema.names, batch.schema.types, strict=True) if _OTHER.search(str(kind))
    ]
    try:
        rows: list[Fields | BadRow] = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [_record(batch, row) for row in range(batch.num_rows)]
    if not other:
        return rows
    return [
        row if isinstance(row, BadRow) else {**row, **{name: _as_json(row[name]) for name in other if name in row}}
        for row in rows
    ]


_OTHER = re.compile("decimal|binary|float|double|map")
"""What the types are called of which some values are written otherwise in JSON."""


def _as_json(value: Any) -> Any:
    """Return a value as a file of JSON would have it: no number is nothing, bytes are text, a map is an object."""
    match value:
        case float() if value != value:
            return None
        case Decimal():
            return float(value) if value % 1 else int(value)
        case bytes():
            return value.decode("utf-8", "surrogateescape")
        case dict():
            return {name: _as_json(one) for name, one in value.items()}
        case [(str(), _), *_] if all(isinstance(one, tuple) for one in value):
            return {name: _as_json(one) for name, one in value}
        case list():
            return [_as_json(one) for one in value]
    return value


def _record(batch: Any, row: int) -> Fields | BadRow:
    """Return one row of a batch that holds a value which is nothing in Python."""
    fields: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = column[row].as_py()
        except UnicodeDecodeError as error:
            return BadRow(Reason.NOT_UTF8, name, f"is not UTF-8 at byte {error.start + 1}")
        except (ValueError, OverflowError):
            remark = f"holds a value of the type {column.type} that cannot be read"
            fields[name] = BadRow(Reason.VALUE, name, remark)  # which is no matter where nothing is read from it
    return fields


def write_rows(path: Path, columns: Mapping[str, type], rows: Iterable[Fields]) -> None:
    """Write rows with these columns: name to str, int, float, bool or list, which is a list of messages."""
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list: pa.list_(message)}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[Fields] = []
        for row in rows:
            batch.append({name: row.get(name) for name in columns})
            if len(batch) == 512:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
