"""The desk without a server: what it takes in, gives out, gets back and counts."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from manners.feedback.queue import MOST_AT_ONCE, SPACING
from manners.settings import ServeSettings, Settings
from manners.store import Store, bets, flags, gold, redaction
from manners.store.accounts import Accounts
from manners.store.flags import FlagReason
from manners.store.tables import ResponseRow, ViewRow
from manners.store.views import Beside, Given, JudgedAlready, Shown
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Bet,
    Choice,
    Comparison,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.web import desk as module
from manners.web.app import create_app
from manners.web.desk import Desk, Tally
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.scripted import Scripted

ANNA, BEN = (Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben"))
ONCE = ServeSettings(overlap=1, agree=1, repeat_share=0.0, gold_share=0.0, shortest_view=0)


@dataclass
class Clock:
    now: float = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made))
    return made


@pytest.fixture
def workspace(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Workspace:
    return new_workspace(tmp_path / "project")


@pytest.fixture
def store(workspace: Workspace) -> Iterator[Store]:
    opened = Store.open(workspace.database)
    yield opened
    opened.close()


def pairs(*numbers: int) -> list[Comparison]:
    return [
        Comparison((Turn(Role.USER, f"{n}?"),), Response(f"l{n}", "one"), Response(f"r{n}", "two"), AskedHow.RANDOM)
        for n in numbers
    ]


def number(shown: Shown | None) -> int | None:
    return None if shown is None else int(shown.prompt[-1].text.removesuffix("?"))


def test_what_others_store_is_seen_at_the_next_look(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0))
    here, there = Desk(workspace, store, ONCE, 0), Desk(workspace, store, ONCE, 0)
    shown = here.next(ANNA)
    assert shown is not None and number(shown) == 0
    here.judge(ANNA, Given(shown.view, Choice.LEFT))
    assert here.next(ANNA) is here.next(BEN) is None
    store.add_comparisons(pairs(1))
    clock.now += 2.9
    assert here.next(ANNA) is None
    clock.now += 0.1
    assert number(here.next(ANNA)) == 1
    assert [number(there.next(BEN)), there.next(BEN)] == [1, None], "one is judged, and the other a lease of this desk"


def test_what_is_before_somebody_is_theirs_until_their_page_is_new(
    workspace: Workspace, store: Store, clock: Clock
) -> None:
    store.add_comparisons(pairs(0))
    desk = Desk(workspace, store, ONCE, 0)
    assert number(desk.next(ANNA)) == 0 and desk.next(BEN) is None
    desk.begin(ANNA)
    assert number(desk.next(BEN)) == 0 and desk.next(ANNA) is None
    clock.now += 60 * ONCE.lease
    assert number(desk.next(ANNA)) == 0


def test_a_page_that_is_loaded_anew_has_its_pair_again(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0, 1, 2))
    desk = Desk(workspace, store, ONCE, 0)
    shown, ahead = desk.next(ANNA), desk.next(ANNA)
    assert shown is not None and ahead is not None
    assert desk.begin(ANNA, shown.view) == shown, "sides as they were, and the same view"
    assert desk.begin(BEN, shown.view) is None, "it was not shown to him"
    assert number(shown) not in {number(desk.next(BEN)), number(desk.next(BEN))}, "it is hers still"
    assert desk.next(BEN) is None and desk.next(ANNA) is None
    desk.judge(ANNA, Given(shown.view, Choice.LEFT))
    assert desk.begin(ANNA, shown.view) is None, "it is answered"
    again = desk.undo(ANNA)
    assert again is not None and desk.begin(ANNA, again.view) == replace(again, before=None)
    desk.flag(ANNA, again.view, FlagReason.WRONG, "")
    assert desk.begin(ANNA, again.view) is None and desk.begin(ANNA, "nonsense") is None


def test_who_takes_a_verdict_back_sees_its_comparison_again(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0, 1))
    desk = Desk(workspace, store, ONCE, 0)
    assert desk.undo(ANNA) is None
    shown = desk.next(ANNA)
    assert shown is not None and desk.tally(ANNA) == Tally(0, 0, 1)
    desk.judge(ANNA, Given(shown.view, Choice.LEFT, 3, ("clearer",), "why"))
    assert (desk.tally(ANNA), desk.tally(BEN)) == (Tally(1, 1, 1), Tally(0, 0, 1))
    again = desk.undo(ANNA)
    assert again is not None and again.before == Beside(3, ("clearer",), "why")
    assert replace(again, view=shown.view, before=None) == shown and again.view != shown.view
    assert desk.tally(ANNA) == Tally(0, 0, 1) and number(desk.next(BEN)) == 1 - (number(shown) or 0)
    desk.judge(ANNA, Given(again.view, Choice.RIGHT))
    assert desk.tally(ANNA) == Tally(1, 1, 0)


def test_today_begins_at_midnight(workspace: Workspace, store: Store) -> None:
    first, second = store.add_comparisons(pairs(0, 1))
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    moments = (midnight, midnight - timedelta(microseconds=1))
    given = [Verdict(Choice.LEFT, ANNA, created_at=moment) for moment in moments]
    store.add_verdicts(list(zip((first, second), given, strict=True)))
    tally = Desk(workspace, store, ONCE, 0).tally(ANNA)
    assert (tally.today, tally.total) == (1, 2) or datetime.now(UTC).date() != now.date()
    since = datetime.now(UTC) - midnight + timedelta(hours=1)
    tally = Desk(workspace, store, ONCE, 0).tally(ANNA, since)
    assert (tally.today, tally.total) == (2, 2), "from when their day began"


def test_what_is_reported_is_nobodys_until_it_is_allowed(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0))
    desk = Desk(workspace, store, replace(ONCE, overlap=2, agree=2), 0)
    shown = desk.next(ANNA)
    assert shown is not None
    desk.flag(ANNA, shown.view, FlagReason.WRONG, "see there")
    assert desk.next(BEN) is None
    assert Desk(workspace, store, replace(ONCE, overlap=2, agree=2), 0).next(BEN) is None, "read from the store, too"
    (key,) = (comparison.id for comparison in store.comparisons())
    assert key is not None
    desk.hold_back(key, False)
    assert number(desk.next(BEN)) == 0


@pytest.mark.parametrize("gone", ["prompt", "left", "right"])
@pytest.mark.parametrize("how", ["new", "gold", "repeat"])
def test_what_was_deleted_by_another_process_is_shown_to_nobody_though_no_look_has_seen_it(
    workspace: Workspace, store: Store, clock: Clock, how: str, gone: str
) -> None:
    [first] = store.add_comparisons(pairs(0))
    shares = replace(ONCE, overlap=9, agree=9, repeat_share=0.5 * (how == "repeat"), gold_share=0.5 * (how == "gold"))
    if how == "gold":
        gold.add(store, first, Choice.LEFT)
    desk = Desk(workspace, store, shares, 0)
    before = desk.next(ANNA)
    assert number(before) == 0 and before is not None
    desk.judge(ANNA, Given(before.view, Choice.LEFT))
    if how == "repeat":
        store.add_comparisons(pairs(*range(1, 12)))
        clock.now += 60 * ONCE.lease
        for _ in range(SPACING):
            shown = desk.next(ANNA)
            assert shown is not None and number(shown) != 0
            desk.judge(ANNA, Given(shown.view, Choice.LEFT))
    with store.write() as connection:
        side = None if gone == "prompt" else ResponseRow.text == {"left": "l0", "right": "r0"}[gone]
        prompts = [1] if side is None else []
        answers = [] if side is None else connection.execute(select(ResponseRow.id).where(side)).scalars().all()
        redaction.blank_texts(connection, prompts, answers)
    asked = [desk.next(annotator) for annotator in (ANNA, BEN) for _ in range(15)]
    shown_texts = {text for one in asked if one is not None for text in (one.prompt[-1].text, one.left, one.right)}
    assert DELETED not in shown_texts and bool(shown_texts) == (how == "repeat")
    with store.read() as connection:
        views = connection.execute(select(func.count()).select_from(ViewRow)).scalar_one()
    assert views == 1 + (how == "repeat") * SPACING + sum(one is not None for one in asked), "no record says it was"


def test_a_verdict_on_what_was_deleted_is_not_taken_back(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0))
    desk = Desk(workspace, store, ONCE, 0)
    shown = desk.next(ANNA)
    assert shown is not None
    desk.judge(ANNA, Given(shown.view, Choice.LEFT))
    with store.write() as connection:
        redaction.blank_texts(connection, [1], [])
    assert desk.undo(ANNA) is None and store.counts().verdicts[AnnotatorKind.HUMAN] == 1
    assert len(store.comparisons()[0].verdicts) == 1


@pytest.mark.parametrize("about", ["pair", "answer"])
def test_undoing_shows_nobody_what_was_reported_meanwhile(
    workspace: Workspace, store: Store, clock: Clock, about: str
) -> None:
    [key] = store.add_comparisons(pairs(0))
    desk = Desk(workspace, store, replace(ONCE, overlap=3, agree=3), 0)
    shown = desk.next(ANNA)
    assert shown is not None
    desk.judge(ANNA, Given(shown.view, Choice.LEFT))
    with store.write() as connection:
        answer = connection.execute(select(ResponseRow.id).where(ResponseRow.text == "r0")).scalar_one()
        on = {"comparison": key} if about == "pair" else {"response": answer}
        flags.raise_flag(connection, BEN, FlagReason.ILLEGAL, "", **on)
    assert desk.undo(ANNA) is None and len(store.comparisons()[0].verdicts) == 1
    [flag] = flags.undecided(store)
    flags.decide(store, flag.id, False)
    assert number(desk.undo(ANNA)) == 0 and not store.comparisons()[0].verdicts, "it was dismissed"


def test_where_no_reward_model_has_been_trained_nothing_is_called_damaged(
    workspace: Workspace, store: Store, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(workspace, store, ONCE, 0)
    assert desk.next(ANNA) is None and capsys.readouterr().err == ""
    file = workspace.root / "runs" / "disagreement.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}", encoding="utf-8")
    clock.now += module.LOOK_EVERY
    assert desk.next(ANNA) is None and f"{file} is damaged ('spread')" in capsys.readouterr().err


def test_where_the_reward_models_members_differ_is_asked_first(
    workspace: Workspace, store: Store, clock: Clock
) -> None:
    keys = store.add_comparisons(pairs(*range(20)))
    file = workspace.root / "runs" / "disagreement.json"
    file.parent.mkdir(exist_ok=True)

    def differ(about: int, at: int) -> None:
        file.write_text(json.dumps({"spread": {str(keys[about]): 0.5}}), encoding="utf-8")
        os.utime(file, (at, at))

    differ(7, 1000)
    half = replace(ONCE, random_share=0.5, overlap=100, agree=100)
    people = [Annotator(f"person {seed}", AnnotatorKind.HUMAN) for seed in range(40)]
    first = [number(Desk(workspace, store, half, seed).next(one)) for seed, one in enumerate(people)]
    assert 10 < first.count(7) < 32
    with store.write() as connection:
        connection.execute(update(ViewRow).values(expires_at=datetime.now(UTC)))
    desk = Desk(workspace, store, replace(ONCE, random_share=0.3), 3)
    differ(9, 2000)
    clock.now += module.LOOK_EVERY
    drawn = [number(desk.next(Annotator(f"person{n}", AnnotatorKind.HUMAN))) for n in range(8)]
    assert 9 in drawn[:4] and len(set(drawn)) == 8


def asked(number: int) -> Comparison:
    both = Response(f"{number} a", "initial"), Response(f"{number} b", "policy-1")
    said = (Verdict(Choice.LEFT, ANNA),)
    return Comparison((Turn(Role.USER, str(number)),), *both, AskedHow.EVALUATION, 1.0, said)


@pytest.mark.parametrize(("kind", "left"), [(AnnotatorKind.HUMAN, 1), (AnnotatorKind.AI, 2)])
def test_nobody_is_asked_for_a_verdict_that_would_come_after_the_bet(
    tmp_path: Path, kind: AnnotatorKind, left: int
) -> None:
    """A study that was closed with one verdict each, of which one comparison has been opened since."""
    with closing(Store.create(tmp_path / "store.db")) as store:
        counted, _ = store.add_comparisons([asked(1), asked(2)])
        with store.write() as connection:
            bets.place(connection, [(counted, Bet(kind, 1.0, 1))])
        desk = Desk(Workspace(tmp_path), store, ServeSettings(), seed=0)
        assert desk.tally(BEN).left == left
        shown = [found.left[0] for _ in range(2) if (found := desk.next(BEN)) is not None]
        assert sorted(shown) == ["1", "2"][-left:]


def test_whoever_is_at_the_desk_keeps_no_other_page_waiting(
    workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its lock and for the database: in threads, and never where all requests are taken."""
    called: list[tuple[str, bool]] = []

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(Desk, name)

        def call(*given: Any, **more: Any) -> Any:
            called.append((name, asyncio._get_running_loop() is not None))
            return real(*given, **more)

        return call

    names = ("begin", "next", "judge", "undo", "flag", "hold_back", "reconsider", "tally")
    for name in names:
        monkeypatch.setattr(Desk, name, watched(name))
    store.add_comparisons(pairs(*range(4)))
    settings = replace(Settings(), serve=replace(ONCE, chat_ask=1.0))
    site = Site(workspace, settings, store, Accounts(store), True, "http://127.0.0.1", Scripted())
    _ = site.desk
    client = TestClient(create_app(site), "http://127.0.0.1")

    def post(path: str, **body: Any) -> Any:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.text

    post("/label/begin")
    view = post("/label/next")["pair"]["view"]
    post("/label/verdict", view=view, choice="left", seconds=1.0)
    view = post("/label/undo")["pair"]["view"]
    post("/label/flag", view=view, reason=FlagReason.WRONG)
    assert client.get("/label/progress").status_code == 200
    [raised] = flags.undecided(store)
    decided = client.post(f"/flags/{raised.id}", data={"upheld": "false"}, follow_redirects=False)
    assert decided.status_code == 303
    key = post("/chat/begin")["key"]
    assert "comparison" in post(f"/chat/{key}/say", text="How do I bake bread?")
    post(f"/chat/{key}/delete")
    assert {name for name, _ in called} == set(names) and not [name for name, in_loop in called if in_loop]


