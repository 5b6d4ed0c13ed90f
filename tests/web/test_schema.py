"""Whatever is sent to whatever route by whomever, no answer is a fault of the server, on either database."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web import limits
from manners.web.app import create_app
from manners.web.auth import COOKIE
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted

HOST = {"host": "127.0.0.1"}
MOST_MEMORY = 500_000_000
"""Bytes that a process may grow by while it answers: with what it has, that is below 1 GB."""
NASTY: tuple[Any, ...] = (
    "",
    "\0",
    "../../etc/passwd",
    "%00",
    "9" * 400,
    "\u202e",
    "\ud83d",
    "\r\nx: y",
    -1,
    2**63,
    1e308,
)
NASTY += ([], {"": None}, [[]] * 99, None, True, "nan", "2026-13-45T99:99:99Z")
"""What breaks things, in one place or another."""
Enter = dict[str, dict[str, str]]
"""What each sort of visitor sends to be let in."""


def application(workspace: Workspace, local: bool) -> FastAPI:
    store = Store.open_or_create(workspace.database)
    return create_app(Site(workspace, Settings(), store, Accounts(store), local, "http://127.0.0.1", Scripted()))


@pytest.fixture
def workspace(new_store: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with an empty store, and nothing that limits how often."""
    monkeypatch.setattr(limits.Limits, "take", lambda *_: 0.0)
    empty = new_store()
    found = Workspace.create(tmp_path / "ws", empty if "postgresql" in empty else None)
    if isinstance(found.database, Path):
        shutil.move(empty, found.database)
    return found


@pytest.fixture
def app(workspace: Workspace) -> Iterator[FastAPI]:
    """The whole application, for its owner on this machine."""
    found = application(workspace, local=True)
    yield found
    found.state.site.store.close()


@pytest.fixture
def street(workspace: Workspace) -> Iterator[FastAPI]:
    """The application where there are accounts."""
    found = application(workspace, local=False)
    yield found
    found.state.site.store.close()


def visitors(app: FastAPI) -> Enter:
    """A browser and a key of each role, keys of one scope each, a wrong key, and whoever has not signed in."""
    site: Site = app.state.site
    found: Enter = {"signed out": {}, "a wrong key": {"authorization": "Bearer nonsense"}}
    for role in AccountRole:
        name = f"the {role}"
        site.accounts.add(name, role, "correct horse")
        session = site.accounts.issue(TokenUse.SESSION, name)
        found[f"{role}, in a browser"] = {"cookie": f"{COOKIE}={session}"}
        for scopes in (tuple(Scope), *((scope,) for scope in Scope if role is AccountRole.OWNER)):
            key = site.accounts.issue(TokenUse.KEY, name, terms=Terms(scopes=scopes))
            found[f"{role}, by a key for {', '.join(scopes)}"] = {"authorization": f"Bearer {key}"}
    return found


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def operations(app: FastAPI) -> Iterator[schemathesis.schemas.APIOperation[Any, Any, Any, Any]]:
    everything = schemathesis.openapi.from_dict(app.openapi())
    everything.app = app
    for found in everything.get_all_operations():
        assert isinstance(found, Ok)
        yield found.ok()


@dataclass
class Sent:
    """What was sent, and what came of it."""

    enter: Enter
    log: pytest.LogCaptureFixture
    statuses: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """By who sent it."""
    grown: int = 0
    """Bytes by which the process grew while it answered; what makes requests up takes more."""

    def send(self, case: schemathesis.Case[Any], who: str) -> None:
        """Send a request as somebody; it is no fault of the server, and nothing is in its log."""
        before = memory()
        response = case.call(headers=HOST | self.enter[who])
        self.grown += max(0, memory() - before)
        assert response.status_code < 500, (who, case.as_curl_command(), response.text)
        assert "Traceback" not in self.log.text and " failed:" not in self.log.text, (who, case.as_curl_command())
        assert "Traceback" not in response.text, (who, case.as_curl_command())
        self.statuses[who][response.status_code] += 1


