"""Connections that keep the server waiting: by the real server, attacked through sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.chats import Chats
from manners.store.tokens import TokenUse
from manners.types import AccountRole, Annotator, AnnotatorKind, Response
from manners.web import connections, sending, server, shield
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.conftest import some
from tests.web.scripted import Scripted

PATIENCE = 60.0


class Served:
    """The application behind uvicorn as `manners serve` configures it, in a thread."""

    def __init__(self, folder: Path, *, proxied: bool = False) -> None:
        workspace = Workspace.create(folder)
        self.store = Store.create(workspace.database)
        accounts = Accounts(self.store)
        accounts.add("anna", AccountRole.ANNOTATOR, None)
        self.key = accounts.issue(TokenUse.KEY, "anna")
        self.scripted = Scripted()
        self.site = Site(workspace, Settings(), self.store, accounts, False, "http://127.0.0.1", self.scripted)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.server = server.uvicorn_of(create_app(self.site), proxied)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.thread.start()
        until(lambda: self.server.started)

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE, source_address=(address, 0))

    @property
    def connections(self) -> list[connections.Connection]:
        found = list(self.server.server_state.connections)
        return [one for one in found if isinstance(one, connections.Connection) and not one.closing]

    def health(self) -> int:
        return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=PATIENCE).status_code

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listening.close()
        self.store.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server whose patience is short, and that has room for few."""
    for name, value in {
        "HEADER_SECONDS": 0.5,
        "BODY_SECONDS": 0.5,
        "READING_SECONDS": 0.5,
        "MOST_CONNECTIONS": 40,
        "MOST_OF_ONE": 20,
    }.items():
        monkeypatch.setattr(connections, name, value)
    monkeypatch.setattr(shield, "BODY_SECONDS", 0.5)
    one = Served(tmp_path / "ws")
    yield one
    one.stop()


def said(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            found += piece
    connection.close()
    return found


@pytest.mark.parametrize(
    "begun",
    some(
        [
            b"GET",
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nX: " + b"x" * 1000,
            b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET",
        ],
        2,
    ),
)
def test_a_header_that_does_not_come_is_not_waited_for(served: Served, begun: bytes) -> None:
    connection = served.connect()
    connection.sendall(begun)
    found = said(connection)
    assert b" 408 " in found and found.endswith(b"\r\n\r\n")
    assert (b" 200 " in found) == begun.startswith(b"GET /health")
    assert served.health() == 200


def test_a_header_that_drips_is_not_waited_for_either(served: Served) -> None:
    connection = served.connect()
    connection.sendall(b"GET / HTTP/1.1\r\n")
    begun = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - begun < PATIENCE:
            connection.sendall(b"X: y\r\n")
            time.sleep(0.05)
    connection.close()
    assert time.monotonic() - begun < PATIENCE / 2


def test_who_says_nothing_is_let_go_without_a_word(served: Served) -> None:
    assert said(served.connect()) == b""


@pytest.mark.parametrize("known", [True, False])
def test_a_body_that_does_not_come_is_not_waited_for(served: Served, known: bool) -> None:
    connection = served.connect()
    who = f"Authorization: Bearer {served.key}\r\n" if known else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{who}Content-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode())
    until(lambda: bool(served.connections))
    connection.sendall(b'{"model":')
    if known:
        assert b" 408 " in said(connection)
    else:
        assert b" 401 " in said(connection), "nothing is read of a stranger"
    until(lambda: not served.connections)


def test_a_line_too_long_is_refused(served: Served) -> None:
    connection = served.connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /" + b"x" * 200_000)
    assert served.health() == 200
    connection.close()


def asking(served: Served, room: int, *, stream: bool = False) -> socket.socket:
    """A connection that has asked for an answer, and has little room for it."""
    connection = served.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    asked = {"model": "manners", "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_who_does_not_read_is_let_go(served: Served) -> None:
    served.scripted.lines = ("word " * 200_000,)
    connection = asking(served, 4096, stream=True)
    until(lambda: bool(served.connections) and served.connections[0].flow.write_paused)
    until(lambda: not served.connections)
    connection.close()
    assert served.health() == 200


def test_what_nobody_reads_counts_until_it_is_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READING_SECONDS", 10 * PATIENCE)
    chats, anna = Chats(served.store), Annotator("anna", AnnotatorKind.HUMAN, 1)
    key = chats.begin(anna)
    chats.say(anna, key, [], "x" * 2_000_000, [Response("Gladly.", "initial")], 1.0)
    served.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)  # what the system holds is not ours
    connection = served.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    head = f"GET /chat/{key} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.key}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode())
    until(lambda: bool(served.connections) and served.connections[0].flow.write_paused)
    time.sleep(0.3)
    assert served.site.limits._held["account 1"] > 2_000_000
    assert served.connections[0].transport.get_write_buffer_size() < 3 * sending.PIECE
    assert b"x" * 2_000_000 in said(connection)
    until(lambda: not served.site.limits._held)


