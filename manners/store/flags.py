"""What somebody reported, and what a reviewer decided about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Connection, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from manners.errors import MannersError
from manners.store.annotators import annotator_id
from manners.store.records import from_messages, number_of, token_of
from manners.store.store import Store
from manners.store.tables import AnnotatorRow, ComparisonRow, FlagRow, PromptRow, ResponseRow
from manners.store.texts import GONE, answers_of, is_gone
from manners.types import Annotator, Dialogue

MOST_SHOWN = 50
"""Reports that a reviewer is shown at once."""
_STANDS = FlagRow.upheld.is_(None) | FlagRow.upheld
"""The condition that a report was not dismissed."""


class FlagReason(StrEnum):
    """What is wrong with a text."""

    ILLEGAL = "illegal"
    PERSONAL_DATA = "personal_data"
    DISTRESSING = "distressing"
    WRONG = "wrong"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Flag:
    """A report that waits for a decision."""

    id: str
    """A token: the number alone may be another report's once the store was put back from a copy."""
    reason: FlagReason
    note: str
    by: str
    created_at: datetime
    comparison: int | None
    texts: tuple[str, ...]
    """The responses that it is about."""
    prompt: Dialogue = ()
    """What they answer."""


def raise_flag(
    connection: Connection,
    annotator: Annotator,
    reason: FlagReason,
    note: str,
    *,
    comparison: int | None = None,
    response: int | None = None,
) -> None:
    """Report a comparison, or one response; who reports again what they have reported says the same in other words.

    What was deleted meanwhile is reported without the note.
    """
    about = ResponseRow.id == response if comparison is None else answers_of(comparison)
    note = "" if note and is_gone(connection, about) else note
    who, said = annotator_id(connection, annotator), {"reason": reason.value, "note": note}
    same = FlagRow.comparison_id == comparison if response is None else FlagRow.response_id == response
    already = update(FlagRow).where(same, FlagRow.annotator_id == who, FlagRow.resolved_at.is_(None)).values(said)
    if not connection.execute(already).rowcount:
        row = {"comparison_id": comparison, "response_id": response, "annotator_id": who}
        connection.execute(insert(FlagRow), row | said | {"created_at": datetime.now(UTC)})


def count_undecided(store: Store) -> int:
    """Return how many reports nobody has decided about."""
    with store.read() as connection:
        query = select(func.count()).select_from(FlagRow).where(FlagRow.resolved_at.is_(None))
        return connection.execute(query).scalar_one()


def undecided(store: Store) -> list[Flag]:
    """Return the first reports that nobody has decided about: of each person in turn, from their oldest on."""
    left, right, single = aliased(ResponseRow), aliased(ResponseRow), aliased(ResponseRow)
    turn = func.row_number().over(partition_by=FlagRow.annotator_id, order_by=FlagRow.id)
    query = (
        select(
            FlagRow,
            AnnotatorRow.name,
            PromptRow.turns,
            left.text.label("left"),
            right.text.label("right"),
            single.text.label("one"),
        )
        .join(AnnotatorRow, FlagRow.annotator_id == AnnotatorRow.id)
        .outerjoin(ComparisonRow, FlagRow.comparison_id == ComparisonRow.id)
        .outerjoin(left, ComparisonRow.left_id == left.id)
        .outerjoin(right, ComparisonRow.right_id == right.id)
        .outerjoin(single, FlagRow.response_id == single.id)
        .outerjoin(PromptRow, PromptRow.id == func.coalesce(left.prompt_id, single.prompt_id))
        .where(FlagRow.resolved_at.is_(None))
        .order_by(turn, FlagRow.id)
        .limit(MOST_SHOWN)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    return [
        Flag(
            token_of(row.id, row.created_at),
            FlagReason(row.reason),
            row.note,
            row.name,
            row.created_at,
            row.comparison_id,
            tuple(text for text in (row.left, row.right, row.one) if text is not None),
            from_messages(row.turns),
        )
        for row in rows
    ]


def decide(store: Store, flag: str, upheld: bool) -> list[int]:
    """Uphold a report or dismiss it; return the comparisons that it is about, by themselves or by an answer of theirs.

    Raises MannersError if the report is gone.
    """
    with store.write() as connection:
        its = FlagRow.id == number_of(flag), FlagRow.resolved_at.is_(None)
        found = connection.execute(select(FlagRow).where(*its)).first()
        if found is None or token_of(found.id, found.created_at) != flag:
            raise MannersError(f"there is no open report {flag}: somebody has decided about it already")
        done = {"upheld": upheld, "resolved_at": datetime.now(UTC)}
        if not connection.execute(update(FlagRow).where(*its).values(done)).rowcount:
            raise MannersError(f"there is no open report {flag}: somebody has decided about it already")
        sides = or_(*(side == found.response_id for side in (ComparisonRow.left_id, ComparisonRow.right_id)))
        about = select(ComparisonRow.id).where(or_(ComparisonRow.id == found.comparison_id, sides))
        return list(connection.execute(about).scalars())


def is_reported(connection: Connection, comparison: int) -> bool:
    """Return whether a comparison, or an answer of it, was reported and the report not dismissed."""
    on_answers = FlagRow.response_id.in_(select(ResponseRow.id).where(answers_of(comparison)))
    query = select(FlagRow.id).where(_STANDS, (FlagRow.comparison_id == comparison) | on_answers).limit(1)
    return connection.execute(query).first() is not None


def held_back(connection: Connection) -> set[int]:
    """Return the comparisons that nobody is to be shown: they, or an answer, reported and not dismissed; or deleted."""
    reported = select(FlagRow.response_id).where(FlagRow.response_id.is_not(None), _STANDS)
    answers = reported.union(select(ResponseRow.id).where(ResponseRow.digest.startswith(GONE)))
    on_answers = select(ComparisonRow.id).where(
        ComparisonRow.left_id.in_(answers) | ComparisonRow.right_id.in_(answers)
    )
    query = select(FlagRow.comparison_id).where(FlagRow.comparison_id.is_not(None), _STANDS).union(on_answers)
    return {comparison for comparison in connection.execute(query).scalars() if comparison is not None}
