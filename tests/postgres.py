"""A real PostgreSQL server in a folder of its own, for tests: it listens on a socket there and nowhere else."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

SPEED = "-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_connections=150"
"""Nothing has to outlive the tests; and connections suffice for every test's pool."""
GUEST = "guest"
"""A role that must give its password; all others are trusted."""


@dataclass(frozen=True)
class Server:
    """A running server; its superuser is `postgres`."""

    folder: Path
    binaries: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, name: str, user: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://{user}@/{name}?host={quote(str(self.folder), safe='')}"

    def execute(self, statement: str, name: str = "postgres") -> None:
        """Run one statement as the superuser, outside a transaction."""
        import psycopg

        with psycopg.connect(f"host={self.folder} user=postgres dbname={name}", autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Yield the URL of a database that nobody else has, empty or a copy of another; it goes afterwards."""
        name = f"test_{next(self.numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def control(self, *command: str) -> None:
        """Call pg_ctl: `start`, `stop`, `restart`, and wait for it."""
        options = ["-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-s", "-w"]
        listen = f"-k {self.folder} -c listen_addresses='' {SPEED}"
        _call([self.binaries / "pg_ctl", *options, "-o", listen, *command])


def why_not() -> str | None:
    """Return what keeps a server from being started here, or None."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed: it is manners' extra `postgres`"
    if _binaries() is None:
        return "PostgreSQL is not installed: initdb is neither in /usr/lib/postgresql nor on the PATH"
    if os.geteuid() == 0 and subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return None


@contextmanager
def start() -> Iterator[Server]:
    """Start a server, and stop it afterwards."""
    binaries = _binaries()
    assert binaries is not None
    # Not pytest's own folder: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        server = Server(Path(name), binaries)
        if os.geteuid() == 0:
            shutil.chown(server.folder, "postgres")
        data = server.folder / "data"
        settings = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        _call([binaries / "initdb", "-D", data, *settings])
        rules = data / "pg_hba.conf"
        rules.write_text(f"local all {GUEST} scram-sha-256\n{rules.read_text()}")
        server.control("start")
        try:
            yield server
        finally:
            server.control("stop", "-m", "immediate")


def wait_until_quiet(url: str) -> None:
    """Wait until a server has noticed that the processes which were training in a database are gone."""
    import psycopg

    query = b"SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'manners%'"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for _ in range(200):
            if connection.execute(query).fetchone() is None:
                return
            time.sleep(0.05)
    raise AssertionError("a process that was killed is still connected")


def _binaries() -> Path | None:
    """Return the folder with initdb and pg_ctl: the newest version that Debian's packages hold, or that on the PATH."""
    packaged = [file for file in Path("/usr/lib/postgresql").glob("*/bin/initdb") if file.parts[4].isdigit()]
    found = max(packaged, key=lambda file: int(file.parts[4]), default=None) or shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _call(command: list[Path | str]) -> None:
    """Run a command as a user that PostgreSQL accepts; its output is no pipe, for the server would keep that open."""
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryFile() as output:
        done = subprocess.run([*as_user, *command], stdout=output, stderr=output, cwd="/", check=False, timeout=120)
        output.seek(0)
        assert done.returncode == 0, output.read().decode()
