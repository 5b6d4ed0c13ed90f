"""Who it is, is decided before a body is read; what a body may hold, before it is taken apart."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from manners import web
from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web import limits, shield
from manners.web.app import create_app
from manners.web.auth import COOKIE, KNOWN
from manners.web.gate import DEEPEST, MOST_VALUES, Gate, excess
from manners.web.limits import HELD_BY_ONE, LARGEST_FORM, REQUEST_BYTES, STRANGERS, TRIERS, Rate
from manners.web.shapes import MOST_MESSAGES
from manners.web.shield import LARGEST_BODY
from manners.web.site import Site
from manners.workspace import Workspace
from tests.conftest import some
from tests.web.conftest import run
from tests.web.scripted import Scripted

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "manners", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def site(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Iterator[Site]:
    workspace = new_workspace(tmp_path / "ws")
    store = Store.open(workspace.database)
    accounts = Accounts(store)
    accounts.add("anna", AccountRole.ANNOTATOR, None)
    accounts.add("vera", AccountRole.VIEWER, None)
    yield Site(workspace, Settings(), store, accounts, False, "http://127.0.0.1", Scripted())
    store.close()


@pytest.fixture
def app(site: Site) -> FastAPI:
    return create_app(site)


@pytest.fixture
def anna(site: Site, app: FastAPI) -> TestClient:
    return TestClient(app, headers={"authorization": f"Bearer {key(site, 'anna')}"})


def key(site: Site, name: str) -> str:
    """A key that is good for all that its account may do."""
    return site.accounts.issue(TokenUse.KEY, name, terms=Terms(scopes=tuple(Scope)))


def test_every_route_is_a_gate(app: FastAPI) -> None:
    modules = [import_module(f"manners.web.{one.name}") for one in iter_modules(web.__path__)]
    found = [route for module in modules if hasattr(module, "router") for route in module.router.routes]
    found += [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(found) >= len(app.openapi()["paths"]) and all(isinstance(route, Gate) for route in found)


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/comparisons", "/v1/feedback", "/label/verdict", "/chat/x/say", "/accounts/key"]
)
@pytest.mark.parametrize("who", ["nobody", "a wrong key", "a viewer"])
def test_nothing_is_read_of_whoever_may_not_come_in(site: Site, app: FastAPI, path: str, who: str) -> None:
    keys = {"a wrong key": "nonsense", "a viewer": key(site, "vera")}
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {keys[who]}"} if who in keys else {})
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(20):
            read += 1
            yield b"[" * 50_000

    async def send() -> int:
        received: list[Any] = []

        async def receive() -> Any:
            nonlocal read
            read += 1
            return {"type": "http.request", "body": b"[" * 50_000, "more_body": read < 20}

        async def answer(message: Any) -> None:
            received.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"host", b"127.0.0.1"), *pairs],
            "client": ("192.0.2.1", 1),
            "server": ("127.0.0.1", 80),
            "http_version": "1.1",
            "app": app,
        }
        await app(scope, receive, answer)
        return int(received[0]["status"])

    assert run(send()) == (403 if who == "a viewer" else 401)
    assert read == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (ASKED, 200),
        (ASKED | {"messages": [{"role": "user", "content": "Hi"}] * MOST_MESSAGES}, 200),
        (ASKED | {"messages": [{"role": "user", "content": "Hi"}] * (MOST_MESSAGES + 1)}, 422),
        (ASKED | {"messages": [{}] * 10}, 400),
        (ASKED | {"messages": [{}] * 600_000}, 422),
        (ASKED | {"metadata": [[]] * 60_000}, 422),
        (ASKED | {"metadata": list(range(60_000))}, 422),
        (ASKED | {"metadata": {str(n): n for n in range(60_000)}}, 422),
        (ASKED | {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1001}]}, 422),
        (ASKED | {"model": "m" * 201}, 400),
        (ASKED | {"temperature": float("nan")}, 400),
        (ASKED | {"top_p": float("inf")}, 400),
        (ASKED | {"temperature": 5e-324, "top_p": 5e-324}, 200),
        (ASKED | {"user": "u" * 201}, 400),
        (ASKED | {"messages": [{"role": "user", "content": "[{," * 100_000}]}, 200),
    ],
    ids=lambda value: f"{len(json.dumps(value))} bytes" if isinstance(value, dict) else str(value),
)
def test_what_a_body_may_hold(anna: TestClient, body: dict[str, Any], status: int) -> None:
    answer = anna.post(
        CHAT, content=json.dumps(body, separators=(",", ":")), headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text[:300]
    assert status == 200 or answer.json()["error"]["message"]
    assert len(answer.text) < 2000, "what was sent is not sent back"


def test_depth_is_counted_before_anything_is_parsed(anna: TestClient) -> None:
    for deep in ("[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "[{" * 40 + "}]" * 40):
        refused = anna.post(CHAT, content=deep, headers={"content-type": "application/json"})
        assert refused.status_code == 422 and str(DEEPEST) in refused.json()["error"]["message"]
    assert anna.post(CHAT, content="1" * 10_000, headers={"content-type": "application/json"}).status_code == 400


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "application/scim+JSON; charset=utf-8"])
def test_a_body_is_looked_at_however_its_kind_is_spelled(anna: TestClient, kind: str) -> None:
    deep = anna.post(CHAT, content="[" * 100_000, headers={"content-type": kind})
    assert deep.status_code == 422 and str(DEEPEST) in deep.json()["error"]["message"]


@pytest.mark.parametrize("rest", [b'\\"', b"\\\\", b'\\"[', b"a"])
@pytest.mark.parametrize("end", [b"", b"\\"])
def test_a_text_without_an_end_is_looked_through_once(rest: bytes, end: bytes) -> None:
    """Tried anew at each of its quotes, two megabytes took hours, in which nobody was answered."""
    start = b"[" + b"[]," * DEEPEST + b'"'
    unending = start + rest * ((LARGEST_BODY - 200) // len(rest)) + end
    assert not excess(start + b"[" * 100_000), "what is in a text is in no list, where the text does not end either"
    assert not excess(unending)


def test_texts_without_anything_between_them_are_counted_too() -> None:
    start = b"[" + b"[]," * DEEPEST
    assert f"{MOST_VALUES:,} values" in excess(start + b'""' * 500_000)
    assert not excess(start + b'{"k":"v"}' + b',{"k":"v"}' * (MOST_VALUES // 2 - 2 * DEEPEST) + b"]")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('[]{},"\\\\ aé\n'), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.sampled_from('[{,"\\\\'), max_size=3), inner, max_size=4)
    ),
    max_leaves=60,
)


@given(JSON, st.integers(1, 6), st.integers(1, 40))
def test_values_and_depth_are_those_of_the_parsed_body(value: Any, deepest: int, most: int) -> None:
    def depth(one: Any) -> int:
        inside = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        return int(isinstance(one, dict | list)) + max(map(depth, inside), default=0)

    def count(one: Any) -> int:
        if not isinstance(one, dict | list):
            return 0
        inside = list(one.values() if isinstance(one, dict) else one)
        return 1 + max(0, len(inside) - 1) + sum(map(count, inside))

    body = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("manners.web.gate.DEEPEST", deepest)
        patched.setattr("manners.web.gate.MOST_VALUES", most)
        assert bool(excess(body)) == (depth(value) > deepest or count(value) > most)


def hostile_bodies() -> list[bytes]:
    """Bodies as large as they may be, made of whatever takes most memory, around a request or by themselves."""
    chance = random.Random(1)
    pieces = [b"{},", b"[],", b'{"":0},', b'"",', b'"a",', b"0,", b"1.5,", b"null,", b"[[[]]],", b'{"role":"user"},']
    pieces += [
        b'{"role":"user","content":"\\ud83e\\udd56"},',
        b'{"a":{"b":[]}},',
        b'"\\u0000",',
        b"1e308,",
        b'{"content":1},',
    ]
    fields = (b"messages", b"stop", b"metadata", b"reasons", b"tools", b"model")
    bodies = []
    for piece in pieces:
        many = (piece * (LARGEST_BODY // len(piece)))[: LARGEST_BODY - 200].rpartition(b",")[0]
        bodies += [b"[" + many + b"]", b'{"model":"manners","' + chance.choice(fields) + b'":[' + many + b"]}"]
    for text in (b"x", b"\\n", b"\\ud83e\\udd56", b"[", b"\xf0\x9f\xa5\x96"):
        long = text * ((LARGEST_BODY - 200) // len(text))
        bodies.append(b'{"model":"manners","messages":[{"role":"user","content":"' + long + b'"}]}')
        bodies.append(b'{"model":"' + long + b'"}')
    return bodies


@pytest.mark.parametrize("body", some(hostile_bodies(), 6), ids=lambda body: repr(body[:40] + b".." + body[-30:]))
def test_one_request_takes_at_most_fifty_megabytes_above_its_body(anna: TestClient, body: bytes) -> None:
    anna.post(CHAT, json=ASKED)
    assert len(body) <= LARGEST_BODY
    tracemalloc.start()
    try:
        status = anna.post(CHAT, content=body, headers={"content-type": "application/json"}).status_code
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert status < 500 and most < 50_000_000


def test_a_stranger_sends_no_more_than_a_form(app: FastAPI) -> None:
    form = {"name": "anna", "password": "p" * LARGEST_FORM}
    assert TestClient(app).post("/sign-in", data=form).status_code == 413
    assert TestClient(app).post("/sign-in", data={"name": "anna", "password": "wrong one"}).status_code == 403


def test_a_body_that_does_not_come_is_not_waited_for(
    app: FastAPI, anna: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shield, "BODY_SECONDS", 0.05)

    async def slowly() -> int:
        async def body() -> AsyncIterator[bytes]:
            yield b'{"model":'
            await asyncio.sleep(30)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            headers = {"content-type": "application/json", "authorization": anna.headers["authorization"]}
            return (await client.post(CHAT, content=body(), headers=headers)).status_code

    assert run(slowly()) == 408


def test_requests_in_progress_hold_only_so_much(
    site: Site, app: FastAPI, anna: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    most = HELD_BY_ONE // REQUEST_BYTES

    async def generate(self: Scripted, request: Any) -> AsyncIterator[Any]:
        await gate.wait()
        return
        yield

    monkeypatch.setattr(Scripted, "generate", generate)
    monkeypatch.setattr("manners.web.limits.Limits.take", lambda *_: 0.0)

    async def crowd() -> tuple[list[int], int, int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            headers = {"authorization": anna.headers["authorization"]}
            waiting = [asyncio.create_task(client.post(CHAT, json=ASKED, headers=headers)) for _ in range(most + 20)]
            await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.5)
            refused = [one.result().status_code for one in waiting if one.done()]
            others = await client.get("/health")
            other = {"authorization": f"Bearer {key(site, 'vera')}"}
            looked = await client.get("/dashboard.json", headers=other)
            gate.set()
            await asyncio.gather(*waiting)
            return refused, others.status_code, looked.status_code

    refused, health, looked = run(crowd())
    assert set(refused) == {429} and 20 <= len(refused) <= 21 and (health, looked) == (200, 200)
    assert not site.limits._held and not site.limits._all.total(), "all of it is given back"


def test_strangers_forms_are_in_nobodys_way(site: Site, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """From many addresses, each of which sends few: those who have signed in are let in, and so are their browsers."""
    monkeypatch.setattr(limits, "HELD_BY_STRANGERS", 3 * LARGEST_FORM)
    monkeypatch.setattr(limits, "HELD_BY_ALL", 3 * REQUEST_BYTES)
    session = site.accounts.issue(TokenUse.SESSION, "anna")
    headers, go = {"content-type": "application/x-www-form-urlencoded"}, asyncio.Event()

    def at(address: str, **cookies: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", cookies=cookies)

    async def sign_in(client: httpx.AsyncClient, *, slow: bool = False) -> int:
        async def body() -> AsyncIterator[bytes]:
            yield b"name=anna&"
            if slow:
                await go.wait()
            yield b"password=wrong"

        async with client:
            return (await client.post("/sign-in", content=body(), headers=headers)).status_code

    async def crowd() -> tuple[int, int, int, list[int]]:
        slow = [asyncio.create_task(sign_in(at(f"192.0.2.{n}"), slow=True)) for n in range(3)]
        while len(site.limits._held) < 3:
            await asyncio.sleep(0.01)
        async with at("192.0.2.9", **{COOKIE: session}) as client:
            labels = (await client.get("/label")).status_code
        known = await sign_in(at("192.0.2.9", **{KNOWN: session}))
        stranger = await sign_in(at("192.0.2.9"))
        go.set()
        return labels, known, stranger, await asyncio.gather(*slow)

    assert run(crowd()) == (200, 403, 503, [403] * 3)
    assert not site.limits._held and not site.limits._all.total(), "all of it is given back"
    monkeypatch.setattr(shield, "FORM_SECONDS", 0.05)
    go = asyncio.Event()
    assert run(sign_in(at("192.0.2.1"), slow=True)) == 408, "and none is waited for as long as a body"


def test_who_waits_to_write_keeps_nobody_from_reading(site: Site, app: FastAPI, anna: TestClient) -> None:
    async def crowd() -> tuple[int, int, list[int]]:
        transport = httpx.ASGITransport(app)
        headers = {"authorization": anna.headers["authorization"]}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            assert (await client.get("/chat/all")).status_code == 200  # who anna is, is known from now on
            written: list[asyncio.Task[httpx.Response]] = []
            with site.store.write():  # as an import does
                written += [asyncio.create_task(client.post("/chat/begin")) for _ in range(60)]
                await asyncio.sleep(0.3)
                async with asyncio.timeout(30):
                    read = (await client.get("/chat/all")).status_code
                waiting = sum(not one.done() for one in written)
            return read, waiting, [answer.status_code for answer in await asyncio.gather(*written)]

    read, waiting, written = run(crowd())
    assert (read, waiting) == (200, 60) and written == [200] * 60


def test_one_address_asks_without_a_key_only_so_often(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manners.web.limits.time.monotonic", lambda: 0.0)
    stranger = TestClient(app)
    answers = [stranger.get("/label").status_code for _ in range(int(STRANGERS.burst) + 5)]
    assert answers == [401] * int(STRANGERS.burst) + [429] * 5


def test_secrets_that_let_nobody_in_are_neither_kept_nor_always_looked_up(
    site: Site, app: FastAPI, anna: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = list[str]()
    admit = Accounts.admit

    def watched(self: Accounts, secret: str, use: TokenUse) -> Any:
        looked_up.append(secret)
        return admit(self, secret, use)

    monkeypatch.setattr(Accounts, "admit", watched)
    monkeypatch.setattr("manners.web.limits.Limits.take", lambda *_: 0.0)
    assert anna.get("/chat/all").status_code == 200
    stranger = TestClient(app)
    likely = [secrets.token_urlsafe(32) for _ in range(50)]
    for secret in ("x" * 32_000, "short", *likely):
        assert stranger.get("/label", headers={"authorization": f"Bearer {secret}"}).status_code == 401
        assert stranger.get("/label", headers={"cookie": f"{COOKIE}={secret}"}).status_code == 401
    assert sorted(looked_up[1:]) == sorted(2 * likely)
    assert len(site.remembered) == 1, "anna's"


def test_who_was_let_in_before_does_not_wait_behind_those_who_try_secrets_out(
    site: Site, app: FastAPI, anna: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manners.web.auth.REMEMBERED_SECONDS", 0.0)

    async def crowd() -> tuple[int, bool]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            known = {"authorization": anna.headers["authorization"]}
            wrong = {"authorization": f"Bearer {secrets.token_urlsafe(32)}"}
            assert (await client.get("/chat/all", headers=known)).status_code == 200
            taken = [object() for _ in range(TRIERS)]
            for one in taken:
                await site.limits.trying.acquire_on_behalf_of(one)
            tried = asyncio.create_task(client.get("/chat/all", headers=wrong))
            status = (await client.get("/chat/all", headers=known)).status_code
            waits = not tried.done()
            for one in taken:
                site.limits.trying.release_on_behalf_of(one)
            assert (await tried).status_code == 401
            return status, waits

    assert run(crowd()) == (200, True)


def test_what_is_not_there_is_not_asked_for_without_an_end(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shield, "OPENED", Rate(burst=5, a_second=1e-3))
    stranger = TestClient(app, headers={"accept": "text/html"})
    asked = [("GET", "/nothing"), ("PUT", "/label"), ("GET", "/v1/nothing")] * 2
    assert [stranger.request(*one).status_code for one in asked] == [404, 405, 404, 404, 405, 429]
    assert TestClient(app, client=("192.0.2.1", 1)).get("/nothing").status_code == 404, "nobody else"
