"""What a database keeps of what was overwritten in it, and how that goes too.

SQLite writes zeros over what is deleted (`secure_delete`), and still two traces stay: the write-ahead log holds pages
as they were before, and a page that was divided while it was live has kept a copy of what moved away. The file is
therefore written anew (VACUUM), and the log cut to nothing. That a file is due is a number in it (`user_version`), set
in the transaction that deletes, so that a process killed in between leaves the duty behind.

PostgreSQL keeps old rows until it is vacuumed, and samples of columns in its statistics: both go with VACUUM (FULL,
ANALYZE), what the statistics said before for a superuser alone. Its own write-ahead log, archives of it, replicas,
dumps and what it logs are beyond a client's reach.
"""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

PATIENCE_SECONDS = 5
"""How long to wait for others before leaving it for the next time."""
SMALL = 16 * 2**20
"""Largest file, in bytes, that is written anew while people wait, under a second: nobody else can write meanwhile."""
HOLDING_WORDS = (
    *("prompts", "responses", "messages", "verdicts", "flags"),
    *("annotators", "accounts", "tokens", "requests", "staged"),
    "pg_catalog.pg_statistic",  # samples of columns as they were; for whoever has no right to it this does nothing
)


def leave_traces(connection: Connection) -> None:
    """Say, within the transaction that deletes, that the database is to be cleared of traces."""
    if connection.dialect.name == "sqlite":
        connection.execute(text("PRAGMA user_version = 1"))


def has_traces(engine: Engine) -> bool:
    """Return whether something was deleted whose traces are still there; never known of PostgreSQL."""
    if engine.dialect.name != "sqlite":
        return False
    with engine.connect() as connection:
        return bool(connection.execute(text("PRAGMA user_version")).scalar_one())


def is_small(engine: Engine) -> bool:
    """Return whether the database can be written anew while people wait; one on a server never is."""
    if engine.dialect.name != "sqlite":
        return False
    with engine.connect() as connection:
        pages, each = (connection.execute(text(f"PRAGMA page_{what}")).scalar_one() for what in ("count", "size"))
    return int(pages) * int(each) <= SMALL


def clear(engine: Engine) -> bool:
    """Write the database anew, without what was deleted; return whether it is done, or others are in the way.

    On PostgreSQL the tables with words are locked meanwhile, and must be this user's own.
    """
    return _clear_sqlite(engine) if engine.dialect.name == "sqlite" else _clear_postgresql(engine)


def _clear_sqlite(engine: Engine) -> bool:
    connection = engine.raw_connection()  # none of the engine's transactions, in which no file is written anew
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE_SECONDS}")
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA user_version = 0")
        busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:  # somebody reads what was before: the log stays, and with it the duty
            cursor.execute("PRAGMA user_version = 1")
        return not busy
    except sqlite3.OperationalError:
        return False
    finally:
        connection.invalidate()  # its patience is another one than the other connections'


def _clear_postgresql(engine: Engine) -> bool:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            connection.execute(text(f"SET lock_timeout = '{PATIENCE_SECONDS}s'"))
            for table in HOLDING_WORDS:
                connection.execute(text(f"VACUUM (FULL{'' if table.startswith('pg_') else ', ANALYZE'}) {table}"))
        except DBAPIError:
            return False
        finally:
            connection.invalidate()
    return True
