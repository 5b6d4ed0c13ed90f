"""A team's store on a PostgreSQL server: what goes wrong there, many at once, and the server that is started anew."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from manners.errors import MannersError, Unavailable
from manners.store import Store, runlock, to_server_url
from manners.store.schema import CONNECTIONS, connect, to_url
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from tests.postgres import GUEST, Server, wait_until_quiet

SOME = Comparison((Turn(Role.USER, "Hi"),), Response("a", "v1"), Response("b", "v1"), AskedHow.RANDOM)
TIE = Verdict(Choice.TIE, Annotator("Ann", AnnotatorKind.HUMAN))
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """The URL of an empty database."""
    with server.database() as url:
        yield url


@pytest.fixture
def guest(server: Server) -> Iterator[str]:
    """A role that must give a password, and has no rights beyond reading."""
    server.execute(f"CREATE ROLE {GUEST} LOGIN PASSWORD 'open sesame'")
    yield GUEST
    server.execute(f"DROP ROLE {GUEST}")


def sentence(url: str, act: Callable[[str], object] = Store.open_or_create) -> str:
    """What a user reads when a database cannot be opened."""
    with pytest.raises(MannersError) as raised:
        act(url)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("postgresql://ann@127.0.0.1:1/x", r"127\.0\.0\.1.*Connection refused\); check host and port in the URL"),
        ("postgresql://ann@localhost:1/x", r"Connection refused\); check host and port in the URL"),
        ("postgresql://ann@no.such.host.invalid/x", r"resolve host 'no\.such\.host\.invalid'.*; check host and port"),
        ("postgresql:///x?host=/nowhere", r"No such file or directory\); check host and port"),
        ("postgresql://ann@host:port/x", r"cannot be read; write it as postgresql://user@host/name"),
        ("postgresql://ann@host", r"names no database; write it as postgresql://user@host/name"),
        ("postgresql+psycopg2://ann@host/x", r"postgresql\+psycopg2 is not supported"),
    ],
)
def test_a_wrong_url_is_one_sentence(place: str, says: str) -> None:
    with pytest.raises(MannersError, match=says):
        Store.open(place)


def test_a_missing_database_or_user_is_one_sentence(server: Server) -> None:
    assert "make it with `createdb`" in sentence(server.url("nowhere"))
    assert "check the user in the URL" in sentence(server.url("postgres", user="nobody"))


@pytest.mark.parametrize(
    "address", ["ann:secret@host/x", "ann@host/x?password=secret", "ann@host/x?sslpassword=secret"]
)
def test_a_password_in_the_url_is_refused_and_not_repeated(address: str) -> None:
    for act in (Store.open, to_server_url):
        told = sentence(f"postgresql://{address}", act)
        assert "PGPASSFILE" in told and "PGPASSWORD" in told and "secret" not in told


def test_a_password_comes_from_a_file(
    server: Server, url: str, guest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.create(url).close()
    name = str(to_url(url).database)
    theirs = server.url(name, user=guest)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    assert "PGPASSFILE's file" in sentence(theirs)
    file = tmp_path / "pgpass"
    file.write_text(f"*:*:*:{guest}:open sesame\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    # The password is right now; what is missing are rights, to the tables here and to make any in the second.
    assert "have its owner grant" in sentence(theirs)
    with server.database() as empty:
        assert "have its owner grant" in sentence(server.url(str(to_url(empty).database), user=guest))
    server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {guest}", name)
    with closing(Store.open(theirs)) as store:
        assert store.comparisons() == []
        with pytest.raises(MannersError, match=r"permission denied for table .*; have its owner grant"):
            store.add_comparisons([SOME])
    server.execute(f"DROP OWNED BY {guest}", name)


def test_a_database_that_takes_no_writes_is_one_sentence(server: Server, url: str) -> None:
    with closing(Store.create(url)):
        server.execute(f"ALTER DATABASE {to_url(url).database} SET default_transaction_read_only = on")
    with (
        closing(Store.open(url)) as store,
        pytest.raises(Unavailable, match=r"read-only transaction\); have its owner"),
    ):
        store.add_comparisons([SOME])


def test_a_text_that_the_database_cannot_hold_is_the_senders_mistake(url: str) -> None:
    with closing(Store.create(url)) as store:
        with pytest.raises(MannersError, match=r"cannot hold this \(.*NUL.*\); leave out what it names") as raised:
            store.add_comparisons([replace(SOME, left=Response("a\0b", "v1"))])
        assert not isinstance(raised.value, Unavailable)


def test_a_database_that_cannot_keep_every_text_is_refused(server: Server) -> None:
    server.execute("CREATE DATABASE narrow ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
    try:
        assert "keeps texts as SQL_ASCII" in sentence(server.url("narrow"))
    finally:
        server.execute("DROP DATABASE narrow WITH (FORCE)")


def test_a_missing_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert sentence("postgresql:///x").endswith("is not installed; install the `postgres` extra.")


@pytest.mark.parametrize("text", ["here.db", "sqlite:///here.db", "mysql://ann@host/x"])
def test_only_a_server_has_a_url_that_a_workspace_remembers(text: str) -> None:
    sentence(text, to_server_url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_url_means_psycopg(scheme: str) -> None:
    assert to_server_url(f"{scheme}://ann@host:5433/x?sslmode=require") == (
        "postgresql+psycopg://ann@host:5433/x?sslmode=require"
    )


def test_a_new_file_waits_for_whoever_writes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        opened = threading.Thread(target=lambda: Store.create(path).close())
        opened.start()
        opened.join(0.5)
        assert opened.is_alive()
        other.execute("COMMIT")
        opened.join()
    with closing(sqlite3.connect(path)) as after:
        assert after.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_processes_that_open_one_new_database_make_one_store(database: str) -> None:
    code = "import sys; from manners.store import Store; input(); Store.open_or_create(sys.argv[1]).close()"
    command = [sys.executable, "-W", "error", "-c", code, database]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, env=ENVIRONMENT, text=True, stdin=pipe, stderr=pipe) for _ in range(4)]
    time.sleep(1.5)  # until all have imported what they need
    for process in processes:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
    complaints = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, complaints
    with closing(Store.open(database)) as store:
        assert store.comparisons() == []


def test_more_threads_than_connections_lose_nothing(database: str) -> None:
    threads, each = 2 * CONNECTIONS, 5

    def judge(name: int) -> None:
        for _ in range(each):
            store.add_verdicts([(comparison, Verdict(Choice.TIE, Annotator(str(name), AnnotatorKind.HUMAN)))])
            store.counts()

    with closing(Store.create(database)) as store:
        [comparison] = store.add_comparisons([SOME])
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(judge, range(threads)))
        assert store.counts().verdicts[AnnotatorKind.HUMAN] == store.watermark() == threads * each


def test_a_server_that_is_started_anew_costs_one_call(server: Server, url: str) -> None:
    with closing(Store.create(url)) as store:
        [comparison] = store.add_comparisons([SOME])

        def restarted() -> Iterator[Comparison]:
            yield SOME
            server.control("restart", "-m", "fast")

        with pytest.raises(Unavailable, match=r"^The database .* refused \(.*\); check that it can be reached"):
            store.add_comparisons(restarted())
        store.add_verdicts([(comparison, TIE)])
        assert [len(comparison.verdicts) for comparison in store.comparisons()] == [1]
        server.control("stop", "-m", "fast")
        try:
            with pytest.raises(Unavailable, match="check host and port in the URL, and that the server runs"):
                store.add_verdicts([(comparison, TIE)])
        finally:
            server.control("start")
        store.add_verdicts([(comparison, TIE)])
        assert store.watermark() == 2


HOLDER = """
import sys, time
from manners.store import Store
with Store.open(sys.argv[1]).run_lock("ppo"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_trains_and_a_killed_one_trains_no_more(server: Server, url: str) -> None:
    with closing(Store.create(url)) as store, server.database() as other:
        command = [sys.executable, "-c", HOLDER, url]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            told = rf"^`ppo`, process {holder.pid} on \S+, is training in .*: wait for it to end, or stop it"
            with pytest.raises(MannersError, match=told), store.run_lock("reward"):
                pass
            store.add_comparisons([SOME])
            with closing(Store.create(other)) as theirs, theirs.run_lock("ppo"):
                pass
            holder.send_signal(signal.SIGKILL)
        wait_until_quiet(url)
        with store.run_lock("reward"), pytest.raises(MannersError, match=f"`reward`, process {os.getpid()} on"):
            store.run_lock("ppo").__enter__()
        # What is let go of is free for others, too: the session that held it has ended.
        with closing(Store.open(url)) as another, another.run_lock("ppo"):
            pass


def terminate(server: Server, url: str) -> None:
    """End the sessions that hold a lock in a database, as a pooler does, or a server that is started anew."""
    held = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    server.execute(held, str(to_url(url).database))
    wait_until_quiet(url)


def test_a_lock_that_was_lost_is_noticed_and_taken_again(
    server: Server, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Store.create(url)) as store, closing(Store.open(url)) as other, store.run_lock("ppo") as lock:
        lock.keep()
        for end in (partial(terminate, server, url), partial(server.control, "restart", "-m", "fast")):
            end()
            assert not capsys.readouterr().err
            lock.keep()
            assert "was lost, and is taken again" in capsys.readouterr().err
            with pytest.raises(MannersError, match=f"^`ppo`, process {os.getpid()} on"):
                other.run_lock("reward").__enter__()
    with other.run_lock("reward"):
        pass


def test_a_lock_that_somebody_else_has_taken_meanwhile_is_theirs(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Store.create(url)) as store, closing(Store.open(url)) as other, store.run_lock("ppo") as lock:
        terminate(server, url)
        told = f"was lost with its connection, and `reward`, process {os.getpid()} on .*, is training there now: wait"
        with monkeypatch.context() as patch, other.run_lock("reward"), pytest.raises(MannersError, match=told):
            patch.setattr(runlock, "PATIENCE", -1.0)  # another process would not be waited for either
            lock.keep()
        lock.keep()
        with pytest.raises(MannersError, match=r"^`ppo`, process"):
            other.run_lock("reward").__enter__()


def test_while_the_server_is_away_a_lock_is_waited_for(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Store.create(url)) as store, store.run_lock("ppo") as lock:
        tried = list[float]()

        def sleep(seconds: float) -> None:
            tried.append(seconds)
            if len(tried) == 3:
                server.control("start")

        monkeypatch.setattr(runlock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        server.control("stop", "-m", "fast")
        lock.keep()
        assert len(tried) == 3
        server.control("stop", "-m", "fast")
        monkeypatch.setattr(runlock, "PATIENCE", -1.0)
        try:
            with pytest.raises(Unavailable, match="check host and port in the URL, and that the server runs"):
                lock.keep()
        finally:
            server.control("start")


def test_each_schema_has_its_own_lock(server: Server, url: str) -> None:
    name = str(to_url(url).database)
    server.execute("CREATE SCHEMA second", name)
    elsewhere = f"{url}&options=-csearch_path%3Dsecond"
    with closing(Store.create(url)) as store, closing(Store.create(elsewhere)) as other:
        with store.run_lock("ppo"), other.run_lock("ppo"), pytest.raises(MannersError, match="is training in"):
            other.run_lock("reward").__enter__()
        store.add_comparisons([SOME])
        assert other.comparisons() == []


def test_a_lock_without_a_signature_is_respected(url: str) -> None:
    """Of another program, say; the key is part of what versions of manners must agree on."""
    take = text("SELECT pg_try_advisory_lock(1835101806, CAST(CAST('versions' AS regclass) AS oid)::integer)")
    with closing(Store.create(url)) as store:
        engine = connect(to_url(url))
        with engine.connect() as connection:
            assert connection.execute(take).scalar_one()
            with pytest.raises(MannersError, match=r"^another run is training in"):
                store.run_lock("ppo").__enter__()
        engine.dispose()
