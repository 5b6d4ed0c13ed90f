"""A server that is reached from elsewhere: nobody is the owner by mistake, keeps others out, or reads along unsaid."""

from __future__ import annotations

import io
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from filelock import FileLock
from sqlalchemy import delete
from starlette.testclient import TestClient

from manners.cli import main
from manners.errors import MannersError
from manners.settings import ModelSettings, ServeSettings, Settings
from manners.store import Store, audit
from manners.store.accounts import Accounts
from manners.store.audit import entries
from manners.store.tables import AccountRow, TokenRow
from manners.store.tokens import TokenUse
from manners.terminal import shown_errors
from manners.types import (
    AccountRole,
)
from manners.web import limits, server
from manners.web import site as site_module
from manners.web.app import create_app
from manners.web.limits import SIGN_INS
from manners.web.site import Site
from manners.workspace import INITIAL, Workspace
from tests.web.conftest import Place
from tests.web.scripted import Scripted

PASSWORD = "correct horse"
HERE = "http://127.0.0.1:8000"
Make = Callable[..., TestClient]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that starts a server up to where it would wait for visitors, and returns what it has said."""
    nothing = SimpleNamespace(start=lambda: None, stop=lambda: None, load=lambda _: None)
    monkeypatch.setattr(server, "Engine", lambda *_, **__: nothing)
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)

    def start(
        folder: Path,
        host: str = "127.0.0.1",
        base_url: str | None = None,
        terminal: bool = False,
        allow_origins: str = "",
    ) -> str:
        said = io.StringIO()
        said.isatty = lambda: terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", said)
        workspace = Workspace.open(folder)
        settings = Settings(serve=ServeSettings(allow_origins=allow_origins))
        with shown_errors(), closing(Store.open(workspace.database)) as store:  # as the command does
            server.serve(workspace, store, settings, host=host, base_url=base_url, open_browser=False)
        return said.getvalue()

    return start


def test_the_desk_reads_what_is_open_before_anybody_comes(
    alone: Place, started: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(site_module, "Desk", lambda *_: order.append("read"))
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: order.append("served"))
    started(alone.folder)
    assert order == ["read", "served"]


@pytest.mark.parametrize("late", [False, True])
def test_what_is_promoted_while_the_server_starts_is_served(
    alone: Place, started: Callable[..., str], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """After the model was told what to answer with, and before anybody looks whether that is another one by now."""
    workspace, told = Workspace.open(alone.folder), list[str]()

    def engine(root: Path, model: ModelSettings, version: str, *_: Any, **__: Any) -> SimpleNamespace:
        told.append(version)
        if late:
            workspace.promote("policy-1")
        return SimpleNamespace(start=lambda: None, stop=lambda: None, load=told.append)

    def run(*_: Any, **__: Any) -> None:
        end = time.monotonic() + (30.0 if late else 0.3)
        while len(told) < 2 and time.monotonic() < end:
            time.sleep(0.01)

    monkeypatch.setattr(server, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(server, "Engine", engine)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    started(alone.folder)
    assert told == [INITIAL, *(["policy-1"] if late else [])]


def test_a_server_that_is_refused_leaves_on_record_what_the_running_one_serves(
    alone: Place, started: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else nothing would keep that one's candidate from being pruned."""
    with FileLock(alone.folder / "serve.lock"):
        audit.record(alone.store, audit.Deed(audit.Event.SERVED, about="candidate policy-4"))
        assert main(["serve", "--workspace", str(alone.folder)]) == 1
    assert "is being served already" in capsys.readouterr().err
    assert main(["serve", "--workspace", str(alone.folder), "--host", "0.0.0.0"]) == 1, "nobody may come in"
    assert audit.candidate(alone.store) == "policy-4"
    started(alone.folder)
    assert audit.candidate(alone.store) is None


