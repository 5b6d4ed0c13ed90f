"""The right to train in a PostgreSQL database: one process at a time, on whichever machine it runs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

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
            holder = _take(connection, stage)
        if holder is not None:
            raise is_training(holder, name)
        yield
    finally:
        connection.close()


def _take(connection: Connection, stage: str) -> str | None:
    """Take the lock, or return who holds it."""
    host = socket.gethostname().partition(".")[0]
    connection.execute(_SIGN, {"signature": f"manners {stage}, process {os.getpid()} on {host}"})
    if connection.execute(_TAKE, _KEY).scalar_one():
        return None
    signed = re.fullmatch(r"manners (\w+), (process .+)", connection.execute(_HOLDER, _KEY).scalar() or "")
    return f"`{signed[1]}`, {signed[2]}," if signed else "another run"
