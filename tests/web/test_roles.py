"""Every route is for the roles that the table below gives it, and for nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web.app import OPEN, create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted

OWNER, REVIEWER, ANNOTATOR, VIEWER = AccountRole
EVERYBODY = {OWNER, REVIEWER, ANNOTATOR, VIEWER}
LABEL = {OWNER, REVIEWER, ANNOTATOR}
ROLES = {
    "/": EVERYBODY,
    "/chat": LABEL,
    "/chat/state": LABEL,
    "/chat/all": LABEL,
    "/chat/export": LABEL,
    "/chat/begin": LABEL,
    "/chat/thumb": LABEL,
    "/chat/report": LABEL,
    "/chat/{key}": LABEL,
    "/chat/{key}/say": LABEL,
    "/chat/{key}/ongoing": LABEL,
    "/chat/{key}/stop": LABEL,
    "/chat/{key}/choose": LABEL,
    "/chat/{key}/delete": LABEL,
    "/dashboard": {OWNER, REVIEWER, VIEWER},
    "/dashboard.json": {OWNER, REVIEWER, VIEWER},
    "/metrics": {OWNER, REVIEWER, VIEWER},
    "/rounds": {OWNER, REVIEWER, VIEWER},
    "/rounds.json": {OWNER, REVIEWER, VIEWER},
    "/rounds/step": {OWNER},
    "/rounds/stop": {OWNER},
    "/dashboard/promote": {OWNER},
    "/dashboard/rollback": {OWNER},
    "/accounts": {OWNER},
    "/accounts/invite": {OWNER},
    "/accounts/role": {OWNER},
    "/accounts/disable": {OWNER},
    "/accounts/key": {OWNER},
    "/accounts/revoke": {OWNER},
    "/accounts/enable": {OWNER},
    "/me": EVERYBODY,
    "/me/password": EVERYBODY,
    "/me/revoke": EVERYBODY,
    "/accounts/link": {OWNER},
    "/log": {OWNER},
    "/label": LABEL,
    "/label/begin": LABEL,
    "/label/next": LABEL,
    "/label/verdict": LABEL,
    "/label/undo": LABEL,
    "/label/flag": LABEL,
    "/label/progress": LABEL,
    "/review": {OWNER, REVIEWER},
    "/flags": {OWNER, REVIEWER},
    "/flags/{token}": {OWNER, REVIEWER},
    "/v1/models": LABEL,
    "/v1/models/{name}": LABEL,
    "/v1/health": LABEL,
    "/v1/chat/completions": LABEL,
    "/v1/feedback": LABEL,
    "/v1/comparisons": LABEL,
}
"""Written by hand: what each route that is not open to all must be for."""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[AccountRole | None, TestClient]]:
    workspace = Workspace.create(tmp_path_factory.mktemp("roles") / "ws")
    store = Store.create(workspace.database)
    accounts = Accounts(store)
    app = create_app(Site(workspace, Settings(), store, accounts, False, "http://127.0.0.1", Scripted()))
    found: dict[AccountRole | None, TestClient] = {None: TestClient(app, follow_redirects=False)}
    for role in AccountRole:
        accounts.add(f"the {role}", role, "correct horse")
        key = accounts.issue(TokenUse.KEY, f"the {role}", terms=Terms(scopes=tuple(Scope)))
        headers = {"authorization": f"Bearer {key}"}
        found[role] = TestClient(app, headers=headers, follow_redirects=False, raise_server_exceptions=False)
    yield found
    store.close()


def routes(found: Any) -> Iterator[tuple[str, str]]:
    """Method and path of all routes, those of included routers too."""
    for path, item in found.openapi()["paths"].items():
        for method in item:
            yield method.upper(), path
    for route in found.routes:
        if isinstance(route, APIRoute) and not route.include_in_schema:
            for method in route.methods or ():
                yield method, route.path


def test_each_route_lets_its_roles_in_and_nobody_else(clients: dict[AccountRole | None, TestClient]) -> None:
    walked = set(routes(clients[None].app))
    assert {path for _, path in walked} - OPEN == ROLES.keys(), "a route is missing from the table, or is no more"
    for method, path in walked:
        if path in OPEN:
            continue
        address = path.replace("{", "").replace("}", "")
        body: dict[str, str] | None = None if method in ("GET", "DELETE") else {}
        assert clients[None].request(method, address, json=body).status_code == 401, (method, path)
        for role in AccountRole:
            status = clients[role].request(method, address, json=body).status_code
            assert (status == 403) == (role not in ROLES[path]), (method, path, role, status)
            assert status != 401 and status < 500, (method, path, role, status)


def test_open_routes_are_there_and_open(clients: dict[AccountRole | None, TestClient]) -> None:
    walked = {path for _, path in routes(clients[None].app)}
    assert walked & OPEN == OPEN - {"/static"}
    assert clients[None].get("/static/manners.css").status_code == 200
    assert clients[None].get("/health").status_code == 200


def test_nothing_tells_strangers_which_routes_there_are(clients: dict[AccountRole | None, TestClient]) -> None:
    assert [clients[None].get(path).status_code for path in ("/openapi.json", "/docs", "/redoc")] == [404] * 3
