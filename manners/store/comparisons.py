"""Comparisons: how they are written, merged with those that are known, and read with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, insert, select
from sqlalchemy.orm import aliased

from manners.store.bets import bets_by_comparison
from manners.store.records import Newest, from_messages
from manners.store.tables import ComparisonRow, FlagRow, PromptRow, ResponseRow
from manners.store.texts import GONE, response_ids
from manners.store.verdicts import verdicts_by_comparison
from manners.types import AskedHow, Comparison, FinishReason, PromptUse, Response, Sampling, opening

STRICTEST = (PromptUse.EVALUATE, PromptUse.VALIDATE, PromptUse.TRAIN)
"""Where an opening is on several sides, the first of these is its own."""


def insert_comparisons(
    connection: Connection, comparisons: Sequence[Comparison], pairs: Sequence[tuple[int, int]]
) -> list[int]:
    """Insert one row for each comparison and return the ids in the same order."""
    if not comparisons:
        return []
    now = datetime.now(UTC)
    rows = [
        {
            "left_id": left,
            "right_id": right,
            "asked_how": comparison.asked_how.value,
            "ask_probability": comparison.ask_probability,
            "asked_by": comparison.asked_by,
            "created_at": now,
        }
        for comparison, (left, right) in zip(comparisons, pairs, strict=True)
    ]
    statement = insert(ComparisonRow).returning(ComparisonRow.id, sort_by_parameter_order=True)
    return list(connection.execute(statement, rows).scalars())


def merge_ids(connection: Connection, comparisons: Sequence[Comparison]) -> tuple[list[int], list[int]]:
    """Return the id of each comparison, inserting those that are not there, and the positions of those inserted."""
    pairs = response_ids(connection, comparisons)
    query = select(ComparisonRow.left_id, ComparisonRow.right_id, ComparisonRow.asked_how, ComparisonRow.id).where(
        ComparisonRow.left_id.in_({left for left, _ in pairs})
    )
    keys = [(*pair, comparison.asked_how.value) for pair, comparison in zip(pairs, comparisons, strict=True)]
    known = {(row.left_id, row.right_id, row.asked_how): row.id for row in connection.execute(query)}
    first = {key: position for position, key in reversed(list(enumerate(keys))) if key not in known}
    new = sorted(first.values())
    ids = insert_comparisons(connection, [comparisons[i] for i in new], [pairs[i] for i in new])
    known |= {keys[position]: key for position, key in zip(new, ids, strict=True)}
    return [known[key] for key in keys], new


def select_comparisons(
    connection: Connection, asked_how: AskedHow | None, newest: int | None = None, newest_bet: int | None = None
) -> list[Comparison]:
    """Return the comparisons by id, with their bets, and with the verdicts not taken back in order of arrival.

    With `newest`, those up to that id, and only of these is an opening kept where a candidate was compared on it. With
    `newest_bet`, bets up to that id.
    """
    left, right = aliased(ResponseRow), aliased(ResponseRow)
    which: list[ColumnElement[bool]] = [] if asked_how is None else [ComparisonRow.asked_how == asked_how.value]
    which += [] if newest is None else [ComparisonRow.id <= newest]
    query = (
        select(ComparisonRow, left.prompt_id, *_columns(left, "left"), *_columns(right, "right"))
        .join(left, ComparisonRow.left_id == left.id)
        .join(right, ComparisonRow.right_id == right.id)
        .where(*which)
        .order_by(ComparisonRow.id)
    )
    verdicts = verdicts_by_comparison(connection, asked_how)
    bets = bets_by_comparison(connection, newest_bet)
    # Each turn of a conversation is a prompt with all that was said before it, and most of them nobody compared.
    compared = PromptRow.id.in_(_prompts_of(*which)) | PromptRow.id.in_(_tried(newest))
    needed = compared | (PromptRow.use != PromptUse.TRAIN.value)
    rows = connection.execute(select(PromptRow.id, PromptRow.turns, PromptRow.use).where(needed)).all()
    prompts = {row.id: from_messages(row.turns) for row in rows}
    openings = {key: opening(prompt) for key, prompt in prompts.items()}
    tried = set(connection.execute(_tried(newest)).scalars())
    kept = {openings[row.id] for row in rows if row.use != PromptUse.TRAIN.value or row.id in tried}
    reported, reported_responses = _upheld(connection)
    return [
        Comparison(
            prompt=prompts[row.prompt_id],
            left=_response(row, "left"),
            right=_response(row, "right"),
            asked_how=AskedHow(row.asked_how),
            ask_probability=row.ask_probability,
            verdicts=tuple(verdicts.get(row.id, ())),
            id=row.id,
            reported=row.id in reported or not reported_responses.isdisjoint((row.left_id, row.right_id)),
            kept=openings[row.prompt_id] in kept,
            bets=bets.get(row.id, ()),
            asked_by=row.asked_by,
        )
        for row in connection.execute(query)
    ]


def tried_openings(connection: Connection, newest: int | None = None) -> frozenset[str]:
    """Return the openings of the prompts on which a candidate was compared with the promoted version.

    With `newest`, the id of a comparison, in one up to that.
    """
    return _openings(connection, PromptRow.id.in_(_tried(newest)))


def stricter_openings(connection: Connection, use: PromptUse, newest: int | None = None) -> frozenset[str]:
    """Return the openings of the prompts of stricter uses: what begins alike is on one side alone, the strictest.

    With `newest`, the id of a prompt, of those up to that.
    """
    which = PromptRow.use.in_([one.value for one in STRICTEST[: STRICTEST.index(use)]])
    return _openings(connection, which if newest is None else which & (PromptRow.id <= newest))


def openings_apart(connection: Connection, use: PromptUse, upto: Newest | None = None) -> frozenset[str]:
    """Return the openings that no prompt of a use may have: those of stricter uses, and those of candidates.

    With `upto`, of what was there then.
    """
    if upto is None:
        return stricter_openings(connection, use) | tried_openings(connection)
    return stricter_openings(connection, use, upto.prompt) | tried_openings(connection, upto.comparison)


def _openings(connection: Connection, which: ColumnElement[bool]) -> frozenset[str]:
    turns = connection.execute(select(PromptRow.turns).where(which, ~PromptRow.digest.startswith(GONE))).scalars()
    return frozenset(opening(from_messages(one)) for one in turns)


def _tried(newest: int | None = None) -> Select[int]:
    """Return the query for the prompts on which a candidate was compared, in a comparison up to the newest."""
    asked = ComparisonRow.asked_how == AskedHow.CANDIDATE.value
    return _prompts_of(asked if newest is None else asked & (ComparisonRow.id <= newest))


def _prompts_of(*which: ColumnElement[bool]) -> Select[int]:
    """Return the query for the prompts of the comparisons for which this holds."""
    return select(ResponseRow.prompt_id).join(ComparisonRow, ComparisonRow.left_id == ResponseRow.id).where(*which)


def _upheld(connection: Connection) -> tuple[set[int], set[int]]:
    """Return the comparisons and the responses about which a report was upheld."""
    rows = connection.execute(select(FlagRow.comparison_id, FlagRow.response_id).where(FlagRow.upheld.is_(True))).all()
    comparisons = {row.comparison_id for row in rows if row.comparison_id is not None}
    return comparisons, {row.response_id for row in rows if row.response_id is not None}


def _columns(response: type[ResponseRow], side: str) -> list[ColumnElement[Any]]:
    names = ("text", "author", "finish_reason", "sampling")
    return [getattr(response, name).label(f"{side}_{name}") for name in names]


def _response(row: Any, side: str) -> Response:
    sampling = getattr(row, f"{side}_sampling")
    return Response(
        text=getattr(row, f"{side}_text"),
        author=getattr(row, f"{side}_author"),
        finish_reason=FinishReason(getattr(row, f"{side}_finish_reason")),
        sampling=Sampling(**sampling) if sampling else None,
    )
