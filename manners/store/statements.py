"""How many rows one statement takes, and where the two databases want other ones."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql, sqlite

from manners.errors import Unavailable
from manners.store.tables import PromptRow, Table

T = TypeVar("T")
PATIENCE = 120
"""Seconds for which a cut through the verdicts waits for those that are on their way."""
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


_WRITERS = text(
    "SELECT virtualtransaction FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
    " WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND datname = current_database()"
    " AND relation = CAST('verdicts' AS regclass)"
)


def wait_for_verdicts(connection: Connection) -> None:
    """Wait until whoever is writing verdicts now has done so; who begins after this is not waited for.

    On PostgreSQL a verdict has its number before its transaction ends: one with a lower number than the highest that is
    seen may still be on its way. On SQLite there is one writer at a time. Raises Unavailable after `PATIENCE` seconds.
    """
    if connection.dialect.name != "postgresql":
        return
    end = time.monotonic() + PATIENCE
    writing = set(connection.execute(_WRITERS).scalars())
    while writing and (writing := writing & set(connection.execute(_WRITERS).scalars())):
        if time.monotonic() > end:
            raise Unavailable(f"verdicts have been on their way for {PATIENCE} seconds: see what writes, and run again")
        time.sleep(0.02)


def insert_new(connection: Connection, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose unique columns are not there yet, whoever else is writing."""
    if not rows:
        return
    insert_or_ignore = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert_or_ignore(table).on_conflict_do_nothing(), rows)
