"""A bet that was placed stays as it is, whoever comes later and whatever becomes of the verdicts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DatabaseError

from manners.evaluate.ask import due_bets, read_outcome
from manners.settings import ServeSettings
from manners.store import Store, bets
from manners.store.tables import WithdrawalRow
from manners.types import Annotator, AnnotatorKind, AskedHow, Bet, Choice, Comparison, Response, Role, Turn, Verdict

SAID = tuple(Verdict(Choice.LEFT, Annotator(name, AnnotatorKind.HUMAN)) for name in ("anna", "ben"))
ASKED = Comparison(
    (Turn(Role.USER, "Hello"),), Response("Hi", "initial"), Response("Hm", "policy-1"), AskedHow.EVALUATION, 1.0, SAID
)
PEOPLE = Bet(AnnotatorKind.HUMAN, 1 / 3, 3)
MODEL = Bet(AnnotatorKind.AI, -1.0, 1)


def place(store: Store, *placed: tuple[int, Bet]) -> None:
    with store.write() as connection:
        bets.place(connection, placed)


def test_the_first_bet_of_each_kind_holds(store: Store) -> None:
    one, other = store.add_comparisons([ASKED, ASKED])
    place(store, (one, PEOPLE), (other, MODEL))
    place(store, (one, replace(PEOPLE, stake=-1.0)), (one, MODEL), (other, replace(MODEL, read=7)))
    assert [c.bets for c in store.comparisons(AskedHow.EVALUATION)] == [(PEOPLE, MODEL), (MODEL,)]
    assert [c.bets for c in store.comparisons(as_of=0)] == [(PEOPLE, MODEL), (MODEL,)]


def test_with_the_newest_bet_of_then_later_ones_are_none(store: Store) -> None:
    one, other = store.add_comparisons([ASKED, ASKED])
    assert store.newest().bet == 0
    place(store, (one, PEOPLE))
    then = store.newest()
    place(store, (one, MODEL), (other, MODEL))
    assert [c.bets for c in store.comparisons(newest_bet=then.bet)] == [(PEOPLE,), ()]
    assert [c.bets for c in store.comparisons()] == [(PEOPLE, MODEL), (MODEL,)]


def test_taking_back_the_verdicts_does_not_take_back_the_bet(store: Store) -> None:
    [key] = store.add_comparisons([ASKED])
    place(store, (key, PEOPLE))
    with store.write() as connection:
        now = datetime.now(UTC)
        connection.execute(insert(WithdrawalRow), [{"verdict_id": n, "created_at": now} for n in (1, 2)])
    [found] = store.comparisons()
    assert (found.verdicts, found.bets) == ((), (PEOPLE,))


def test_a_bet_knows_up_to_which_verdict_it_was_placed(store: Store) -> None:
    """The second is taken back, and a third comes: it is late, and who gave the second is no rater any more."""
    [key] = store.add_comparisons([ASKED])
    place(store, *due_bets(store.comparisons(), ServeSettings(overlap=2, agree=2)))
    with store.write() as connection:
        now = datetime.now(UTC)
        connection.execute(insert(WithdrawalRow), [{"verdict_id": 2, "created_at": now}])
    [found] = store.comparisons()
    assert found.bets == (Bet(AnnotatorKind.HUMAN, 1.0, 2, 2),)
    store.add_verdicts([(key, Verdict(Choice.RIGHT, Annotator("cleo", AnnotatorKind.HUMAN)))])
    outcome = read_outcome(store.comparisons(), "policy-1", "initial")
    assert (outcome.wins, outcome.late, outcome.raters) == (1, 1, ("anna",))


@pytest.mark.parametrize("statement", ["UPDATE bets SET stake = 1", "DELETE FROM bets"])
def test_bets_are_append_only(store: Store, statement: str) -> None:
    [key] = store.add_comparisons([ASKED])
    place(store, (key, PEOPLE))
    with pytest.raises(DatabaseError, match="append-only"), store._writer.begin() as connection:
        connection.execute(text(statement))
    assert store.comparisons()[0].bets == (PEOPLE,)


def test_a_turned_comparison_bets_on_the_same_version() -> None:
    asked = replace(ASKED, bets=(PEOPLE, MODEL))
    assert [bet.stake for bet in asked.turned().bets] == [-1 / 3, 1.0]
    assert asked.turned().turned() == asked
