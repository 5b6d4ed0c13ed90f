"""How a person's words are deleted: a tombstone stands where they were, events and counts stay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Text, cast, func, literal, select, true, update
from sqlalchemy.orm import InstrumentedAttribute

from manners.store.annotators import is_annotator
from manners.store.records import to_messages
from manners.store.statements import chunks
from manners.store.store import TOMBSTONE
from manners.store.tables import (
    AnnotatorRow,
    ComparisonRow,
    ConversationRow,
    FlagRow,
    MessageRow,
    PromptRow,
    ResponseRow,
    VerdictRow,
    VersionRow,
)
from manners.store.texts import CHAT
from manners.types import DELETED, Annotator, AskedHow, Choice


def redact(connection: Connection, annotator: Annotator, conversation: int) -> tuple[list[int], list[str]]:
    """Blank the words of somebody's conversation.

    Returns the comparisons on its words, and the versions that may have learned from verdicts on them.
    """
    mine = MessageRow.conversation_id == conversation
    asked = select(MessageRow.comparison_id).where(mine, MessageRow.comparison_id.is_not(None))
    comparisons = {one for one in connection.execute(asked).scalars() if one is not None}
    answers = {row.id for row in _shown(connection, ConversationRow.id == conversation)}
    comparisons |= _blank_texts(connection, conversation)
    _forget_notes(connection, annotator, comparisons, answers)
    connection.execute(update(MessageRow).where(mine, MessageRow.text.is_not(None)).values(text=DELETED))
    now = datetime.now(UTC)
    connection.execute(update(ConversationRow).where(ConversationRow.id == conversation).values(deleted_at=now))
    return sorted(comparisons), _forget_comments(connection, comparisons)


def _blank_texts(connection: Connection, conversation: int) -> set[int]:
    """Blank what this conversation alone has brought in, and return the comparisons on that.

    A prompt goes with all answers to it, whoever was asked about them since: they were opened on this person's words.
    """
    own = _shown(connection, ConversationRow.id == conversation)
    own_prompts = {row.prompt_id for row in own}
    elsewhere = (ConversationRow.id != conversation) & ConversationRow.deleted_at.is_(None)
    others = _shown(connection, elsewhere & ResponseRow.prompt_id.in_(own_prompts))
    brought = select(PromptRow.id).where(PromptRow.id.in_(own_prompts), PromptRow.source == CHAT)
    prompts = set(connection.execute(brought).scalars()) - {row.prompt_id for row in others}
    alone = {row.id for row in own} - {row.id for row in others}
    to_them = ResponseRow.prompt_id.in_(prompts) & (ResponseRow.text != DELETED)
    answers = set(connection.execute(select(ResponseRow.id).where(to_them)).scalars())
    answers |= alone - _asked_about(connection, alone)
    for chunk in chunks(prompts):
        gone: dict[str, Any] = {"turns": to_messages(TOMBSTONE), "digest": _tombstone(PromptRow.id)}
        connection.execute(update(PromptRow).where(PromptRow.id.in_(chunk)).values(gone))
    comparisons: set[int] = set()
    for chunk in chunks(answers):
        gone = {"text": DELETED, "digest": _tombstone(ResponseRow.id)}
        connection.execute(update(ResponseRow).where(ResponseRow.id.in_(chunk)).values(gone))
        on_them = ComparisonRow.left_id.in_(chunk) | ComparisonRow.right_id.in_(chunk)
        comparisons |= set(connection.execute(select(ComparisonRow.id).where(on_them)).scalars())
    return comparisons


def _tombstone(key: InstrumentedAttribute[int]) -> ColumnElement[str]:
    return literal("deleted ") + cast(key, Text())


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
        query = select(side).where(
            side.in_(responses), ComparisonRow.asked_how.not_in((AskedHow.CHAT.value, AskedHow.GOLD.value))
        )
        found |= set(connection.execute(query).scalars())
    return found


def _forget_notes(connection: Connection, annotator: Annotator, comparisons: set[int], answers: set[int]) -> None:
    """Blank what somebody wrote when reporting some answers, and what anybody wrote when reporting some comparisons."""
    theirs = FlagRow.annotator_id.in_(select(AnnotatorRow.id).where(is_annotator(annotator)))
    for column, keys, whose in ((FlagRow.comparison_id, comparisons, true()), (FlagRow.response_id, answers, theirs)):
        for chunk in chunks(keys):
            connection.execute(update(FlagRow).where(column.in_(chunk), whose).values(note=""))


def _forget_comments(connection: Connection, comparisons: set[int]) -> list[str]:
    """Blank the comments on some comparisons, and return the versions that may have learned from verdicts on them."""
    firsts = []
    for chunk in chunks(comparisons):
        on_them = VerdictRow.comparison_id.in_(chunk)
        connection.execute(update(VerdictRow).where(on_them, VerdictRow.comment != "").values(comment=""))
        chosen = select(func.min(VerdictRow.id)).where(on_them, VerdictRow.choice != Choice.SKIP.value)
        firsts.append(connection.execute(chosen).scalar())
    first = min((one for one in firsts if one is not None), default=None)
    if first is None:
        return []
    return list(connection.execute(select(VersionRow.name).where(VersionRow.watermark >= first)).scalars())
