"""The right to train in a PostgreSQL database: one process at a time, on whichever machine it runs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from manners.errors import MannersError, Unavailable
from manners.holder import Holder, this_machine
from manners.store.refusals import refusals
from manners.workspace import is_training

_KEY = {"key": 0x6D616E6E}
"""First half of the lock's key, so that it is nobody else's; the second is a table's, so each schema has its own."""
PATIENCE = 180.0
"""Seconds for which a lost lock is tried again: a server starts anew in less, and has missed by then who is gone."""
# The server asks a silent client after a minute whether it is there: a machine that lost its power trains no more.
_SIGN = text(
    "SELECT set_config('application_name', :signature, false),"
    " set_config('tcp_keepalives_idle', '60', false), set_config('tcp_keepalives_interval', '10', false)"
)
_TAKE = text("SELECT pg_try_advisory_lock(:key, CAST(CAST(CAST('versions' AS regclass) AS oid) AS integer))")
_LOCKS = (
    " FROM pg_locks JOIN pg_stat_activity USING (pid) JOIN pg_database ON pg_database.oid = pg_locks.database"
    " WHERE locktype = 'advisory' AND granted AND pg_database.datname = current_database()"
    " AND classid = :key AND objid = CAST('versions' AS regclass) AND objsubid = 2"
)
_HOLDER = text(f"SELECT application_name{_LOCKS}")
_HELD = text(f"SELECT 1{_LOCKS} AND pid = pg_backend_pid()")


class RunLock:
    """The advisory lock of the database called `name`, on a connection of its own; it ends with either of the two.

    The session's `application_name` says who holds it, which every user of the server may read.
    """

    def __init__(self, engine: Engine, name: str, stage: str) -> None:
        """Take it; raises MannersError at once, naming stage, process and machine, when another training run has it."""
        self._engine = engine
        self._name = name
        self._signature = f"manners {stage}, process {os.getpid()} on {this_machine()}"
        self._connection, holder = self._take()
        if self._connection is None:
            raise is_training(holder.words, name)

    def keep(self) -> None:
        """See that it is held still, and take it again where its session has ended: the server has started anew, say.

        Raises MannersError naming who has it now, and Unavailable where the server is not there.
        """
        with suppress(DBAPIError):
            if self._connection is not None and self._connection.execute(_HELD, _KEY).first():
                return
        self.end()
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection, holder = self._take()
            except Unavailable:
                if time.monotonic() > until:
                    raise
            else:
                if self._connection is not None:
                    print(f"the right to train in {self._name} was lost, and is taken again", file=sys.stderr)
                    return
                # The server may not have missed yet who had it before: this process.
                if not holder.is_me or time.monotonic() > until:
                    raise MannersError(
                        f"the right to train in {self._name} was lost with its connection, and {holder.words} is"
                        " training there now: wait for it to end, and go on from the last checkpoint"
                    )
            time.sleep(1.0)

    def end(self) -> None:
        """Let go of it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take(self) -> tuple[Connection | None, Holder]:
        """Take the lock, and return the connection that holds it; or None, and who else does."""
        with refusals(self._name):
            connection = self._engine.execution_options(isolation_level="AUTOCOMMIT").connect()
            # Out of the pool: closing it then ends the session, and with it the lock.
            connection.detach()
            try:
                connection.execute(_SIGN, {"signature": self._signature})
                if connection.execute(_TAKE, _KEY).scalar_one():
                    return connection, Holder()
                holder = _holder(connection) or Holder()  # who has let go of it since had it all the same
            except BaseException:
                connection.close()
                raise
        connection.close()
        return None, holder


@contextmanager
def run_lock(engine: Engine, name: str, stage: str) -> Iterator[RunLock]:
    """Hold the lock in this block; raises as `RunLock` does."""
    lock = RunLock(engine, name, stage)
    try:
        yield lock
    finally:
        lock.end()


def trained_by(engine: Engine, name: str) -> Holder | None:
    """Return who holds the lock of the database called `name`; None where nobody does."""
    with refusals(name), engine.connect() as connection:
        return _holder(connection)


def _holder(connection: Connection) -> Holder | None:
    signature = connection.execute(_HOLDER, _KEY).scalar()
    if signature is None:
        return None
    signed = re.fullmatch(r"manners (\w+), process (\d+) on (.+)", signature)
    return Holder(signed[1], int(signed[2]), signed[3]) if signed else Holder()
