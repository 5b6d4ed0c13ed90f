"""What a reviewer has decided about a report: who is shown what again, and what is kept away for another reason."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select
from starlette.responses import Response
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store import Store, bets, flags
from manners.store.accounts import Accounts
from manners.store.flags import FlagReason
from manners.store.tables import ResponseRow
from manners.types import Annotator, AnnotatorKind, Bet
from manners.web import limits
from manners.web.app import create_app
from manners.web.desk import Desk
from manners.web.limits import REPORTS
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted
from tests.web.test_desk import ANNA, BEN, ONCE, Clock, asked, clock, number, pairs, store, workspace

__all__ = ["clock", "store", "workspace"]


@pytest.mark.parametrize("about", ["pair", "answer"])
def test_what_is_reported_twice_is_shown_again_once_both_are_dismissed(
    workspace: Workspace, store: Store, clock: Clock, about: str
) -> None:
    [key] = store.add_comparisons(pairs(0))
    with store.write() as connection:
        answer = connection.execute(select(ResponseRow.id).where(ResponseRow.text == "r0")).scalar_one()
        on = {"comparison": key} if about == "pair" else {"response": answer}
        for annotator in (ANNA, BEN):
            flags.raise_flag(connection, annotator, FlagReason.WRONG, "", **on)
    settings = replace(Settings(), serve=ONCE)
    site = Site(workspace, settings, store, Accounts(store), True, "http://127.0.0.1", Scripted())
    client = TestClient(create_app(site), "http://127.0.0.1")
    assert site.desk.next(ANNA) is None
    for flag, shown in zip(flags.undecided(store), (None, 0), strict=True):
        assert client.post(f"/flags/{flag.id}", data={"upheld": "false"}, follow_redirects=False).status_code == 303
        assert number(site.desk.next(ANNA)) == shown


def test_a_dismissed_report_opens_nothing_that_is_kept_away_for_another_reason(
    workspace: Workspace, store: Store, clock: Clock
) -> None:
    [key] = store.add_comparisons([asked(1)])
    with store.write() as connection:
        bets.place(connection, [(key, Bet(AnnotatorKind.HUMAN, 1.0, 1))])
        flags.raise_flag(connection, ANNA, FlagReason.WRONG, "", comparison=key)
    desk = Desk(workspace, store, replace(ONCE, overlap=9, agree=9), 0)
    [flag] = flags.undecided(store)
    desk.reconsider(flags.decide(store, flag.id, upheld=False))
    assert desk.next(BEN) is None


def test_who_reports_without_end_takes_a_few_pairs_from_the_others(
    workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: 0.0))
    store.add_comparisons(pairs(*range(30)))
    site = Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted())
    client = TestClient(create_app(site), "http://127.0.0.1")
    views = [client.post("/label/next").json()["pair"]["view"] for _ in range(24)]
    answers = [client.post("/label/flag", json={"view": view, "reason": "other"}) for view in views]
    assert [one.status_code for one in answers] == [200] * int(REPORTS.burst) + [429] * 4
    assert answers[-1].headers["retry-after"] == "60" and "too many" in answers[-1].json()["error"]["message"]
    assert flags.count_undecided(store) == REPORTS.burst
    with store.read() as connection:
        assert len(flags.held_back(connection)) == REPORTS.burst, "and no more are kept from the others"
    chats = client.post("/chat/report", json={"response": "1-1", "reason": "other"})
    assert chats.status_code == 429, "answers of the chat count with them"


@pytest.mark.parametrize("about", ["pair", "answer"])
def test_one_person_has_one_open_report_of_a_thing(store: Store, about: str) -> None:
    keys = store.add_comparisons(pairs(0, 1))
    with store.write() as connection:
        texts = select(ResponseRow.id).where(ResponseRow.text.in_(("r0", "r1"))).order_by(ResponseRow.id)
        answers = connection.execute(texts).scalars().all()
    named = [{"comparison": key} for key in keys] if about == "pair" else [{"response": one} for one in answers]

    def report(who: Annotator, thing: int, note: str) -> None:
        with store.write() as connection:
            flags.raise_flag(connection, who, FlagReason.WRONG, note, **named[thing])

    for who, thing, note in ((ANNA, 0, "once"), (ANNA, 0, "twice"), (BEN, 0, "ben's"), (ANNA, 1, "another")):
        report(who, thing, note)
    assert sorted(flag.note for flag in flags.undecided(store)) == ["another", "ben's", "twice"]
    for flag in flags.undecided(store):
        flags.decide(store, flag.id, upheld=False)
    report(ANNA, 0, "again")
    assert [flag.note for flag in flags.undecided(store)] == ["again"], "what was decided is open again"


def test_a_reviewer_is_shown_fifty_and_everybodys_turn_comes(
    workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = store.add_comparisons(pairs(*range(80)))
    with store.write() as connection:
        for key in keys:
            flags.raise_flag(connection, ANNA, FlagReason.OTHER, "flood", comparison=key)
        for key in keys[:2]:
            flags.raise_flag(connection, BEN, FlagReason.ILLEGAL, "help", comparison=key)
    found = flags.undecided(store)
    assert len(found) == flags.MOST_SHOWN and [one.note for one in found[:4]] == ["flood", "help"] * 2
    in_the_loop = set[bool]()
    page = Site.page

    def watched(*given: Any, **more: Any) -> Response:
        in_the_loop.add(asyncio._get_running_loop() is not None)
        return page(*given, **more)

    monkeypatch.setattr(Site, "page", watched)
    site = Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted())
    shown = TestClient(create_app(site), "http://127.0.0.1").get("/flags").text
    assert shown.count('<section class="card">') == flags.MOST_SHOWN and "32 more wait behind these." in shown
    assert in_the_loop == {False}, "whoever else is served waits for no page of reports"
