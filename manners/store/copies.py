"""The whole record as one SQLite file: a copy of a store that is in use, of either database, and the way back.

A copy is a store like any other, whichever database it was made of. On SQLite it is what `VACUUM INTO` writes: of one
moment, while others go on writing, with what the write-ahead log holds, and without the pages that are free.
Source: SQLite, "VACUUM", "Write-Ahead Logging".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, text

from manners.errors import MannersError
from manners.store import schema
from manners.store.refusals import refusals
from manners.store.store import Store
from manners.store.tables import Table, VerdictRow, VersionRow

ROWS = 2000
"""Rows that are held at once while they go from one database to another."""


def write_copy(database: str | Path, path: Path) -> None:
    """Write all that a store holds at one moment into a new SQLite file, which only its owner may read.

    Raises MannersError where the store cannot be read, or is damaged.
    """
    with closing(Store.open(database)) as store:
        if store.url.get_backend_name() == "sqlite":
            schema.private(path)
            with store.raw() as connection:
                connection.execute("VACUUM INTO ?", (str(path),))
        else:
            with closing(Store.create(path)) as copy, store.read() as rows, copy.write() as connection:
                connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
                _carry_over(rows, connection)
    settle(path)


def settle(path: Path, *, vacuum: bool = False) -> None:
    """Make a SQLite store that nobody uses one file, with nothing beside it; with `vacuum` also without free pages."""
    with refusals(str(path)), _raw(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
        if vacuum:
            connection.execute("VACUUM")


def check_copy(path: Path) -> tuple[int, int]:
    """Return how many verdicts and versions a copy holds; raises MannersError where it is not sound."""
    try:
        with _raw(path, "mode=ro&immutable=1") as connection:
            found = connection.execute("PRAGMA integrity_check").fetchall()
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
            counts = [
                int(connection.execute(f"SELECT count(*) FROM {table.__tablename__}").fetchone()[0])
                for table in (VerdictRow, VersionRow)
            ]
    except sqlite3.Error as error:
        raise MannersError(f"{path} is damaged ({error}): use another backup.") from error
    if found != [("ok",)] or orphans:
        raise MannersError(f"{path} is damaged ({found[0][0] if not orphans else 'rows refer to none'}): use another.")
    return counts[0], counts[1]


def refuse_users(path: Path) -> None:
    """Raise MannersError where any program has a SQLite store open: what it writes later would be lost.

    In WAL mode whoever has the file open holds a shared lock on it; the exclusive one is had by nobody else.
    """
    if not path.is_file():
        return
    try:
        with _raw(path, timeout=1) as connection:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise MannersError(f"{path} is open in another program: close it, and run again.") from error
    except sqlite3.DatabaseError:
        return  # whoever could have it open cannot use it either


def load_copy(copy: Path, url: str) -> None:
    """Put what a copy holds in place of all that is in a PostgreSQL database, in one transaction.

    Numbers that the database has given before are not given again.
    """
    with ExitStack() as held:
        source, target = (held.enter_context(closing(store)) for store in (Store.open(copy), Store.open_or_create(url)))
        held.enter_context(target.run_lock("restore"))
        rows, connection = held.enter_context(source.read()), held.enter_context(target.write())
        given = {table: _last_number(connection, table) for table in _tables()}
        _drop_all(connection)
        schema.upgrade(connection, url)
        _carry_over(rows, connection)
        for table, last in given.items():
            highest = f"SELECT greatest({last}, coalesce(max(id), 0)) FROM {table}"
            connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), ({highest}))"))


def _tables() -> list[str]:
    return [table.name for table in Table.metadata.sorted_tables]


def _carry_over(source: Connection, target: Connection) -> None:
    """Insert all rows of a store into an empty one of the same revision."""
    for table in Table.metadata.sorted_tables:
        rows = source.execution_options(yield_per=ROWS).execute(select(table).order_by(table.c.id))
        for some in rows.partitions():
            target.execute(insert(table), [dict(row._mapping) for row in some])
        wanted, found = (c.execute(select(func.count()).select_from(table)).scalar_one() for c in (source, target))
        assert wanted == found, table.name


def _last_number(connection: Connection, table: str) -> int:
    sequence = connection.execute(text(f"SELECT pg_get_serial_sequence('{table}', 'id')")).scalar_one()
    return int(connection.execute(text(f"SELECT last_value FROM {sequence}")).scalar_one())


def _drop_all(connection: Connection) -> None:
    for table in [*reversed(_tables()), "alembic_version"]:
        connection.execute(text(f"DROP TABLE IF EXISTS {table} CASCADE"))
    ours = text(
        "SELECT oid::regprocedure FROM pg_proc WHERE proname LIKE '%\\_append\\_only' AND pronamespace ="
        " current_schema()::regnamespace"
    )
    for function in connection.execute(ours).scalars().all():
        connection.execute(text(f"DROP FUNCTION {function}"))


@contextmanager
def _raw(path: Path, options: str = "mode=rw", timeout: float = 30) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?{options}"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=timeout)) as connection:
        yield connection
