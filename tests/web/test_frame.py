"""What holds for every page: who is let in, what is refused, and how it is said."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from manners.errors import MannersError, Unavailable
from manners.settings import ServeSettings, Settings
from manners.store import Store, schema
from manners.store.accounts import Account, Accounts
from manners.store.tokens import TokenUse
from manners.types import AccountRole
from manners.web import limits
from manners.web.app import create_app
from manners.web.auth import COOKIE
from manners.web.limits import ENTRIES, HASHES, SIGN_INS, network_of
from manners.web.server import serve
from manners.web.shapes import MOST_ANSWERS
from manners.web.site import Site
from manners.workspace import Workspace
from tests.postgres import Server
from tests.web.conftest import run
from tests.web.scripted import Scripted
from tests.web.test_label import pair

PASSWORD = "correct horse"
HERE = "http://127.0.0.1:8000"
MakeClient = Callable[..., TestClient]


@pytest.fixture
def accounts(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Iterator[Accounts]:
    store = Store.open(new_workspace(tmp_path / "ws").database)
    yield Accounts(store)
    store.close()


@pytest.fixture
def client(accounts: Accounts, tmp_path: Path) -> MakeClient:
    def make(*, local: bool = False, base_url: str = HERE, settings: Settings | None = None) -> TestClient:
        workspace = Workspace.open(tmp_path / "ws")
        site = Site(workspace, settings or Settings(), accounts._store, accounts, local, base_url, Scripted())
        return TestClient(create_app(site), base_url=HERE, follow_redirects=False)

    return make


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets do not fill again."""
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 0.0))


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


@pytest.mark.parametrize(
    ("method", "asked", "page"),
    [
        ("GET", "/review?version=policy%202&a=%26", "/review?version=policy%202&a=%26"),
        ("POST", "/accounts/disable", "/accounts"),
        ("POST", "/flags/1-ab", "/flags"),
        ("POST", "/me/password", "/me"),
    ],
)
def test_a_session_that_has_run_out_leads_back_to_the_page(
    accounts: Accounts, client: MakeClient, method: str, asked: str, page: str
) -> None:
    """With what it was asked for; and never to where a form is sent, which is no page."""
    accounts.add("olga", AccountRole.OWNER, PASSWORD)
    browser = client()
    browser.headers["accept"] = "text/html"
    leads = httpx.URL(browser.request(method, asked).headers["location"])
    assert leads.path == "/sign-in"
    form = {"name": "olga", "password": PASSWORD, "then": leads.params["then"]}
    assert browser.post("/sign-in", data=form).headers["location"] == page
    assert browser.get(page).status_code in (200, 400), "a page, or what it says of a version that is not there"


