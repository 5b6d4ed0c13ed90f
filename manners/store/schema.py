"""Connects to a database and brings its tables up to date."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import weakref
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPICursor, ExceptionContext
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from manners.errors import MannersError
from manners.workspace import scratch_folder

WAIT_SECONDS = 120
"""How long a writer waits for another before it gives up: longer than any import should hold the database."""
CONNECTIONS = 20
"""Most connections that one process holds; its other threads wait. A PostgreSQL server takes 100 unless told."""
PRIVATE = 0o600
"""Rights of a file that holds what people said."""
SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file that is open, by the ends of their names."""
MIGRATIONS = Path(__file__).parent / "migrations"
BEFORE = ".revision-"
"""What stands between a file's name and its revision in the name of the copy that is kept before it is changed."""
PSYCOPG = "postgresql+psycopg"
_UPGRADE = 0x6D616E6E657273
"""Key of the advisory lock under which tables are made and changed."""


def to_url(url_or_path: str | Path) -> URL:
    """Return the database URL of a URL or of the path of a SQLite file; `postgresql://` means the driver psycopg.

    Raises MannersError when the URL holds a password, which would end up in files, in logs and in lists of processes.
    """
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return URL.create("sqlite", database=str(url_or_path))
    try:
        url = make_url(url_or_path)
    except (ArgumentError, ValueError) as error:
        raise MannersError("The database URL cannot be read; write it as postgresql://user@host/name.") from error
    if url.get_backend_name() == "sqlite":
        return url
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=PSYCOPG)
    if url.drivername != PSYCOPG:
        raise MannersError(f"{url.drivername} is not supported; name a SQLite file or a postgresql:// URL.")
    if url.password is not None or {"password", "sslpassword"} & url.query.keys():
        raise MannersError(
            "The database URL holds a password; leave it out, and put it into ~/.pgpass (or the file that PGPASSFILE "
            "names) or into PGPASSWORD."
        )
    if not url.database:
        raise MannersError("The database URL names no database; write it as postgresql://user@host/name.")
    return url


def to_server_url(text: str) -> str:
    """Return a PostgreSQL URL as a workspace remembers it. Raises MannersError when it is none, or holds a password."""
    if "://" not in text or (url := to_url(text)).drivername != PSYCOPG:
        raise MannersError(
            "A team's database is on a server; write its URL as postgresql://user@host/name, or leave it out."
        )
    return url.render_as_string()


def is_file(url: URL) -> bool:
    """Return whether a database is a file of ours, and none on a server."""
    return url.get_backend_name() == "sqlite"


