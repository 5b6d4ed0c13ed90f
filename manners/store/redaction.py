"""How a person's words are deleted: a tombstone stands where they were, events and counts stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, Row, Text, cast, func, literal, select, true, update
from sqlalchemy.orm import InstrumentedAttribute

from manners.store.annotators import is_annotator
from manners.store.prompts import TOMBSTONE
from manners.store.records import to_messages
from manners.store.statements import chunks
from manners.store.tables import (
    AnnotatorRow,
    ComparisonRow,
    ConversationRow,
    FlagRow,
    MessageRow,
    PromptRow,
    RequestRow,
    ResponseRow,
    VerdictRow,
    VersionRow,
)
from manners.store.texts import CHAT, GONE
from manners.store.traces import leave_traces
from manners.types import DELETED, MEASURES, Annotator, AskedHow, Choice

FROM_CHATS = (AskedHow.CHAT.value, AskedHow.CANDIDATE.value, AskedHow.GOLD.value)
"""Comparisons on answers that a chat has had already."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """What was deleted, and what else is to know of it."""

    comparisons: list[int]
    """Those on its words."""
    versions: list[str]
    """Those that may have learned from verdicts on them."""
    texts: frozenset[str] = field(default=frozenset(), repr=False)
    """The words themselves, to be looked for in files."""


def redact(connection: Connection, annotator: Annotator, conversation: int) -> Redacted:
    """Blank the words of somebody's conversation."""
    mine = MessageRow.conversation_id == conversation
    said = connection.execute(select(MessageRow.text).where(mine, MessageRow.text.is_not(None))).scalars().all()
    asked = select(MessageRow.comparison_id).where(mine, MessageRow.comparison_id.is_not(None))
    comparisons = {one for one in connection.execute(asked).scalars() if one is not None}
    answers = {row.id for row in _shown(connection, ConversationRow.id == conversation)}
    prompts, alone = _brought(connection, conversation)
    gone = blank_texts(connection, prompts, alone)
    comparisons |= gone.comparisons
    theirs = FlagRow.annotator_id.in_(select(AnnotatorRow.id).where(is_annotator(annotator)))
    notes = forget_notes(connection, FlagRow.comparison_id, comparisons)
    notes |= forget_notes(connection, FlagRow.response_id, answers, theirs)
    connection.execute(update(MessageRow).where(mine, MessageRow.text.is_not(None)).values(text=DELETED))
    now = datetime.now(UTC)
    connection.execute(update(ConversationRow).where(ConversationRow.id == conversation).values(deleted_at=now))
    leave_traces(connection)
    versions, comments = forget_comments(connection, VerdictRow.comparison_id, comparisons)
    texts = frozenset(text for text in said if text) | gone.texts | comments | notes
    return Redacted(sorted(comparisons), versions, texts)


def _brought(connection: Connection, conversation: int) -> tuple[set[int], set[int]]:
    """Return the prompts that this conversation alone has brought in, and the answers that it alone has shown."""
    own = _shown(connection, ConversationRow.id == conversation)
    own_prompts = {row.prompt_id for row in own}
    elsewhere = (ConversationRow.id != conversation) & ConversationRow.deleted_at.is_(None)
    others = _shown(connection, elsewhere & ResponseRow.prompt_id.in_(own_prompts))
    brought = select(PromptRow.id).where(PromptRow.id.in_(own_prompts), PromptRow.source == CHAT)
    prompts = set(connection.execute(brought).scalars()) - {row.prompt_id for row in others}
    alone = {row.id for row in own} - {row.id for row in others}
    return prompts, alone - _asked_about(connection, alone)


@dataclass(frozen=True, slots=True)
class Blanked:
    """The comparisons on texts that are gone, and these texts."""

    comparisons: set[int]
    texts: frozenset[str]