def lose(place: Place, how: str) -> None:
    """Lose a database, as people do."""
    match how:
        case "accounts deleted":
            with place.store.write() as connection:
                connection.execute(delete(TokenRow))
                connection.execute(delete(AccountRow))
            return
        case "file gone, made anew":
            (place.folder / "store.db").unlink()
        case "file emptied, made anew":
            (place.folder / "store.db").write_bytes(b"")
        case "another one put there":
            Store.create(place.folder / "other.db").close()
            (place.folder / "other.db").replace(place.folder / "store.db")
    for rest in ("store.db-wal", "store.db-shm"):
        (place.folder / rest).unlink(missing_ok=True)
    Store.open_or_create(place.folder / "store.db").close()


LOST = ["accounts deleted", "file gone, made anew", "file emptied, made anew", "another one put there"]


@pytest.mark.parametrize("how", LOST)
def test_a_lost_database_makes_nobody_the_owner(alone: Place, started: Callable[..., str], how: str) -> None:
    alone.accounts.add("olga", AccountRole.OWNER, PASSWORD)
    started(alone.folder)
    if how != "accounts deleted":
        alone.store.close()
    lose(alone, how)
    with pytest.raises(MannersError, match="has none, so that everybody would be owner"):
        started(alone.folder)
    with closing(Store.open(alone.folder / "store.db")) as store:
        Accounts(store).add("olga", AccountRole.OWNER, PASSWORD)
    assert "manners is at" in started(alone.folder)


