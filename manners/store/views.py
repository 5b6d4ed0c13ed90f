"""What is put before annotators: a view is stored before they see it, a verdict answers it, and may be taken back.

Plain functions, each within the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, func, insert, or_, select
from sqlalchemy.orm import aliased

from manners.errors import MannersError
from manners.store.annotators import IS_NAMED, annotator_of, is_annotator, named
from manners.store.flags import FlagReason, held_back, is_reported, raise_flag
from manners.store.records import from_messages
from manners.store.tables import (
    AnnotatorRow,
    ComparisonRow,
    GoldRow,
    PromptRow,
    ResponseRow,
    VerdictRow,
    ViewRow,
    WithdrawalRow,
)
from manners.store.texts import CHAT, GONE
from manners.store.verdicts import STANDING, insert_answer, insert_view
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Dialogue,
    Draw,
    DrawnHow,
    FinishReason,
    OpenComparison,
    Verdict,
)

PRIVATE = (AskedHow.CHAT.value, AskedHow.API.value)
"""Comparisons from somebody's conversation."""
THEIRS = AskedHow.CANDIDATE.value
"""Comparisons that nobody is asked about but whose conversation they are from."""
# What every request asks is built once: that takes longer than running it.
_VIEW = (
    select(ViewRow.id, ViewRow.comparison_id, ViewRow.exchanged, ViewRow.drawn, ViewRow.created_at)
    .join(AnnotatorRow)
    .where(ViewRow.token == bindparam("view"), IS_NAMED)
)
_CHOICE = select(VerdictRow.choice).where(VerdictRow.view_id == bindparam("view"))
_JUDGED = (
    select(VerdictRow.view_id, VerdictRow.choice)
    .join(AnnotatorRow)
    .where(
        or_(
            VerdictRow.view_id == bindparam("view"),
            and_(
                VerdictRow.comparison_id == bindparam("comparison"),
                IS_NAMED,
                STANDING,
                VerdictRow.choice != Choice.SKIP.value,
            ),
        )
    )
)
"""The verdict on a view, and those that its annotator has given on the same comparison elsewhere."""


class NoSuchView(MannersError):
    """What is answered was not shown to whoever answers."""


class TooSoon(MannersError):
    """What is answered was not visible for long enough to be seen."""


class JudgedAlready(MannersError):
    """Whoever answers has judged this comparison elsewhere, and was not asked again."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What was said about a pair beside the choice."""

    strength: int | None
    reasons: tuple[str, ...]
    comment: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A comparison as an annotator sees it: nothing in it says who wrote what, or why it is asked."""

    view: str
    prompt: Dialogue
    left: str
    right: str
    cut_off: tuple[bool, bool] = (False, False)
    """Whether the length limit, and not its writer, ended the left answer, and the right one."""
    before: Beside | None = None
    """What its annotator said and took back, where it is shown again for that."""


@dataclass(frozen=True, slots=True)
class Given:
    """A verdict as it comes from the page: `choice` is of the sides shown."""

    view: str
    choice: Choice
    strength: int | None = None
    reasons: tuple[str, ...] = ()
    comment: str = ""
    seconds: float | None = None
    """For how long the pair had been visible."""


@dataclass(frozen=True, slots=True)
class Judged:
    """That somebody has judged a comparison, here or elsewhere; `choice` is of the comparison's own sides."""

    verdict: int
    annotator: Annotator
    comparison: int
    choice: Choice


def is_of_all() -> ColumnElement[bool]:
    """Return the condition that a comparison may be put before anybody, also where conversations are not shared.

    It is from no conversation and from no program; nor a known verdict on such a pair alone; nor opened here, while
    they were shared, on what nothing but conversations has brought in.
    """
    left, gold = aliased(ResponseRow), AskedHow.GOLD.value
    elsewhere = {how.value for how in AskedHow} - {*PRIVATE, THEIRS, gold}
    source = select(PromptRow.source).join(left, left.prompt_id == PromptRow.id)
    return and_(
        ComparisonRow.asked_how.not_in(PRIVATE),
        source.where(left.id == ComparisonRow.left_id).correlate(ComparisonRow).scalar_subquery() != CHAT,
        or_(ComparisonRow.asked_how != gold, ~_like_it(PRIVATE), _like_it(elsewhere)),
    )


def _like_it(asked_how: Iterable[str]) -> ColumnElement[bool]:
    """Return the condition that the two answers of a comparison were also asked about in one of these ways."""
    other = aliased(ComparisonRow)
    same = (other.left_id == ComparisonRow.left_id) & (other.right_id == ComparisonRow.right_id)
    asked_so = select(other.id).where(same, other.asked_how.in_(sorted(asked_how)))
    return asked_so.correlate(ComparisonRow).exists()


