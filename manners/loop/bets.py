"""The bets of an evaluation by verdicts: placed when somebody looks, and on record before anything is said of them."""

from __future__ import annotations

from collections.abc import Collection

from manners.evaluate import ask
from manners.loop.session import Session
from manners.store import bets
from manners.types import AskedHow, Bet, Comparison


def asked(session: Session, version: str) -> list[Comparison]:
    """Return the comparisons of a version, after those that can have placed their bets (`ask.due_bets`)."""
    found = _of(session, version)
    due = ask.due_bets(found, session.settings.serve)
    if not due:
        return found
    _place(session, due)
    return _of(session, version)  # another process may have placed a bet in the meantime: that one holds


def close(session: Session, version: str, others: Collection[str]) -> None:
    """Place the bets of a version's comparisons with these others: the verdicts that are in are all there will be.

    With anything else it may still be compared, by whoever waits for more verdicts on that.
    """
    found = [one for one in _of(session, version) if {one.left.author, one.right.author} <= {version, *others}]
    _place(session, ask.due_bets(found, session.settings.serve, closing=True))


def _place(session: Session, due: list[tuple[int, Bet]]) -> None:
    if due:
        with session.store.write() as connection:
            bets.place(connection, due)


def _of(session: Session, version: str) -> list[Comparison]:
    comparisons = session.store.comparisons(AskedHow.EVALUATION)
    return [one for one in comparisons if version in (one.left.author, one.right.author)]
