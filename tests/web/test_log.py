"""What is done is on record, by account and address; and no fault, refusal or log line says anybody's words."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from manners.errors import MannersError, described
from manners.settings import Settings
from manners.store import Store, audit
from manners.store.accounts import Accounts
from manners.store.audit import Deed, Event
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole, PromptUse, Role, Turn
from manners.web import programs
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place, run
from tests.web.scripted import Scripted

SECRET = "the code is 7-3-1, says Zoë"
FROM = ("192.0.2.7", 4711)


def site_of(place: Place) -> Site:
    workspace = Workspace.open(place.folder)
    return Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", Scripted())


def client_of(place: Place, **headers: str) -> TestClient:
    app = create_app(site_of(place))
    return TestClient(app, "http://127.0.0.1", headers=headers, follow_redirects=False, client=FROM)


def log_of(place: Place) -> list[tuple[str, str | None, str, str]]:
    found = audit.entries(place.store)
    return [(one.event, one.name, one.address, one.about) for one in reversed(found)]


def test_who_came_in_and_what_an_owner_did_is_on_record(place: Place) -> None:
    client = client_of(place)
    client.post("/sign-in", data={"name": "olga", "password": "wrong horse"})
    client.post("/sign-in", data={"name": "olga", "password": "correct horse"})
    invited = client.post("/accounts/invite", data={"role": "annotator"}).text
    other = client_of(place)
    joined = invited[invited.index("/join/") :].partition("<")[0]
    other.post(joined, data={"name": "anna", "password": "correct horse"})
    client.post("/accounts/role", data={"name": "anna", "role": "reviewer"})
    client.post("/accounts/key", data={"name": "anna", "label": SECRET})
    key = place.accounts.tokens(TokenUse.KEY)[0].id
    client.post("/accounts/revoke", data={"number": str(key)})
    client.post("/accounts/link", data={"name": "anna"})
    client.post("/accounts/disable", data={"name": "anna"})
    client.post("/accounts/enable", data={"name": "anna"})
    client.post("/me/password", data={"old": "correct horse", "new": "another horse"})
    [session] = [one.id for one in place.accounts.tokens(TokenUse.SESSION, account="olga")]
    client.post("/me/revoke", data={"number": str(session)})
    again = client_of(place)
    again.post(f"/sign-in/{place.accounts.issue(TokenUse.SIGN_IN, 'olga')}", data={"password": "third horse"})
    again.post("/sign-out")
    address = FROM[0]
    assert log_of(place) == [
        ("sign_in_failed", None, address, ""),
        ("signed_in", "olga", address, ""),
        ("invited", "olga", address, "role annotator"),
        ("joined", "anna", address, ""),
        ("role_set", "olga", address, "account 2"),
        ("key_made", "olga", address, "account 2"),
        ("revoked", "olga", address, f"token {key}"),
        ("link_made", "olga", address, "account 2"),
        ("account_disabled", "olga", address, "account 2"),
        ("account_enabled", "olga", address, "account 2"),
        ("password_set", "olga", address, ""),
        ("revoked", "olga", address, f"token {session}"),
        ("signed_in", "olga", address, "link"),
        ("password_set", "olga", address, ""),
        ("signed_out", "olga", address, ""),
    ]


def test_deletions_and_exports_are_on_record_without_a_word_of_them(place: Place) -> None:
    client = client_of(place, authorization=f"Bearer {place.key('anna')}")
    key = client.post("/chat/begin").json()["key"]
    client.post(f"/chat/{key}/say", json={"text": SECRET})
    client.get("/chat/export")
    client.post(f"/chat/{key}/delete")
    assert [line[0] for line in log_of(place)] == ["exported", "conversation_deleted"]
    assert {line[1:3] for line in log_of(place)} == {("anna", FROM[0])}


def test_the_owner_reads_it_on_a_page(place: Place) -> None:
    audit.record(place.store, Deed(Event.SIGNED_IN, 1, "192.0.2.9"))
    key = place.accounts.issue(TokenUse.KEY, "olga", terms=Terms(scopes=tuple(Scope)))
    client = client_of(place, authorization=f"Bearer {key}")
    page = client.get("/log").text
    assert "signed in" in page and "192.0.2.9" in page and "olga (account 1)" in page and "1 of 1 lines" in page


def test_without_accounts_nobody_is_named(alone: Place) -> None:
    workspace = Workspace.open(alone.folder)
    site = Site(workspace, Settings(), alone.store, alone.accounts, True, "http://127.0.0.1", Scripted())
    client = TestClient(create_app(site), "http://127.0.0.1", client=FROM)
    client.get("/chat/export")
    assert log_of(alone) == [("exported", None, FROM[0], "conversations")]


# Errors


def bodies() -> dict[str, Any]:
    long = SECRET * 3
    return {
        "/v1/comparisons": {"prompt": long, "left": {"text": long}, "right": {"text": f"{long}."}, "choice": "left"},
        "/v1/feedback": {"pair_id": "pair_x", "choice": "left", "comment": long},
        "/chat/thumb": {"response": "1-0", "value": 1},
        "/chat/report": {"response": "1-0", "reason": "other", "note": long},
        "/label/verdict": {"view": 1, "choice": "left", "comment": long, "reasons": [long]},
        "/label/flag": {"view": 1, "reason": "other", "note": long},
        "/v1/chat/completions": {"model": "x", "messages": [{"role": "user", "content": long}]},
    }


@pytest.mark.parametrize("how", ["whole", "wrong types", "broken", "a table is gone", "a row is refused", "a fault"])
def test_no_log_and_no_answer_but_to_whoever_said_it_has_their_words(
    place: Place, heard: io.StringIO, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    client = client_of(place, authorization=f"Bearer {place.key('anna')}")
    key = client.post("/chat/begin").json()["key"]
    out, err = io.StringIO(), io.StringIO()
    if how == "a table is gone":
        with place.store.write() as connection:
            for table in ("thumbs", "flags", "bets"):
                connection.exec_driver_sql(f"DROP TABLE {table}")
            connection.exec_driver_sql("ALTER TABLE responses RENAME TO elsewhere")
    elif how == "a row is refused":
        monkeypatch.setattr("manners.store.texts.prompt_digest", lambda _: None)  # which no table takes
    elif how == "a fault":

        def failing(*_: object, **__: object) -> Any:
            raise KeyError(SECRET) from ValueError(SECRET)

        for name in ("comparison", "verdict"):
            monkeypatch.setattr(programs.JudgedComparison, name, failing)
        monkeypatch.setattr("manners.store.chats.response_ids", failing)
    said = ""
    statuses: list[int] = []
    with redirect_stdout(out), redirect_stderr(err):
        for path, body in {**bodies(), f"/chat/{key}/say": {"text": SECRET}}.items():
            if how == "wrong types":
                body = {name: [SECRET] if not isinstance(value, list) else SECRET for name, value in body.items()}
            content = json.dumps(body, ensure_ascii=False).encode()
            content = content[:-3] if how == "broken" else content
            answer = client.post(path, content=content, headers={"content-type": "application/json"})
            said += "" if how in ("whole", "a table is gone") and "chat" in path else answer.text
            statuses.append(answer.status_code)
        for path in (f"/chat/{key}", "/chat/all", "/chat/export"):  # which is theirs to read
            statuses.append(client.get(path).status_code)
    logged = heard.getvalue() + out.getvalue() + err.getvalue()
    assert SECRET not in logged and "7-3-1" not in logged
    assert "7-3-1" not in said
    if how == "whole":
        assert statuses.count(200) + statuses.count(201) >= 5
    if how == "a fault":
        assert 500 in statuses and "KeyError from ValueError" in logged and "programs.py" in logged


def test_what_a_database_refuses_is_told_without_the_row(store_of_both: Store) -> None:
    store = store_of_both
    with pytest.raises(Exception) as refused, store.write() as connection:
        from sqlalchemy import insert

        from manners.store.tables import PromptRow

        row = {"digest": None, "turns": [{"content": SECRET}], "use": SECRET, "source": SECRET}
        connection.execute(insert(PromptRow), row)
    error: BaseException | None = refused.value
    while error is not None:
        assert "7-3-1" not in str(error) and "7-3-1" not in repr(error.args)
        error = error.__cause__ or error.__context__


@pytest.fixture
def store_of_both(new_store: Callable[[], str]) -> Iterator[Store]:
    store = Store.open(new_store())
    yield store
    store.close()


def test_a_fault_is_described_by_kinds_and_places() -> None:
    try:
        try:
            dict[str, str]()[SECRET]
        except KeyError as error:
            raise sqlite3.OperationalError(SECRET) from error
    except sqlite3.OperationalError as fault:
        said = described(fault)
    assert said.startswith("OperationalError from KeyError at test_log.py:") and "7-3-1" not in said


def test_what_was_begun_is_not_answered_twice(place: Place) -> None:
    from manners.web.faults import Faults

    async def begins(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError(SECRET)

    sent: list[Any] = []

    async def answer() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        await Faults(begins)({"type": "http", "method": "GET"}, lambda: None, send)  # type: ignore[arg-type,return-value]

    run(answer())
    assert [one["type"] for one in sent] == ["http.response.start", "http.response.body"]


def test_numbers_beyond_any_database_are_refused_with_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from manners.cli import main

    root = tmp_path / "ws"
    store = Store.create(Workspace.create(root).database)
    store.add_prompts([(Turn(Role.USER, "p"),)], PromptUse.TRAIN, "x")
    store.close()
    for command in (
        ["comparisons", "gold", "9" * 30, "--choice", "left"],
        ["comparisons", "gold", "-1", "--choice", "left"],
        ["prompts", "list", "--limit", "9" * 30],
        ["log", "--limit", "9" * 30],
        ["log", "--limit", "-1"],
    ):
        code = main([*command, "--workspace", str(root)])
        err = capfd.readouterr().err
        assert "Traceback" not in err and (code == 0 or err.startswith("manners: ")), (command, err)


def test_a_bad_account_name_is_no_line_of_the_log(place: Place) -> None:
    with pytest.raises(MannersError):
        Accounts(place.store).add("", AccountRole.VIEWER)
    assert log_of(place) == []
