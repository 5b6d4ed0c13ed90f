"""What holds for every page: who is let in, what is refused, and how it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts, TokenUse
from manners.types import AccountRole
from manners.web.app import create_app
from manners.web.auth import COOKIE
from manners.web.engine import Engine
from manners.web.limits import SIGN_INS
from manners.web.site import Site
from manners.workspace import Workspace

PASSWORD = "correct horse"
MakeClient = Callable[..., TestClient]


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    store = Store.create(Workspace.create(tmp_path / "ws").database)
    yield Accounts(store)
    store.close()


@pytest.fixture
def client(accounts: Accounts, tmp_path: Path) -> MakeClient:
    def make(*, local: bool = False, base_url: str = "http://127.0.0.1:8000") -> TestClient:
        workspace, settings = Workspace.open(tmp_path / "ws"), Settings()
        engine = Engine(workspace.root, settings.model, "initial")  # not started: nobody asks it anything
        site = Site(workspace, settings, accounts._store, accounts, local, base_url, engine)
        return TestClient(create_app(site), base_url="http://127.0.0.1:8000", follow_redirects=False)

    return make


def test_signing_in_and_out(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    browser = client()
    assert browser.get("/", headers={"accept": "text/html"}).headers["location"] == "/sign-in?then=/"
    wrong = browser.post("/sign-in", data={"name": "anna", "password": "wrong"}, headers={"accept": "text/html"})
    assert wrong.status_code == 403 and "do not go together" in wrong.text
    right = browser.post("/sign-in", data={"name": "anna", "password": PASSWORD, "then": "/chat"})
    assert (right.status_code, right.headers["location"]) == (303, "/chat")
    assert "httponly" in right.headers["set-cookie"].lower() and "samesite=lax" in right.headers["set-cookie"].lower()
    assert browser.get("/").headers["location"] == "/label"
    session = browser.cookies[COOKIE]
    browser.post("/sign-out")
    browser.cookies.set(COOKIE, session)
    assert browser.get("/").status_code == 401


def test_a_cookie_travels_over_https_only_where_there_is_https(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    browser = client(base_url="https://labels.example.org/team")
    answer = browser.post("/sign-in", data={"name": "anna", "password": PASSWORD})
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "path=/team" in answer.headers["set-cookie"].lower()
    assert answer.headers["location"] == "/team/"


@pytest.mark.parametrize("then", ["//evil.example", "https://evil.example", "/\\evil.example", "evil"])
def test_a_sign_in_leads_nowhere_else(accounts: Accounts, client: MakeClient, then: str) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    answer = client().post("/sign-in", data={"name": "anna", "password": PASSWORD, "then": then})
    assert answer.headers["location"] == "/"


def test_guessing_passwords_is_slow(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    browser, form = client(), {"name": "anna", "password": "wrong password"}
    answers = [browser.post("/sign-in", data=form).status_code for _ in range(int(SIGN_INS.burst) + 1)]
    assert answers == [403] * int(SIGN_INS.burst) + [429]
    other = browser.post("/sign-in", data={"name": "berta", "password": "wrong password"})
    assert other.status_code == 403


def test_invitation_and_link(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("olga", AccountRole.OWNER, PASSWORD)
    invitation = accounts.issue(TokenUse.INVITATION, role=AccountRole.VIEWER)
    guest = client()
    assert "invited as viewer" in guest.get(f"/join/{invitation}").text
    assert guest.post(f"/join/{invitation}", data={"name": "vera", "password": PASSWORD}).status_code == 303
    assert guest.get("/").headers["location"] == "/dashboard"
    again = client().get(f"/join/{invitation}", headers={"accept": "text/html"})
    assert again.status_code == 400 and "used already" in again.text
    owner, link = client(), accounts.issue(TokenUse.SIGN_IN, "olga")
    assert owner.get(f"/sign-in/{link}").status_code == 303
    assert owner.get("/").headers["location"] == "/label"
    assert client().get(f"/sign-in/{link}").status_code == 400


def test_a_key_stands_for_its_account(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    key = accounts.issue(TokenUse.KEY, "anna")
    assert client().get("/", headers={"authorization": f"Bearer {key}"}).status_code == 303
    refused = client().get("/", headers={"authorization": "Bearer nonsense"})
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8000"}, 303),
        ({"origin": "http://127.0.0.1:8000"}, 303),
        ({}, 303),
    ],
)
def test_what_another_site_sends_is_refused(client: MakeClient, headers: dict[str, str], status: int) -> None:
    assert client().post("/sign-out", headers=headers).status_code == status


def test_without_accounts_only_names_of_this_machine_are_answered(client: MakeClient) -> None:
    here = client(local=True)
    assert here.get("/health").json() == {"status": "ok"}
    assert here.get("/health", headers={"host": "localhost:8000"}).status_code == 200
    assert here.get("/health", headers={"host": "[::1]:8000"}).status_code == 200
    rebound = here.get("/", headers={"host": "evil.example:8000"})
    assert rebound.status_code == 421 and "this server is not evil.example" in rebound.json()["error"]["message"]


def test_a_body_is_not_read_without_end(client: MakeClient) -> None:
    here = client(local=True)
    assert here.post("/sign-in", content=b"a" * 8_000_001).status_code == 413
    pieces = (b"name=" + b"a" * 1_000_000 for _ in range(9))
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert here.post("/sign-in", content=pieces, headers=kind).status_code == 413


def test_every_answer_tells_the_browser_what_it_may_do(client: MakeClient) -> None:
    here = client(local=True)
    for path in ("/health", "/sign-in", "/nothing", "/static/manners.css"):
        answer = here.get(path, headers={"accept": "text/html"})
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_mistake_is_one_sentence_as_a_page_or_as_json(client: MakeClient) -> None:
    here = client(local=True)
    page = here.get("/nothing", headers={"accept": "text/html"})
    assert page.status_code == 404 and "<h1>Not Found</h1>" in page.text
    assert here.get("/nothing").json()["error"]["message"] == "Not Found"
    lacking = here.post("/sign-in", data={"name": "anna"})
    assert lacking.status_code == 400 and lacking.json()["error"]["param"] == "password"