def blank_texts(connection: Connection, prompts: Iterable[int], answers: Iterable[int]) -> Blanked:
    """Blank prompts with all answers to them, and other answers.

    A prompt goes with all answers to it, whoever was asked about them since: they were opened on this person's words.
    """
    texts: set[str] = set()
    responses = set(answers)
    for chunk in chunks(prompts):
        its = PromptRow.id.in_(chunk)
        for turns in connection.execute(select(PromptRow.turns).where(its)).scalars():
            texts |= {turn["content"] for turn in turns}
        connection.execute(
            update(PromptRow).where(its).values(turns=to_messages(TOMBSTONE), digest=_tombstone(PromptRow.id))
        )
        to_them = ResponseRow.prompt_id.in_(chunk) & (ResponseRow.text != DELETED)
        responses |= set(connection.execute(select(ResponseRow.id).where(to_them)).scalars())
    comparisons: set[int] = set()
    for chunk in chunks(responses):
        theirs = ResponseRow.id.in_(chunk)
        texts |= set(connection.execute(select(ResponseRow.text).where(theirs)).scalars())
        connection.execute(update(ResponseRow).where(theirs).values(text=DELETED, digest=_tombstone(ResponseRow.id)))
        on_them = ComparisonRow.left_id.in_(chunk) | ComparisonRow.right_id.in_(chunk)
        comparisons |= set(connection.execute(select(ComparisonRow.id).where(on_them)).scalars())
    for chunk in chunks(comparisons):  # a digest of what was sent, by which one could try whether it was some text
        connection.execute(update(RequestRow).where(RequestRow.comparison_id.in_(chunk)).values(content=DELETED))
    return Blanked(comparisons, frozenset(texts - {DELETED, ""}))


def _tombstone(key: InstrumentedAttribute[int]) -> ColumnElement[str]:
    return literal(GONE) + cast(key, Text())


def _shown(connection: Connection, condition: ColumnElement[bool]) -> Sequence[Row[int, int]]:
    """Return the answers that were shown in some conversations, chosen or not, each with its prompt."""
    query = (
        select(ResponseRow.id, ResponseRow.prompt_id)
        .select_from(MessageRow)
        .join(ConversationRow, MessageRow.conversation_id == ConversationRow.id)
        .outerjoin(ComparisonRow, MessageRow.comparison_id == ComparisonRow.id)
        .join(ResponseRow, ResponseRow.id.in_([MessageRow.response_id, ComparisonRow.left_id, ComparisonRow.right_id]))
        .where(condition)
    )
    return connection.execute(query).all()


def _asked_about(connection: Connection, responses: set[int]) -> set[int]:
    """Return which of these answers somebody was asked about for another reason than that a chat had them."""
    found: set[int] = set()
    for side in (ComparisonRow.left_id, ComparisonRow.right_id):
        query = select(side).where(side.in_(responses), ComparisonRow.asked_how.not_in(FROM_CHATS))
        found |= set(connection.execute(query).scalars())
    return found


def forget_notes(
    connection: Connection,
    column: InstrumentedAttribute[int | None] | InstrumentedAttribute[int],
    keys: Iterable[int],
    whose: ColumnElement[bool] | None = None,
) -> frozenset[str]:
    """Blank what was written in the reports whose `column` is one of some keys, by anybody or by `whose`; return it."""
    words: set[str] = set()
    for chunk in chunks(keys):
        given = column.in_(chunk) & (true() if whose is None else whose)
        words |= set(connection.execute(select(FlagRow.note).where(given)).scalars())
        connection.execute(update(FlagRow).where(given).values(note=""))
    return frozenset(words - {""})


def forget_comments(
    connection: Connection, column: InstrumentedAttribute[int], keys: Iterable[int]
) -> tuple[list[str], frozenset[str]]:
    """Blank the comments and the reasons of the verdicts whose `column` is one of some keys.

    Returns the versions that may have learned from these verdicts, and the words that are gone.
    """
    firsts = []
    words: set[str] = set()
    for chunk in chunks(keys):
        given = column.in_(chunk)
        for row in connection.execute(select(VerdictRow.comment, VerdictRow.reasons).where(given)):
            words |= {row.comment, *map(str, row.reasons)}
        connection.execute(update(VerdictRow).where(given, VerdictRow.comment != "").values(comment=""))
        connection.execute(update(VerdictRow).where(given, cast(VerdictRow.reasons, Text()) != "[]").values(reasons=[]))
        teaches = ComparisonRow.asked_how.not_in([how.value for how in MEASURES])
        chosen = select(func.min(VerdictRow.id)).join(ComparisonRow).where(given, teaches)
        chosen = chosen.where(VerdictRow.choice != Choice.SKIP.value)
        firsts.append(connection.execute(chosen).scalar())
    first = min((one for one in firsts if one is not None), default=None)
    if first is None:
        return [], frozenset(words - {""})
    learned = select(VersionRow.name).where(VersionRow.watermark >= first)
    return list(connection.execute(learned).scalars()), frozenset(words - {""})