def private(path: Path) -> None:
    """Let only its owner read a file, and what SQLite keeps beside it, whatever the umask; one that lacks is made."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, PRIVATE))
    if not path.is_file():
        return
    for one in (path, *(path.with_name(path.name + end) for end in SIDE_FILES)):
        with suppress(OSError):  # another's file is as its owner wants it
            if one.stat().st_mode & 0o077:
                one.chmod(PRIVATE)


def is_writable(path: Path) -> bool:
    """Return whether a SQLite file can be written: the file, and its folder too, where the log stands beside it."""
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def _as_it_is(path: Path) -> tuple[URL, tempfile.TemporaryDirectory[str] | None]:
    """Return the URL of a SQLite file that can only be read; with a log beside it, that of a copy that has both."""
    log, copied = path.with_name(f"{path.name}-wal"), None
    if log.is_file() and log.stat().st_size:
        copied = tempfile.TemporaryDirectory(prefix="manners-")
        # Not their rights: what can only be read here has to be written there.
        path, log = (Path(shutil.copyfile(one, Path(copied.name) / one.name)) for one in (path, log))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    query = {"mode": "ro", "immutable": "1", "uri": "true"}
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query), copied


def connect(url: URL) -> Engine:
    """Return an engine; on SQLite with foreign keys, patience, and transactions that begin where we say.

    A connection that the server has dropped is replaced when the next transaction begins. A file on a disk that can
    only be read is read.
    """
    on_server, copied = url.drivername == PSYCOPG, None
    if not on_server and (path := Path(str(url.database))).is_file() and not is_writable(path):
        url, copied = _as_it_is(path)
    defaults: dict[str, Any] = (
        {"connect_timeout": 10, "client_encoding": "utf8"} if on_server else {"timeout": WAIT_SECONDS}
    )
    try:
        engine = create_engine(
            url,
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=WAIT_SECONDS,
            pool_pre_ping=on_server,
            hide_parameters=True,
        )
    except (ImportError, NoSuchModuleError) as error:
        raise MannersError(f"The driver of {url.drivername} is not installed; install the `postgres` extra.") from error
    if copied is not None:
        weakref.finalize(engine, copied.cleanup)
    event.listen(engine, "handle_error", _without_rows)
    logging.getLogger("sqlalchemy.engine.Engine").addFilter(_is_no_row)
    if not on_server:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _is_no_row(record: logging.LogRecord) -> bool:
    # What `hide_parameters` hides on the way in is logged on the way out, at the level DEBUG.
    return not str(record.msg).startswith("Row ")


def _without_rows(context: ExceptionContext) -> None:
    # What a server adds to its first line (DETAIL, CONTEXT) quotes the row that it refuses.
    said = context.original_exception
    said.args = (str(said).strip().partition("\n")[0],)


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # The driver's own transactions start too late (at the first write) and not at all for DDL.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only given free


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the write lock at once: one that has read first could not wait for it without a deadlock.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def use_wal(engine: Engine) -> None:
    """Let readers go on while one connection writes (SQLite only; the file remembers it).

    Whoever writes is waited for here: SQLite itself does not wait where a file's mode changes, because it has read the
    file by then and another may be waiting for that reader.
    """
    if engine.dialect.name != "sqlite":
        return
    until = time.monotonic() + WAIT_SECONDS
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        while not _is_wal(cursor, wait=time.monotonic() < until):
            time.sleep(0.02)
        cursor.close()


def _is_wal(cursor: DBAPICursor, *, wait: bool) -> bool:
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or not wait:
            raise
        return False
    return True


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the tables, or None where there are none of ours."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Return the revision that this version of manners writes."""
    revision = _revisions(MIGRATIONS).get_current_head()
    assert revision is not None
    return revision


def upgrade(connection: Connection, name: str) -> None:
    """Bring the tables to the newest revision, inside the caller's transaction.

    Raises MannersError when a newer version of manners wrote them.
    """
    if connection.dialect.name == "postgresql":
        _take_turns(connection, name)
    config = _config(MIGRATIONS)
    refuse_newer(current_revision(connection), name)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def keep_before(engine: Engine) -> None:
    """Keep a copy of a SQLite file of an older revision beside it, before its tables are changed.

    It takes the place of one that was kept when such a change failed, or before somebody went back: that one lacks what
    came since. What another process has brought up to date meanwhile is not copied: that one has kept it as it was.
    On PostgreSQL the change is one transaction, and copies are the server's own business.
    """
    with engine.connect() as connection:
        revision = current_revision(connection)
    if not is_file(engine.url) or revision is None:
        return
    path = Path(str(engine.url.database))
    refuse_newer(revision, str(path))
    kept = path.with_name(f"{path.name}{BEFORE}{revision}")
    with scratch_folder(kept) as scratch, closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as connection:
        private(scratch / path.name)
        connection.execute("VACUUM INTO ?", (str(scratch / path.name),))
        with closing(sqlite3.connect(scratch / path.name)) as copy:
            if copy.execute("SELECT version_num FROM alembic_version").fetchone() != (revision,):
                return
        (scratch / path.name).replace(kept)
    print(f"{path} is of an older manners: a copy of it is {kept.name}, and it is brought up to date", file=sys.stderr)


def refuse_newer(revision: str | None, name: str) -> None:
    """Raise MannersError where tables are of a revision that this version of manners does not know."""
    known = {script.revision for script in _revisions(MIGRATIONS).walk_revisions()}
    if revision is not None and revision not in known:
        raise MannersError(f"{name} was written by a newer version of manners (revision {revision}); update manners.")


def _take_turns(connection: Connection, name: str) -> None:
    """Let one process at a time make or change tables, until its transaction ends, where every text can be kept."""
    connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE)))
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise MannersError(
            f"{name} keeps texts as {encoding}, which cannot hold all of them; make another database with "
            "`createdb --encoding UTF8 --template template0`."
        )


@cache
def _revisions(folder: Path) -> ScriptDirectory:
    """Read the revisions of a folder, once for all stores that a process opens: it runs each of their files."""
    return ScriptDirectory.from_config(_config(folder))


def _config(folder: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