def open_comparisons(connection: Connection, after: int, *, chats: bool) -> Iterator[OpenComparison]:
    """Yield the comparisons with a higher id that may be asked about, in order; with `chats` conversations' too."""
    left, right = aliased(ResponseRow), aliased(ResponseRow)
    query = (
        select(
            ComparisonRow.id,
            left.prompt_id,
            left.id.label("left"),
            right.id.label("right"),
            left.author.label("one"),
            right.author.label("other"),
            ComparisonRow.asked_how,
            GoldRow.id.label("gold"),
        )
        .join(left, ComparisonRow.left_id == left.id)
        .join(right, ComparisonRow.right_id == right.id)
        .outerjoin(GoldRow, GoldRow.comparison_id == ComparisonRow.id)
        .where(ComparisonRow.id > after, left.text != DELETED, ComparisonRow.asked_how != THEIRS)
        .order_by(ComparisonRow.id)
    )
    if not chats:
        query = query.where(is_of_all())
    for row in connection.execute(query):
        authors = frozenset({row.one, row.other})
        pair = frozenset({row.left, row.right})
        adversarial = row.asked_how == AskedHow.ADVERSARIAL.value
        yield OpenComparison(row.id, row.prompt_id, authors, row.gold is not None, pair, adversarial)


def judged(connection: Connection, after: int) -> Iterator[Judged]:
    """Yield what people have judged in verdicts with a higher id, in order; what was taken back is left out."""
    query = (
        select(
            VerdictRow.id,
            VerdictRow.comparison_id,
            VerdictRow.choice,
            AnnotatorRow.name,
            AnnotatorRow.kind,
            AnnotatorRow.account_id,
        )
        .join(AnnotatorRow, VerdictRow.annotator_id == AnnotatorRow.id)
        .where(AnnotatorRow.kind == AnnotatorKind.HUMAN.value, VerdictRow.id > after, STANDING)
        .order_by(VerdictRow.id)
    )
    for row in connection.execute(query):
        yield Judged(row.id, annotator_of(row), row.comparison_id, Choice(row.choice))


def unanswered(connection: Connection, now: datetime) -> Iterator[tuple[Annotator, int, timedelta]]:
    """Yield who may have which comparison before them, and for how long still: views without a verdict whose time runs.

    Views that an import brought ended when they began.
    """
    query = (
        select(
            ViewRow.comparison_id,
            ViewRow.expires_at,
            AnnotatorRow.name,
            AnnotatorRow.kind,
            AnnotatorRow.account_id,
        )
        .join(AnnotatorRow, ViewRow.annotator_id == AnnotatorRow.id)
        .outerjoin(VerdictRow, VerdictRow.view_id == ViewRow.id)
        .where(ViewRow.expires_at > now, VerdictRow.id.is_(None))
        .order_by(ViewRow.id)
    )
    for row in connection.execute(query):
        yield annotator_of(row), row.comparison_id, row.expires_at - now


def show(annotator: Annotator, draw: Draw, lease: timedelta, connection: Connection) -> Shown | None:
    """Store that a comparison is shown, and return it as it is; None where its words were deleted meanwhile."""
    texts = connection.execute(_texts(), {"comparison": draw.comparison}).one()
    if texts.gone:
        return None
    return _shown(insert_view(connection, annotator, draw, lease), texts, draw.exchanged)


def kept(connection: Connection, annotator: Annotator, view: str) -> tuple[int, Shown] | None:
    """Return what a view showed and its comparison, where it is still to be answered.

    None where it has a verdict, was not shown to this annotator, was reported, or its words were deleted meanwhile.
    """
    row = connection.execute(_VIEW, {"view": view} | named(annotator)).first()
    if row is None or connection.execute(_CHOICE, {"view": row.id}).first() is not None:
        return None
    texts = connection.execute(_texts(), {"comparison": row.comparison_id}).one()
    if texts.gone or row.comparison_id in held_back(connection):
        return None
    return row.comparison_id, _shown(view, texts, row.exchanged)


def _shown(view: str, texts: Row[Any, str, str, str, str, bool], exchanged: bool) -> Shown:
    (left, left_end), (right, right_end) = (
        ((texts.right, texts.right_finish), (texts.left, texts.left_finish))
        if exchanged
        else ((texts.left, texts.left_finish), (texts.right, texts.right_finish))
    )
    limit = FinishReason.LENGTH.value
    return Shown(view, from_messages(texts.turns), left, right, (left_end == limit, right_end == limit))


