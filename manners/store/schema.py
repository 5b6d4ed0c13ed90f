"""Connects to a database and brings its tables up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from manners.errors import MannersError

WAIT_SECONDS = 120
"""How long a writer waits for another before it gives up: longer than any import should hold the database."""


def to_url(url_or_path: str | Path) -> URL:
    """Return the database URL of a URL or of the path of a SQLite file."""
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return URL.create("sqlite", database=str(url_or_path))
    try:
        url = make_url(url_or_path)
    except ArgumentError as error:
        raise MannersError(
            "The database URL cannot be read; write it as postgresql+psycopg://user@host/name."
        ) from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise MannersError(f"{url.drivername} is not supported; name a SQLite file or a postgresql+psycopg:// URL.")
    return url


def connect(url: URL) -> Engine:
    """Return an engine; on SQLite with foreign keys, patience, and transactions that begin where we say."""
    try:
        if url.get_backend_name() == "postgresql":
            return create_engine(url)
        engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS})
    except (ImportError, NoSuchModuleError) as error:
        raise MannersError(f"The driver of {url.drivername} is not installed; install the `postgres` extra.") from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # The driver's own transactions start too late (at the first write) and not at all for DDL.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the write lock at once: one that has read first could not wait for it without a deadlock.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def use_wal(engine: Engine) -> None:
    """Let readers go on while one connection writes (SQLite only; the file remembers it)."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.close()


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the tables, or None where there are none of ours."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Return the revision that this version of manners writes."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def upgrade(connection: Connection, name: str) -> None:
    """Bring the tables to the newest revision, inside the caller's transaction.

    Raises MannersError when a newer version of manners wrote them.
    """
    config = _config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision = current_revision(connection)
    if revision is not None and revision not in known:
        raise MannersError(f"{name} was written by a newer version of manners (revision {revision}); update manners.")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
