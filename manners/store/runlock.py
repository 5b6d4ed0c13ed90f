"""The right to train in a PostgreSQL database: one process at a time, on whichever machine it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

from manners.holder import Holder, this_machine
from manners.store.refusals import refusals
from manners.workspace import is_training

_KEY = {"key": 0x6D616E6E}
"""First half of the lock's key, so that it is nobody else's; the second is a table's, so each schema has its own."""
# The server asks a silent client after a minute whether it is there: a machine that lost its power trains no more.
_SIGN = text(
    "SELECT set_config('application_name', :signature, false),"
    " set_config('tcp_keepalives_idle', '60', false), set_config('tcp_keepalives_interval', '10', false)"
)
_TAKE = text("SELECT pg_try_advisory_lock(:key, CAST(CAST(CAST('versions' AS regclass) AS oid) AS integer))")
_HOLDER = text(
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) JOIN pg_database ON pg_database.oid ="
    " pg_locks.database WHERE locktype = 'advisory' AND granted AND pg_database.datname = current_database()"
    " AND classid = :key AND objid = CAST('versions' AS regclass) AND objsubid = 2"
)


@contextmanager
def run_lock(engine: Engine, name: str, stage: str) -> Iterator[None]:
    """Hold the advisory lock of the database called `name` on a connection of its own; it ends with either of the two.

    The session's `application_name` says who holds it, which every user of the server may read.

    Raises:
        MannersError: at once, naming stage, process and machine, when another training run holds it.
    """
    with refusals(name):
        connection = engine.execution_options(isolation_level="AUTOCOMMIT").connect()
    try:
        # Out of the pool: closing it then ends the session, and with it the lock.
        connection.detach()
        with refusals(name):
            if not _taken(connection, stage):
                holder = _holder(connection) or Holder()  # who has let go of it since had it all the same
                raise is_training(holder.words, name)
        yield
    finally:
        connection.close()


def trained_by(engine: Engine, name: str) -> Holder | None:
    """Return who holds the lock of the database called `name`; None where nobody does."""
    with refusals(name), engine.connect() as connection:
        return _holder(connection)


def _taken(connection: Connection, stage: str) -> bool:
    """Sign, and try to take the lock."""
    signature = f"manners {stage}, process {os.getpid()} on {this_machine()}"
    connection.execute(_SIGN, {"signature": signature})
    return bool(connection.execute(_TAKE, _KEY).scalar_one())


def _holder(connection: Connection) -> Holder | None:
    signature = connection.execute(_HOLDER, _KEY).scalar()
    if signature is None:
        return None
    signed = re.fullmatch(r"manners (\w+), process (\d+) on (.+)", signature)
    return Holder(signed[1], int(signed[2]), signed[3]) if signed else Holder()
