"""Verdicts, and the views that they answer: how their rows are written and read."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.orm import aliased

from manners.store.annotators import annotator_id, annotator_ids, annotator_of, is_annotator
from manners.store.tables import AnnotatorRow, ComparisonRow, VerdictRow, ViewRow, WithdrawalRow
from manners.store.texts import answers_of, is_gone
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Draw, DrawnHow, Verdict

STANDING = VerdictRow.id.not_in(select(WithdrawalRow.verdict_id))
"""The condition that a verdict was not taken back."""


def insert_verdicts(connection: Connection, verdicts: Sequence[tuple[int, Verdict]]) -> None:
    """Append verdicts, each with the id of its comparison.

    One that was drawn elsewhere brings the record of its drawing with it.
    """
    if not verdicts:
        return
    annotators = annotator_ids(connection, (verdict.annotator for _, verdict in verdicts))
    now = datetime.now(UTC)
    views = _insert_views(connection, verdicts, annotators, now)
    rows = [
        _verdict_row(comparison, annotators[verdict.annotator], verdict, views.get(place), now)
        for place, (comparison, verdict) in enumerate(verdicts)
    ]
    connection.execute(insert(VerdictRow), rows)


def insert_answer(connection: Connection, comparison: int, verdict: Verdict, view: int | None = None) -> None:
    """Append a verdict on what was put before somebody; without its remarks where the words were deleted meanwhile."""
    if (verdict.comment or verdict.reasons) and is_gone(connection, answers_of(comparison)):
        verdict = replace(verdict, comment="", reasons=())
    who = annotator_id(connection, verdict.annotator)
    connection.execute(insert(VerdictRow), _verdict_row(comparison, who, verdict, view, datetime.now(UTC)))


def insert_view(connection: Connection, annotator: Annotator, draw: Draw, lease: timedelta) -> str:
    """Store that a comparison is put before an annotator, who has it for so long, and return the view's token.

    It is drawn at random: a number would be given again in a store that was put back from a copy.
    """
    now = datetime.now(UTC)
    token = secrets.token_urlsafe(16)
    row = _view_row(draw, annotator_id(connection, annotator), now, now + lease)
    connection.execute(insert(ViewRow), row | {"token": token})
    return token


def _insert_views(
    connection: Connection, verdicts: Sequence[tuple[int, Verdict]], annotators: Mapping[Annotator, int], now: datetime
) -> dict[int, int]:
    """Insert a view for each verdict that says how it was drawn; return the views' ids by the verdicts' places."""
    rows: dict[int, dict[str, Any]] = {}
    for place, (comparison, verdict) in enumerate(verdicts):
        if verdict.drawn is not None and verdict.draw_probability is not None:
            draw = Draw(comparison, verdict.drawn, verdict.draw_probability, verdict.exchanged, verdict.draw_pool)
            at = verdict.created_at or now
            rows[place] = _view_row(draw, annotators[verdict.annotator], at, at)
    if not rows:
        return {}
    statement = insert(ViewRow).returning(ViewRow.id, sort_by_parameter_order=True)
    return dict(zip(rows, connection.execute(statement, list(rows.values())).scalars(), strict=True))


def _view_row(draw: Draw, annotator: int, at: datetime, until: datetime) -> dict[str, Any]:
    return {
        "comparison_id": draw.comparison,
        "annotator_id": annotator,
        "exchanged": draw.exchanged,
        "drawn": draw.drawn.value,
        "probability": draw.probability,
        "pool": draw.pool,
        "created_at": at,
        "expires_at": until,
    }


def _verdict_row(comparison: int, annotator: int, verdict: Verdict, view: int | None, now: datetime) -> dict[str, Any]:
    return {
        "comparison_id": comparison,
        "annotator_id": annotator,
        "choice": verdict.choice.value,
        "strength": verdict.strength,
        "seconds": verdict.seconds,
        "reasons": list(verdict.reasons),
        "comment": verdict.comment,
        "created_at": verdict.created_at or now,
        "exchanged": verdict.exchanged,
        "view_id": view,
    }


def unknown_verdicts(
    connection: Connection, ids: Sequence[int], comparisons: Sequence[Comparison]
) -> tuple[list[tuple[int, Verdict]], int]:
    """Return the verdicts on these comparisons that are not stored yet, and how many are.

    Comparisons of the same responses in the same order, asked about in the same way, are one in a record that was
    written elsewhere, also where they are several here. It names no account: what it has of somebody of that name is
    known where an account of that name has said it, and is somebody else's where none has; and so with a judge of ours.
    """
    same = aliased(ComparisonRow)
    alike = (same.left_id == ComparisonRow.left_id) & (same.right_id == ComparisonRow.right_id)
    query = (
        select(ComparisonRow.id, AnnotatorRow.name, AnnotatorRow.kind, VerdictRow.choice, VerdictRow.created_at)
        .join(same, alike & (same.asked_how == ComparisonRow.asked_how))
        .join(VerdictRow, VerdictRow.comparison_id == same.id)
        .join(AnnotatorRow, VerdictRow.annotator_id == AnnotatorRow.id)
        .where(ComparisonRow.id.in_(set(ids)))
    )
    times: dict[tuple[int, Annotator, Choice], set[datetime | None]] = defaultdict(set)
    for row in connection.execute(query):
        annotator = Annotator(row.name, AnnotatorKind(row.kind))
        times[row.id, annotator.in_file, Choice(row.choice)].add(row.created_at)
    unknown: list[tuple[int, Verdict]] = []
    duplicates = 0
    for key, comparison in zip(ids, comparisons, strict=True):
        for verdict in comparison.verdicts:
            seen = times[key, verdict.annotator.in_file, verdict.choice]
            if verdict.created_at in seen or (seen and verdict.created_at is None):
                duplicates += 1
            else:
                unknown.append((key, verdict))
                seen.add(verdict.created_at)
    return unknown, duplicates


def verdicts_by_comparison(connection: Connection, asked_how: AskedHow | None) -> dict[int, list[Verdict]]:
    """Return the verdicts on comparisons asked in one way, or in all, in order of arrival, but for those taken back."""
    query = (
        select(
            VerdictRow,
            AnnotatorRow.name,
            AnnotatorRow.kind,
            AnnotatorRow.account_id,
            ViewRow.drawn,
            ViewRow.probability,
            ViewRow.pool,
        )
        .select_from(VerdictRow)
        .join(AnnotatorRow)
        .outerjoin(ViewRow, VerdictRow.view_id == ViewRow.id)
        .where(STANDING)
        .order_by(VerdictRow.id)
    )
    if asked_how is not None:
        query = query.join(ComparisonRow, VerdictRow.comparison_id == ComparisonRow.id).where(
            ComparisonRow.asked_how == asked_how.value
        )
    verdicts: dict[int, list[Verdict]] = defaultdict(list)
    for row in connection.execute(query):
        verdicts[row.comparison_id].append(_verdict(row))
    return verdicts


def count_up_to(connection: Connection, watermark: int) -> dict[int, int]:
    """Count the verdicts up to a watermark on each comparison, but for those that were taken back."""
    query = select(VerdictRow.comparison_id, func.count()).where(VerdictRow.id <= watermark, STANDING)
    return {row[0]: row[1] for row in connection.execute(query.group_by(VerdictRow.comparison_id))}


def count_of(connection: Connection, annotator: Annotator, since: datetime) -> tuple[int, int]:
    """Count the verdicts of an annotator that were not taken back: all of them, and those since a moment."""
    query = (
        select(func.count(), func.count().filter(VerdictRow.created_at >= since))
        .select_from(VerdictRow)
        .join(AnnotatorRow)
        .where(is_annotator(annotator), STANDING)
    )
    total, recent = connection.execute(query).one()
    return total, recent


def _verdict(row: Any) -> Verdict:
    return Verdict(
        choice=Choice(row.choice),
        annotator=annotator_of(row),
        strength=row.strength,
        created_at=row.created_at,
        seconds=row.seconds,
        reasons=tuple(row.reasons),
        comment=row.comment,
        exchanged=row.exchanged,
        drawn=None if row.drawn is None else DrawnHow(row.drawn),
        draw_probability=row.probability,
        draw_pool=row.pool,
        arrived=row.id,
    )