def test_a_cookie_travels_over_https_only_where_there_is_https(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    browser = client(base_url="https://labels.example.org/team")
    answer = browser.post("/sign-in", data={"name": "anna", "password": PASSWORD})
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "path=/team" in answer.headers["set-cookie"].lower()
    assert answer.headers["location"] == "/team/"


@pytest.mark.parametrize("page", ["/label", "/chat"])
def test_a_page_that_its_script_fills_says_so_without(client: MakeClient, page: str) -> None:
    said = client(local=True).get(page).text.partition("<noscript>")[2].partition("</noscript>")[0]
    assert "JavaScript" in said


@pytest.mark.parametrize("then", ["//evil.example", "https://evil.example", "/\\evil.example", "evil"])
def test_a_sign_in_leads_nowhere_else(accounts: Accounts, client: MakeClient, then: str) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    answer = client().post("/sign-in", data={"name": "anna", "password": PASSWORD, "then": then})
    assert answer.headers["location"] == "/"


@pytest.mark.usefixtures("still")
def test_guessing_passwords_is_slow(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    browser = client()
    form = {"name": "anna", "password": "wrong password"}
    answers = [browser.post("/sign-in", data=form).status_code for _ in range(int(SIGN_INS.burst) + 1)]
    assert answers == [403] * int(SIGN_INS.burst) + [429]
    other = browser.post("/sign-in", data={"name": "berta", "password": "wrong password"})
    assert other.status_code == 403
    elsewhere = TestClient(browser.app, base_url=HERE, client=("192.0.2.9", 1), follow_redirects=False)
    mine = elsewhere.post("/sign-in", data={"name": "anna", "password": PASSWORD})
    assert mine.status_code == 303, "whoever guesses elsewhere does not keep anna out"


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("path", ["/sign-in", "/join/nonsense"])
def test_one_address_does_not_try_for_ever(client: MakeClient, path: str) -> None:
    browser = client()
    forms = [{"name": f"name {number}", "password": "wrong password"} for number in range(int(ENTRIES.burst) + 1)]
    *answers, last = [browser.post(path, data=form, headers={"accept": "text/html"}) for form in forms]
    assert {answer.status_code for answer in answers} == {403 if path == "/sign-in" else 400}
    assert last.status_code == 429 and last.headers["retry-after"] == "1" and "try again in 1 s" in last.text
    assert browser.get("/join/nonsense").status_code == browser.get("/sign-in/nonsense").status_code == 429
    assert browser.get("/sign-in").status_code == 200


@pytest.mark.usefixtures("still")
def test_a_class_behind_one_address_comes_in_at_once(accounts: Accounts, client: MakeClient) -> None:
    door = client()
    for number in range(30):
        path = f"/join/{accounts.issue(TokenUse.INVITATION, role=AccountRole.ANNOTATOR)}"
        assert door.get(path).status_code == 200
        assert door.post(path, data={"name": f"pupil {number}", "password": PASSWORD}).status_code == 303


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
    ],
)
def test_who_has_many_addresses_is_still_one(address: str, whose: str) -> None:
    assert network_of(address) == whose


