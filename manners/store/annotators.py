"""Those who give verdicts, each stored once."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, bindparam, select

from manners.store.statements import insert_new
from manners.store.tables import AnnotatorRow
from manners.types import Annotator, AnnotatorKind

IS_NAMED = (AnnotatorRow.name == bindparam("name")) & (AnnotatorRow.kind == bindparam("kind"))
"""The condition that a row is the annotator of `named`, for queries that are built once."""
_ID = select(AnnotatorRow.id).where(IS_NAMED)


def named(annotator: Annotator) -> dict[str, str]:
    """Return the values of `IS_NAMED`."""
    return {"name": annotator.name, "kind": annotator.kind.value}


def is_annotator(annotator: Annotator) -> ColumnElement[bool]:
    """Return the condition that a row of `annotators` is this one."""
    return (AnnotatorRow.name == annotator.name) & (AnnotatorRow.kind == annotator.kind.value)


def annotator_ids(connection: Connection, annotators: Iterable[Annotator]) -> dict[Annotator, int]:
    """Return the id of each annotator, storing those that are new."""
    wanted = set(annotators)
    query = select(AnnotatorRow).where(AnnotatorRow.name.in_({annotator.name for annotator in wanted}))

    def stored() -> dict[Annotator, int]:
        return {Annotator(row.name, AnnotatorKind(row.kind)): row.id for row in connection.execute(query)}

    found = stored()
    new = sorted((a.name, a.kind.value) for a in wanted - found.keys())
    if new:
        insert_new(connection, AnnotatorRow, [{"name": name, "kind": kind} for name, kind in new])
        found = stored()
    return found


def annotator_id(connection: Connection, annotator: Annotator) -> int:
    """Return the id of an annotator, who is stored if new."""
    found: int | None = connection.execute(_ID, named(annotator)).scalar_one_or_none()
    return annotator_ids(connection, [annotator])[annotator] if found is None else found
