"""Comparisons whose verdict is known: put in silently, they measure annotators."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select

from manners.errors import MannersError
from manners.store.store import Store
from manners.store.tables import ComparisonRow, GoldRow
from manners.store.views import is_of_all
from manners.types import AskedHow, Choice


@dataclass(frozen=True, slots=True)
class Gold:
    """A comparison, and the verdict that it should get, of its own sides."""

    comparison: int
    choice: Choice


def add(store: Store, comparison: int, choice: Choice, *, chats: bool = False) -> Gold:
    """Ask about the two responses of a comparison anew, with a known verdict; the comparison itself stays as it is.

    Raises MannersError where there is no such comparison, it is about a candidate, or the verdict is a skip; and where
    it is somebody's own (`views.is_of_all`), unless `chats` are shared.
    """
    if choice is Choice.SKIP:
        raise MannersError("a skip is no verdict to know beforehand: choose left, right, tie or both_bad")
    with store.write() as connection:
        left, right = _sides(connection, comparison, chats)
        now = datetime.now(UTC)
        row = {"left_id": left, "right_id": right, "asked_how": AskedHow.GOLD, "created_at": now}
        statement = insert(ComparisonRow).returning(ComparisonRow.id)
        key = connection.execute(statement, row).scalar_one()
        connection.execute(insert(GoldRow), {"comparison_id": key, "choice": choice.value, "created_at": now})
    return Gold(key, choice)


def _sides(connection: Connection, comparison: int, chats: bool) -> tuple[int, int]:
    """Return the two responses of a comparison that annotators may be asked about; raises MannersError."""
    columns = (ComparisonRow.left_id, ComparisonRow.right_id, ComparisonRow.asked_how, is_of_all().label("of_all"))
    found = connection.execute(select(*columns).where(ComparisonRow.id == comparison)).first()
    if found is None:
        raise MannersError(f"there is no comparison {comparison}; `manners comparisons list` has the numbers")
    if found.asked_how == AskedHow.CANDIDATE.value:
        raise MannersError(
            f"comparison {comparison} asks about a candidate, and its answers are shown to nobody but the person"
            " whose conversation it is: choose another one"
        )
    if not (chats or found.of_all):
        raise MannersError(
            f"comparison {comparison} is from somebody's chat or from another program, and is put before nobody else:"
            " choose another one, or share them (serve.share_chats)"
        )
    return found.left_id, found.right_id


def known(store: Store) -> list[Gold]:
    """Return all of them, oldest first."""
    with store.read() as connection:
        rows = connection.execute(select(GoldRow.comparison_id, GoldRow.choice).order_by(GoldRow.id)).all()
    return [Gold(row.comparison_id, Choice(row.choice)) for row in rows]
