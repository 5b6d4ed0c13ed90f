"""Whatever is sent to whatever route, no answer is a fault of the server, on either database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web import limits
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted

HOST = {"host": "127.0.0.1"}


@pytest.fixture
def app(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastAPI]:
    """The whole application, for its owner on this machine, without limits on how often."""
    workspace = Workspace.create(tmp_path / "ws", database if "postgresql" in database else None)
    store = Store.create(workspace.database)
    monkeypatch.setattr(limits.Limits, "take", lambda *_: 0.0)
    yield create_app(Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted()))
    store.close()


@pytest.mark.long
def test_no_request_makes_the_server_fail(app: FastAPI, times: int) -> None:
    everything = schemathesis.openapi.from_dict(app.openapi())
    everything.app = app
    tried = 0
    for found in everything.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @settings(max_examples=20 * times, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: schemathesis.Case[Any]) -> None:
            response = case.call(headers=HOST)
            assert response.status_code < 500, (case.as_curl_command(), response.text)

        answers()
        tried += 1
    assert tried > 10


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
