"""What a reviewer has decided about a report: who is shown what again, and what is kept away for another reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from manners.settings import Settings
from manners.store import Store, bets, flags
from manners.store.accounts import Accounts
from manners.store.flags import FlagReason
from manners.store.tables import ResponseRow
from manners.types import AnnotatorKind, Bet
from manners.web.app import create_app
from manners.web.desk import Desk
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
