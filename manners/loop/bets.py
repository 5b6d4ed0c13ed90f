"""The bets of an evaluation by verdicts: placed when somebody looks, and on record before anything is said of them."""

from __future__ import annotations

from manners.evaluate import ask
from manners.loop.session import Session
from manners.store import bets
from manners.types import AskedHow, Comparison


def asked(session: Session, version: str, *, closing: bool = False) -> list[Comparison]:
    """Return the comparisons of a version, after those that can have placed their bets (`ask.due_bets`)."""
    found = _of(session, version)
    due = ask.due_bets(found, session.settings.serve, closing=closing)
    if not due:
        return found
    with session.store.write() as connection:
        bets.place(connection, due)
    return _of(session, version)  # another process may have placed a bet in the meantime: that one holds


def _of(session: Session, version: str) -> list[Comparison]:
    comparisons = session.store.comparisons(AskedHow.EVALUATION)
    return [one for one in comparisons if version in (one.left.author, one.right.author)]