def test_the_command_that_adds_an_account_is_remembered_before_any_server_runs(
    tmp_path: Path, started: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ws"
    assert main(["init", str(folder)]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PASSWORD}\n"))
    assert main(["accounts", "add", "olga", "--workspace", str(folder)]) == 0
    (folder / "store.db").unlink()
    assert main(["init", str(folder)]) == 0
    with pytest.raises(MannersError, match="there were accounts here"):
        started(folder)
    assert json.loads((folder / "workspace.json").read_text())["format"] == 1, "the rest of the marker stays"


def test_a_missing_database_is_refused(alone: Place, started: Callable[..., str]) -> None:
    alone.store.close()
    for content in (None, b""):
        (alone.folder / "store.db").unlink()
        if content is not None:
            (alone.folder / "store.db").write_bytes(content)
        with pytest.raises(MannersError, match="no store"):
            started(alone.folder)
        (alone.folder / "store.db").touch()


@pytest.fixture
def make(alone: Place) -> Make:
    def made(*, local: bool = True, proxied: bool = False, address: str = "127.0.0.1") -> TestClient:
        workspace = Workspace.open(alone.folder)
        site = Site(workspace, Settings(), alone.store, alone.accounts, local, HERE, Scripted(), proxied=proxied)
        return TestClient(create_app(site), base_url=HERE, client=(address, 5000), follow_redirects=False)

    return made


FORWARDED = {
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-host": "labels.example.org",
    "x-forwarded-proto": "https",
    "x-forwarded-port": "443",
    "x-forwarded-prefix": "/team",
    "x-forwarded-server": "proxy",
    "X-Forwarded-User": "olga",
    "x-original-for": "203.0.113.9",
    "forwarded": "for=203.0.113.9;proto=https",
    "x-real-ip": "203.0.113.9",
    "via": "1.1 proxy",
    "cf-connecting-ip": "203.0.113.9",
    "true-client-ip": "203.0.113.9",
}


@pytest.mark.parametrize("named", ["*", "https://app.example.org https://b.example"])
def test_other_sites_pages_come_with_a_key_or_not_at_all(alone: Place, started: Callable[..., str], named: str) -> None:
    with pytest.raises(MannersError, match="without accounts there are none: make an account"):
        started(alone.folder, allow_origins=named)
    settings, workspace = Settings(serve=ServeSettings(allow_origins=named)), Workspace.open(alone.folder)
    site = Site(workspace, settings, alone.store, alone.accounts, True, HERE, Scripted())
    page = {"origin": "https://b.example", "sec-fetch-site": "cross-site", "authorization": "Bearer made-up"}
    judged = {"prompt": "Bread?", "left": {"text": "a"}, "right": {"text": "b"}, "choice": "left"}
    refused = TestClient(create_app(site), HERE).post("/v1/comparisons", json=judged, headers=page)
    assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    assert alone.store.comparisons() == []
    alone.accounts.add("olga", AccountRole.OWNER, PASSWORD)
    assert "manners is at" in started(alone.folder, allow_origins=named)


@pytest.mark.parametrize("header", FORWARDED)
def test_without_accounts_what_a_proxy_passes_on_is_refused(make: Make, header: str) -> None:
    passed_on = {header: FORWARDED[header]}
    for method, path in (("GET", "/"), ("GET", "/accounts"), ("POST", "/label/next"), ("GET", "/health")):
        refused = make().request(method, path, headers=passed_on)
        assert refused.status_code == 403 and "a proxy passed this on, and without accounts" in refused.text
    assert make(proxied=True).get("/accounts", headers=passed_on).status_code == 200
    assert make(local=False).get("/health", headers=passed_on).status_code == 200


def test_a_proxy_is_named_by_its_address_or_by_how_it_is_reached(
    alone: Place, started: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(server, "create_app", lambda site: seen.append(site.proxied))
    started(alone.folder)
    started(alone.folder, base_url="http://localhost:8888/proxy/8000")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1")
    started(alone.folder)
    assert seen == [False, True, True]


def test_an_account_added_while_it_serves_counts_at_once(make: Make, alone: Place) -> None:
    browser = make()
    assert browser.get("/accounts").status_code == 200
    with closing(Store.open(alone.folder / "store.db")) as elsewhere:
        Accounts(elsewhere).add("olga", AccountRole.OWNER, PASSWORD)
    for path in ("/accounts", "/label", "/chat/all", "/dashboard.json"):
        assert browser.get(path).status_code == 401, path
    assert browser.post("/sign-in", data={"name": "olga", "password": PASSWORD}).status_code == 303
    assert browser.get("/accounts").status_code == 200
    with closing(sqlite3.connect(alone.folder / "store.db")) as file, file:
        file.execute("DELETE FROM tokens")  # as another program does, past what refers to an account
        file.execute("DELETE FROM accounts")
    time.sleep(1.1)  # longer than a session is believed
    assert browser.get("/accounts").status_code == 401, "and is not forgotten when it is gone"


def test_what_the_machines_owner_said_is_no_accounts(make: Make, alone: Place) -> None:
    alone_here = make()
    key = alone_here.post("/chat/begin", json={}).json()["key"]
    with pytest.raises(MannersError, match="reserved"):
        alone.accounts.add("owner", AccountRole.OWNER, PASSWORD)
    alone.accounts.add("olga", AccountRole.OWNER, PASSWORD)
    assert alone_here.get(f"/chat/{key}").status_code == 401
    alone_here.post("/sign-in", data={"name": "olga", "password": PASSWORD})
    assert alone_here.get("/chat/all").json() == {"conversations": []}
    assert alone_here.get(f"/chat/{key}").status_code == 400


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets do not fill again."""
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.mark.usefixtures("still")
def test_guessing_slows_whoever_guesses_and_nobody_else(make: Make, alone: Place) -> None:
    for name in ("olga", "anna"):
        alone.accounts.add(name, AccountRole.OWNER, PASSWORD)
    app = make(local=False).app

    def at(address: str) -> TestClient:
        return TestClient(app, base_url=HERE, client=(address, 5000), follow_redirects=False)

    def tries(address: str, name: str, password: str = "wrong password") -> int:
        return at(address).post("/sign-in", data={"name": name, "password": password}).status_code

    assert [tries("192.0.2.1", "anna") for _ in range(int(SIGN_INS.burst) + 2)][-3:] == [403, 429, 429]
    assert tries("192.0.2.1", "anna", PASSWORD) == 429, "not even by luck"
    assert tries("192.0.2.2", "anna", PASSWORD) == 303, "anna, from where she is"
    assert tries("192.0.2.1", "olga", PASSWORD) == 303, "olga, from the same house"
    guesses = [tries(f"2001:db8:0:1::{number:x}", "anna") for number in range(1, int(SIGN_INS.burst) + 2)]
    assert guesses[-1] == 429, "one network of IPv6 is one address"
    assert tries("2001:db8:0:2::1", "anna", PASSWORD) == 303


@pytest.mark.usefixtures("still")
def test_who_has_been_here_before_is_not_kept_out_by_a_neighbour(make: Make, alone: Place) -> None:
    alone.accounts.add("anna", AccountRole.OWNER, PASSWORD)
    anna = make(local=False)
    assert anna.post("/sign-in", data={"name": "anna", "password": PASSWORD}).status_code == 303
    anna.post("/sign-out")
    neighbour = TestClient(anna.app, base_url=HERE, client=("127.0.0.1", 5001), follow_redirects=False)
    wrong = {"name": "anna", "password": "wrong password"}
    while neighbour.post("/sign-in", data=wrong).status_code != 429:
        pass
    assert anna.post("/sign-in", data={"name": "anna", "password": PASSWORD}).status_code == 303
    anna.post("/sign-out")
    while (status := anna.post("/sign-in", data=wrong).status_code) == 403:
        pass
    assert status == 429, "nor may that browser guess for ever"


@pytest.mark.usefixtures("still")
def test_a_name_that_is_written_in_another_way_is_guessed_at_no_oftener(make: Make, alone: Place) -> None:
    ways = ("Zo\u00eb", "Zoe\u0308")
    alone.accounts.add(ways[0], AccountRole.OWNER, PASSWORD)
    zoe = make(local=False)
    assert zoe.post("/sign-in", data={"name": ways[0], "password": PASSWORD}).status_code == 303
    zoe.post("/sign-out")
    neighbour = TestClient(zoe.app, base_url=HERE, client=("127.0.0.1", 5001), follow_redirects=False)
    wrong = [{"name": ways[number % 2], "password": "wrong password"} for number in range(int(SIGN_INS.burst) + 1)]
    # Her own first one counts, which came from the same address.
    assert [neighbour.post("/sign-in", data=one).status_code for one in wrong][-3:] == [403, 429, 429]
    assert zoe.post("/sign-in", data={"name": ways[1], "password": PASSWORD}).status_code == 303, "her browser is known"


@pytest.mark.usefixtures("still")
def test_who_has_many_browsers_has_one_turn_among_those_who_sign_in(
    make: Make, alone: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make(local=False).app
    browsers = list[TestClient]()
    for name in ("anna", "anna", "zoe"):
        if name not in {one.name for one in alone.accounts.all()}:
            alone.accounts.add(name, AccountRole.OWNER, PASSWORD)
        browsers.append(TestClient(app, base_url=HERE, client=("192.0.2.1", 1), follow_redirects=False))
        assert browsers[-1].post("/sign-in", data={"name": name, "password": PASSWORD}).status_code == 303
        browsers[-1].post("/sign-out")
    waited = list[str]()
    hashed = limits.Limits.hashed

    async def watched(self: limits.Limits, request: Any, who: str, call: Callable[[], Any]) -> Any:
        waited.append(who)
        return await hashed(self, request, who, call)

    monkeypatch.setattr(limits.Limits, "hashed", watched)
    for browser in (*browsers, TestClient(app, base_url=HERE, client=("192.0.2.1", 1))):
        assert browser.post("/sign-in", data={"name": "nobody", "password": PASSWORD}).status_code == 403
    assert waited[0] == waited[1] and len(set(waited)) == 3 and waited[3] == "192.0.2.1"


@pytest.mark.parametrize("proxied", [False, True])
def test_where_a_request_comes_from_is_believed_of_a_proxy_that_was_named(
    make: Make, alone: Place, proxied: bool
) -> None:
    site = replace(make(local=False).app.state.site, proxied=proxied)  # type: ignore[attr-defined]
    application = create_app(site)
    config = server.uvicorn_of(application, proxied).config
    config.load()
    client = TestClient(config.loaded_app, base_url=HERE, client=("127.0.0.1", 1))
    wrong = {"name": "anna", "password": "wrong password"}
    assert client.post("/sign-in", data=wrong, headers={"x-forwarded-for": "203.0.113.9"}).status_code == 403
    assert entries(alone.store)[0].address == ("203.0.113.9" if proxied else "127.0.0.1")


def test_the_owners_link_is_shown_on_a_terminal_and_written_to_no_file(
    alone: Place, started: Callable[..., str]
) -> None:
    alone.accounts.add("olga", AccountRole.OWNER, PASSWORD)
    said = started(alone.folder)
    assert "/sign-in/" not in said and "`manners accounts link olga` makes a link" in said
    assert alone.accounts.tokens(TokenUse.SIGN_IN) == [], "none was made that nobody sees"
    shown = started(alone.folder, terminal=True)
    assert shown.count("/sign-in/") == 1
    secret = shown.partition("/sign-in/")[2].split()[0]
    assert alone.accounts.holder(secret, TokenUse.SIGN_IN) is not None
    for file in alone.folder.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("host", "base_url", "warned"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", "http://localhost:8888/proxy", False),
        ("127.0.0.1", "https://labels.example.org", False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("0.0.0.0", "https://labels.example.org", True),
        ("127.0.0.1", "http://labels.example.org", True),
        ("0.0.0.0", "http://192.168.1.20:8000", True),
    ],
)
def test_a_warning_where_http_listens_beyond_this_machine(
    alone: Place, started: Callable[..., str], host: str, base_url: str | None, warned: bool
) -> None:
    alone.accounts.add("olga", AccountRole.OWNER, PASSWORD)
    said = started(alone.folder, host, base_url)
    assert ("others in the network can read passwords and answers on the way" in said) == warned


def test_the_commands_on_accounts_speak_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ws"
    assert main(["init", str(folder)]) == 0

    def accounts(*words: str, line: str = "", code: int = 0) -> Any:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\n"))
        assert main(["accounts", *words, "--workspace", str(folder), "--json"]) == code
        said = capsys.readouterr()
        return json.loads(said.out) if code == 0 else said.err

    assert accounts("add", "olga", line=PASSWORD)["id"] == 1
    accounts("add", "anna", "--role", "annotator", line=PASSWORD)
    plain = accounts("key", "anna", "--label", "our app")
    assert (plain["scopes"], plain["days"]) == (["chat", "feedback"], 365)
    wide = accounts("key", "olga", "--scope", "export", "admin", "--days", "7")
    assert (wide["scopes"], wide["days"]) == (["export", "admin"], 7)
    accounts("invite")
    listed = accounts("list")
    assert [key["scopes"] for key in listed["keys"]] == [["chat", "feedback"], ["export", "admin"]]
    assert [link["use"] for link in listed["links"]] == ["invitation"] and plain["key"] not in json.dumps(listed)
    assert accounts("revoke", str(listed["links"][0]["id"])) == {"number": listed["links"][0]["id"], "revoked": 1}
    assert accounts("password", "anna", line="another horse") == {"name": "anna", "password": "changed"}
    assert "at least 10 characters" in accounts("password", "anna", line="short", code=1)
    with closing(Store.open(folder / "store.db")) as store:
        assert Accounts(store).check("anna", "another horse") is not None
        Accounts(store).issue(TokenUse.SESSION, "anna", label="a browser")
    [session] = accounts("sessions", "anna")["sessions"]
    assert (session["label"], accounts("sessions")["sessions"]) == ("a browser", [session])
    assert accounts("revoke", "--account", "anna") == {"account": "anna", "revoked": 2}
    assert accounts("sessions")["sessions"] == []
    assert accounts("disable", "anna") == {"disabled": "anna"} and accounts("enable", "anna") == {"enabled": "anna"}
    assert "no disabled account anna" in accounts("enable", "anna", code=1)
    assert accounts("role", "anna", "--role", "viewer") == {"name": "anna", "role": "viewer"}
    assert "the only owner" in accounts("role", "olga", "--role", "viewer", code=1)
    for wrong in (["revoke"], ["revoke", "999"], ["revoke", "1", "--account", "olga"], ["key", "nobody"]):
        assert accounts(*wrong, code=1)
    assert accounts("key", "anna", "--days", "0", code=1)
