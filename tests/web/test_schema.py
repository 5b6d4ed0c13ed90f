"""Whatever is sent to whatever route, no answer is a fault of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.web import limits
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    """The whole application, for its owner on this machine, without limits on how often."""
    workspace = Workspace.create(tmp_path_factory.mktemp("schema") / "ws")
    store = Store.create(workspace.database)
    app = create_app(Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits.Limits, "take", lambda *_: 0.0)
        yield schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "127.0.0.1"})
    store.close()


def test_no_request_makes_the_server_fail(everything: schemathesis.BaseSchema) -> None:
    tried = 0
    for found in everything.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @settings(max_examples=40, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: schemathesis.Case[Any]) -> None:
            response = case.call(headers={"host": "127.0.0.1"})
            assert response.status_code < 500 or response.status_code == 503, (case.as_curl_command(), response.text)

        answers()
        tried += 1
    assert tried > 10