def test_few_passwords_are_hashed_at_once_and_pages_stay_quick(
    accounts: Accounts, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, most = 0, 0

    def slow(self: Accounts, name: str, password: str) -> Account | None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        time.sleep(0.05)
        busy -= 1
        return None

    monkeypatch.setattr(Accounts, "check", slow)
    app = client().app
    assert isinstance(app, FastAPI)

    async def crowd() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as browser:
            form = {"password": PASSWORD}
            waiting = [asyncio.create_task(browser.post("/sign-in", data=form | {"name": str(n)})) for n in range(8)]
            await asyncio.sleep(0.05)
            assert (await browser.get("/health")).status_code == 200
            assert not all(one.done() for one in waiting)
            return [answer.status_code for answer in await asyncio.gather(*waiting)]

    assert run(crowd()) == [403] * 8
    assert most == HASHES


@pytest.mark.parametrize("path", ["/sign-in", "/accounts/link", "/accounts/key", "/accounts/role", "/accounts/disable"])
def test_a_name_longer_than_any_account_has_is_refused(client: MakeClient, path: str) -> None:
    refused = client(local=True).post(path, data={"name": "a" * 81, "password": PASSWORD, "role": "viewer"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "name"


def test_an_owner_makes_a_link_for_somebody_who_forgot_the_password(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    accounts.add("olga", AccountRole.OWNER, PASSWORD)
    owner, anna = client(), client()
    owner.post("/sign-in", data={"name": "olga", "password": PASSWORD})
    assert "Make a sign-in link for anna" in owner.get("/accounts").text
    page = owner.post("/accounts/link", data={"name": "anna"}).text
    link = page.partition("<code>http://127.0.0.1:8000")[2].partition("</code>")[0]
    assert "signs anna in, good once" in page
    for _ in range(3):  # a mail scanner, a preview, and anna
        assert "Sign in as anna" in anna.get(link).text and anna.get("/").status_code == 401
        assert client().head(link).status_code in (200, 405)
    assert anna.post(link).status_code == 303
    assert anna.get("/").headers["location"] == "/label"
    assert client().get(link).status_code == client().post(link).status_code == 400
    accounts.disable("anna")
    assert "Make a sign-in link for anna" not in owner.get("/accounts").text
    assert owner.post("/accounts/link", data={"name": "anna"}).status_code == 400


def test_invitation_and_link(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("olga", AccountRole.OWNER, PASSWORD)
    invitation = accounts.issue(TokenUse.INVITATION, role=AccountRole.VIEWER)
    guest = client()
    assert "invited as viewer" in guest.get(f"/join/{invitation}").text
    assert guest.post(f"/join/{invitation}", data={"name": "vera", "password": PASSWORD}).status_code == 303
    assert guest.get("/").headers["location"] == "/dashboard"
    again = client().get(f"/join/{invitation}", headers={"accept": "text/html"})
    assert again.status_code == 400 and "used already" in again.text
    owner = client()
    link = accounts.issue(TokenUse.SIGN_IN, "olga")
    assert owner.post(f"/sign-in/{link}").status_code == 303
    assert owner.get("/").headers["location"] == "/label"
    assert client().get(f"/sign-in/{link}").status_code == 400


def test_a_key_stands_for_its_account(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    key = accounts.issue(TokenUse.KEY, "anna")
    assert client().get("/", headers={"authorization": f"Bearer {key}"}).status_code == 303
    refused = client().get("/", headers={"authorization": "Bearer nonsense"})
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"


def test_a_session_is_no_key_and_a_key_no_session(accounts: Accounts, client: MakeClient) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    session, key = accounts.issue(TokenUse.SESSION, "anna"), accounts.issue(TokenUse.KEY, "anna")
    as_key, as_session = {"authorization": f"Bearer {key}"}, {"cookie": f"{COOKIE}={session}"}
    assert client().get("/", headers=as_key).status_code == client().get("/", headers=as_session).status_code == 303
    assert client().get("/", headers={"authorization": f"Bearer {session}"}).status_code == 401
    assert client().get("/", headers={"cookie": f"{COOKIE}={key}"}).status_code == 401


@pytest.mark.usefixtures("still")
def test_a_program_gets_as_many_answers_as_are_set(client: MakeClient) -> None:
    program = client(local=True, settings=Settings(serve=ServeSettings(answers_a_second=4.0)))
    asked = {"model": "manners", "messages": [{"role": "user", "content": "Hi"}]}

    def ask(n: int) -> Any:
        return program.post("/v1/chat/completions", json=asked | {"n": n})

    beyond = ask(MOST_ANSWERS + 1)
    assert beyond.status_code == 400 and beyond.json()["error"]["param"] == "n"
    assert len(ask(MOST_ANSWERS).json()["choices"]) == MOST_ANSWERS
    waiting = ask(10)
    assert waiting.status_code == 429 and waiting.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("host", "base_url", "says"),
    [
        ("0.0.0.0", None, r"0\.0\.0\.0 lets others in, .* `manners accounts add NAME`, or leave out --host"),
        ("127.0.0.1", "https://labels.example.org", r"labels\.example\.org lets others in, .* leave out --base-url"),
        ("127.0.0.1", "http://127.0.0.1.example.org", r"lets others in"),
        ("127.0.0.1", "labels.example.org", r"--base-url labels\.example\.org cannot be read: write it as https://"),
        ("127.0.0.1", "http://[::1", r"cannot be read"),
    ],
)
def test_without_accounts_nobody_is_let_in_from_elsewhere(
    accounts: Accounts, tmp_path: Path, host: str, base_url: str | None, says: str
) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    with pytest.raises(MannersError, match=says):
        serve(workspace, accounts._store, Settings(), host=host, base_url=base_url, open_browser=False)


def test_where_there_are_accounts_nobody_is_owner_without_one(accounts: Accounts, tmp_path: Path) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    workspace = Workspace.open(tmp_path / "ws")
    with pytest.raises(MannersError, match="no owner: make one with `manners accounts add NAME --role owner`"):
        serve(workspace, accounts._store, Settings(), host="127.0.0.1", base_url=None, open_browser=False)


def test_while_the_database_is_away_nobody_is_to_blame(
    accounts: Accounts, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> NoReturn:
        raise Unavailable("The database is away; try again.")

    monkeypatch.setattr(Accounts, "all", away)
    here = client(local=True)
    told, page = here.get("/accounts"), here.get("/accounts", headers={"accept": "text/html"})
    assert told.status_code == page.status_code == 503
    assert told.headers["retry-after"] == page.headers["retry-after"] == "2"
    assert told.json()["error"]["message"] == "The database is away; try again."
    assert told.json()["error"]["type"] == "server_error" and "The database is away" in page.text


def test_a_verdict_is_taken_once_the_database_is_back(server: Server, tmp_path: Path) -> None:
    with server.database() as url, closing(Store.create(url)) as store:
        workspace = Workspace.create(tmp_path / "team", url)
        settings = Settings(serve=ServeSettings(shortest_view=0))
        site = Site(workspace, settings, store, Accounts(store), True, HERE, Scripted())
        here = TestClient(create_app(site), base_url=HERE)
        store.add_comparisons([pair(1)])
        given = {"view": here.post("/label/next").json()["pair"]["view"], "choice": "left"}
        server.control("stop", "-m", "fast")
        try:
            away = here.post("/label/verdict", json=given)
        finally:
            server.control("start")
        assert away.status_code == 503 and away.headers["retry-after"] == "2"
        assert here.post("/label/verdict", json=given).status_code == 200
        assert [len(comparison.verdicts) for comparison in store.comparisons()] == [1]


def test_a_verdict_is_taken_once_another_program_lets_go_of_the_file(
    new_workspace: Callable[[Path], Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "WAIT_SECONDS", 0.05)
    workspace = new_workspace(tmp_path / "ws")
    with closing(Store.open(workspace.database)) as store:
        settings = Settings(serve=ServeSettings(shortest_view=0))
        site = Site(workspace, settings, store, Accounts(store), True, HERE, Scripted())
        here = TestClient(create_app(site), base_url=HERE)
        store.add_comparisons([pair(1)])
        given = {"view": here.post("/label/next").json()["pair"]["view"], "choice": "left"}
        with closing(sqlite3.connect(workspace.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            away = here.post("/label/verdict", json=given)
        assert away.status_code == 503 and away.headers["retry-after"] == "2"
        assert "database is locked" in away.json()["error"]["message"]
        assert here.post("/label/verdict", json=given).status_code == 200
        assert [len(comparison.verdicts) for comparison in store.comparisons()] == [1]


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


@pytest.mark.parametrize("path", ["/label", "/chat/team", "/static", "/v1", "/health/"])
def test_a_path_that_is_the_name_of_a_page_is_refused(client: MakeClient, path: str) -> None:
    with pytest.raises(MannersError, match=f"begins with /{path.split('/')[1]}, which is the name of a page"):
        client(base_url=f"https://labels.example.org{path}")


@pytest.mark.parametrize("name", ["Ann %41 b", "50%", "Bj\u00f6rn % 20"])
def test_a_name_with_a_per_cent_sign_is_let_in(client: MakeClient, accounts: Accounts, name: str) -> None:
    accounts.add(name, AccountRole.ANNOTATOR, "correct horse")
    browser = client()
    assert browser.post("/sign-in", data={"name": name, "password": "correct horse"}).status_code == 303
    assert browser.get("/label").status_code == 200
    as_opened = {"manners-visitor": quote(name)}
    assert browser.get("/label/progress", headers=as_opened).status_code == 200
    assert browser.get("/label/progress", headers={"manners-visitor": "somebody"}).status_code == 401
