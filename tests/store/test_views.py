"""What is put before annotators is stored first, sides as shown; a verdict answers it once, and may be taken back."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from manners.errors import MannersError
from manners.store import Store, gold, views
from manners.store.chats import Chats
from manners.store.flags import FlagReason, held_back, undecided
from manners.store.programs import Programs
from manners.store.tables import VerdictRow, ViewRow
from manners.store.verdicts import count_of
from manners.store.views import Given, NoSuchView, Shown, TooSoon
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Draw,
    DrawnHow,
    OpenComparison,
    PromptUse,
    Response,
    Role,
    Turn,
    Verdict,
)
from tests.store.conftest import statements

ANNA = Annotator("anna", AnnotatorKind.HUMAN)
BEN = Annotator("ben", AnnotatorKind.HUMAN)
LEASE = timedelta(minutes=10)
SAID = {"strength": 2, "reasons": ("kinder",), "comment": "well", "seconds": 1.5}


def pair(number: int, asked_how: AskedHow = AskedHow.RANDOM) -> Comparison:
    prompt = (Turn(Role.USER, f"Question {number}?"),)
    return Comparison(prompt, Response(f"left {number}", "one"), Response(f"right {number}", "other"), asked_how)


def show(store: Store, comparison: int, exchanged: bool, annotator: Annotator = ANNA) -> Shown:
    with store.write() as connection:
        shown = views.show(annotator, Draw(comparison, DrawnHow.RANDOM, 0.25, exchanged, 4), LEASE, connection)
    assert shown is not None
    return shown


def answer(store: Store, view: str, choice: Choice, annotator: Annotator = ANNA) -> tuple[int, Choice]:
    with store.write() as connection:
        return views.answer(annotator, Given(view, choice, **SAID), connection)  # type: ignore[arg-type]


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("choice", list(Choice))
def test_a_verdict_is_of_the_comparisons_own_sides(store: Store, exchanged: bool, choice: Choice) -> None:
    [key] = store.add_comparisons([pair(0)])
    shown = show(store, key, exchanged)
    assert (shown.left, shown.right) == (("right 0", "left 0") if exchanged else ("left 0", "right 0"))
    own = choice.swapped() if exchanged else choice
    assert answer(store, shown.view, choice) == (key, own)
    assert answer(store, shown.view, Choice.SKIP) == (key, own), "answered once, however often it is sent"
    [verdict] = store.comparisons()[0].verdicts
    assert (verdict.choice, verdict.shown_choice) == (own, choice)
    assert (verdict.drawn, verdict.draw_probability, verdict.draw_pool) == (DrawnHow.RANDOM, 0.25, 4)


def test_a_row_is_the_same_whether_the_page_or_a_file_brings_the_verdict(store: Store) -> None:
    here, there = store.add_comparisons([pair(0), pair(1)])
    answer(store, show(store, here, True).view, Choice.LEFT)
    [given] = store.comparisons()[0].verdicts
    store.add_verdicts([(there, given)])
    assert store.comparisons()[1].verdicts == (given,)
    verdicts, shown = rows(store, VerdictRow), rows(store, ViewRow)
    for one, other in (verdicts, shown):
        apart = {name for name in one if one[name] != other[name]}
        # How long it was kept for somebody, and the moment of showing, which a file does not say.
        assert apart <= {"id", "comparison_id", "view_id", "created_at", "expires_at", "token"}
    assert verdicts[0]["created_at"] == verdicts[1]["created_at"] == given.created_at


@pytest.mark.parametrize(
    ("passed", "seconds", "refused"),
    [(-3600.0, 20.0, False), (-3600.0, 0.1, True), (-3600.0, None, False), (0.1, 20.0, True), (20.0, 20.0, False)],
)
def test_a_clock_that_was_set_back_refuses_no_verdict(
    store: Store, monkeypatch: pytest.MonkeyPatch, passed: float, seconds: float | None, refused: bool
) -> None:
    """The page would drop it, and with it whatever was on a screen: what the page says still counts."""
    [key] = store.add_comparisons([pair(0)])
    view = show(store, key, False).view
    moment = datetime.now(UTC) + timedelta(seconds=passed)
    monkeypatch.setattr(views, "datetime", SimpleNamespace(now=lambda zone: moment))
    given, shortest = Given(view, Choice.LEFT, seconds=seconds), timedelta(milliseconds=400)
    with nullcontext() if not refused else pytest.raises(TooSoon), store.write() as connection:
        views.answer(ANNA, given, connection, shortest=shortest)
    assert len(store.comparisons()[0].verdicts) == (not refused)


def test_a_token_is_drawn_at_random_and_never_again(store: Store) -> None:
    [key] = store.add_comparisons([pair(0)])
    tokens = {show(store, key, False).view for _ in range(100)}
    assert len(tokens) == 100 and all(len(token) >= 22 for token in tokens)
    assert not {str(number) for number in range(1000)} & tokens


def test_a_verdict_that_waits_lands_on_no_other_pair_of_a_store_that_was_put_back(tmp_path: Path) -> None:
    """Both stores give the same number to different views, as one does that goes on from a copy."""
    stores = [Store.create(tmp_path / name) for name in ("lost.db", "back.db")]
    lost, back = (show(one, one.add_comparisons([pair(n)])[0], False) for n, one in enumerate(stores))
    assert [row["id"] for one in stores for row in rows(one, ViewRow)] == [1, 1]
    with pytest.raises(NoSuchView):
        answer(stores[1], lost.view, Choice.LEFT)
    answer(stores[1], back.view, Choice.LEFT)
    for one in stores:
        one.close()


def rows(store: Store, table: type[VerdictRow] | type[ViewRow]) -> list[dict[str, Any]]:
    with store.read() as connection:
        return [dict(row._mapping) for row in connection.execute(select(table).order_by(table.id))]


def test_what_was_taken_back_is_shown_again_with_the_same_sides_and_counts_for_nothing(store: Store) -> None:
    first, second = store.add_comparisons([pair(0), pair(1)])
    answer(store, show(store, first, False).view, Choice.LEFT)
    answer(store, show(store, second, True).view, Choice.TIE)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with store.write() as connection:
        assert count_of(connection, ANNA, long_ago) == (2, 2) and count_of(connection, ANNA, tomorrow) == (2, 0)
        assert [one.choice for one in views.judged(connection, 0)] == [Choice.LEFT, Choice.TIE]
        said = views.Beside(SAID["strength"], SAID["reasons"], SAID["comment"])  # type: ignore[arg-type]
        assert views.withdraw(ANNA, connection) == (Draw(second, DrawnHow.RANDOM, 0.25, True, 4), said)
        assert views.withdraw(BEN, connection) is None
        assert [one.comparison for one in views.judged(connection, 0)] == [first]
        assert count_of(connection, ANNA, long_ago) == (1, 1)
    assert [len(comparison.verdicts) for comparison in store.comparisons()] == [1, 0]


def test_nobody_answers_or_reports_what_somebody_else_was_shown(store: Store) -> None:
    [key] = store.add_comparisons([pair(0)])
    view = show(store, key, False).view
    with pytest.raises(NoSuchView, match="was not shown to you"):
        answer(store, view, Choice.LEFT, BEN)
    report = partial(views.flag, reason=FlagReason.WRONG, note="no")
    with pytest.raises(NoSuchView), store.write() as connection:
        report(BEN, view, connection=connection)
    with store.write() as connection:
        assert report(ANNA, view, connection=connection) == key and held_back(connection) == {key}
    assert [flag.comparison for flag in undecided(store)] == [key]


def test_what_may_be_asked_about_comes_in_order_and_conversations_only_where_they_are_shared(store: Store) -> None:
    keys = store.add_comparisons([pair(0), pair(1, AskedHow.CHAT), pair(2)])
    known = gold.add(store, keys[0], Choice.LEFT).comparison
    with store.read() as connection:
        own = list(views.open_comparisons(connection, 0, chats=False))
        assert [(one.comparison, one.gold) for one in own] == [(keys[0], False), (keys[2], False), (known, True)]
        assert own[0].pair == own[2].pair and own[0].authors == {"one", "other"}
        shared = [one.comparison for one in views.open_comparisons(connection, keys[0], chats=True)]
        assert shared == [keys[1], keys[2], known]
        assert own[0] == replace(own[2], comparison=keys[0], gold=False) and isinstance(own[0], OpenComparison)


def test_what_is_somebodys_own_is_put_before_others_only_while_it_is_shared(store: Store) -> None:
    """A pair of a chat, one opened on its words while these were shared, one of a program, and gold of each."""
    chats, words = Chats(store), (Turn(Role.USER, "my secret"),)
    chats.say(ANNA, chats.begin(ANNA), [], "my secret", [Response("a", "one"), Response("b", "other")], 1.0)
    [said] = [one.id or 0 for one in store.comparisons()]
    [sampled, free] = store.add_comparisons([replace(pair(0), prompt=words), pair(1)])
    program, _ = Programs(store).add("local", None, "sent", pair(2, AskedHow.API))

    def opened(*, chats: bool) -> set[int]:
        with store.read() as connection:
            return {one.comparison for one in views.open_comparisons(connection, 0, chats=chats)}

    own = said, sampled, program
    assert (opened(chats=False), opened(chats=True)) == ({free}, {free, *own})
    copies = [gold.add(store, one, Choice.LEFT, chats=True).comparison for one in own]
    known = gold.add(store, free, Choice.LEFT).comparison
    assert (opened(chats=False), opened(chats=True)) == ({free, known}, {free, known, *own, *copies})
    for one in (*own, *copies):
        with pytest.raises(MannersError, match=f"comparison {one} is from somebody's chat or from another program"):
            gold.add(store, one, Choice.LEFT)
    store.add_prompts([words], PromptUse.TRAIN, "prompts.txt")
    assert opened(chats=False) == {free, known, sampled, copies[1]}, "these words are the owner's by now"


def test_a_pair_takes_as_few_statements_however_many_there_are(store: Store) -> None:
    keys = store.add_comparisons(pair(number) for number in range(300))
    answer(store, show(store, keys[0], False).view, Choice.LEFT)
    with statements(store) as sent:
        shown = show(store, keys[1], True)
    assert [words(one) for one in sent] == ["SELECT", "SELECT", "INSERT INTO views"]
    with statements(store) as sent:
        answer(store, shown.view, Choice.LEFT)
    found, remarked = ["SELECT"] * 3, ["SELECT"]
    assert [words(one) for one in sent] == [*found, *remarked, "INSERT INTO verdicts"]
    assert views._texts() is views._texts(), "a query that takes longer to build than to run is built once"


def words(statement: str) -> str:
    return " ".join(statement.split()[:3]) if statement.startswith("INSERT") else statement.split()[0]


def test_the_mark_changes_with_whatever_the_dashboard_is_computed_from(store: Store) -> None:
    [key] = store.add_comparisons([pair(0)])
    marks = [store.mark()]
    view = show(store, key, False).view
    marks.append(store.mark())
    answer(store, view, Choice.LEFT)
    marks.append(store.mark())
    store.add_verdicts([(key, Verdict(Choice.TIE, BEN))])
    marks.append(store.mark())
    with store.write() as connection:
        views.withdraw(ANNA, connection)
    marks.append(store.mark())
    gold.add(store, key, Choice.LEFT)
    marks.append(store.mark())
    assert len(set(marks)) == len(marks) and store.mark() == marks[-1]
    assert [one.gone != before.gone for before, one in pairwise(marks)] == [False, False, False, True, False]
    with store.read() as connection:
        assert views.count_shown(connection) == (1, 1)
