"""A long answer is made in a thread, given as it is read, and counted until then."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import JSONResponse

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.chats import Chats
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole, Annotator, AnnotatorKind, Response
from manners.web import chat, limits, sending
from manners.web.app import create_app
from manners.web.limits import BEGUN, EXPORTS
from manners.web.sending import MOST_COUNTED, PIECE
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import run
from tests.web.scripted import Scripted
from tests.web.test_limits import client


@pytest.fixture
def site(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Iterator[Site]:
    workspace = new_workspace(tmp_path / "ws")
    store = Store.open(workspace.database)
    accounts = Accounts(store)
    for name in ("anna", "ben"):
        accounts.add(name, AccountRole.ANNOTATOR, None)
    yield Site(workspace, Settings(), store, accounts, False, "http://127.0.0.1", Scripted())
    store.close()


def person(site: Site, name: str) -> Annotator:
    return Annotator(name, AnnotatorKind.HUMAN, next(one.id for one in site.accounts.all() if one.name == name))


def talk(site: Site, name: str, messages: int, text: str) -> str:
    """A conversation of so many messages, each with an answer."""
    chats, who = Chats(site.store), person(site, name)
    key = chats.begin(who)
    for number in range(messages):
        chats.say(who, key, chats.read(who, key), f"{number} {text}", [Response(f"Gladly {number}.", "initial")], 1.0)
    return key


@dataclass
class Reader:
    """A client that asks, and takes an answer piece by piece, once it may."""

    app: Any
    path: str
    key: str
    may: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    pieces: list[bytes] = field(default_factory=list)

    async def ask(self) -> None:
        headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {self.key}".encode())]
        scope = {"type": "http", "method": "GET", "path": self.path, "raw_path": self.path.encode(), "app": self.app}
        scope |= {"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1", "headers": headers}
        scope |= {"client": ("192.0.2.1", 1), "server": ("127.0.0.1", 80)}
        asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            if (request := next(asked, None)) is not None:
                return request
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            else:
                self.pieces.append(message["body"])
                await self.may.wait()

        await self.app(scope, receive, send)


def key_of(site: Site, name: str) -> str:
    return site.accounts.issue(TokenUse.KEY, name, terms=Terms(scopes=tuple(Scope)))


def held(site: Site, name: str) -> int:
    return site.limits._held[f"account {person(site, name).account}"]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def test_a_long_answer_counts_until_it_is_read(site: Site) -> None:
    which = talk(site, "anna", 5, "x" * 90_000)
    app, key = create_app(site), key_of(site, "anna")

    async def unread() -> Reader:
        one = Reader(app, f"/chat/{which}", key)
        asking = asyncio.create_task(one.ask())
        await until(lambda: bool(one.pieces))
        await asyncio.sleep(0.1)
        assert not asking.done() and len(one.pieces) == 1 and held(site, "anna") > 2 * 5 * 90_000
        one.may.set()
        await asking
        return one

    one = run(unread())
    assert one.status == 200 and max(map(len, one.pieces)) <= PIECE
    turns = json.loads(b"".join(one.pieces))["turns"]
    assert [turn["text"] for turn in turns[::2]] == [f"{n} {'x' * 90_000}" for n in range(5)]
    assert not site.limits._held and not site.limits._all.total(), "all of it is given back"


def test_who_reads_none_of_what_they_ask_for_is_refused_more_and_nobody_else(site: Site) -> None:
    """Each counts as a quarter of all that one may hold, beside what any request counts as: three have room."""
    which, hers = talk(site, "anna", 28, "é" * 40_000), talk(site, "ben", 2, "x" * 90_000)
    app, keys = create_app(site), {name: key_of(site, name) for name in ("anna", "ben")}

    async def crowd() -> tuple[list[Reader], Reader]:
        anna = [Reader(app, f"/chat/{which}", keys["anna"]) for _ in range(6)]
        asking = [asyncio.create_task(one.ask()) for one in anna]
        await until(lambda: all(one.pieces for one in anna))
        ben = Reader(app, f"/chat/{hers}", keys["ben"])
        ben.may.set()
        await ben.ask()
        for one in anna:
            one.may.set()
        await asyncio.gather(*asking)
        return anna, ben

    anna, ben = run(crowd())
    assert max(sum(map(len, one.pieces)) for one in anna) > MOST_COUNTED
    assert sorted(one.status for one in anna) == [200] * 3 + [429] * 3
    for refused in (one for one in anna if one.status == 429):
        assert "in progress" in json.loads(b"".join(refused.pieces))["error"]["message"]
    assert ben.status == 200 and len(json.loads(b"".join(ben.pieces))["turns"]) == 4
    assert not site.limits._held, "all of it is given back"


def test_an_answer_longer_than_all_that_one_may_hold_is_given(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    which = talk(site, "anna", 5, "x" * 90_000)
    monkeypatch.setattr(limits, "HELD_BY_ONE", 500_000)
    monkeypatch.setattr(sending, "MOST_COUNTED", 125_000)
    anna = client(site, "anna")
    assert [anna.get(f"/chat/{which}").status_code for _ in range(3)] == [200] * 3, "one after another"


def test_a_long_answer_is_made_in_a_thread(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages' own thread, which all others wait for, has nothing to do with how much was said."""
    made = dict[int, int]()

    class Watched(JSONResponse):
        def render(self, content: Any) -> bytes:
            body = super().render(content)
            made[threading.get_ident()] = max(len(body), made.get(threading.get_ident(), 0))
            return body

    monkeypatch.setattr(chat, "JSONResponse", Watched)
    which = talk(site, "anna", 3, "x" * 90_000)
    app, key, loops = create_app(site), key_of(site, "anna"), list[int]()

    async def ask() -> None:
        loops.append(threading.get_ident())
        for path in (f"/chat/{which}", "/chat/all"):
            one = Reader(app, path, key)
            one.may.set()
            await one.ask()
            assert one.status == 200

    run(ask())
    assert max(made.values()) > 500_000 and loops[0] not in made


