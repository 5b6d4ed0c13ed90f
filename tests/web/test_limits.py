"""What is counted, is counted by account; and whoever writes, waits among those who write."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select
from starlette.testclient import TestClient

from manners.models.requests import Done, DrawnToken, Event, GenerationRequest, Token, TokenLogprob
from manners.settings import Settings
from manners.store import Store, flags
from manners.store.accounts import Accounts
from manners.store.tables import ConversationRow, MessageRow, PromptRow, ResponseRow
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole, FinishReason
from manners.web import app, limits, shield
from manners.web.app import create_app
from manners.web.limits import CLEARINGS, DELETIONS, STORED, Limits, Rate
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted
from tests.web.test_desk import pairs
from tests.web.test_openai import REPORT

PASSWORD = "correct horse"
ASKED: dict[str, Any] = {"model": "manners", "messages": [{"role": "user", "content": "Hi"}], "n": 2}


@pytest.fixture
def site(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Iterator[Site]:
    workspace = new_workspace(tmp_path / "ws")
    store = Store.open(workspace.database)
    store.add_comparisons(pairs(*range(6)))
    accounts = Accounts(store)
    accounts.add("olga", AccountRole.OWNER, PASSWORD)
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    settings = replace(Settings(), serve=replace(Settings().serve, chat_ask=1.0, shortest_view=0))
    yield Site(workspace, settings, store, accounts, False, "http://127.0.0.1", Scripted())
    store.close()


def client(site: Site, name: str | None = None) -> TestClient:
    """Somebody with a key that is good for everything, or a browser that nobody knows."""
    headers = {}
    if name is not None:
        key = site.accounts.issue(TokenUse.KEY, name, terms=Terms(scopes=tuple(Scope)))
        headers = {"authorization": f"Bearer {key}"}
    return TestClient(create_app(site), "http://127.0.0.1", headers=headers, follow_redirects=False)


def test_what_is_counted_is_counted_by_the_accounts_number(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: set[str] = set()
    take, hold = Limits.take, Limits.hold

    def taken(self: Limits, what: str, who: str, *more: Any) -> float:
        counted.add(who)
        return take(self, what, who, *more)

    def held(self: Limits, scope: Any, who: str, size: int) -> None:
        counted.add(who)
        hold(self, scope, who, size)

    monkeypatch.setattr(Limits, "take", taken)
    monkeypatch.setattr(Limits, "hold", held)
    anna = client(site, "anna")
    number = next(one.id for one in site.accounts.all() if one.name == "anna")
    assert anna.post("/v1/chat/completions", json=ASKED).status_code == 200
    key = anna.post("/chat/begin", json={}).json()["key"]
    assert anna.post(f"/chat/{key}/say", json={"text": "Hi"}).status_code == 200
    assert counted == {f"account {number}"}
    assert isinstance(site.engine, Scripted) and {one.account for one in site.engine.asked} == counted


def test_whoever_writes_waits_among_those_who_write(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the threads of those who read they would keep pages waiting, where the database is busy."""
    write, among = Store.write, list[bool]()

    def watched(self: Store) -> AbstractContextManager[Connection]:
        places = (site.limits.writing, site.limits.labelling, site.limits.hashing)
        among.append(any(place.borrowed_tokens for place in places))
        return write(self)

    def link(use: TokenUse, **more: Any) -> str:
        secret = site.accounts.issue(use, **more)
        return f"/{'join' if use is TokenUse.INVITATION else 'sign-in'}/{secret}"

    owner, anna, browser = client(site, "olga"), client(site, "anna"), client(site)
    links = link(TokenUse.INVITATION, role=AccountRole.ANNOTATOR), link(TokenUse.SIGN_IN, account="anna")
    _ = site.desk
    monkeypatch.setattr(Store, "write", watched)

    def did(who: TestClient, path: str, form: dict[str, Any] | None = None, **body: Any) -> Any:
        before = len(among)
        answer = who.post(path, data=form) if form is not None else who.post(path, json=body)
        assert answer.status_code < 400, (path, answer.text)
        assert len(among) > before and all(among[before:]), path
        return answer.json() if answer.headers.get("content-type") == "application/json" else answer.text

    did(browser, links[0], {"name": "ben", "password": PASSWORD})
    did(browser, "/sign-out", {})
    did(browser, links[1], {})
    did(browser, "/sign-in", {"name": "anna", "password": PASSWORD})
    did(browser, "/me/password", {"old": PASSWORD, "new": "another horse"})
    did(browser, "/me/revoke", {"number": site.accounts.tokens(TokenUse.SESSION)[-1].id})
    for path, form in {
        "/accounts/invite": {"role": "viewer"},
        "/accounts/link": {"name": "ben"},
        "/accounts/key": {"name": "ben"},
        "/accounts/role": {"name": "ben", "role": "viewer"},
        "/accounts/disable": {"name": "ben"},
        "/accounts/enable": {"name": "ben"},
    }.items():
        did(owner, path, form)
    did(owner, "/accounts/revoke", {"number": site.accounts.tokens(TokenUse.INVITATION)[-1].id})
    view = did(anna, "/label/next")["pair"]["view"]
    did(anna, "/label/verdict", view=view, choice="left")
    view = did(anna, "/label/undo")["pair"]["view"]
    did(anna, "/label/flag", view=view, reason="wrong")
    [raised] = flags.undecided(site.store)
    did(owner, f"/flags/{raised.id}", {"upheld": "true"})
    key = did(anna, "/chat/begin")["key"]
    events = did(anna, f"/chat/{key}/say", text="Hi")
    comparison = next(word for word in events.split('"comparison": "')[1:]).split('"')[0]
    response = did(anna, f"/chat/{key}/choose", comparison=comparison, choice="left")["response"]
    did(anna, "/chat/thumb", response=response, value=1)
    did(anna, "/chat/report", response=response, reason="wrong")
    did(anna, f"/chat/{key}/delete")
    anna.headers["x-ask-preference"] = "1"
    pair = did(anna, "/v1/chat/completions", **ASKED)["x_pair"]["pair_id"]
    did(anna, "/v1/feedback", pair_id=pair, choice="left")
    report: dict[str, Any] = dict(REPORT)
    did(anna, "/v1/comparisons", **report)


