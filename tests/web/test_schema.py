"""Whatever is sent to whatever route, no answer is a fault of the server, on either database."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts, TokenUse
from manners.types import AccountRole
from manners.web import limits
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted

HOST = {"host": "127.0.0.1"}
MOST_MEMORY = 10**9
"""Bytes that the process may take after all these requests, the tests and the server in one."""


@pytest.fixture
def app(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastAPI]:
    """The whole application, for its owner on this machine, without limits on how often."""
    workspace = Workspace.create(tmp_path / "ws", database if "postgresql" in database else None)
    store = Store.create(workspace.database)
    monkeypatch.setattr(limits.Limits, "take", lambda *_: 0.0)
    yield create_app(Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted()))
    store.close()


@pytest.fixture
def keys(app: FastAPI) -> dict[AccountRole | None, dict[str, str]]:
    """What each role sends beside a request, and what a stranger does; accounts are asked for from now on."""
    site: Site = replace(app.state.site, local=False)
    app.state.site = site
    found: dict[AccountRole | None, dict[str, str]] = {None: HOST}
    for role in AccountRole:
        site.accounts.add(f"the {role}", role, "correct horse")
        found[role] = {**HOST, "authorization": f"Bearer {site.accounts.issue(TokenUse.KEY, f'the {role}')}"}
    return found


Keys = dict[AccountRole | None, dict[str, str]]


def test_no_request_of_whatever_role_makes_the_server_fail(
    app: FastAPI, keys: Keys, heard: io.StringIO, times: int
) -> None:
    """Two examples a route and a role, always the same ones."""
    try_all(app, keys, 2 * times)
    assert "Traceback" not in heard.getvalue() and " failed: " not in heard.getvalue()
    assert memory() < MOST_MEMORY


@pytest.mark.long
def test_no_request_makes_the_server_fail(app: FastAPI, keys: Keys, heard: io.StringIO, times: int) -> None:
    try_all(app, keys, 40 * times)
    assert "Traceback" not in heard.getvalue() and " failed: " not in heard.getvalue()
    assert memory() < MOST_MEMORY


def try_all(app: FastAPI, keys: Keys, count: int) -> None:
    """Send every route requests of its schema and beside it, as each role in turn and as nobody."""
    everything = schemathesis.openapi.from_dict(app.openapi())
    everything.app = app
    answered: dict[AccountRole | None, Counter[int]] = {role: Counter() for role in keys}
    tried = 0
    for found in everything.get_all_operations():
        assert isinstance(found, Ok)
        for role, headers in keys.items():
            tried += 1
            try_one(found.ok(), headers, count, answered[role])
    assert tried > 30 * len(keys)
    assert answered[AccountRole.OWNER][401] == 0, "the owner is known everywhere"
    assert all(answered[role][200] for role in AccountRole) and answered[None][401] > answered[None][200]


def try_one(operation: Any, headers: dict[str, str], count: int, answered: Counter[int]) -> None:
    """Send requests to one route, the same ones in every run."""

    @seed(0)
    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=operation.as_strategy())
    def answers(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers=headers)
        answered[response.status_code] += 1
        assert response.status_code < 500, (case.as_curl_command(), response.text)

    answers()


def memory() -> int:
    """Bytes that this process takes now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_text_that_no_database_holds_is_refused(app: FastAPI) -> None:
    Accounts(app.state.site.store).add("olga", AccountRole.OWNER)
    client = TestClient(app, headers=HOST)
    for path in ("/chat/x%00", "/sign-in/x%00", "/join/x%00"):
        assert client.get(path).status_code == 400, path
    for path, form in {
        "/sign-in": {"name": "\0", "password": "correct horse"},
        "/join/x": {"name": "\0", "password": "correct horse"},
        "/accounts/key": {"name": "olga", "label": "\0"},
        "/accounts/link": {"name": "\0"},
        "/accounts/role": {"name": "\0", "role": "viewer"},
        "/accounts/disable": {"name": "\0"},
        "/chat/x%00/delete": {},
    }.items():
        refused = client.post(path, data=form)
        assert refused.status_code == 400 and refused.json()["error"]["message"], path