def send_all(app: FastAPI, sent: Sent, each: int) -> None:
    """Send so many made-up requests to each route as each visitor."""
    for operation in operations(app):

        @settings(max_examples=each * len(sent.enter), database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(), who=st.sampled_from(sorted(sent.enter)))
        def answers(case: schemathesis.Case[Any], who: str) -> None:
            sent.send(case, who)

        answers()
        assert sent.grown < MOST_MEMORY, operation.label
    assert sent.statuses.keys() == sent.enter.keys(), "each had a turn"


@pytest.mark.long
def test_no_request_makes_the_server_fail(app: FastAPI, times: int, caplog: pytest.LogCaptureFixture) -> None:
    send_all(app, Sent({"whoever is at the machine": {}}, caplog), 20 * times)


@pytest.mark.long
def test_nobody_makes_the_server_fail_whatever_their_role(
    street: FastAPI, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    send_all(street, Sent(visitors(street), caplog), 2 * times)


def fields(app: FastAPI) -> Iterator[tuple[str, str, str, list[str]]]:
    """Method, path, kind of body and its fields, of each route."""
    said = app.openapi()
    for path, methods in said["paths"].items():
        for method, operation in methods.items():
            ((kind, shape),) = operation.get("requestBody", {}).get("content", {"": {}}).items()
            name = shape.get("schema", {}).get("$ref", "").rpartition("/")[2]
            yield method.upper(), path, kind, list(said["components"]["schemas"].get(name, {}).get("properties", {}))


@pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.long)])
def test_each_in_turn_makes_no_route_fail(street: FastAPI, rounds: int, caplog: pytest.LogCaptureFixture) -> None:
    """In short: values that break things in every place of every route, from one visitor after another."""
    enter, statuses, rng = visitors(street), Counter[int](), random.Random(17)
    turn = itertools.cycle(sorted(enter))
    client = TestClient(street, base_url="http://127.0.0.1", follow_redirects=False, raise_server_exceptions=False)
    for method, path, kind, names in [*fields(street)] * rounds:
        who, body = next(turn), {name: rng.choice(NASTY) for name in names}
        address = re.sub(r"{.*?}", quote(str(rng.choice(NASTY)), safe="", errors="surrogatepass"), path)
        form = urlencode({name: str(value) for name, value in body.items()}, errors="surrogatepass")
        content = json.dumps(body) if "json" in kind else form
        headers = enter[who] | ({"content-type": kind} if kind else {})
        answer = client.request(method, address, headers=headers, content=content if kind else None)
        assert answer.status_code < 500, (who, method, address, content, answer.text)
        assert "Traceback" not in caplog.text + answer.text and " failed:" not in caplog.text, (who, method, address)
        statuses[answer.status_code] += 1
    assert {303, 400, 401, 403} <= statuses.keys(), statuses


def test_a_text_that_no_database_holds_is_refused(app: FastAPI) -> None:
    accounts = Accounts(app.state.site.store)
    accounts.add("olga", AccountRole.OWNER)
    key = accounts.issue(TokenUse.KEY, "olga", terms=Terms(scopes=tuple(Scope)))
    client = TestClient(app, headers=HOST | {"authorization": f"Bearer {key}"})
    for path in ("/chat/x%00", "/sign-in/x%00", "/join/x%00"):
        assert client.get(path).status_code == 400, path
    for path, form in {
        "/sign-in": {"name": "\0", "password": "correct horse"},
        "/join/x": {"name": "\0", "password": "correct horse"},
        "/accounts/key": {"name": "olga", "label": "\0"},
        "/accounts/link": {"name": "\0"},
        "/accounts/role": {"name": "\0", "role": "viewer"},
        "/accounts/disable": {"name": "\0"},
        "/accounts/enable": {"name": "\0"},
        "/chat/x%00/delete": {},
    }.items():
        refused = client.post(path, data=form)
        assert refused.status_code == 400 and refused.json()["error"]["message"], path