def test_whoever_deletes_without_end_keeps_nobody_from_writing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = list[bool]()
    clear = Store.clear_traces

    def watched(self: Store) -> bool:
        cleared.append(clear(self))
        return cleared[-1]

    monkeypatch.setattr(Store, "clear_traces", watched)
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 0.0))
    anna, olga = client(site, "anna"), client(site, "olga")
    keys = [anna.post("/chat/begin", json={}).json()["key"] for _ in range(int(DELETIONS.burst) + 5)]
    answers = [anna.post(f"/chat/{key}/delete", json={}) for key in keys]
    assert [one.status_code for one in answers] == [200] * int(DELETIONS.burst) + [429] * 5
    assert len(cleared) == CLEARINGS.burst and answers[-1].headers["retry-after"] == "5"
    assert len(anna.get("/chat/all").json()["conversations"]) == 5, "what was refused is still there"
    key = olga.post("/chat/begin", json={}).json()["key"]
    assert olga.post(f"/chat/{key}/delete", json={}).status_code == 200


def test_what_is_open_to_all_has_an_end_too_by_address(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shield, "OPENED", Rate(burst=5, a_second=1e-3))
    anna, stranger = client(site, "anna"), client(site)
    elsewhere = TestClient(stranger.app, "http://127.0.0.1", client=("192.0.2.1", 1))
    assert all(f"{path}/".startswith(shield.OPEN) for path in app.OPEN), "and all that is"
    found = [stranger.get(path).status_code for path in ("/sign-in", "/static/manners.css", "/health") * 2]
    assert found == [200] * 5 + [429]
    refused = stranger.get("/health")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 1
    assert elsewhere.get("/sign-in").status_code == 200, "nobody else"
    assert anna.get("/label").status_code == 200, "nor whoever has signed in, behind the same address"


def account_of(site: Site, name: str) -> str:
    return f"account {next(one.id for one in site.accounts.all() if one.name == name)}"


def test_what_an_account_has_stored_for_good_has_an_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 0.0))
    anna, olga = client(site, "anna"), client(site, "olga")
    assert not site.limits.take("stored", account_of(site, "anna"), STORED, STORED.burst - 4_000_000)
    report: dict[str, Any] = dict(REPORT)
    long = [report | {"prompt": f"{number} " + "x" * 1_500_000} for number in range(4)]
    answers = [anna.post("/v1/comparisons", json=one) for one in long]
    assert [one.status_code for one in answers] == [201, 201, 429, 429]
    assert int(answers[-1].headers["retry-after"]) == pytest.approx((3 * 1.5e6 - 4e6) / STORED.a_second, abs=2)
    assert olga.post("/v1/comparisons", json=long[2]).status_code == 201, "and nobody else's"


def test_whatever_is_stored_counts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 0.0))
    anna = client(site, "anna")
    view = anna.post("/label/next").json()["pair"]["view"]
    key = anna.post("/chat/begin", json={}).json()["key"]
    before = site.store.counts(), len(flags.undecided(site.store))
    site.limits.take("stored", account_of(site, "anna"), STORED, STORED.burst)
    for path, body in {
        "/v1/comparisons": REPORT,
        "/v1/feedback": {"pair_id": "p", "choice": "left", "comment": "because"},
        "/label/verdict": {"view": view, "choice": "left", "comment": "because"},
        "/label/flag": {"view": view, "reason": "wrong", "note": "because"},
        "/chat/report": {"response": "1-1", "reason": "wrong", "note": "because"},
        f"/chat/{key}/say": {"text": "Hi"},
    }.items():
        assert anna.post(path, json=body).status_code == 429, path
    asks = {"x-ask-preference": "1"}
    assert anna.post("/v1/chat/completions", json=ASKED, headers=asks).status_code == 429, "a pair is stored"
    assert anna.post("/v1/chat/completions", json=ASKED).status_code == 200, "an answer is not"
    assert (site.store.counts(), len(flags.undecided(site.store))) == before


