"""How many rows one statement takes, and where the two databases want other ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql, sqlite

from manners.store.tables import PromptRow, Table

T = TypeVar("T")
CHUNK = 500
"""Rows per statement: well under SQLite's limit on bound values."""


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of at most `CHUNK`."""
    source = iter(items)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


def take_turns(connection: Connection, table: type[Table] = PromptRow) -> None:
    """Let no other writer of texts and comparisons in until the transaction ends; writers of verdicts go on.

    Of another table, no other writer who takes turns at it.

    On PostgreSQL two of them could otherwise wait for each other's texts for ever, or both insert one comparison; on
    SQLite writers take turns anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"LOCK TABLE {table.__tablename__} IN SHARE ROW EXCLUSIVE MODE"))


def insert_new(connection: Connection, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose unique columns are not there yet, whoever else is writing."""
    if not rows:
        return
    insert_or_ignore = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert_or_ignore(table).on_conflict_do_nothing(), rows)