def test_what_is_on_a_screen_is_kept_over_a_restart(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0, 1, 2))
    desk = Desk(workspace, store, ONCE, 0)
    first, second, bens = desk.next(ANNA), desk.next(ANNA), desk.next(BEN)  # a page fetches the next pair ahead
    assert first is not None and second is not None and bens is not None
    desk.judge(BEN, Given(bens.view, Choice.SKIP))

    clock.now = 10_000.0  # another process counts from elsewhere
    again = Desk(workspace, store, ONCE, 0)
    assert number(again.next(BEN)) is None, "both are Anna's, and he has skipped the third"
    assert number(again.next(ANNA)) == number(bens), "what somebody has skipped is still open, for others"
    again.judge(ANNA, Given(first.view, Choice.LEFT))
    kept = again.begin(ANNA, second.view)
    assert kept == second and number(again.next(BEN)) is None
    clock.now += 60 * ONCE.lease - 60
    assert again.next(BEN) is None
    clock.now += 61
    assert number(again.next(BEN)) == number(second), "for as long as a pair is kept, and no longer"


def test_a_restart_keeps_no_longer_what_nobody_may_have_any_more(
    workspace: Workspace, store: Store, clock: Clock
) -> None:
    store.add_comparisons(pairs(0))
    assert number(Desk(workspace, store, ONCE, 0).next(ANNA)) == 0
    with store.write() as connection:
        connection.execute(update(ViewRow).values(expires_at=datetime.now(UTC) + timedelta(seconds=30)))
    again = Desk(workspace, store, ONCE, 0)
    assert again.next(BEN) is None
    clock.now += 31
    assert number(again.next(BEN)) == 0, "half a minute of it was left"
    with store.write() as connection:
        connection.execute(update(ViewRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert number(Desk(workspace, store, ONCE, 0).next(BEN)) == 0


def test_a_restart_keeps_no_more_for_one_person_than_before(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(*range(MOST_AT_ONCE + 3)))
    desk = Desk(workspace, store, ONCE, 0)
    taken = [number(desk.next(ANNA)) for _ in range(MOST_AT_ONCE + 3)]
    for one in (desk, Desk(workspace, store, ONCE, 0)):
        assert one.tally(BEN).left == 3
    assert {number(desk.next(BEN)) for _ in range(4)} == {*taken[:3], None}


def test_a_pair_on_several_pages_of_one_person_is_judged_once(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0))
    desk = Desk(workspace, store, ONCE, 0)

    def view() -> str:
        desk.begin(ANNA)  # another page of hers
        shown = desk.next(ANNA)
        assert shown is not None and number(shown) == 0
        return shown.view

    first, second, third = view(), view(), view()
    desk.judge(ANNA, Given(first, Choice.SKIP))
    desk.judge(ANNA, Given(second, Choice.LEFT))  # a skip says nothing that a verdict could contradict
    desk.judge(ANNA, Given(second, Choice.LEFT))
    with pytest.raises(JudgedAlready, match="that verdict stands"):
        desk.judge(ANNA, Given(third, Choice.RIGHT))
    assert desk.undo(ANNA) is not None
    desk.judge(ANNA, Given(third, Choice.RIGHT))


def test_what_is_taken_back_is_the_verdict_that_is_meant(workspace: Workspace, store: Store, clock: Clock) -> None:
    store.add_comparisons(pairs(0, 1, 2))
    desk = Desk(workspace, store, ONCE, 0)
    first, second = desk.next(ANNA), desk.next(ANNA)
    assert first is not None and second is not None
    for shown in (first, second):
        desk.judge(ANNA, Given(shown.view, Choice.LEFT))
    again = desk.undo(ANNA, first.view)
    assert again is not None and number(again) == number(first)
    assert desk.undo(ANNA, first.view) is None and desk.undo(BEN, second.view) is None
    latest = desk.undo(ANNA)
    assert latest is not None and number(latest) == number(second)