@cache
def _texts() -> Select[Any, str, str, str, str, bool]:
    """Return the query for the prompt and the responses of `comparison`, how these ended, and whether any is gone."""
    left, right = aliased(ResponseRow), aliased(ResponseRow)
    return (
        select(
            PromptRow.turns,
            left.text.label("left"),
            right.text.label("right"),
            left.finish_reason.label("left_finish"),
            right.finish_reason.label("right_finish"),
            or_(*(one.digest.startswith(GONE) for one in (PromptRow, left, right))).label("gone"),
        )
        .select_from(ComparisonRow)
        .join(left, ComparisonRow.left_id == left.id)
        .join(right, ComparisonRow.right_id == right.id)
        .join(PromptRow, left.prompt_id == PromptRow.id)
        .where(ComparisonRow.id == bindparam("comparison"))
    )


def answer(
    annotator: Annotator, given: Given, connection: Connection, *, shortest: timedelta = timedelta(0)
) -> tuple[int, Choice]:
    """Store a verdict unless its view has one; return its comparison, and the choice as it is stored.

    Raises NoSuchView; TooSoon where the page says that the pair was visible for less than `shortest`, or where less
    time has passed since it was given out; JudgedAlready where two pages of one person showed it: a second verdict on
    the same two answers says something only where it was asked for.
    """
    view = _view(connection, annotator, given.view)
    given_already = {"view": view.id, "comparison": view.comparison_id} | named(annotator)
    said = {row.view_id: row.choice for row in connection.execute(_JUDGED, given_already)}
    if view.id in said:
        return view.comparison_id, Choice(said[view.id])
    passed = datetime.now(UTC) - view.created_at
    known = [passed] if passed >= timedelta(0) else []  # where the clock was set back it says nothing
    known += [] if given.seconds is None else [timedelta(seconds=given.seconds)]
    if min(known, default=shortest) < shortest:
        raise TooSoon(f"this pair was not visible for {shortest / timedelta(milliseconds=1):.0f} ms: look at it first")
    if said and view.drawn != DrawnHow.REPEAT.value:
        raise JudgedAlready("you have judged this pair already, on another page: that verdict stands")
    verdict = Verdict(
        choice=given.choice.swapped() if view.exchanged else given.choice,
        annotator=annotator,
        strength=given.strength,
        seconds=given.seconds,
        reasons=given.reasons,
        comment=given.comment,
        exchanged=view.exchanged,
    )
    insert_answer(connection, view.comparison_id, verdict, view.id)
    return view.comparison_id, verdict.choice


def withdraw(annotator: Annotator, connection: Connection, *, view: str | None = None) -> tuple[Draw, Beside] | None:
    """Take back the verdict on a view, or the latest that came from any.

    Return what is to be shown again, sides as before, and what was said about it. A verdict on what nobody is to be
    shown stays (words that were deleted, a pair that somebody has reported): there is nothing to judge again.
    """
    query = (
        select(
            VerdictRow.id,
            VerdictRow.strength,
            VerdictRow.reasons,
            VerdictRow.comment,
            ViewRow.comparison_id,
            ViewRow.exchanged,
            ViewRow.drawn,
            ViewRow.probability,
            ViewRow.pool,
        )
        .join(ViewRow, VerdictRow.view_id == ViewRow.id)
        .join(AnnotatorRow, VerdictRow.annotator_id == AnnotatorRow.id)
        .where(is_annotator(annotator), STANDING)
        .order_by(VerdictRow.id.desc())
        .limit(1)
    )
    if view is not None:
        query = query.where(ViewRow.token == view)
    row = connection.execute(query).first()
    if row is None or connection.execute(_texts(), {"comparison": row.comparison_id}).one().gone:
        return None
    if is_reported(connection, row.comparison_id):
        return None
    connection.execute(insert(WithdrawalRow), {"verdict_id": row.id, "created_at": datetime.now(UTC)})
    draw = Draw(row.comparison_id, DrawnHow(row.drawn), row.probability, row.exchanged, row.pool)
    return draw, Beside(row.strength, tuple(row.reasons), row.comment)


def flag(annotator: Annotator, view: str, reason: FlagReason, note: str, connection: Connection) -> int:
    """Report the comparison of a view, and return it. Raises NoSuchView."""
    comparison: int = _view(connection, annotator, view).comparison_id
    raise_flag(connection, annotator, reason, note, comparison=comparison)
    return comparison


def _view(connection: Connection, annotator: Annotator, view: str) -> Row[int, int, bool, str, datetime]:
    row = connection.execute(_VIEW, {"view": view} | named(annotator)).first()
    if row is None:
        raise NoSuchView("this pair was not shown to you: open the labelling page again")
    return row


def count_shown(connection: Connection) -> tuple[int, int]:
    """Return how many comparisons the labelling page has shown, and on how many of these it got a verdict."""
    shown = select(func.count(ViewRow.comparison_id.distinct()))
    answered = shown.join(VerdictRow, VerdictRow.view_id == ViewRow.id)
    return connection.execute(shown).scalar_one(), connection.execute(answered).scalar_one()