def test_an_export_reads_a_conversation_once_those_before_it_are_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [talk(site, "anna", 2, "à" * 90_000) for _ in range(5)]
    seen, read = list[str](), Chats.read

    def watched(self: Chats, annotator: Annotator, key: str) -> Any:
        seen.append(key)
        return read(self, annotator, key)

    monkeypatch.setattr(Chats, "read", watched)
    app, key = create_app(site), key_of(site, "anna")

    async def export() -> Reader:
        one = Reader(app, "/chat/export", key)
        asking = asyncio.create_task(one.ask())
        await until(lambda: bool(one.pieces))
        await asyncio.sleep(0.1)
        assert len(seen) <= 1 and held(site, "anna") >= 2_000_000
        Chats(site.store).delete(person(site, "anna"), keys[0])  # the oldest one, which comes last
        one.may.set()
        await asking
        return one

    one = run(export())
    assert one.status == 200 and max(map(len, one.pieces)) <= PIECE and not site.limits._held
    found = json.loads(b"".join(one.pieces))["conversations"]
    assert [each["key"] for each in found] == [*reversed(keys[1:])]
    assert found[0]["turns"][0] == {"role": "user", "content": f"0 {'à' * 90_000}", "thumb": 0}


def test_exports_and_beginnings_have_an_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 0.0))
    anna, ben = client(site, "anna"), client(site, "ben")
    exports = [anna.get("/chat/export").status_code for _ in range(int(EXPORTS.burst) + 2)]
    assert exports == [200] * int(EXPORTS.burst) + [429] * 2
    begun = [anna.post("/chat/begin", json={}).status_code for _ in range(int(BEGUN.burst) + 2)]
    assert begun == [200] * int(BEGUN.burst) + [429] * 2
    assert ben.get("/chat/export").json() == {"conversations": []}
    assert ben.post("/chat/begin", json={}).status_code == 200, "nobody else"
