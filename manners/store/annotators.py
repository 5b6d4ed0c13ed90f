"""Those who give verdicts, each stored once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, bindparam, select

from manners.errors import MannersError
from manners.store.statements import insert_new
from manners.store.tables import AccountRow, AnnotatorRow
from manners.types import Annotator, AnnotatorKind

IS_NAMED = (
    (AnnotatorRow.name == bindparam("name"))
    & (AnnotatorRow.kind == bindparam("kind"))
    & AnnotatorRow.account_id.is_not_distinct_from(bindparam("account", type_=Integer()))
)
"""The condition that a row is the annotator of `named`, for queries that are built once."""
_ID = select(AnnotatorRow.id).where(IS_NAMED)


def named(annotator: Annotator) -> dict[str, str | int | None]:
    """Return the values of `IS_NAMED`."""
    return {"name": annotator.name, "kind": annotator.kind.value, "account": annotator.account}


def is_annotator(annotator: Annotator) -> ColumnElement[bool]:
    """Return the condition that a row of `annotators` is this one."""
    return (
        (AnnotatorRow.name == annotator.name)
        & (AnnotatorRow.kind == annotator.kind.value)
        & AnnotatorRow.account_id.is_not_distinct_from(annotator.account)
    )


def annotator_of(row: Any) -> Annotator:
    """Return the annotator of a row with the columns `name`, `kind` and `account_id` of `annotators`."""
    return Annotator(row.name, AnnotatorKind(row.kind), row.account_id)


class Disabled(MannersError):
    """An account lets nobody in any more."""


def check_accounts(connection: Connection, accounts: Collection[int]) -> None:
    """Raise Disabled unless these accounts let somebody in, and go on doing so until the transaction ends.

    A request that began before somebody was forgotten would else bring them back under their name.
    """
    if not accounts:
        return
    enabled = select(AccountRow.id).where(AccountRow.id.in_(accounts), AccountRow.disabled_at.is_(None))
    locked = enabled.order_by(AccountRow.id).with_for_update(read=True)
    if set(connection.execute(locked).scalars()) != set(accounts):
        raise Disabled("this account was disabled meanwhile, and nothing more is kept under it: ask an owner")


def annotator_ids(connection: Connection, annotators: Iterable[Annotator]) -> dict[Annotator, int]:
    """Return the id of each annotator, storing those that are new. Raises Disabled."""
    wanted = set(annotators)
    query = select(AnnotatorRow).where(AnnotatorRow.name.in_({annotator.name for annotator in wanted}))

    def stored() -> dict[Annotator, int]:
        return {annotator_of(row): row.id for row in connection.execute(query)}

    found = stored()
    # In one order, whoever writes: on PostgreSQL two could otherwise wait for each other.
    new = sorted(wanted - found.keys(), key=lambda a: (a.name, a.kind.value, a.account or 0))
    if new:
        check_accounts(connection, {a.account for a in new if a.account is not None})
        rows = [{"name": a.name, "kind": a.kind.value, "account_id": a.account} for a in new]
        insert_new(connection, AnnotatorRow, rows)
        found = stored()
    return found


def annotator_id(connection: Connection, annotator: Annotator) -> int:
    """Return the id of an annotator, who is stored if new. Raises Disabled."""
    found: int | None = connection.execute(_ID, named(annotator)).scalar_one_or_none()
    return annotator_ids(connection, [annotator])[annotator] if found is None else found
