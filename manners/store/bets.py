"""What comparisons of an evaluation count for: written once, and read with them.

Plain functions, each within the caller's transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from manners.store.statements import chunks, insert_new, take_turns
from manners.store.tables import BetRow
from manners.types import AnnotatorKind, Bet


def place(connection: Connection, bets: Sequence[tuple[int, Bet]]) -> None:
    """Store bets, each with the id of its comparison, but for those of which another one was placed before."""
    now = datetime.now(UTC)
    take_turns(connection, BetRow)
    for chunk in chunks(bets):
        rows = [
            {
                "comparison_id": key,
                "kind": bet.kind.value,
                "stake": bet.stake,
                "read": bet.read,
                "created_at": now,
                "upto": bet.upto,
            }
            for key, bet in chunk
        ]
        insert_new(connection, BetRow, rows)


def bets_by_comparison(connection: Connection, newest: int | None = None) -> dict[int, tuple[Bet, ...]]:
    """Return the bets of each comparison that has any, in the order in which they were placed.

    With `newest`, the number of a bet, those up to that.
    """
    found: defaultdict[int, tuple[Bet, ...]] = defaultdict(tuple)
    query = select(BetRow).order_by(BetRow.id)
    for row in connection.execute(query if newest is None else query.where(BetRow.id <= newest)):
        found[row.comparison_id] += (Bet(AnnotatorKind(row.kind), row.stake, row.read, row.upto),)
    return found


def counted(connection: Connection) -> set[int]:
    """Return the comparisons on which people's bet is placed: another verdict of theirs would change nothing."""
    query = select(BetRow.comparison_id).where(BetRow.kind == AnnotatorKind.HUMAN.value)
    return set(connection.execute(query).scalars())