def test_a_conversation_is_as_long_as_a_request_may_be_and_no_longer(site: Site) -> None:
    anna = client(site, "anna")
    key = anna.post("/chat/begin", json={}).json()["key"]
    codes = [anna.post(f"/chat/{key}/say", json={"text": f"{n}" + "é" * 99_000}).status_code for n in range(12)]
    assert codes == [200] * 10 + [413] * 2, "ten times 198 KB"
    with site.store.read() as connection:
        stored = [sum(len(one["content"].encode()) for one in turns) for turns in prompts(connection)]
    assert max(stored) <= 2_000_000 and isinstance(site.engine, Scripted) and len(site.engine.asked) == 10
    assert anna.post(f"/chat/{key}/say", json={"text": "Hi"}).status_code == 200, "a short message has room"
    refused = anna.post(f"/chat/{key}/say", json={"text": "x" * 50_000})
    assert "begin a new one" in refused.json()["error"]["message"]


def prompts(connection: Connection) -> list[Any]:
    return list(connection.execute(select(PromptRow.turns)).scalars())


@pytest.mark.parametrize(("there", "code"), [(998, 200), (1000, 413)])
def test_a_conversation_has_a_thousand_messages_at_most(site: Site, there: int, code: int) -> None:
    anna = client(site, "anna")
    key = anna.post("/chat/begin", json={}).json()["key"]
    assert anna.post(f"/chat/{key}/say", json={"text": "Hi"}).status_code == 200
    with site.store.write() as connection:
        chat = connection.execute(select(ConversationRow)).one()
        answer = connection.execute(select(ResponseRow.id).order_by(ResponseRow.id.desc()).limit(1)).scalar_one()
        shared = {"conversation_id": chat.id, "comparison_id": None, "created_at": chat.created_at}
        both: list[dict[str, Any]] = [{"text": "Hi", "response_id": None}, {"text": None, "response_id": answer}]
        connection.execute(insert(MessageRow), [one | shared for one in both] * (there // 2 - 1))
    assert anna.post(f"/chat/{key}/say", json={"text": "Hi"}).status_code == code


class Reported(DrawnToken):
    """A token's report that can be told from those of other tests."""


@dataclass
class Reporting(Scripted):
    """Reports every token, and at the end how many of these reports are still kept."""

    kept: int = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        for number in range(50):
            said = TokenLogprob(f"{number} ", -1.0, f"{number} ".encode())
            yield Token(0, said.text, (Reported(said, (said,)),))
        self.kept = sum(type(one) is Reported for one in gc.get_objects())
        yield Done(0, FinishReason.STOP, 3, 50, self.state.version)


def test_reports_that_are_given_at_once_are_held_as_text_and_against_a_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Reporting()
    asked = ASKED | {"n": 1, "logprobs": True, "top_logprobs": 1}
    held = list[int]()
    hold = Limits.hold

    def watched(self: Limits, scope: Any, who: str, size: int, *more: Any) -> None:
        hold(self, scope, who, size, *more)
        held.append(size)

    monkeypatch.setattr(Limits, "hold", watched)
    anna = client(replace(site, engine=engine), "anna")
    answer = anna.post("/v1/chat/completions", json=asked)
    told = answer.json()["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in told] == [f"{number} " for number in range(50)]
    assert told[7]["top_logprobs"] == [{"token": "7 ", "logprob": -1.0, "bytes": [55, 32]}]
    assert engine.kept <= 2, "the last one may be on its way"
    reports = held[-50:]
    assert 0.9 * len(answer.content) < sum(reports) < len(answer.content) and not site.limits._all.total()
    monkeypatch.setattr(limits, "HELD_BY_ONE", limits.REQUEST_BYTES + 2000)
    refused = anna.post("/v1/chat/completions", json=asked)
    assert refused.status_code == 429 and "stream it" in refused.json()["error"]["message"]
    assert not site.limits._all.total(), "all of it is given back"


def test_a_stream_keeps_no_reports_that_it_has_given(site: Site) -> None:
    engine = Reporting()
    asked = ASKED | {"n": 1, "stream": True, "logprobs": True, "top_logprobs": 1}
    answer = client(replace(site, engine=engine), "anna").post("/v1/chat/completions", json=asked)
    assert answer.text.count('"top_logprobs"') == 50 and '"content": "49 "' in answer.text
    assert engine.kept <= 2, "the last one may be on its way"