def test_who_reads_slowly_is_not_let_go(served: Served) -> None:
    """What waits becomes less all the time, and never so little that more could be written."""
    long = "x" * 8_000_000
    served.scripted.lines = (long,)
    served.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)  # or the system takes it in large steps
    connection = asking(served, 65_536)
    found, begun = b"", time.monotonic()
    while time.monotonic() - begun < 3.5:  # some looks, and several times as long as a client may take nothing
        found += connection.recv(65_536)
        time.sleep(0.05)
    paused = [one.flow.write_paused for one in served.connections]
    assert long.encode() in found + said(connection)
    assert paused == [True], "or nothing is shown"


@pytest.mark.parametrize("proxied", [False, True])
def test_the_connections_of_a_proxy_are_those_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxied: bool
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 10 * PATIENCE)
    monkeypatch.setattr(connections, "MOST_OF_ONE", 20)
    one = Served(tmp_path / "ws", proxied=proxied)
    come = list[socket.socket]()
    try:
        for address in ("127.0.0.1", "127.0.0.2"):
            come += [one.connect(address) for _ in range(30)]
        assert one.health() == 200, "all of them were seen, as they came"
        found = Counter(each.address for each in one.connections)
        assert found["127.0.0.2"] == 20, "nobody believes what it passes on"
        assert found["127.0.0.1"] in ((30, 31) if proxied else (19, 20)), "the last one may have left"
    finally:
        for connection in come:
            connection.close()
        one.stop()


def test_idle_connections_shut_nobody_out(served: Served) -> None:
    idle = [served.connect() for _ in range(60)]
    assert served.health() == 200
    assert len(served.connections) <= connections.MOST_OF_ONE + 1
    others = [served.connect(f"127.0.0.{2 + number % 5}") for number in range(200)]
    assert served.health() == 200
    assert len(served.connections) <= connections.MOST_CONNECTIONS + 1
    for one in (*idle, *others):
        one.close()


def test_those_who_left_are_counted_no_more(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 10 * PATIENCE)
    left = threading.Semaphore(0)
    lost = connections.Connection.connection_lost

    def watched(self: connections.Connection, error: Exception | None) -> None:
        lost(self, error)
        left.release()

    monkeypatch.setattr(connections.Connection, "connection_lost", watched)
    with contextlib.closing(served.connect()) as stays:
        for _ in range(3 * connections.MOST_OF_ONE):
            served.connect().close()
            assert left.acquire(timeout=PATIENCE), "one that left was noticed before the next came"
        stays.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b" 200 " in said(stays), "nobody made room where there was room"


def test_who_comes_costs_no_more_the_more_are_there(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []

    def watched(address: str) -> str:
        looked_up.append(address)
        return address

    monkeypatch.setattr(connections, "network_of", watched)
    many = [served.connect() for _ in range(30)]
    assert served.health() == 200
    assert len(looked_up) == len(many) + 1, "each address is looked at once"
    for one in many:
        one.close()


def test_an_answer_that_is_being_written_is_not_broken_off_for_newcomers(served: Served) -> None:
    served.scripted.pause = 0.05
    served.scripted.lines = ("word " * 40,)
    found: list[str] = []

    def ask() -> None:
        asked = {"model": "manners", "messages": [{"role": "user", "content": "Hi"}]}
        headers = {"authorization": f"Bearer {served.key}"}
        answer = httpx.post(
            f"http://127.0.0.1:{served.port}/v1/chat/completions", json=asked, headers=headers, timeout=60
        )
        found.append(answer.json()["choices"][0]["message"]["content"])

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: bool(served.scripted.asked))
    flood = [served.connect() for _ in range(100)]
    asking.join()
    assert found[0].count("word") == 40
    for one in flood:
        one.close()


@pytest.mark.long
def test_a_thousand_and_twenty_four_idle_connections_write_no_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = Served(tmp_path / "ws")
    flood = list[socket.socket]()
    try:
        connections.open_more_files()
        for number in range(1024):
            with contextlib.suppress(OSError):
                flood.append(one.connect(f"127.0.0.{2 + number % 7}"))
        assert one.health() == 200
        for connection in flood[:100]:
            with contextlib.suppress(OSError):
                connection.sendall(b"\x00garbage\r\n\r\n")
        assert one.health() == 200
    finally:
        for connection in flood:
            connection.close()
        one.stop()
    assert len(capfd.readouterr().err) < 4000
